"""Run the handler for one claim and convert its end (result, error, timeout, cancellation) to an outcome. No store.

The executor drives a handler step by step in its own context. That has three advantages over a bare ``await``: context
variables that the handler sets do not leak; the executor distinguishes every end of the handler; and it can abandon a
handler that ignores its cancellation, so that the program can end.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, cast, final

from asyncrunner.domain.outcome import Cancelled, Completed, ErrorInfo, Failed, Outcome, Released, Settlement
from asyncrunner.domain.retry import RetryPolicy, conclude
from asyncrunner.errors import AttemptError, AttemptTimeout, HandlerCancelled, HandlerUnresponsive
from asyncrunner.execution.answers import DescribedError, EncodedResult
from asyncrunner.execution.attempt import current_execution
from asyncrunner.execution.coroutine_driver import absorb_cancellation, drive, yield_to_loop
from asyncrunner.execution.execution import Around, Execution, Interruption, Save
from asyncrunner.execution.thread_handler import as_coroutine_function
from asyncrunner.serialization.codec import Codec
from asyncrunner.serialization.error_info import describe

if TYPE_CHECKING:
    from anyio import CapacityLimiter

    from asyncrunner.domain.clock import Clock, Timer
    from asyncrunner.domain.item import Claim

_LOOP_PAUSE_SECONDS: Final = 0.01  # before each step of encoding a large result, so that the loop's other tasks run
log = logging.getLogger("asyncrunner")


@final
class _LargeResult(NamedTuple):
    """A large result: its unchecked JSON, and the value that the handler returned."""

    data: bytes
    result: object


_End: TypeAlias = "str | _LargeResult | BaseException"
"""The end of a handler: its result as JSON, or the exception that it raised.

Compare ``type(end)``, because isinstance() may run code of the exception.
"""


class AttemptExecutor:
    """The executor of the attempts of one batch, with the settings that all these attempts share.

    ``on_interrupt`` is called with a KeyboardInterrupt that a handler raises in the thread of the event loop: a person has
    pressed Ctrl-C, and the item is released. Without ``on_interrupt`` the KeyboardInterrupt is an error of the handler.
    ``timeout`` and ``grace`` are seconds. A handler that has not ended ``grace`` seconds after an interruption is abandoned.
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
        on_interrupt: Callable[[BaseException], object] | None = None,
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
        self._on_interrupt = on_interrupt
        self.max_attempts = max_attempts

    def start(self, claim: Claim, task: asyncio.Task[Any], save: Save | None = None) -> Execution:
        """Return the execution of *claim* in *task*, the caller's task; call ``run()`` next.

        *save* makes the checkpoints of the execution durable.
        """
        deadline = None if self._timeout is None else self._clock.monotonic() + self._timeout
        return Execution(self._batch, claim, self.max_attempts, deadline, task, save)

    async def run(
        self, execution: Execution, *, is_closing: Callable[[], bool], on_wait: Callable[[], object]
    ) -> Settlement | None:
        """Run the handler and return its settlement, or None if the claim was lost meanwhile.

        An error of the handler is an outcome; it is not raised. *is_closing* returns whether the event loop is being
        closed. *on_wait* is called when the handler first waits.
        """
        task = execution.task
        assert task is not None, "start() sets the task"
        started_at = self._clock.now()
        timer = None if self._timeout is None else self._start_timer(execution, self._timeout)
        end = await self._run_handler(execution, on_wait)
        execution.end(None if timer is None else self._stop_timer(timer, execution))
        if type(end) is _LargeResult or task.cancelling():
            end = await self._finish(execution, end, task, is_closing, on_wait)
        outcome = Completed(end) if type(end) is str and execution.interruption is None else self._conclude_safely(execution, end)
        # From Python 3.13 on the traceback of an error refers to this frame; the cycle would keep the caller's task alive.
        end = ""
        return None if outcome is None else Settlement(execution.claim, outcome, started_at, max(started_at, self._clock.now()))

    def interrupt(self, execution: Execution, reason: Interruption) -> None:
        """Interrupt the handler, and abandon the handler if it has not ended after the grace period."""
        execution.interrupt(reason)
        self._clock.call_later(self._grace, execution.abandon)

    # --- the steps of run() --------------------------------------------------------------------------------------

    def _start_timer(self, execution: Execution, timeout: float) -> Timer:
        return self._clock.call_later(timeout, partial(self.interrupt, execution, Interruption.TIMEOUT))

    def _stop_timer(self, timer: Timer, execution: Execution) -> Interruption | None:
        timer.cancel()
        assert execution.deadline is not None, "an execution with a timer has a deadline"
        # Synchronous code may have blocked the loop past the deadline, so that the timer could not run.
        return Interruption.TIMEOUT if self._clock.monotonic() >= execution.deadline else None

    async def _run_handler(self, execution: Execution, on_wait: Callable[[], object]) -> _End:
        """Run the handler in its own context and encode its result; return an exception instead of raising it."""
        try:
            item = self._items.decode(execution.claim.payload, execution.claim.id)
            context = copy_context()
            context.run(current_execution.set, execution)
            call = self._call(item) if not self._around else self._call_surrounded(execution, item)
            result = await drive(call, context, on_wait, execution)
            text = result.text if isinstance(result, EncodedResult) else self._results.begin_result(result)
        except BaseException as error:  # noqa: BLE001 - a handler may raise any exception, which fails its attempt
            if issubclass(type(error), KeyboardInterrupt) and self._on_interrupt is not None:
                execution.interrupt(Interruption.SHUTDOWN)
                self._on_interrupt(error)
            return error
        return _LargeResult(text, result) if isinstance(text, bytes) else text

    async def _finish(
        self,
        execution: Execution,
        end: _End,
        task: asyncio.Task[Any],
        is_closing: Callable[[], bool],
        on_wait: Callable[[], object],
    ) -> _End:
        """Clear a cancellation of *task* that has outlived the handler, and finish the encoding of a large result."""
        if task.cancelling():
            if _is_cancellation(end) and is_closing():
                execution.end(Interruption.SHUTDOWN)
            await absorb_cancellation(task)
        return await self._finish_encoding(end, on_wait, task) if type(end) is _LargeResult else end

    async def _finish_encoding(self, end: _LargeResult, on_wait: Callable[[], object], task: asyncio.Task[Any]) -> _End:
        """Check a large result and return its text; yield to the loop's other tasks before each step."""
        on_wait()
        try:
            await yield_to_loop(task, _LOOP_PAUSE_SECONDS)
            self._results.check_result(end.data, end.result)
            await yield_to_loop(task, _LOOP_PAUSE_SECONDS)
            return end.data.decode()
        except Exception as error:  # noqa: BLE001 - the result cannot be stored, or no memory is left
            return error

    async def _call_surrounded(self, execution: Execution, item: Any) -> Any:
        with ExitStack() as stack:
            for around in self._around:
                stack.enter_context(around(execution))
            return await self._call(item)

    # --- from the end of the handler to the outcome --------------------------------------------------------------

    def _conclude_safely(self, execution: Execution, end: _End) -> Outcome | None:
        try:
            return self._conclude(execution, end)
        except MemoryError:  # no memory is left to describe the error
            return self._apply_policy(execution.claim, MemoryError(), _OUT_OF_MEMORY)
        except BaseException:  # noqa: BLE001 - an attribute of the error raises, which must not end the slot
            return Failed(_INDESCRIBABLE, permanent=False)

    def _conclude(self, execution: Execution, end: _End) -> Outcome | None:
        has_returned = type(end) is str
        match execution.interruption:
            case Interruption.LOST:
                return None
            case Interruption.TIMEOUT:
                return self._fail(execution.claim, self._timeout_error(execution, end))
            case Interruption.SHUTDOWN if not has_returned:
                return Released()
            case Interruption.CANCELLED if not has_returned:
                return Cancelled()
            case _ if type(end) is str:
                return Completed(end)
            case _:
                return self._fail(execution.claim, cast("BaseException", end))

    def _timeout_error(self, execution: Execution, end: _End) -> AttemptError:
        text = f"ran longer than its timeout of {self._timeout:g} s"
        error: AttemptError = AttemptTimeout(text)
        if execution.abandoned:
            error = HandlerUnresponsive(f"{text} and did not end when it was cancelled")
        if type(end) is not str:
            raised = cast("BaseException", end)
            error.__cause__ = None if _is_cancellation(raised) else raised
            error.__traceback__ = raised.__traceback__
        return error

    def _fail(self, claim: Claim, error: BaseException) -> Outcome:
        if _is_cancellation(error):
            cancelled = HandlerCancelled("the handler raised CancelledError although it was not interrupted")
            cancelled.__traceback__ = error.__traceback__
            error = cancelled
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
                put_off_at=claim.put_off_at,
                policy=self._policy,
                rng=self._rng,
                now=self._clock.now(),
            )
        except BaseException:  # noqa: BLE001 - an attribute of the error raises, or a predicate of the policy raises
            return Failed(info, permanent=False)


_OUT_OF_MEMORY: Final = ErrorInfo("MemoryError", "(no memory was left to describe the error)")
_INDESCRIBABLE: Final = ErrorInfo("Exception", "(the error cannot be described: its own attributes raise)")


def _is_cancellation(end: _End) -> bool:
    return issubclass(type(end), asyncio.CancelledError)  # isinstance() reads an attribute, which may raise
