"""Run the handler for one claim and turn its end (result, error, timeout, cancellation) into an outcome. No store.

A handler is driven step by step in its own context. That gives three things a bare ``await`` does not: context
variables that the handler sets do not leak; every way it can end is distinguished; and a handler that swallows its
cancellation can be abandoned, so that it does not keep the program from ending.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast

import anyio.to_thread
import msgspec

from asyncrunner.codec import Codec
from asyncrunner.drive import absorb_cancellation, drive
from asyncrunner.errors import (
    AttemptError,
    AttemptTimeout,
    CheckpointNotStorable,
    ConfigurationError,
    HandlerCancelled,
    HandlerUnresponsive,
    ItemNotStorable,
)
from asyncrunner.failure import describe
from asyncrunner.item import Cancelled, Completed, ErrorInfo, Failed, Outcome, Released, Settled
from asyncrunner.retry import RetryPolicy, conclude

if TYPE_CHECKING:
    from anyio import CapacityLimiter

    from asyncrunner.clock import Clock, Timer
    from asyncrunner.item import Claim

__all__ = ["MAX_CHECKPOINT_BYTES", "Around", "Attempt", "AttemptRunner", "DescribedError", "EncodedResult",
    "Interruption", "current_attempt", "running"]  # fmt: skip

MAX_CHECKPOINT_BYTES: Final = 64 * 1024
_LOOP_PAUSE_SECONDS: Final = 0.01  # before each step of encoding a large result, for the loop's other work

log = logging.getLogger("asyncrunner")

Save: TypeAlias = "Callable[[Claim, str], Awaitable[None]]"
Around: TypeAlias = "Callable[[Attempt], AbstractContextManager[object]]"
"""Returns a context manager that is entered before a handler and left after it, in the handler's own context."""


class Interruption(Enum):
    """Why the engine interrupts a handler; the value is the message of the handler's CancelledError."""

    TIMEOUT = "the attempt ran longer than its timeout"
    SHUTDOWN = "the runner stops; the item is released and its attempt refunded"
    LOST = "the attempt lost its claim: the item may run again elsewhere, and the result of this attempt is dropped"
    CANCELLED = "the item was cancelled"


_current: ContextVar[Attempt] = ContextVar("asyncrunner_attempt")


def current_attempt() -> Attempt:
    """Return the attempt of the calling handler; this also works in threads and tasks that the handler starts.

    Raises LookupError outside of a handler.
    """
    try:
        return _current.get()
    except LookupError:
        raise LookupError("current_attempt() works only inside a handler: no attempt is running here") from None


@contextmanager
def running(attempt: Attempt) -> Generator[None, None, None]:
    """Make *attempt* the current attempt inside the ``with`` block."""
    token = _current.set(attempt)
    try:
        yield
    finally:
        _current.reset(token)


class Attempt:
    """One run of a handler for one item, as the handler may see it.

    ``number`` counts from 1. ``idempotency_key`` is the same in all attempts of the item and differs from every
    other item's, so a service that accepts such keys does the work once. ``deadline`` is a time on the clock of
    ``loop.time()``, or None without a timeout. ``checkpoint`` is the value saved last, by this attempt or an earlier one.
    """

    __slots__ = (
        "_abandoned", "_interruption", "_save", "_saved", "_task", "batch", "claim", "deadline", "key", "max_attempts", "number",
    )  # fmt: skip

    def __init__(self, batch: str, claim: Claim, max_attempts: int, deadline: float | None, save: Save | None = None) -> None:
        self.batch = batch
        self.claim = claim
        self.key = claim.id
        self.number = claim.attempt
        self.max_attempts = max_attempts
        self.deadline = deadline
        self._interruption: Interruption | None = None
        self._abandoned = False
        self._task: asyncio.Task[Any] | None = None
        self._save = save
        self._saved = claim.checkpoint

    @property
    def idempotency_key(self) -> str:
        return f"{self.batch}/{self.key}"

    @property
    def is_last(self) -> bool:
        """Whether the item fails if this attempt does."""
        return self.number >= self.max_attempts

    @property
    def checkpoint(self) -> Any:
        """The value saved last for the item, also by an attempt whose process died; None if there is none."""
        return None if self._saved is None else msgspec.json.decode(self._saved)

    async def save(self, value: Any) -> None:
        """Save a small JSON *value* for the item's next attempt; it is durable when this returns.

        The value is committed with the worker's next turn, so many handlers share a transaction. A newer value replaces the
        older one. The next attempt reads it in ``checkpoint``, however this one ended; ``on_change="rerun"`` deletes it. After
        a cancellation of this call the value may or may not be saved. Raises CheckpointNotStorable for a value without a JSON
        form or of more than 64 KiB, ClaimLost if the attempt has lost its claim, and LookupError where saving is impossible:
        after the attempt has ended, or in a child process (``run_in="process"``).
        """
        text = _checkpoint_text(value)
        if self._save is None:
            raise LookupError("a checkpoint can be saved only in the process of the runner, while the attempt runs")
        await self._save(self.claim, text)
        self._saved = text

    def __repr__(self) -> str:
        return f"<Attempt {self.number} of {self.max_attempts} at {self.key!r} in {self.batch!r}>"

    def interrupt(self, reason: Interruption) -> None:
        """Interrupt the handler: its next await raises CancelledError. Only the first interruption counts."""
        if self._interruption is not None:
            return
        if self._task is None:
            # The handler has ended, and its result is about to be settled: record that the claim is no longer current.
            if reason in (Interruption.CANCELLED, Interruption.LOST):
                self._interruption = reason
            return
        self._interruption = reason
        self._task.cancel(reason.value)

    def abandon(self) -> None:
        """Stop waiting for the handler: its coroutine is closed at its current await."""
        if self._task is not None:
            self._abandoned = True
            self._task.cancel()

    def is_made_by(self, task: object) -> bool:
        """Return whether the handler runs in *task*."""
        return task is not None and task is self._task

    @property
    def interruption(self) -> Interruption | None:
        """Why the engine interrupted the handler; None if it did not."""
        return self._interruption

    @property
    def abandoned(self) -> bool:
        return self._abandoned


class EncodedResult(NamedTuple):
    """Returned by a handler's stand-in when the result is JSON text already."""

    text: str


class DescribedError(Exception):
    """Raised by a handler's stand-in for an *error* that was described in the process where it happened."""

    def __init__(self, error: BaseException, info: ErrorInfo) -> None:
        super().__init__(info)
        self.error = error
        self.info = info


class AttemptRunner:
    """Runs the attempts of one batch, with the settings that all of them share.

    ``timeout`` and ``grace`` are seconds; an interrupted handler has ``grace`` to end before it is abandoned.
    """

    def __init__(
        self,
        batch: str,
        handler: Callable[..., Any],
        items: Codec[Any],
        results: Codec[Any],
        *,
        clock: Clock,
        max_attempts: int,
        policy: RetryPolicy,
        timeout: float | None,
        grace: float,
        limiter: Callable[[], CapacityLimiter],
        rng: random.Random,
        around: Sequence[Around] = (),
    ) -> None:
        self._batch = batch
        self._items = items
        self._results = results
        self._clock = clock
        self._policy = policy
        self._timeout = timeout
        self._grace = grace
        self._rng = rng
        self._call = _asynchronous(handler, limiter)
        self._around = around
        self.max_attempts = max_attempts

    def prepare(self, claim: Claim, save: Save | None = None) -> Attempt:
        """Return the attempt for *claim*; *save* makes its checkpoints durable."""
        deadline = None if self._timeout is None else self._clock.monotonic() + self._timeout
        return Attempt(self._batch, claim, self.max_attempts, deadline, save)

    async def run(
        self,
        claim: Claim,
        attempt: Attempt,
        task: asyncio.Task[Any],
        *,
        is_closing: Callable[[], bool],
        on_wait: Callable[[], object],
    ) -> Settled | None:
        """Run the handler and return its outcome, or None if the claim was lost meanwhile.

        It does not raise an error of the handler. *task* is the caller's task, which the handler runs in. *is_closing*
        returns whether the event loop is being closed; *on_wait* is called when the handler first waits.
        """
        clock = self._clock
        started_at = clock.now()
        attempt._task = task  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        timer: Timer | None = None
        if attempt.deadline is not None:
            timer = clock.call_later(cast("float", self._timeout), partial(self._time_out, attempt))
        error: BaseException | None = None
        result: Any = None
        text: str | bytes = ""
        try:
            item = self._items.decode(claim.payload)
            context = copy_context()
            context.run(_current.set, attempt)
            call = self._call(item) if not self._around else self._call_surrounded(attempt, item)
            result = await drive(call, context, on_wait, is_abandoned=lambda: attempt.abandoned)
            text = result.text if isinstance(result, EncodedResult) else self._results.begin_result(result)
        except BaseException as caught:  # noqa: BLE001 - a handler may raise anything; it is that item's failure
            error = caught
        if timer is not None:
            timer.cancel()
        attempt._task = attempt._save = None  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        if attempt.deadline is not None and clock.monotonic() >= attempt.deadline:
            # Synchronous code may have run past the deadline without letting the timer fire.
            attempt._interruption = attempt.interruption or Interruption.TIMEOUT  # noqa: SLF001 # pyright: ignore
        if task.cancelling():
            if attempt.interruption is None and _is_cancellation(error) and is_closing():
                attempt._interruption = Interruption.SHUTDOWN  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            await absorb_cancellation(task)
        if isinstance(text, bytes):
            on_wait()
            try:
                text = await self._check_and_decode(text, result, task)
            except Exception as caught:  # noqa: BLE001 - the result cannot be stored, or no memory is left
                error, text = caught, ""
        if error is None and attempt.interruption is None:
            outcome: Outcome | None = Completed(text)
        else:
            outcome = self._conclude_safely(claim, attempt, error, text)
        return None if outcome is None else Settled(claim, outcome, started_at, max(started_at, clock.now()))

    async def _check_and_decode(self, data: bytes, result: object, task: asyncio.Task[Any]) -> str:
        """Check a large result and return its text; before each step the loop has time for other work."""
        await _pause_for_loop(task)
        self._results.check_result(data, result)
        await _pause_for_loop(task)
        return data.decode()

    async def _call_surrounded(self, attempt: Attempt, item: Any) -> Any:
        with ExitStack() as stack:
            for around in self._around:
                stack.enter_context(around(attempt))
            return await self._call(item)

    def _time_out(self, attempt: Attempt) -> None:
        attempt.interrupt(Interruption.TIMEOUT)
        self._clock.call_later(self._grace, attempt.abandon)

    def _conclude_safely(self, claim: Claim, attempt: Attempt, error: BaseException | None, text: str) -> Outcome | None:
        try:
            return self._outcome(claim, attempt, error, text)
        except MemoryError:  # no memory is left to describe the error
            return self._apply_policy(claim, MemoryError(), _OUT_OF_MEMORY)
        except BaseException:  # noqa: BLE001 - an error whose own attributes raise must not end the slot
            return Failed(_INDESCRIBABLE, permanent=False)

    def _outcome(self, claim: Claim, attempt: Attempt, error: BaseException | None, text: str) -> Outcome | None:
        match attempt.interruption:
            case Interruption.LOST:
                return None
            case Interruption.TIMEOUT:
                timed_out: AttemptError = AttemptTimeout(f"ran longer than its timeout of {self._timeout:g} s")
                if attempt.abandoned:
                    timed_out = HandlerUnresponsive(
                        f"ran longer than its timeout of {self._timeout:g} s and did not end when it was cancelled"
                    )
                timed_out.__cause__ = None if _is_cancellation(error) else error
                timed_out.__traceback__ = error.__traceback__ if error is not None else None
                error = timed_out
            case Interruption.SHUTDOWN if error is not None:
                return Released()
            case Interruption.CANCELLED if error is not None:
                return Cancelled()
            case _:
                pass
        if error is None:
            return Completed(text)
        if _is_cancellation(error):
            cancelled = HandlerCancelled("the handler raised CancelledError although it was not interrupted")
            cancelled.__traceback__ = error.__traceback__
            error = cancelled
        return self._failure(claim, error)

    def _failure(self, claim: Claim, error: BaseException) -> Outcome:
        if isinstance(error, DescribedError):
            info, error = error.info, error.error
        else:
            info = describe(error)
        return self._apply_policy(claim, error, info)

    def _apply_policy(self, claim: Claim, error: BaseException, info: ErrorInfo) -> Outcome:
        try:
            return conclude(
                error,
                info,
                attempt=claim.attempt,
                max_attempts=self.max_attempts,
                policy=self._policy,
                rng=self._rng,
                now=self._clock.now(),
            )
        except BaseException:  # noqa: BLE001 - the error's own attributes raise, or a predicate of the policy
            return Failed(info, permanent=False)


async def _pause_for_loop(task: asyncio.Task[Any]) -> None:
    try:
        await asyncio.sleep(_LOOP_PAUSE_SECONDS)
    except asyncio.CancelledError:  # the handler has ended: the cancellation is ignored, and the result is not lost
        await absorb_cancellation(task)


_OUT_OF_MEMORY: Final = ErrorInfo("MemoryError", "(no memory was left to describe the error)")
_INDESCRIBABLE: Final = ErrorInfo("Exception", "(the error cannot be described: its own attributes raise)")


def _is_cancellation(error: BaseException | None) -> bool:
    return issubclass(type(error), asyncio.CancelledError)  # isinstance() would ask the error itself


def _checkpoint_text(value: Any) -> str:
    try:
        text = Codec().encode_item(value)
    except ItemNotStorable as error:
        raise CheckpointNotStorable(f"a checkpoint must be plain JSON: {error.args[0]}") from error
    if len(text) > MAX_CHECKPOINT_BYTES or len(text.encode()) > MAX_CHECKPOINT_BYTES:
        raise CheckpointNotStorable(
            f"the checkpoint has {len(text):,} characters; keep it within {MAX_CHECKPOINT_BYTES:,} bytes; store more in a file"
        )
    return text


def _asynchronous(
    handler: Callable[..., Any], limiter: Callable[[], CapacityLimiter]
) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    """Return *handler* as a coroutine function: itself, or a wrapper that runs it in a thread of the runner's limiter."""
    if not callable(handler):
        raise ConfigurationError(f"the handler {handler!r} is not callable; pass an `async def` or a `def` function")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise ConfigurationError(f"the handler {handler!r} is a generator; return the result instead of yielding it")
    for candidate in (handler, getattr(handler, "__call__", None)):  # noqa: B004 - a callable object may have an async __call__
        if inspect.iscoroutinefunction(candidate):
            return candidate

    async def call(item: Any) -> Any:
        try:
            value = await anyio.to_thread.run_sync(handler, item, abandon_on_cancel=True, limiter=limiter())
        except asyncio.CancelledError:
            attempt = _current.get()
            log.warning(
                "item %r of %r: its function continues in its thread until it returns, because a thread cannot be stopped; its "
                "slot is free, and its result is dropped", attempt.key, attempt.batch,
                extra={"item": attempt.key, "batch": attempt.batch, "attempt": attempt.number},
            )  # fmt: skip
            raise
        # A lambda or a partial around an `async def` looks like a function and returns an awaitable.
        return await value if inspect.isawaitable(value) else value

    return call
