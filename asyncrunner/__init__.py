"""Run a coroutine over many items and never lose one.

``await run_batch(items, handler)`` keeps the state of every item in one SQLite file. If the run is killed, the next run
continues where the killed one stopped. ``Runner`` does the same inside a service, and ``Client`` submits items from
other processes. See README.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from asyncrunner.admin.control import Control
    from asyncrunner.admin.read_models import History, HistoryPoint
    from asyncrunner.batch.api import run_batch, run_batch_sync, stream_batch
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
        ItemUnfinished,
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
    "History",
    "HistoryPoint",
    "InvalidKey",
    "ItemCancelled",
    "ItemError",
    "ItemFailed",
    "ItemNotFound",
    "ItemNotStorable",
    "ItemOutcome",
    "ItemUnfinished",
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
    "run_batch_sync",
    "stream_batch",
]

# A name is imported when it is first used: a program that submits items does not wait for the import of the runner.
_NAMES: Final = {
    "asyncrunner.admin.control": ("Control",),
    "asyncrunner.admin.read_models": (
        "History",
        "HistoryPoint",
    ),
    "asyncrunner.batch.api": (
        "run_batch",
        "run_batch_sync",
        "stream_batch",
    ),
    "asyncrunner.batch.plan": (
        "Plan",
        "plan_batch",
    ),
    "asyncrunner.batch.progress": ("ProgressUpdate",),
    "asyncrunner.batch.report": (
        "BatchReport",
        "ItemOutcome",
    ),
    "asyncrunner.domain.failure_limit": ("FailureShare",),
    "asyncrunner.domain.item": (
        "Counts",
        "Status",
    ),
    "asyncrunner.domain.retry": ("RetryPolicy",),
    "asyncrunner.errors": (
        "AsyncRunnerError",
        "AttemptError",
        "AttemptTimeout",
        "BatchFailed",
        "BatchNotFound",
        "CheckpointNotStorable",
        "ChildDied",
        "ClaimLost",
        "ConfigurationError",
        "Fail",
        "HandlerCancelled",
        "HandlerUnresponsive",
        "InvalidKey",
        "ItemCancelled",
        "ItemError",
        "ItemFailed",
        "ItemNotFound",
        "ItemNotStorable",
        "ItemUnfinished",
        "KeyConflict",
        "Later",
        "NotAStore",
        "PayloadUnreadable",
        "ResultNotStorable",
        "Retry",
        "SchemaTooNew",
        "SourceCancelled",
        "StoreClosed",
        "StoreError",
        "StoreNotFound",
        "StoreReplaced",
        "StoreUnavailable",
        "WorkerLost",
    ),
    "asyncrunner.execution.attempt": (
        "Attempt",
        "current_attempt",
    ),
    "asyncrunner.execution.item_log": ("AttemptFilter",),
    "asyncrunner.runner.runner": ("Runner",),
    "asyncrunner.submission.blocking_client": (
        "BlockingClient",
        "BlockingHandle",
    ),
    "asyncrunner.submission.client": ("Client",),
    "asyncrunner.submission.handle": ("Handle",),
    "asyncrunner.submission.handler": ("Handler",),
}
_MODULE_OF: Final = {name: module for module, names in _NAMES.items() for name in names}
_MODULES: Final = ("errors", "events")


if not TYPE_CHECKING:  # else type checkers would accept every name

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f"asyncrunner.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
