"""The execution of one claim, for every behaviour of its handler."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import anyio
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncrunner import ConfigurationError, Fail, Retry, RetryPolicy, current_attempt
from asyncrunner.domain.clock import SystemClock
from asyncrunner.domain.item import Claim
from asyncrunner.domain.outcome import LARGE_RESULT, Cancelled, Completed, Failed, Outcome, Released, Retrying
from asyncrunner.execution.attempt import Attempt
from asyncrunner.execution.execution import Execution, Interruption
from asyncrunner.execution.executor import AttemptExecutor
from asyncrunner.serialization.codec import Codec, codecs_of
from asyncrunner.testing import FakeClock

CLAIM = Claim(seq=1, batch_id=1, id="k", payload='"item"', number=1, attempt=1, crashes=0)


def runner_of(
    handler: Callable[..., Any], *, max_attempts: int = 3, timeout: float | None = None, clock: Any = None
) -> AttemptExecutor:
    items, results = codecs_of(handler)
    limiter = anyio.CapacityLimiter(2)
    return AttemptExecutor(
        "batch", handler, items, results, clock=clock or SystemClock(), max_attempts=max_attempts, policy=RetryPolicy(),
        timeout=timeout, grace=0.01, limiter=lambda: limiter, rng=random.Random(1),
    )  # fmt: skip


async def outcome_of(
    handler: Callable[..., Any],
    claim: Claim = CLAIM,
    *,
    during: Callable[[Execution], object] | None = None,
    is_closing: bool = False,
    **options: Any,
) -> Outcome | None:
    """Return the outcome of one claim; *during* is called when the handler first waits."""
    runner = runner_of(handler, **options)
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    execution = runner.start(claim, task)
    settled = await runner.run(execution, is_closing=lambda: is_closing, on_wait=lambda: during(execution) if during else None)
    assert task.cancelling() == 0, "an interruption leaked into the slot's task"
    await asyncio.sleep(0)
    return None if settled is None else settled.outcome


def error_of(outcome: Outcome | None) -> str:
    assert isinstance(outcome, Retrying | Failed)
    return outcome.error.type


# --- ends -----------------------------------------------------------------------------------------------------------


async def test_a_result_is_kept_as_json() -> None:
    async def handler(item: str) -> dict[str, str]:
        return {"got": item}

    assert await outcome_of(handler) == Completed('{"got":"item"}')


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"), ExceptionGroup("several", [ValueError("x")]), RecursionError(), StopIteration(1), StopAsyncIteration(),
        GeneratorExit(), KeyboardInterrupt(), SystemExit(0), MemoryError(), BaseExceptionGroup("b", [KeyboardInterrupt()]),
        AssertionError(), TimeoutError("its own"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
@pytest.mark.parametrize("waits", [False, True])
async def test_any_exception_of_a_handler_is_a_retry_of_its_item(error: BaseException, waits: bool) -> None:
    async def handler(item: str) -> None:
        if waits:
            await asyncio.sleep(0)
        raise error

    outcome = await outcome_of(handler)
    assert isinstance(outcome, Retrying)
    # Python itself turns a StopIteration that leaves a coroutine into a RuntimeError.
    leaf = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
    expected = "RuntimeError" if isinstance(error, StopIteration) else type(leaf).__name__
    assert outcome.error.type == expected


async def test_a_handler_that_cancels_itself_has_failed() -> None:
    async def handler(item: str) -> None:
        raise asyncio.CancelledError

    assert error_of(await outcome_of(handler)) == "HandlerCancelled"


async def test_fail_is_permanent_and_retry_waits_at_least_its_delay() -> None:
    async def fails(item: str) -> None:
        raise Fail("no such user")

    async def retries(item: str) -> None:
        raise Retry(after=30, pause=True)

    failed, retrying = await outcome_of(fails), await outcome_of(retries)
    assert isinstance(failed, Failed)
    assert (failed.permanent, failed.error.message) == (True, "no such user")
    assert isinstance(retrying, Retrying)
    assert 30 <= retrying.delay <= 31
    assert retrying.pause == 30


async def test_the_last_attempt_fails() -> None:
    async def handler(item: str) -> None:
        raise ValueError("x")

    outcome = await outcome_of(handler, msgspec.structs.replace(CLAIM, attempt=3))
    assert isinstance(outcome, Failed)
    assert not outcome.permanent


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    @property
    def response(self) -> object:
        raise RuntimeError("no response")


async def test_an_error_whose_methods_raise_is_still_recorded() -> None:
    async def handler(item: str) -> None:
        raise Hostile

    assert error_of(await outcome_of(handler)).endswith("Hostile")


async def test_a_result_that_cannot_be_stored_is_a_permanent_failure_that_names_its_type() -> None:
    async def handler(item: str) -> object:
        return lambda: None

    outcome = await outcome_of(handler)
    assert isinstance(outcome, Failed)
    assert outcome.permanent
    assert "returned function" in outcome.error.message


async def test_a_payload_that_no_longer_fits_is_a_permanent_failure() -> None:
    async def handler(item: int) -> None: ...

    outcome = await outcome_of(handler)
    assert isinstance(outcome, Failed)
    assert (outcome.permanent, outcome.error.type) == (True, "PayloadUnreadable")


# --- timeouts and interruptions -------------------------------------------------------------------------------------


async def test_a_handler_that_runs_too_long_has_timed_out() -> None:
    clock = FakeClock()
    advancing: list[asyncio.Task[None]] = []

    async def handler(item: str) -> None:
        await asyncio.Event().wait()

    def pass_time(_: Execution) -> None:
        advancing.append(asyncio.ensure_future(clock.advance(5)))

    outcome = await outcome_of(handler, timeout=5, clock=clock, during=pass_time)
    assert isinstance(outcome, Retrying)
    assert (outcome.error.type, outcome.error.message) == ("AttemptTimeout", "ran longer than its timeout of 5 s")


async def test_a_handlers_own_timeout_error_is_its_own() -> None:
    async def handler(item: str) -> None:
        async with asyncio.timeout(0):
            await asyncio.sleep(1)

    assert error_of(await outcome_of(handler, timeout=60)) == "TimeoutError"


async def test_synchronous_code_past_the_timeout_has_timed_out_although_it_never_waited() -> None:
    clock = FakeClock()

    async def handler(item: str) -> str:
        clock._pass(10)
        return "done"

    assert error_of(await outcome_of(handler, timeout=5, clock=clock)) == "AttemptTimeout"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [(Interruption.SHUTDOWN, Released()), (Interruption.CANCELLED, Cancelled()), (Interruption.LOST, None)],
)
async def test_an_interrupted_attempt_is_not_a_failure(reason: Interruption, expected: Outcome | None) -> None:
    async def handler(item: str) -> None:
        await asyncio.Event().wait()

    assert await outcome_of(handler, during=lambda execution: execution.interrupt(reason)) == expected


async def test_an_outcome_that_is_returned_during_the_shutdown_counts() -> None:
    async def handler(item: str) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "saved"
        return "never"

    assert await outcome_of(handler, during=lambda execution: execution.interrupt(Interruption.SHUTDOWN)) == Completed('"saved"')


@pytest.mark.parametrize("reason", [Interruption.SHUTDOWN, Interruption.TIMEOUT, None])
async def test_a_large_result_that_was_returned_in_time_counts_although_a_timeout_or_stop_comes_during_its_encoding(
    reason: Interruption | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    check = Codec.check_result
    executions: list[Execution] = []

    def checked(self: Codec[Any], data: bytes, result: object) -> None:
        check(self, data, result)
        if reason is None:
            cast("asyncio.Task[Any]", asyncio.current_task()).cancel()  # by a timer that the handler left behind
        else:
            executions[0].interrupt(reason)
        asyncio.get_running_loop().call_soon(clock.jump, 100.0)

    monkeypatch.setattr(Codec, "check_result", checked)

    async def handler(item: str) -> str:
        return "x" * LARGE_RESULT

    outcome = await outcome_of(handler, during=executions.append, is_closing=True, timeout=50, clock=clock)
    assert outcome == Completed('"' + "x" * LARGE_RESULT + '"')
    assert executions, "the next slot is woken although the handler never waited"


@pytest.mark.parametrize(("reason", "expected"), [(Interruption.CANCELLED, Completed), (Interruption.LOST, type(None))])
async def test_a_large_result_whose_claim_is_lost_during_its_encoding_is_dropped(reason: Interruption, expected: type) -> None:
    executions: list[Execution] = []

    def during(execution: Execution) -> None:
        executions.append(execution)
        execution.interrupt(reason)

    async def handler(item: str) -> str:
        return "x" * LARGE_RESULT

    assert type(await outcome_of(handler, during=during)) is expected
    assert executions[0].interruption is reason


async def test_a_large_result_that_cannot_be_stored_is_a_failure() -> None:
    async def handler(item: str) -> list[object]:
        return ["x" * LARGE_RESULT, "null", float("nan")]

    assert error_of(await outcome_of(handler)) == "ResultNotStorable"


async def test_an_error_of_the_cleanup_after_an_interruption_is_no_failure_either() -> None:
    async def handler(item: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while cleaning up")

    assert await outcome_of(handler, during=lambda execution: execution.interrupt(Interruption.SHUTDOWN)) == Released()


class HostileClass(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            raise RuntimeError("no")
        return super().__getattribute__(name)


class HostileTraceback(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name == "__traceback__":
            raise KeyboardInterrupt
        return super().__getattribute__(name)


class HostileResponse(Exception):
    @property
    def response(self) -> Any:
        raise SystemExit


class HostileMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__qualname__", "__module__"):
            raise RuntimeError("no")
        return super().__getattribute__(name)


class HostileType(Exception, metaclass=HostileMeta):
    pass


@pytest.mark.parametrize("error", [HostileClass, HostileTraceback, HostileResponse, HostileType])
async def test_an_error_that_raises_on_each_access_is_a_failure_of_its_item(error: type[Exception]) -> None:
    async def handler(item: str) -> None:
        raise error("x")

    assert isinstance(await outcome_of(handler), Failed | Retrying)


async def test_a_handler_that_swallows_every_cancellation_is_left_behind() -> None:
    loop = asyncio.get_running_loop()
    swallowed = 0

    async def handler(item: str) -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1

    def stop(execution: Execution) -> None:
        execution.interrupt(Interruption.TIMEOUT)
        loop.call_later(0.01, execution.abandon)

    outcome = await outcome_of(handler, timeout=60, during=stop)
    assert error_of(outcome) == "HandlerUnresponsive"
    assert swallowed == 1


async def test_an_interrupted_handler_that_does_not_end_is_waited_for_no_longer_than_the_grace_period() -> None:
    clock = FakeClock()
    waits = asyncio.Event()

    async def handler(item: str) -> None:
        waits.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    executor = runner_of(handler, timeout=60, clock=clock)

    async def slot() -> Outcome | None:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        settled = await executor.run(executor.start(CLAIM, task), is_closing=lambda: False, on_wait=lambda: None)
        return None if settled is None else settled.outcome

    running = asyncio.ensure_future(slot())
    await waits.wait()
    await clock.advance(60)
    assert not running.done(), "the handler has the grace period for its end"
    await clock.advance(executor._grace)
    assert running.done()
    assert error_of(await running) == "HandlerUnresponsive"


async def test_a_handler_that_ignores_even_being_closed_is_left_behind() -> None:
    async def handler(item: str) -> None:
        for _ in range(2):  # ignored: the interruption, then the close; the third attempt is the garbage collector's
            try:
                await asyncio.sleep(60)
            except BaseException:
                pass
        await asyncio.sleep(60)

    def stop(execution: Execution) -> None:
        execution.interrupt(Interruption.SHUTDOWN)
        asyncio.get_running_loop().call_later(0.01, execution.abandon)

    assert await outcome_of(handler, during=stop) == Released()


async def test_the_loop_being_torn_down_releases_the_item() -> None:
    async def handler(item: str) -> None:
        cast("asyncio.Task[Any]", asyncio.current_task()).cancel()
        await asyncio.sleep(1)

    assert await outcome_of(handler, is_closing=True) == Released()


@pytest.mark.parametrize("kind", ["anyio scope", "anyio group", "asyncio timeout", "asyncio group", "wait_for", "gather"])
async def test_an_interruption_inside_structured_code_ends_it_and_leaks_nothing(kind: str) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async def handler(item: str) -> None:
        if kind == "anyio scope":
            with anyio.fail_after(60), anyio.CancelScope():
                await forever()
        elif kind == "anyio group":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(forever)
        elif kind == "asyncio timeout":
            async with asyncio.timeout(60):
                await forever()
        elif kind == "asyncio group":
            async with asyncio.TaskGroup() as group:
                group.create_task(forever())
        elif kind == "wait_for":
            await asyncio.wait_for(forever(), 60)
        else:
            await asyncio.gather(forever(), forever())

    assert await outcome_of(handler, during=lambda execution: execution.interrupt(Interruption.SHUTDOWN)) == Released()


async def test_structured_code_works_in_a_handler() -> None:
    async def handler(item: str) -> list[object]:
        seen: list[object] = []
        with anyio.move_on_after(0.001) as scope:
            await anyio.sleep(60)
        seen.append(scope.cancelled_caught)
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        except TimeoutError:
            seen.append("timeout")
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(0, "child"))
        seen.append(task.result())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 0)
            tasks.cancel_scope.cancel()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep, 60)
                raise KeyError("body")
        except* KeyError:
            seen.append("group")
        seen.append(await asyncio.wait_for(asyncio.sleep(0, "waited"), 5))
        return seen

    assert await outcome_of(handler) == Completed('[true,"timeout","child","group","waited"]')


# --- kinds of handlers ----------------------------------------------------------------------------------------------


async def test_a_def_runs_in_a_thread() -> None:
    def handler(item: str) -> bool:
        return threading.current_thread() is threading.main_thread()

    assert await outcome_of(handler) == Completed("false")


async def test_stuck_threads_do_not_keep_the_timeout_from_being_noticed() -> None:
    release = threading.Event()

    def handler(item: str) -> None:
        release.wait(20)

    began = time.monotonic()
    try:
        assert error_of(await outcome_of(handler, timeout=0.02)) == "AttemptTimeout"
        assert time.monotonic() - began < 10
    finally:
        release.set()


class WithAsyncCall:
    async def __call__(self, item: str) -> str:
        return f"object {item}"


async def two(extra: str, item: str) -> str:
    return extra + item


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (partial(two, "a "), '"a item"'),
        (WithAsyncCall(), '"object item"'),
        (lambda item: two("l ", item), '"l item"'),
        (len, "4"),
    ],
    ids=["partial", "object", "lambda", "builtin"],
)
async def test_anything_that_can_be_called_with_an_item_is_a_handler(handler: Callable[..., Any], expected: str) -> None:
    assert await outcome_of(handler) == Completed(expected)


def test_a_generator_is_no_handler() -> None:
    async def handler(item: str):  # type: ignore[no-untyped-def]
        yield item

    with pytest.raises(ConfigurationError, match="generator"):
        runner_of(handler)


def test_a_handler_must_be_callable() -> None:
    with pytest.raises(ConfigurationError, match="not callable"):
        AttemptExecutor(
            "b", cast("Any", 3), *codecs_of(two.__get__("x")), clock=SystemClock(), max_attempts=1, policy=RetryPolicy(),
            timeout=None, grace=0.01, limiter=lambda: anyio.CapacityLimiter(1), rng=random.Random(1),
        )  # fmt: skip


# --- what a handler knows -------------------------------------------------------------------------------------------


async def test_current_attempt_also_works_in_a_thread_and_in_a_task() -> None:
    async def handler(item: str) -> list[object]:
        attempt = current_attempt()
        in_thread = await asyncio.to_thread(current_attempt)
        in_task = await asyncio.create_task(_current())
        assert attempt is in_thread is in_task
        return [attempt.number, attempt.key, attempt.idempotency_key, attempt.is_last, attempt.deadline]

    outcome = await outcome_of(handler, msgspec.structs.replace(CLAIM, attempt=3))
    assert outcome == Completed('[3,"k","batch/k",true,null]')


def idempotency_key(batch: str, key: str) -> str:
    execution = SimpleNamespace(batch=batch, claim=msgspec.structs.replace(CLAIM, id=key), max_attempts=3, deadline=None)
    return Attempt(cast("Execution", execution)).idempotency_key


_NAMES = st.text(alphabet="a/%25F", min_size=1, max_size=5)


@given(one=st.tuples(_NAMES, _NAMES), other=st.tuples(_NAMES, _NAMES))
@example(one=("a", "b/c"), other=("a/b", "c"))
@example(one=("a/b", "c"), other=("a%2Fb", "c"))
def test_items_of_one_file_have_different_idempotency_keys(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (idempotency_key(*one) == idempotency_key(*other)) == (one == other)


@pytest.mark.parametrize(
    ("batch", "key", "expected"),
    [
        ("shop.prices:fetch", "https://example.org/a%20b", "shop.prices:fetch/https://example.org/a%20b"),
        ("prices/2026", "7", "prices%2F2026/7"),
    ],
)
def test_an_idempotency_key_escapes_only_the_batch_name(batch: str, key: str, expected: str) -> None:
    assert idempotency_key(batch, key) == expected


async def _current() -> Attempt:
    return current_attempt()


def test_outside_of_a_handler_there_is_no_attempt() -> None:
    with pytest.raises(LookupError, match="only inside a handler"):
        current_attempt()


_seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")


async def test_context_variables_that_a_handler_sets_do_not_leave_it() -> None:
    async def handler(item: str) -> str:
        before = _seen.get()
        _seen.set("something")
        await asyncio.sleep(0)
        assert _seen.get() == "something"
        return before

    assert await outcome_of(handler) == Completed('"nothing"')
    assert await outcome_of(handler) == Completed('"nothing"')


async def test_a_function_that_still_runs_in_its_thread_after_its_timeout_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    def handler(item: str) -> None:
        release.wait(30)

    outcome = await outcome_of(handler, timeout=0.01)
    release.set()
    assert error_of(outcome) == "AttemptTimeout"
    (record,) = caplog.records
    assert "item 'k' of 'batch': its function continues in its thread until it returns" in record.getMessage()
