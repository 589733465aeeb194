"""Run one claim: handler, timeout, cancellation -> outcome. Knows no store.

A handler is driven step by step in a context of its own. That gives three things a bare ``await`` does not:
what it sets in context variables stays with it; every way it can end is told apart; and a handler that swallows
its cancellation can be left behind, so that nothing of it keeps the program from ending.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import anyio.to_thread

from asyncrunner.errors import AttemptError, AttemptTimeout, ConfigurationError, HandlerCancelled, HandlerUnresponsive
from asyncrunner.failure import describe
from asyncrunner.item import Cancelled, Completed, Failed, Outcome, Released, Settled
from asyncrunner.retry import RetryPolicy, conclude

if TYPE_CHECKING:
    from anyio import CapacityLimiter

    from asyncrunner.clock import Clock, Timer
    from asyncrunner.codec import Codec
    from asyncrunner.item import Claim

__all__ = ["Attempt", "AttemptRunner", "Interruption", "current_attempt"]


class Interruption(Enum):
    """Why the engine stops a handler before its end."""

    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    LOST = "lost"  # its claim is somebody else's now
    CANCELLED = "cancelled"  # a person cancelled the item


_current: ContextVar[Attempt] = ContextVar("asyncrunner_attempt")


def current_attempt() -> Attempt:
    """The attempt that the calling handler runs in, also from a thread or task it started.

    Raises LookupError outside of a handler.
    """
    try:
        return _current.get()
    except LookupError:
        raise LookupError("current_attempt() is for handlers: there is no attempt running here") from None


class Attempt:
    """One run of a handler for one item, as the handler may see it.

    ``number`` counts from 1. ``idempotency_key`` is the same in all attempts of the item and differs from every
    other item's, so a service that takes such keys does the work once. ``deadline`` is on the clock of
    ``loop.time()``, or None without a timeout.
    """

    __slots__ = ("_abandoned", "_interruption", "_task", "batch", "deadline", "key", "max_attempts", "number")

    def __init__(self, batch: str, claim: Claim, max_attempts: int, deadline: float | None) -> None:
        self.batch = batch
        self.key = claim.id
        self.number = claim.attempt
        self.max_attempts = max_attempts
        self.deadline = deadline
        self._interruption: Interruption | None = None
        self._abandoned = False
        self._task: asyncio.Task[Any] | None = None

    @property
    def idempotency_key(self) -> str:
        return f"{self.batch}/{self.key}"

    @property
    def is_last(self) -> bool:
        """Whether the item fails if this attempt does."""
        return self.number >= self.max_attempts

    def __repr__(self) -> str:
        return f"<Attempt {self.number} of {self.max_attempts} at {self.key!r} in {self.batch!r}>"

    def interrupt(self, reason: Interruption) -> None:
        """Ask the handler to stop, once: its next await raises CancelledError."""
        if self._interruption is None and self._task is not None:
            self._interruption = reason
            self._task.cancel()

    def abandon(self) -> None:
        """Do not wait for the handler any longer: it is closed where it stands."""
        if self._task is not None:
            self._abandoned = True
            self._task.cancel()

    @property
    def interruption(self) -> Interruption | None:
        return self._interruption

    @property
    def abandoned(self) -> bool:
        return self._abandoned


class AttemptRunner:
    """Everything that is the same for all attempts of a batch.

    ``timeout`` and ``grace`` are seconds; after an interruption the handler has ``grace`` to end.
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
        thread_limiter: Callable[[], CapacityLimiter],
        rng: random.Random,
    ) -> None:
        self._batch = batch
        self._items = items
        self._results = results
        self._clock = clock
        self._policy = policy
        self._timeout = timeout
        self._grace = grace
        self._rng = rng
        self._call = _asynchronous(handler, thread_limiter)
        self.max_attempts = max_attempts

    def prepare(self, claim: Claim) -> Attempt:
        """The attempt that this claim pays for."""
        deadline = None if self._timeout is None else self._clock.monotonic() + self._timeout
        return Attempt(self._batch, claim, self.max_attempts, deadline)

    async def run(
        self,
        claim: Claim,
        attempt: Attempt,
        task: asyncio.Task[Any],
        *,
        is_closing: Callable[[], bool],
        on_wait: Callable[[], object],
    ) -> Settled | None:
        """Run the handler to its end, whatever that is. None: the outcome is nobody's, the claim was lost.

        Never raises. *task* is the caller's, which the handler runs in. *is_closing* tells whether the loop is being torn
        down around us; *on_wait* is called when the handler first waits for something.
        """
        clock = self._clock
        started_at = clock.now()
        attempt._task = task  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        timer: Timer | None = None
        if attempt.deadline is not None:
            timer = clock.call_later(cast("float", self._timeout), partial(self._time_out, attempt))
        error: BaseException | None = None
        result: Any = None
        try:
            item = self._items.decode(claim.payload)
            context = copy_context()
            context.run(_current.set, attempt)
            result = await _drive(self._call(item), context, attempt, on_wait)
            text = self._results.encode_result(result)
        except BaseException as caught:  # noqa: BLE001 - a handler may raise anything; it is that item's failure
            error = caught
            text = ""
        if timer is not None:
            timer.cancel()
        attempt._task = None  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        if attempt.deadline is not None and clock.monotonic() >= attempt.deadline:
            # Synchronous code may have run past the deadline without ever letting the timer in.
            attempt._interruption = attempt.interruption or Interruption.TIMEOUT  # noqa: SLF001 # pyright: ignore
        if task.cancelling():
            if attempt.interruption is None and isinstance(error, asyncio.CancelledError) and is_closing():
                attempt._interruption = Interruption.SHUTDOWN  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            await _absorb_cancellation(task)
        outcome = self._outcome(claim, attempt, error, text)
        return None if outcome is None else Settled(claim, outcome, started_at, max(started_at, clock.now()))

    def _time_out(self, attempt: Attempt) -> None:
        attempt.interrupt(Interruption.TIMEOUT)
        self._clock.call_later(self._grace, attempt.abandon)

    def _outcome(self, claim: Claim, attempt: Attempt, error: BaseException | None, text: str) -> Outcome | None:
        if error is None and attempt.interruption is None:
            return Completed(text)
        match attempt.interruption:
            case Interruption.LOST:
                return None
            case Interruption.TIMEOUT:
                timed_out: AttemptError = AttemptTimeout(f"ran longer than its timeout of {self._timeout:g} s")
                if attempt.abandoned:
                    timed_out = HandlerUnresponsive(
                        f"ran longer than its timeout of {self._timeout:g} s and did not end when it was cancelled"
                    )
                timed_out.__cause__ = error if not isinstance(error, asyncio.CancelledError) else None
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
        if isinstance(error, asyncio.CancelledError):
            cancelled = HandlerCancelled("the handler raised CancelledError though nobody asked it to stop")
            cancelled.__traceback__ = error.__traceback__
            error = cancelled
        return self._failed(claim, error)

    def _failed(self, claim: Claim, error: BaseException) -> Outcome:
        info = describe(error)
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
        except Exception:  # noqa: BLE001 - an error object with hostile attributes must not end the slot
            return Failed(info, permanent=False)


_ABSORB_STEPS: Final = 2


async def _absorb_cancellation(task: asyncio.Task[Any]) -> None:
    """Leave no trace of an interruption in the slot's task, also if it came too late to be delivered."""
    for _ in range(_ABSORB_STEPS):
        while task.cancelling():
            task.uncancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            continue
        return


def _asynchronous(
    handler: Callable[..., Any], thread_limiter: Callable[[], CapacityLimiter]
) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    """*handler* as a coroutine function: itself, or run in a thread of the runner's own limiter."""
    if not callable(handler):
        raise ConfigurationError(f"the handler {handler!r} is not callable; give an `async def` or a function")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise ConfigurationError(f"the handler {handler!r} is a generator; return the result instead of yielding it")
    if inspect.iscoroutinefunction(handler):
        return handler
    call_method = getattr(handler, "__call__", None)  # noqa: B004 - of an object, to see whether it is async
    if inspect.iscoroutinefunction(call_method):
        return call_method

    async def call(item: Any) -> Any:
        value = await anyio.to_thread.run_sync(handler, item, abandon_on_cancel=True, limiter=thread_limiter())
        # A lambda or a partial around an `async def` looks like a function and returns an awaitable.
        return await value if inspect.isawaitable(value) else value

    return call


@types.coroutine
def _drive(
    coroutine: Coroutine[Any, Any, Any], context: Context, attempt: Attempt, on_wait: Callable[[], object]
) -> Generator[Any, Any, Any]:
    """Await *coroutine* in *context*; once the attempt is abandoned, the next cancellation ends it here."""
    try:
        waited_for = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    on_wait()
    while True:
        step: Callable[[], Any]
        try:
            sent = yield waited_for
        except GeneratorExit:
            context.run(coroutine.close)
            raise
        except BaseException as thrown:
            if attempt.abandoned:
                _close(coroutine, context)
                raise
            step = partial(coroutine.throw, thrown)
        else:
            step = partial(coroutine.send, sent)
        try:
            waited_for = context.run(step)
        except StopIteration as stop:
            return stop.value


def _close(coroutine: Coroutine[Any, Any, Any], context: Context) -> None:
    try:
        context.run(coroutine.close)
    except BaseException:  # noqa: BLE001, S110 - it ignores even GeneratorExit: there is nobody left to tell
        pass
