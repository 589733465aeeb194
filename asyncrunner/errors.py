"""Every exception that asyncrunner raises or records, by cause.

::

    AsyncRunnerError
    |-- ConfigurationError (ValueError)    a handler, an option or a target cannot work
    |-- ItemError                          an item cannot be accepted; nothing of it is written
    |   |-- ItemNotStorable (TypeError)    it has no faithful JSON form, or does not fit the handler
    |   |-- InvalidKey (TypeError)         its key is neither text nor int, or would differ from run to run
    |   `-- KeyConflict (ValueError)       its key exists with another payload
    |-- SourceCancelled (RuntimeError)     the source of the items ended by CancelledError or GeneratorExit
    |-- ProcessesFailed                    child processes of processes= cannot run, or die again and again
    |-- SetupFailed                        the context manager of setup= raised an exception
    |-- BatchFailed                        raised by BatchReport.results() and raise_for_failures()
    |-- BatchNotFound (LookupError)        the file has no batch of that name
    |-- ItemFailed                         raised by Handle.result() for an item that failed
    |-- ItemCancelled                      raised by Handle.result() for an item that was cancelled
    |-- ItemUnfinished                     raised by BatchReport.results() for an item that has not ended
    |-- ItemNotFound (LookupError)         the batch has no item with that key
    |-- CheckpointNotStorable (TypeError)  a checkpoint has no JSON form or is too large
    |-- ClaimLost                          a checkpoint was refused: the attempt no longer holds the item
    |-- StoreError
    |   |-- StoreUnavailable               locked, full or unreadable for now; the call is retried
    |   |-- StoreNotFound                  the file does not exist
    |   |-- NotAStore                      the file was not made by asyncrunner
    |   |-- SchemaTooNew                   a newer asyncrunner wrote it
    |   |-- StoreReplaced                  the file was deleted or replaced while in use
    |   `-- StoreClosed                    used before open, after close, or in a forked child
    `-- AttemptError                       recorded as the error of an item, never raised to the caller
        |-- AttemptTimeout (TimeoutError)  the handler ran longer than its timeout
        |-- HandlerCancelled               the handler raised CancelledError without being cancelled
        |-- HandlerUnresponsive            the handler did not end after it was cancelled
        |-- ResultNotStorable              the handler returned a value that has no faithful JSON form
        |-- ChildDied                      the child process ended without an outcome, or did not find the handler
        |-- PayloadUnreadable              the stored payload no longer fits the handler's annotation
        `-- WorkerLost                     the worker that held the item died or hung

    Retry, Later, Fail                     raised by a handler to choose its outcome

The attributes of an error are its facts; its message names the next step.
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
    "ItemUnfinished",
    "KeyConflict",
    "Later",
    "NotAStore",
    "PayloadUnreadable",
    "ProcessesFailed",
    "ResultNotStorable",
    "Retry",
    "SchemaTooNew",
    "SetupFailed",
    "SourceCancelled",
    "StoreClosed",
    "StoreError",
    "StoreNotFound",
    "StoreReplaced",
    "StoreUnavailable",
    "WorkerLost",
]


class AsyncRunnerError(Exception):
    """The base class of every exception that asyncrunner raises or records."""


class ConfigurationError(AsyncRunnerError, ValueError):
    """A handler, an option, a target or an argument cannot work."""


class ItemError(AsyncRunnerError):
    """An item cannot be accepted.

    ``position``: the index of the item in the input, from 0; None if the index is unknown.
    """

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


class SourceCancelled(AsyncRunnerError, RuntimeError):
    """The source of the items, or a key function, raised CancelledError or GeneratorExit; the run was not cancelled.

    The rest of the input was not read. ``__cause__`` is the exception.
    """


class ProcessesFailed(AsyncRunnerError):
    """Child processes of ``processes=`` cannot run the handler, or die again and again; finished items are saved."""


class SetupFailed(AsyncRunnerError):
    """The context manager of ``setup=`` raised an exception; no item has lost an attempt, and finished items are saved.

    ``error`` is the type and message of that exception. The exception is ``__cause__``, except with ``processes=``, because it
    cannot leave its child process.
    """

    def __init__(self, message: str, *, error: str) -> None:
        super().__init__(message)
        self.error = error


class BatchFailed(AsyncRunnerError):
    """Some items of a batch failed. ``failed`` and ``total`` are counts of items."""

    def __init__(self, message: str, *, failed: int, total: int) -> None:
        super().__init__(message)
        self.failed = failed
        self.total = total


class BatchNotFound(AsyncRunnerError, LookupError):
    """The file has no batch of that name."""


class ItemNotFound(AsyncRunnerError, LookupError):
    """The batch has no item with that key."""


class ItemFailed(AsyncRunnerError):
    """The item failed: its error was permanent or no attempt is left.

    ``error`` is the stored error of the last attempt: the type and message of the exception. ``attempts`` is the number
    of attempts.
    """

    def __init__(self, message: str, *, batch: str, key: str, error: str, attempts: int) -> None:
        super().__init__(message)
        self.batch = batch
        self.key = key
        self.error = error
        self.attempts = attempts


class ItemCancelled(AsyncRunnerError):
    """The item was cancelled before it completed."""

    def __init__(self, message: str, *, batch: str, key: str) -> None:
        super().__init__(message)
        self.batch = batch
        self.key = key


class ItemUnfinished(AsyncRunnerError):
    """The item has not ended, because the call stopped early. ``key`` is None if the call did not read its whole input."""

    def __init__(self, message: str, *, batch: str, key: str | None) -> None:
        super().__init__(message)
        self.batch = batch
        self.key = key


class CheckpointNotStorable(AsyncRunnerError, TypeError):
    """A checkpoint has no JSON form or is too large."""


class ClaimLost(AsyncRunnerError):
    """The attempt no longer holds the claim on its item, so its checkpoint was not saved."""


class StoreError(AsyncRunnerError):
    """The store cannot be used. Outcomes that were reported earlier stay committed."""


class StoreUnavailable(StoreError):
    """The file is locked, full or unreadable for now. The operation had no effect and may be repeated."""


class StoreNotFound(StoreError):
    """The file does not exist, and no file was created."""


class NotAStore(StoreError):
    """The file was not made by asyncrunner; it was not changed."""


class SchemaTooNew(StoreError):
    """The file was written by a newer asyncrunner; it was not changed."""


class StoreReplaced(StoreError):
    """The file was deleted, moved or replaced, or the schema was dropped, while a runner used it. The runner stops."""


class StoreClosed(StoreError):
    """The store is not open: it was used before open, after close, or in a forked child."""


class AttemptError(AsyncRunnerError):
    """An attempt failed for a reason other than the handler's own exception. The error is recorded, never raised."""


class AttemptTimeout(AttemptError, TimeoutError):
    """The attempt ran longer than its ``timeout``."""


class HandlerCancelled(AttemptError):
    """The handler raised ``asyncio.CancelledError`` although no cancellation was requested."""


class HandlerUnresponsive(AttemptError):
    """The handler did not end after it was cancelled and was abandoned."""


class ChildDied(AttemptError):
    """The child process of a ``run_in="process"`` handler ended without an outcome, or could not find the handler.

    A segfault, ``os._exit`` or a kill ends a child process without an outcome.
    """


class ResultNotStorable(AttemptError):
    """The handler returned a value that has no faithful JSON form."""


class PayloadUnreadable(AttemptError):
    """The stored payload does not fit the annotation of the handler's parameter."""


class WorkerLost(AttemptError):
    """The worker that held the item died (its liveness lock was free) or hung (its heartbeat did not change)."""


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


class Retry(Exception):
    """A transient failure that a handler raises: the item runs again if it has attempts left.

    ``after`` is the minimum delay in seconds (a year at most); the delay of the batch's ``RetryPolicy`` is added to it.
    ``pause=True`` pauses the whole batch for ``after`` seconds, in every process on the file and across a restart. The
    attempt counts: if it is the last one, the item fails.
    Raises ConfigurationError if ``after`` is not a number of seconds, or if ``pause`` is given without ``after``.
    """

    def __init__(self, reason: str = "", *, after: float | None = None, pause: bool = False) -> None:
        if after is not None and not _is_seconds(after):
            raise ConfigurationError(f"Retry(after={after!r}): give the seconds to wait, 0 or more")
        if pause and after is None:
            raise ConfigurationError("Retry(pause=True) needs after=: give the seconds for which the batch pauses")
        super().__init__(reason or "the handler asked for a retry")
        self.after = after
        self.pause = pause


class Later(Exception):
    """A handler's request to put the item off: the item runs again later, and the attempt does not count.

    Raise it when the work cannot be done yet, for example while a remote job is running. ``after`` is the minimum delay in
    seconds (a year at most); a random part of up to a quarter is added. Without ``after`` the delays grow from half a
    second to the ``cap`` of the batch's ``RetryPolicy``. An item that has been put off for longer than the policy's
    ``throttled_for`` fails. Other items start meanwhile. Raises ConfigurationError if ``after`` is not a number of
    seconds.
    """

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        if after is not None and not _is_seconds(after):
            raise ConfigurationError(f"Later(after={after!r}): give the seconds to wait, 0 or more")
        super().__init__(reason or "the handler put the item off")
        self.after = after


class Fail(Exception):
    """A permanent failure that a handler raises: the item is not retried."""
