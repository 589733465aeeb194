"""Run a coroutine over many items and never lose one.

``await run_batch(items, handler)`` keeps the state of every item in one SQLite file, so that a run that was killed continues
where it stopped. ``Runner`` does the same inside a service, and ``Client`` submits items from other processes. See README.md.
"""

from asyncrunner.attempt import Attempt, current_attempt
from asyncrunner.batch import run_batch, stream_batch
from asyncrunner.client import BlockingClient, BlockingHandle, Client
from asyncrunner.control import Control
from asyncrunner.desk import Handle
from asyncrunner.errors import (
    AsyncRunnerError,
    AttemptError,
    AttemptTimeout,
    BatchFailed,
    BatchNotFound,
    CheckpointNotStorable,
    ChildDied,
    ClaimLost,
    ConfigurationError,
    Fail,
    HandlerCancelled,
    HandlerUnresponsive,
    InvalidKey,
    ItemCancelled,
    ItemError,
    ItemFailed,
    ItemNotFound,
    ItemNotStorable,
    KeyConflict,
    NotAStore,
    PayloadUnreadable,
    ResultNotStorable,
    Retry,
    SchemaTooNew,
    StoreClosed,
    StoreError,
    StoreNotFound,
    StoreReplaced,
    StoreUnavailable,
    WorkerLost,
)
from asyncrunner.guard import FailureShare
from asyncrunner.handler import Handler
from asyncrunner.item import Counts, Status
from asyncrunner.logs import AttemptFilter
from asyncrunner.planning import Plan, plan_batch
from asyncrunner.progress import ProgressUpdate
from asyncrunner.report import BatchReport, ItemOutcome
from asyncrunner.retry import RetryPolicy
from asyncrunner.runner import Runner

__all__ = [
    "AsyncRunnerError",
    "Attempt",
    "AttemptError",
    "AttemptFilter",
    "AttemptTimeout",
    "BatchFailed",
    "BatchNotFound",
    "BatchReport",
    "BlockingClient",
    "BlockingHandle",
    "CheckpointNotStorable",
    "ChildDied",
    "ClaimLost",
    "Client",
    "ConfigurationError",
    "Control",
    "Counts",
    "Fail",
    "FailureShare",
    "Handle",
    "Handler",
    "HandlerCancelled",
    "HandlerUnresponsive",
    "InvalidKey",
    "ItemCancelled",
    "ItemError",
    "ItemFailed",
    "ItemNotFound",
    "ItemNotStorable",
    "ItemOutcome",
    "KeyConflict",
    "NotAStore",
    "PayloadUnreadable",
    "Plan",
    "ProgressUpdate",
    "ResultNotStorable",
    "Retry",
    "RetryPolicy",
    "Runner",
    "SchemaTooNew",
    "Status",
    "StoreClosed",
    "StoreError",
    "StoreNotFound",
    "StoreReplaced",
    "StoreUnavailable",
    "WorkerLost",
    "current_attempt",
    "plan_batch",
    "run_batch",
    "stream_batch",
]
