"""The helpers that users test their handlers with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from asyncrunner import ConfigurationError, Retry, RetryPolicy, Runner, Status, StoreClosed
from asyncrunner.runner.runner import internals_of, run_until_idle
from asyncrunner.testing import FakeClock, in_memory
from tests.conftest import Until
from tests.support.state import exists

InMemory = Callable[[Runner], Awaitable[FakeClock]]


async def test_delays_and_backoffs_take_no_time_and_leave_no_file(db: str) -> None:
    runner = Runner(db)
    ran: list[float] = []

    @runner.handler(max_attempts=3, retry=RetryPolicy(initial=3600, factor=2, cap=1e6, jitter="none"), batch="handler")
    async def handler(number: int) -> None:
        ran.append(round(clock.now() - began))
        raise ValueError

    async with in_memory(runner) as clock:
        began = clock.now()
        handle = await handler.submit(1, delay=86_400)
        await run_until_idle(runner, delayed=False)
        assert ran == []
        await run_until_idle(runner)
        assert await handle.status() is Status.FAILED
    assert ran == [86_400, 90_000, 97_200]
    assert not exists(db)


async def test_the_runner_has_its_own_store_and_clock_again_afterwards(db: str) -> None:
    runner = Runner(db)
    before = internals_of(runner).store, internals_of(runner).clock

    @runner.handler
    async def handler(number: int) -> int:
        return number

    async with in_memory(runner) as clock:
        assert (internals_of(runner).store.location, internals_of(runner).clock) == (":memory:", clock)
        await handler.submit(1)
        with pytest.raises(ConfigurationError, match="already started"):
            await runner.start()
        with pytest.raises(ConfigurationError, match="already started"):
            async with in_memory(runner):
                pass
    assert (internals_of(runner).store, internals_of(runner).clock) == before
    async with runner:
        assert await (await handler.submit(1)).result(20) == 1
    assert exists(db)


async def test_items_that_handlers_submit_are_run_too(run_in_memory: InMemory) -> None:
    runner = Runner()
    seen: list[int] = []

    @runner.handler(batch="handler")
    async def handler(number: int) -> None:
        seen.append(number)
        if number < 5:
            await handler.submit(number + 1, delay=60)

    await run_in_memory(runner)
    await handler.submit(0)
    await run_until_idle(runner)
    assert seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("others", [0, 1, 2, 5])
async def test_a_retry_is_leapt_to_however_many_idle_handlers_there_are(others: int, run_in_memory: InMemory) -> None:
    runner = Runner()
    ran: list[int] = []

    @runner.handler(batch="a", max_attempts=3)
    async def handler(number: int) -> None:
        ran.append(number)
        raise Retry("later", after=3600)

    for index in range(others):

        @runner.handler(batch=f"other {index}")
        async def other(number: int) -> None: ...

    await run_in_memory(runner)
    handle = await handler.submit(1)
    await run_until_idle(runner)
    assert (await handle.status(), ran) == (Status.FAILED, [1, 1, 1])


async def test_a_clock_is_not_moved_by_an_invalid_time() -> None:
    clock = FakeClock()
    for seconds in (-1, float("nan"), float("inf"), "x"):
        with pytest.raises(ConfigurationError, match=r"give seconds, 0 or more .jump"):
            await clock.advance(seconds)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=r"give seconds, 0 or more .jump"):
            await clock.leap(seconds)  # type: ignore[arg-type]


async def test_leaving_cancels_running_handlers_also_those_that_ignore_it(until: Until) -> None:
    runner = Runner()
    running: list[int] = []

    @runner.handler(batch="handler")
    async def handler(number: int) -> None:
        running.append(number)
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async with in_memory(runner):
        await handler.submit(1)
        await until(lambda: running)


async def test_a_runner_that_is_not_started_is_named() -> None:
    with pytest.raises(StoreClosed, match="is not started; use `async with in_memory"):
        await run_until_idle(Runner())


async def test_with_the_real_clock_it_waits(db: str) -> None:
    runner = Runner(db)

    @runner.handler
    async def handler(number: int) -> int:
        return number

    async with runner:
        handle = await handler.submit(1, delay=0.05)
        await run_until_idle(runner)
        assert await handle.status() is Status.COMPLETED


async def test_the_error_that_ended_the_runner_is_raised(db: str) -> None:
    class Broken(type(internals_of(Runner()).store)):  # type: ignore[misc]
        async def turn(self, *args: object, **options: object) -> None:
            raise ValueError("a bug of the store")

    runner = Runner(db, store=Broken(db))

    @runner.handler
    async def handler(number: int) -> int:
        return number

    await runner.start()
    with pytest.raises(ValueError, match="a bug of the store"):
        await run_until_idle(runner)
    await runner.stop()


async def test_a_leap_calls_each_timer_once() -> None:
    clock = FakeClock()
    called: list[str] = []

    def again() -> None:
        called.append("again")
        clock.call_later(1, again)

    clock.call_later(1, again)
    clock.call_later(5, lambda: called.append("five"))
    clock.call_later(20, lambda: called.append("twenty")).cancel()
    clock.call_later(30, lambda: called.append("thirty"))
    await clock.leap(25)
    assert called == ["again", "five"]
