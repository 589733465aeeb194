"""Run a coroutine over many items and never lose one.

``await run_batch(items, handler)`` keeps the state of every item in one SQLite file. If the run is killed, the next run
continues where the killed one stopped. ``Runner`` does the same inside a service, and ``Client`` submits items from
other processes. See README.md.
"""

from asyncrunner.admin.control import Control
from asyncrunner.batch.api import run_batch, stream_batch
from asyncrunner.batch.plan import Plan, plan_batch
from asyncrunner.batch.progress import ProgressUpdate
from asyncrunner.batch.report import BatchReport, ItemOutcome
from asyncrunner.domain.failure_limit import FailureShare
from asyncrunner.domain.item import Counts, Status
from asyncrunner.domain.retry import RetryPolicy
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
    Later,
    NotAStore,
    PayloadUnreadable,
    ResultNotStorable,
    Retry,
    SchemaTooNew,
    SourceCancelled,
    StoreClosed,
    StoreError,
    StoreNotFound,
    StoreReplaced,
    StoreUnavailable,
    WorkerLost,
)
from asyncrunner.execution.attempt import Attempt, current_attempt
from asyncrunner.execution.item_log import AttemptFilter
from asyncrunner.runner.runner import Runner
from asyncrunner.submission.blocking_client import BlockingClient, BlockingHandle
from asyncrunner.submission.client import Client
from asyncrunner.submission.handle import Handle
from asyncrunner.submission.handler import Handler

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
    "Later",
    "NotAStore",
    "PayloadUnreadable",
    "Plan",
    "ProgressUpdate",
    "ResultNotStorable",
    "Retry",
    "RetryPolicy",
    "Runner",
    "SchemaTooNew",
    "SourceCancelled",
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
