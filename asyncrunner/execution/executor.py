"""Run the handler for one claim and turn its end (result, error, timeout, cancellation) into an outcome. No store.

A handler is driven step by step in its own context. That gives three things a bare ``await`` does not: context
variables that the handler sets do not leak; every way it can end is distinguished; and a handler that swallows its
cancellation can be abandoned, so that it does not keep the program from ending.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from asyncrunner.domain.outcome import Cancelled, Completed, ErrorInfo, Failed, Outcome, Released, Settlement
from asyncrunner.domain.retry import RetryPolicy, conclude
from asyncrunner.errors import AttemptError, AttemptTimeout, HandlerCancelled, HandlerUnresponsive
from asyncrunner.execution.attempt import Around, Attempt, Interruption, Save, attempt_variable
from asyncrunner.execution.coroutine_driver import absorb_cancellation, drive
from asyncrunner.execution.thread_handler import as_coroutine_function
from asyncrunner.serialization.codec import Codec
from asyncrunner.serialization.error_info import describe

if TYPE_CHECKING:
    from anyio import CapacityLimiter

    from asyncrunner.domain.clock import Clock, Timer
    from asyncrunner.domain.item import Claim


_LOOP_PAUSE_SECONDS: Final = 0.01  # before each step of encoding a large result, for the loop's other work

log = logging.getLogger("asyncrunner")


class EncodedResult(NamedTuple):
    """Returned by a handler's stand-in when the result is JSON text already."""

    text: str


class DescribedError(Exception):
    """Raised by a handler's stand-in for an *error* that was described in the process where it happened."""

    def __init__(self, error: BaseException, info: ErrorInfo) -> None:
        super().__init__(info)
        self.error = error
        self.info = info


class AttemptExecutor:
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
        self._call = as_coroutine_function(handler, limiter)
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
    ) -> Settlement | None:
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
            context.run(attempt_variable.set, attempt)
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
        return None if outcome is None else Settlement(claim, outcome, started_at, max(started_at, clock.now()))

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
