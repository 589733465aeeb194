"""``setup=``: what the handlers of a process share is opened before the first handler and closed after the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, assert_type

import anyio
import pytest

from asyncrunner import BatchReport, Client, ConfigurationError, Runner, StoreError, plan_batch, run_batch, stream_batch
from asyncrunner.errors import SetupFailed
from tests.conftest import Until
from tests.support.state import counts, rows_of

events: list[str] = []


@dataclass
class Session:
    name: str


@asynccontextmanager
async def session() -> AsyncGenerator[Session]:
    events.append("open")
    try:
        yield Session("s")
    finally:
        await asyncio.sleep(0)
        events.append("closed")


@pytest.fixture(autouse=True)
def _no_events() -> None:
    events.clear()


async def fetch(number: int, session: Session) -> str:
    await asyncio.sleep(0)
    events.append(f"ran {number}")
    return f"{session.name}{number}"


async def test_the_value_of_setup_is_the_second_argument_of_every_handler(db: str) -> None:
    report = await run_batch(range(3), fetch, setup=session, db=db)
    assert_type(report, BatchReport[int, str])
    assert [outcome.result async for outcome in report.outcomes()] == ["s0", "s1", "s2"]
    assert (events[0], events[-1], sorted(events[1:-1])) == ("open", "closed", ["ran 0", "ran 1", "ran 2"])


async def test_a_stream_leaves_it_after_the_last_handler(db: str) -> None:
    async with stream_batch(range(3), fetch, setup=session, db=db) as outcomes:
        results = sorted([outcome.result or "" async for outcome in outcomes])
        assert "closed" not in events
    assert (results, events[-1]) == (["s0", "s1", "s2"], "closed")


async def test_a_function_in_a_thread_takes_it_too(db: str) -> None:
    def length(word: str, shared: Session) -> int:
        return len(word + shared.name)

    report = await run_batch(["a", "bc"], length, batch="b", setup=session, db=db)
    assert_type(report, BatchReport[str, int])
    assert [outcome.result async for outcome in report.outcomes()] == [2, 3]


async def test_handlers_of_one_runner_share_it_and_may_do_without_it(db: str) -> None:
    runner = Runner(db, setup=session)
    seen: list[object] = []

    @runner.handler(batch="with it")
    async def with_it(number: int, shared: Session) -> None:
        seen.append(shared)

    @runner.handler(batch="with default")
    async def with_default(number: int, factor: int = 2) -> None:
        seen.append(factor)

    @runner.handler(batch="without it")
    async def without_it(number: int) -> None:
        seen.append(None)

    for _ in range(2):  # it is entered again at each start
        async with runner:
            handles = [await handler.submit(1) for handler in (with_it, with_default, without_it)]
            for handle in handles:
                await handle.result(30)
    assert events == ["open", "closed"] * 2
    assert seen.count(Session("s")) == 2
    assert seen.count(None) == 2
    assert seen.count(2) == 2
    await with_it(5, Session("test"))  # a test calls it directly
    assert seen[-1] == Session("test")


async def generator() -> AsyncGenerator[Session]:
    yield Session("g")


@pytest.mark.parametrize(("made", "name"), [(session, "session"), (generator, "generator")])
def test_a_setup_that_was_called_is_refused_with_the_function_to_pass(made: Any, name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"give the function itself: setup={name}, not setup={name}\(\)"):
        Runner("x.db", setup=made())


async def test_an_async_generator_needs_no_decorator(db: str) -> None:
    async def plain() -> AsyncGenerator[Session]:
        yield Session("plain")
        events.append("closed")

    report: BatchReport[Any, Any] = await run_batch([1], fetch, setup=plain, db=db)  # type: ignore[arg-type]  # pyright: ignore
    assert [outcome.result async for outcome in report.outcomes()] == ["plain1"]
    assert events[-1] == "closed"


async def test_a_setup_that_fails_charges_no_item_and_leaves_nothing(db: str) -> None:
    @asynccontextmanager
    async def broken() -> AsyncGenerator[Session]:
        raise OSError("no route to host")
        yield Session("never")

    with pytest.raises(SetupFailed, match=r"setup=.*broken failed at the start: OSError: no route to host, line") as failure:
        await run_batch(range(3), fetch, setup=broken, db=db)
    assert (failure.value.error, type(failure.value.__cause__)) == ("OSError: no route to host", OSError)
    report = await run_batch(range(3), fetch, setup=session, db=db)
    assert (report.completed, report.attempts) == (3, 3)
    with pytest.raises(SetupFailed, match="no route"):
        await run_batch([7], fetch, setup=broken, db=db)
    assert rows_of(db, "SELECT max(attempts), sum(crashes) FROM items") == [(1, 0)]
    assert rows_of(db, "SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]


@pytest.mark.sqlite_file
async def test_it_is_left_when_the_run_cannot_begin_or_is_cancelled(db: str, until: Until) -> None:
    async def wait(number: int, shared: Session) -> None:
        events.append("waits")
        await asyncio.Event().wait()

    running = asyncio.create_task(run_batch([1], wait, batch="b", setup=session, db=db))
    await until(lambda: "waits" in events)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert events == ["open", "waits", "closed"]
    events.clear()
    Path(db).unlink()
    Path(db).mkdir()
    with pytest.raises(StoreError):
        await run_batch([1], wait, batch="b", setup=session, db=db)
    assert events.count("open") == events.count("closed")


async def test_a_start_that_is_cancelled_in_setup_ends_it(db: str) -> None:
    @asynccontextmanager
    async def slow() -> AsyncGenerator[None]:
        events.append("opening")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("closed")
        yield

    starting = asyncio.create_task(Runner(db, setup=slow).start())
    while not events:
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert events == ["opening", "closed"]


async def test_it_may_hold_a_task_group_and_start_and_stop_may_be_called_in_different_tasks(db: str) -> None:
    @asynccontextmanager
    async def group() -> AsyncGenerator[anyio.abc.TaskGroup]:
        async with anyio.create_task_group() as tasks:
            yield tasks
            tasks.cancel_scope.cancel()

    runner = Runner(db, setup=group)

    @runner.handler(batch="b")
    async def handler(number: int, tasks: anyio.abc.TaskGroup) -> int:
        tasks.start_soon(anyio.sleep, 1000)
        return number

    await asyncio.create_task(runner.start())
    assert await (await handler.submit(3)).result(30) == 3
    await asyncio.create_task(runner.stop())
    assert runner.failure is None


async def test_a_shared_task_that_fails_ends_the_run_with_its_error(db: str) -> None:
    @asynccontextmanager
    async def failing() -> AsyncGenerator[asyncio.Event]:
        broken = asyncio.Event()

        async def background() -> None:
            await broken.wait()
            raise OSError("the connection was lost")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(background())
            yield broken

    async def handler(number: int, broken: asyncio.Event) -> None:
        broken.set()
        await asyncio.Event().wait()

    with pytest.raises(SetupFailed, match="failed while handlers ran: OSError: the connection was lost, line") as caught:
        await run_batch([1], handler, batch="b", setup=failing, db=db)
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert (counts(db)["pending"], rows_of(db, "SELECT attempts FROM items")) == (1, [(0,)])


async def test_an_error_when_it_is_left_is_raised_after_the_outcomes_are_saved(db: str) -> None:
    @asynccontextmanager
    async def unclosable() -> AsyncGenerator[Session]:
        yield Session("u")
        raise OSError("cannot be closed")

    with pytest.raises(SetupFailed, match="failed when it was left: OSError: cannot be closed, line"):
        await run_batch(range(2), fetch, setup=unclosable, db=db)
    assert counts(db)["completed"] == 2


async def test_what_cannot_work_is_refused_at_the_call(db: str) -> None:
    with pytest.raises(ConfigurationError, match="or give setup=, whose value is the second argument"):
        await run_batch([1], fetch, db=db)  # type: ignore[arg-type]  # pyright: ignore
    with pytest.raises(ConfigurationError, match="setup"):
        Runner(db, setup=3)  # type: ignore[arg-type]  # pyright: ignore
    with pytest.raises(ConfigurationError, match=r"no_manager\(\) returned int"):
        await run_batch([1], fetch, setup=no_manager, db=db)  # type: ignore[arg-type]  # pyright: ignore
    runner = Runner(db, setup=session)
    with pytest.raises(ConfigurationError, match="runs in child processes"):
        runner.handler(run_in="process")(in_process)


def no_manager() -> int:
    return 3


def in_process(number: int, session: Session) -> None: ...


async def test_a_decorator_that_hands_in_an_argument_keeps_its_own(db: str) -> None:
    def with_session(function: Any) -> Any:
        @wraps(function)
        async def call(number: int) -> Any:
            return await function(number, Session("own"))

        return call

    report: BatchReport[Any, Any] = await run_batch([1], with_session(fetch), setup=session, db=db, batch="b")
    assert [outcome.result async for outcome in report.outcomes()] == ["own1"]


async def test_a_dry_run_opens_nothing_and_a_client_needs_no_setup(db: str) -> None:
    plan = await plan_batch(range(3), fetch, setup=session, db=db)
    assert (plan.new, events) == (3, [])
    runner = Runner(db, setup=session)
    handler = runner.handler(fetch)
    async with runner:
        async with Client(db) as client:
            handle = await client.submit(fetch, 5)
            assert await handle.result(30) == "s5"
        assert await (await handler.submit(6)).result(30) == "s6"


async def test_a_partial_takes_it(db: str) -> None:
    async def scaled(factor: int, number: int, shared: Session) -> str:
        return f"{shared.name}{factor * number}"

    report: BatchReport[Any, Any] = await run_batch([2], partial(scaled, 10), setup=session, db=db, batch="scaled")
    assert [outcome.result async for outcome in report.outcomes()] == ["s20"]
