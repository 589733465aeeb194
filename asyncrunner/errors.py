"""Every exception asyncrunner raises or records, by cause.

::

    AsyncRunnerError
    |-- ConfigurationError (ValueError)    a handler, an option or a target that cannot work
    |-- ItemError                          an item that cannot be accepted; nothing of it was written
    |   |-- ItemNotStorable (TypeError)    it has no faithful JSON form, or does not fit the handler
    |   |-- InvalidKey (TypeError)         its key is no text or int, or differs from run to run
    |   `-- KeyConflict (ValueError)       its key exists with another payload
    |-- BatchFailed                        BatchReport.raise_for_failures()
    |-- BatchNotFound (LookupError)        no batch of that name is in the file
    |-- ItemFailed                         Handle.result() of an item that failed
    |-- ItemCancelled                      Handle.result() of an item that was cancelled
    |-- ItemNotFound (LookupError)         no such item is in the batch
    |-- CheckpointNotStorable (TypeError)  what a handler saves has no JSON form, or is too large
    |-- ClaimLost                          what a handler saves: its item is somebody else's by now
    |-- StoreError
    |   |-- StoreUnavailable               locked, full, unreadable: may pass, is retried
    |   |-- StoreNotFound                  there is no such file
    |   |-- NotAStore                      the file is not asyncrunner's
    |   |-- SchemaTooNew                   a newer asyncrunner wrote it
    |   |-- StoreReplaced                  the file was deleted or replaced while in use
    |   `-- StoreClosed                    used before open, after close, or in a forked child
    `-- AttemptError                       recorded as the error of an item, never raised to the caller
        |-- AttemptTimeout (TimeoutError)  ran longer than its timeout
        |-- HandlerCancelled               the handler cancelled itself
        |-- HandlerUnresponsive            did not end after it was cancelled
        |-- ResultNotStorable              returned something that has no faithful JSON form
        |-- ChildDied                      the process that ran it ended without an answer
        |-- PayloadUnreadable              the stored payload no longer fits the handler's annotation
        `-- WorkerLost                     the process that ran it died or hung

    Retry, Fail                            what a handler raises to choose its outcome

Errors carry facts as attributes and say what to do next.
"""

from __future__ import annotations

import math

__all__ = [
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
    "KeyConflict",
    "NotAStore",
    "PayloadUnreadable",
    "ResultNotStorable",
    "Retry",
    "SchemaTooNew",
    "StoreClosed",
    "StoreError",
    "StoreNotFound",
    "StoreReplaced",
    "StoreUnavailable",
    "WorkerLost",
]


class AsyncRunnerError(Exception):
    """Base of everything asyncrunner raises by itself."""


class ConfigurationError(AsyncRunnerError, ValueError):
    """A handler, option or target that cannot work, found before anything runs."""


class ItemError(AsyncRunnerError):
    """An item that cannot be accepted. ``position`` is its place in the input, from 0, where that is known."""

    def __init__(self, message: str, *, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class ItemNotStorable(ItemError, TypeError):
    """The item has no faithful JSON form, or does not fit the annotation of the handler's parameter."""


class InvalidKey(ItemError, TypeError):
    """A key is neither text nor int, is empty or too long, or would differ from run to run."""


class KeyConflict(ItemError, ValueError):
    """The key ``key`` exists in the batch with another payload, and ``on_change`` is ``"error"``."""

    def __init__(self, message: str, *, key: str, position: int | None = None) -> None:
        super().__init__(message, position=position)
        self.key = key


class BatchFailed(AsyncRunnerError):
    """Some items of a batch failed. ``failed`` and ``total`` are counts of items."""

    def __init__(self, message: str, *, failed: int, total: int) -> None:
        super().__init__(message)
        self.failed = failed
        self.total = total


class BatchNotFound(AsyncRunnerError, LookupError):
    """There is no batch of that name in the file."""


class ItemNotFound(AsyncRunnerError, LookupError):
    """There is no item with that key in the batch."""


class ItemFailed(AsyncRunnerError):
    """The item failed for good. ``error`` is what is stored of the last attempt: the type and message of what it raised."""

    def __init__(self, message: str, *, batch: str, key: str, error: str, attempts: int) -> None:
        super().__init__(message)
        self.batch = batch
        self.key = key
        self.error = error
        self.attempts = attempts


class ItemCancelled(AsyncRunnerError):
    """The item was cancelled before it was done."""

    def __init__(self, message: str, *, batch: str, key: str) -> None:
        super().__init__(message)
        self.batch = batch
        self.key = key


class CheckpointNotStorable(AsyncRunnerError, TypeError):
    """What a handler wants to save has no JSON form, or is too large."""


class ClaimLost(AsyncRunnerError):
    """The item is somebody else's by now, so this attempt can save nothing."""


class StoreError(AsyncRunnerError):
    """The file cannot be used. What was reported as done before stays done."""


class StoreUnavailable(StoreError):
    """The file is locked, full or unreadable for now. The operation had no effect and may be repeated."""


class StoreNotFound(StoreError):
    """There is no file at that path; none was created."""


class NotAStore(StoreError):
    """The file is not one of asyncrunner's; it was not changed."""


class SchemaTooNew(StoreError):
    """The file was written by a newer asyncrunner; it was not changed."""


class StoreReplaced(StoreError):
    """The file was deleted, moved or replaced while a runner used it; the runner stops."""


class StoreClosed(StoreError):
    """The store is not open here: before open, after close, or in a forked child."""


class AttemptError(AsyncRunnerError):
    """Why an attempt failed, where it was not the handler's own exception. Recorded, never raised to the caller."""


class AttemptTimeout(AttemptError, TimeoutError):
    """The attempt ran longer than its ``timeout``."""


class HandlerCancelled(AttemptError):
    """The handler raised ``asyncio.CancelledError`` though nobody had asked it to stop."""


class HandlerUnresponsive(AttemptError):
    """The handler did not end after it was cancelled and was left behind."""


class ChildDied(AttemptError):
    """The process that ran a handler with ``run_in="process"`` ended without an answer: a segfault, ``os._exit`` or a kill."""


class ResultNotStorable(AttemptError):
    """The handler returned something that has no faithful JSON form."""


class PayloadUnreadable(AttemptError):
    """The stored payload does not fit the annotation of the handler's parameter."""


class WorkerLost(AttemptError):
    """The worker that held the item died (its lock was free) or hung (its heartbeat stood still)."""


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


class Retry(Exception):
    """Raised by a handler: this attempt failed for now, run the item again.

    ``after``: seconds to wait at least (a year at most); jitter only adds. Without it the batch's ``RetryPolicy`` decides.
    ``pause``: let the whole batch wait that long, in every process on the file and over a restart.
    The attempt counts: with none left the item fails.
    """

    def __init__(self, reason: str = "", *, after: float | None = None, pause: bool = False) -> None:
        if after is not None and not _is_seconds(after):
            raise ConfigurationError(f"Retry(after={after!r}): give the seconds to wait, 0 or more")
        if pause and after is None:
            raise ConfigurationError("Retry(pause=True) needs after=: how many seconds shall the batch rest?")
        super().__init__(reason or "the handler asked for a retry")
        self.after = after
        self.pause = pause


class Fail(Exception):
    """Raised by a handler: this item failed for good and is not retried."""
