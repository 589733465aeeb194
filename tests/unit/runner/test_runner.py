"""Runner: handlers inside a running program."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import (
    ConfigurationError,
    Handler,
    ItemNotStorable,
    KeyConflict,
    RetryPolicy,
    Runner,
    Status,
    StoreClosed,
    StoreUnavailable,
    current_attempt,
)
from asyncrunner.domain.outcome import Completed
from asyncrunner.events import Accepted, Recovered, Settled, Started
from asyncrunner.runner.runner import internals_of
from asyncrunner.sqlite.file.connection import Connection
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.testing import FakeClock
from tests.conftest import Until
from tests.support.state import rows_of
from tests.support.stores import Overridden


async def test_a_submitted_item_is_on_disk_when_submit_returns_and_runs(db: str, until: Until) -> None:
    runner = Runner(db)
    ran: list[int] = []

    @runner.handler(batch="welcome")
    async def welcome(user: int) -> None:
        """Say hello."""
        ran.append(user)

    async with runner:
        handle = await welcome.submit(42, key="welcome-42")
        assert rows_of(db, "SELECT id, payload FROM items") == [("welcome-42", "42")]
        await until(lambda: ran == [42])
    assert (handle.key, welcome.__name__, welcome.__doc__) == ("welcome-42", "welcome", "Say hello.")
    assert rows_of(db, "SELECT status FROM items") == [("completed",)]
    await welcome(43)
    assert ran == [42, 43]


async def test_delay_priority_and_repetition(db: str, until: Until) -> None:
    runner = Runner(db, concurrency=1)
    ran: list[str] = []

    @runner.handler(batch="b")
    async def handler(name: str) -> None:
        ran.append(name)

    async with runner:
        await handler.submit("later", delay=3600, key="later")
        await handler.submit("now", key="now")
        await handler.submit("now", key="now")
        await until(lambda: ran)
        with pytest.raises(KeyConflict):
            await handler.submit("another", key="now")
        with pytest.raises(ConfigurationError, match="delay=-1"):
            await handler.submit("x", delay=-1, key="x")
        with pytest.raises(ItemNotStorable):
            await handler.submit(object())  # type: ignore[arg-type]
    assert ran == ["now"]
    assert rows_of(db, "SELECT id, status FROM items ORDER BY id") == [("later", "pending"), ("now", "completed")]


async def test_an_item_runs_when_its_delay_is_over(db: str, until: Until) -> None:
    runner = Runner(db)
    ran: list[str] = []

    @runner.handler(batch="handler")
    async def handler(name: str) -> None:
        ran.append(name)

    async with runner:
        await handler.submit("soon", delay=0.05)
        await until(lambda: ran)


@pytest.fixture
async def started(db: str) -> AsyncIterator[tuple[Runner, Any, list[int]]]:
    ran: list[int] = []
    runner = Runner(db)

    @runner.handler(batch="handler")
    async def handler(item: int) -> None:
        ran.append(item)

    async with runner:
        yield runner, handler, ran


async def test_a_fixture_may_enter_and_leave_it_from_other_tasks(started: tuple[Runner, Any, list[int]], until: Until) -> None:
    _, handler, ran = started
    await handler.submit(1)
    await until(lambda: ran == [1])


async def test_it_may_be_started_in_one_task_and_stopped_in_another_and_started_again(db: str, until: Until) -> None:
    runner = Runner(db)
    ran: list[int] = []

    @runner.handler(batch="handler")
    async def handler(item: int) -> None:
        ran.append(item)

    for item in (1, 2):
        await asyncio.create_task(runner.start())
        await handler.submit(item)
        await until(lambda: item in ran)  # noqa: B023
        await asyncio.create_task(runner.stop())
    await runner.stop()
    assert ran == [1, 2]


async def test_the_end_of_one_drain_does_not_cancel_what_the_next_start_runs(db: str, until: Until) -> None:
    clock = FakeClock()
    runner = Runner(db, clock=clock, shutdown_timeout=30)
    running: list[int] = []
    release = asyncio.Event()

    @runner.handler(batch="handler")
    async def handler(item: int) -> None:
        running.append(item)
        await release.wait()

    await runner.start()
    await runner.stop()
    await runner.start()
    await handler.submit(1)
    await until(lambda: running)
    await clock.advance(31)
    assert rows_of(db, "SELECT status FROM items") == [("processing",)]
    release.set()
    await until(lambda: rows_of(db, "SELECT status FROM items") == [("completed",)])
    await runner.stop()


async def test_mistakes_are_named(db: str) -> None:
    runner = Runner(db)

    @runner.handler(batch="b")
    async def handler(item: int) -> None: ...

    with pytest.raises(ConfigurationError, match="already has a handler"):
        runner.handler(batch="b")(handler.function)
    with pytest.raises(StoreClosed, match="is not started"):
        await handler.submit(1)
    async with runner:
        with pytest.raises(ConfigurationError, match="already started"):
            await runner.start()
        with pytest.raises(ConfigurationError, match="before the runner is started"):
            runner.handler(batch="c")(handler.function)
    with pytest.raises(StoreClosed, match="is stopped"):
        await handler.submit(1)
    with pytest.raises(TypeError, match="did you mean 'timeout'"):
        runner.handler(timeut=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="db is an option of the runner or of run_batch, not of a handler"):
        runner.handler(db="other.db")  # type: ignore[call-overload]
    assert db in repr(runner)
    assert "'b'" in repr(handler)


async def test_leaving_drains_running_handlers_and_keeps_waiting_items(db: str, until: Until) -> None:
    runner = Runner(db, concurrency=1)
    release = asyncio.Event()
    running: list[int] = []

    @runner.handler(batch="handler")
    async def handler(item: int) -> None:
        running.append(item)
        await release.wait()

    await runner.start()
    for item in (1, 2, 3):
        await handler.submit(item, key=item)
    await until(lambda: running)
    stopping = asyncio.ensure_future(runner.stop())
    await asyncio.sleep(0.02)
    assert not stopping.done()
    release.set()
    await stopping
    assert rows_of(db, "SELECT id, status, attempts FROM items ORDER BY seq") == [
        ("1", "completed", 1), ("2", "pending", 0), ("3", "pending", 0),
    ]  # fmt: skip


async def test_a_drain_that_takes_too_long_cancels_and_refunds(db: str, until: Until) -> None:
    runner = Runner(db, shutdown_timeout=0.02)
    running: list[int] = []

    @runner.handler(batch="handler")
    async def handler(item: int) -> None:
        running.append(item)
        await asyncio.Event().wait()

    async with runner:
        await handler.submit(1)
        await until(lambda: running)
    assert rows_of(db, "SELECT status, attempts FROM items") == [("pending", 0)]


async def test_a_cancelled_stop_cancels_the_handlers_and_still_closes(db: str, until: Until) -> None:
    runner = Runner(db)
    running: list[int] = []

    @runner.handler(batch="handler")
    async def handler(item: int) -> None:
        running.append(item)
        await asyncio.Event().wait()

    await runner.start()
    await handler.submit(1)
    await until(lambda: running)
    stopping = asyncio.ensure_future(runner.stop())
    await asyncio.sleep(0.01)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert rows_of(db, "SELECT status, attempts FROM items") == [("pending", 0)]
    assert [task.get_name() for task in asyncio.all_tasks() if "asyncrunner" in task.get_name()] == []


async def test_a_stop_while_it_is_started_stops_it(db: str) -> None:
    opening, go_on = asyncio.Event(), asyncio.Event()

    class SlowToJoin(Overridden):
        async def join(self, worker: WorkerInfo) -> None:
            opening.set()
            await go_on.wait()
            await super().join(worker)

    runner = Runner(db, store=SlowToJoin(db))
    starting = asyncio.ensure_future(runner.start())
    await opening.wait()
    stopping = asyncio.ensure_future(runner.stop())
    go_on.set()
    await asyncio.gather(starting, stopping)
    assert internals_of(runner).engine_task is None
    assert rows_of(db, "SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]


async def test_a_handler_may_have_its_own_limit(db: str, until: Until) -> None:
    runner = Runner(db, concurrency=10)
    running = most = done = 0
    go = asyncio.Event()

    @runner.handler(concurrency=2, batch="narrow")
    async def narrow(item: int) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        done += 1

    wide: list[int] = []

    @runner.handler(batch="other")
    async def other(item: int) -> None:
        wide.append(item)

    async with runner:
        await narrow.submit_many(range(12))
        await other.submit_many(range(12))
        await until(lambda: running == 2 and len(wide) == 12)
        go.set()
        await until(lambda: done == 12)
    assert most == 2


async def test_two_runners_share_a_file_in_one_process(db: str, until: Until) -> None:
    ran: list[int] = []
    runners = [Runner(db, concurrency=2), Runner(db, concurrency=2)]
    handlers: list[Handler[int, None]] = []
    for runner in runners:

        @runner.handler(batch="b")
        async def handler(item: int) -> None:
            ran.append(item)
            await asyncio.sleep(0.001)

        handlers.append(handler)
    async with runners[0], runners[1]:
        for item in range(40):
            await handlers[item % 2].submit(item)
        await until(lambda: len(ran) == 40)
    assert sorted(ran) == list(range(40))


async def test_a_worker_leaves_the_items_of_other_handlers_alone(db: str, until: Until) -> None:
    one, two = Runner(db), Runner(db)
    ran: list[str] = []

    @one.handler(batch="one")
    async def first(item: str) -> None:
        ran.append(f"one {item}")

    @two.handler(batch="two")
    async def second(item: str) -> None:
        ran.append(f"two {item}")

    async with two:
        await second.submit("a")
        await until(lambda: ran == ["two a"])
    async with one:
        await first.submit("a")
        await until(lambda: len(ran) == 2)
    assert ran == ["two a", "one a"]


async def test_events_are_published_after_the_commit(db: str, until: Until) -> None:
    runner = Runner(db)
    seen: list[object] = []
    for kind in (Accepted, Started, Settled, Recovered):
        internals_of(runner).events.on(kind, seen.append)

    @runner.handler(max_attempts=1, retry=RetryPolicy(initial=0))
    async def handler(item: int) -> int:
        assert current_attempt().batch.endswith("handler")
        return item

    async with runner:
        await handler.submit(1, key=1)
        await until(lambda: len(seen) == 3)
    assert {type(event) for event in seen} == {Accepted, Started, Settled}
    (settled,) = (event for event in seen if isinstance(event, Settled))
    assert (settled.outcome, settled.status, settled.id) == (Completed("1"), Status.COMPLETED, "1")


async def test_no_task_thread_or_descriptor_remains(db: str) -> None:
    threads, descriptors = set(threading.enumerate()), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        async with Runner(db):
            pass
    assert set(threading.enumerate()) <= threads  # those of tests before this one may have ended
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


@pytest.mark.sqlite_file
async def test_no_liveness_lock_remains(db: str) -> None:
    async with Runner(db):
        assert liveness_locks(db) != []
    assert liveness_locks(db) == []


def liveness_locks(db: str) -> list[str]:
    return [path.name for path in Path(f"{db}-locks").iterdir() if len(path.name) == 16]


class Stubborn(Overridden):
    """A store that is unavailable for the first few turns that settle something."""

    refusals = 3

    async def turn(self, worker_id: str, settlements: Any, wants: Any, *, checkpoints: Any = ()) -> Any:
        if settlements and self.refusals:
            self.refusals -= 1
            raise StoreUnavailable("locked by a test")
        return await super().turn(worker_id, settlements, wants, checkpoints=checkpoints)


async def test_while_the_store_is_unavailable_outcomes_wait_and_no_attempt_is_charged(db: str, until: Until) -> None:
    store = Stubborn(db)
    runner = Runner(db, store=store)
    ran: list[int] = []

    @runner.handler(batch="handler")
    async def handler(item: int) -> None:
        ran.append(item)

    async with runner:
        await handler.submit(1)
        await until(lambda: rows_of(db, "SELECT status FROM items") == [("completed",)])
    assert (ran, store.refusals) == ([1], 0)
    assert rows_of(db, "SELECT attempts, crashes FROM items") == [(1, 0)]


class Broken(Overridden):
    async def turn(self, worker_id: str, settlements: Any, wants: Any, *, checkpoints: Any = ()) -> Any:
        raise ValueError("a bug of the store")


async def test_a_permanent_store_error_ends_the_runner_with_its_reason(db: str, until: Until) -> None:
    runner = Runner(db, store=Broken(db))

    @runner.handler
    async def handler(item: int) -> None: ...

    await runner.start()
    engine_task = internals_of(runner).engine_task
    assert engine_task is not None
    await until(engine_task.done)
    with pytest.raises(StoreClosed, match="has stopped: a bug of the store"):
        await handler.submit(1)
    await runner.stop()


@pytest.mark.sqlite_file
async def test_a_lock_that_another_program_holds_for_long_is_waited_out(db: str, until: Until) -> None:
    runner = Runner(db)
    ran: list[int] = []

    @runner.handler(batch="handler")
    async def handler(item: int) -> None:
        ran.append(item)

    async with runner:
        other = sqlite3.connect(db, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        submitting = asyncio.ensure_future(handler.submit(1))
        await asyncio.sleep(0.4)
        assert not submitting.done()
        other.execute("ROLLBACK")
        other.close()
        await submitting
        await until(lambda: ran == [1])


@pytest.mark.sqlite_file
async def test_stop_gives_up_on_a_locked_file_in_the_end(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncrunner.runner.engine.STORE_RETRY_SECONDS", 0.1)
    monkeypatch.setattr("asyncrunner.runner.engine.GRACE_SECONDS", 0.1)
    runner = Runner(db)
    await runner.start()
    other = sqlite3.connect(db, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await asyncio.wait_for(runner.stop(drain=False), 20)
    other.execute("ROLLBACK")
    other.close()
    with pytest.raises(StoreUnavailable):
        internals_of(runner).raise_failure()


async def test_a_stop_that_is_cancelled_during_a_start_still_completes(db: str, until: Until) -> None:
    class SlowStore(Overridden):
        async def open(self) -> None:
            opening.set()
            await may_open.wait()
            await super().open()

    opening, may_open = asyncio.Event(), asyncio.Event()
    runner = Runner(db, store=SlowStore(db))
    starting = asyncio.ensure_future(runner.start())
    await opening.wait()
    stopping = asyncio.ensure_future(runner.stop())
    await asyncio.sleep(0)  # the stop waits for the start
    stopping.cancel()
    await asyncio.sleep(0)
    may_open.set()
    await starting
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert rows_of(db, "SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]
    await runner.start()  # nothing of the first start is left
    await runner.stop()


@pytest.mark.parametrize("at", ["open_batch", "join"])
@pytest.mark.sqlite_file
async def test_a_start_that_is_cancelled_leaves_no_worker_and_no_lock(at: str, db: str) -> None:
    class SlowStore(Overridden):
        async def _wait(self) -> None:
            reached.set()
            await asyncio.Event().wait()

        async def join(self, worker: WorkerInfo) -> None:
            await super().join(worker)
            if at == "join":
                await self._wait()

        async def open_batch(self, *arguments: Any) -> Any:
            await self._wait()

    def files() -> set[str]:
        return {path.name for path in Path(db).parent.rglob("*")} - {"jobs.db-shm", "jobs.db-wal"}

    async with Runner(db):
        pass
    before = files()
    reached = asyncio.Event()
    runner = Runner(db, store=SlowStore(db))

    @runner.handler
    async def handler(n: int) -> int:
        return n

    starting = asyncio.ensure_future(runner.start())
    await reached.wait()
    assert rows_of(db, "SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(1,)]
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert rows_of(db, "SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]
    assert files() == before


def connection_of(runner: Runner) -> Connection:
    engine = internals_of(runner)._engine
    assert engine is not None
    connection = getattr(engine.bare_store, "_connection")  # noqa: B009 - a store of another kind has none
    assert isinstance(connection, Connection)
    return connection


def run_in_thread_of(connection: Connection, call: Callable[[], None]) -> None:
    assert connection._connection is not None
    connection._connection._tx.put_nowait((None, call))


@pytest.mark.sqlite_file
@pytest.mark.parametrize(
    "ends", ["idle", "in a call that ends before the next start", "in a call that ends during the next start"]
)
def test_a_runner_whose_loop_was_closed_can_be_started_again(ends: str, db: str) -> None:
    runner = Runner(db)
    in_call, may_return, call_has_ended = threading.Event(), threading.Event(), threading.Event()
    started: list[int] = []

    @runner.handler(batch="b")
    async def handler(n: int) -> int:
        started.append(n)
        if len(started) == 1:
            await asyncio.Event().wait()
        return n

    async def begin() -> None:
        await runner.start()
        await handler.submit(1, key=1)
        while not started:
            await asyncio.sleep(0)
        connection = connection_of(runner)
        await connection.read(lambda _: None)  # so a turn that was in progress has ended
        if ends != "idle":
            calls.append(asyncio.ensure_future(connection.read(hold)))
            await asyncio.to_thread(in_call.wait, 30)

    def hold(_: object) -> bool:
        in_call.set()
        return may_return.wait(30)

    calls: list[asyncio.Future[bool]] = []

    async def again() -> tuple[int, int]:
        async with runner:
            return await (await handler.handle(1)).result(30), await (await handler.submit(2, key=2)).result(30)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()  # as after a second Ctrl-C under a server
    if ends == "in a call that ends during the next start":
        threading.Timer(0.2, may_return.set).start()
    elif ends == "in a call that ends before the next start":
        may_return.set()
        run_in_thread_of(connection_of(runner), call_has_ended.set)
        assert call_has_ended.wait(30), "the connection's thread must outlive the loop that it calls with results"
    assert asyncio.run(again()) == (1, 2)
    gc.collect()
    assert asyncio.run(again()) == (1, 2)
    assert rows_of(db, "SELECT id, status, attempts, crashes FROM items ORDER BY seq") == [
        ("1", "completed", 1, 0),
        ("2", "completed", 1, 0),
    ]
