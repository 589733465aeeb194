"""Run a coroutine over many items and never lose one.

``await run_batch(items, handler)`` keeps every item's state in one SQLite file, so that a run which was killed goes on
where it stopped. ``Runner`` does the same inside a service. See README.md.
"""

from asyncrunner.attempt import Attempt, current_attempt
from asyncrunner.batch import run_batch, stream_batch
from asyncrunner.errors import (
    AsyncRunnerError,
    AttemptError,
    AttemptTimeout,
    BatchFailed,
    ConfigurationError,
    Fail,
    HandlerCancelled,
    HandlerUnresponsive,
    InvalidKey,
    ItemError,
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
from asyncrunner.item import Counts, Status
from asyncrunner.progress import ProgressUpdate
from asyncrunner.report import BatchReport, ItemOutcome
from asyncrunner.retry import RetryPolicy
from asyncrunner.runner import Handler, Runner

__all__ = [
    "AsyncRunnerError",
    "Attempt",
    "AttemptError",
    "AttemptTimeout",
    "BatchFailed",
    "BatchReport",
    "ConfigurationError",
    "Counts",
    "Fail",
    "Handler",
    "HandlerCancelled",
    "HandlerUnresponsive",
    "InvalidKey",
    "ItemError",
    "ItemNotStorable",
    "ItemOutcome",
    "KeyConflict",
    "NotAStore",
    "PayloadUnreadable",
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
    "run_batch",
    "stream_batch",
]
