"""Row 9: an item that kills its process, among many that do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from asyncrunner import Client, Control, Runner
from asyncrunner.backends import open_engine
from asyncrunner.domain.item import NewItem, Status, Suspicion
from asyncrunner.errors import WorkerLost
from asyncrunner.runner.duties.watchdog import Watchdog
from asyncrunner.runner.runner import internals_of, run_until_idle
from asyncrunner.serialization.error_info import describe
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.testing import FakeClock
from asyncrunner.worker.worker import Worker
from tests.conftest import Until
from tests.support.processes import Jobs
from tests.support.state import changing, rows_of

POISON = """
import asyncio, ctypes, os

LOG = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
DEATHS = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(0),
}

def note(what, n):
    os.write(LOG, f"{what} {n} {os.getpid()}\\n".encode())

async def poison(n: int) -> int:
    note("start", n)
    await asyncio.sleep(0.02)
    if n == 17:
        DEATHS[os.environ["DEATH"]]()
    await asyncio.sleep(0.03)
    note("end", n)
    return n
"""


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    made = Jobs(tmp_path)
    (tmp_path / "p.py").write_text(POISON)
    yield made
    made.end()


def verdict(jobs: Jobs) -> list[tuple[object, ...]]:
    return jobs.query("SELECT status, count(*) FROM items GROUP BY 1 ORDER BY 1")


@pytest.mark.parametrize("death", ["segfault", "abort", "exit"])
def test_row_09_of_fifty_items_the_one_that_kills_its_process_fails_and_the_others_complete(
    poisoned: Jobs, death: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEATH", death)
    items = poisoned.items(50)
    crashes = 0
    run = ("run", "p.py:poison", items, "-c", "50", "--max-attempts", "3", "--retry-initial", "0", "--quiet")
    while poisoned.run(*run)[0] not in (1, 2):
        crashes += 1
        assert crashes <= 3, "the item is run too often"
    assert crashes == 3
    assert verdict(poisoned) == [("completed", 49), ("failed", 1)]
    ((error, attempts, crashed),) = poisoned.query(
        "SELECT error, attempts, crashes FROM items WHERE status = 'failed' AND id = '17'"
    )
    assert (attempts, crashed) == (3, 3)
    assert error.startswith("WorkerLost: worker ")
    assert "its lock is free: the process is dead" in error
    assert error.endswith("Attempt 3 of 3; other items of the worker: 0; crashes of this item: 3")
    assert poisoned.query("SELECT count(*) FROM items WHERE status = 'completed' AND attempts > 3") == [(0,)]
    assert poisoned.runs("start")[17] == 3


def test_row_09_of_an_item_that_may_run_only_once_the_neighbours_complete_too(
    poisoned: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEATH", "exit")
    items = poisoned.items(50)
    codes = [
        poisoned.run("run", "p.py:poison", items, "-c", "50", "--max-attempts", "1", "--retry-initial", "0", "--quiet")[0]
        for _ in range(4)
    ]
    assert codes == [0, 0, 0, 1], "os._exit(0) three times: twice among the others, which are innocent, and once alone"
    assert verdict(poisoned) == [("completed", 49), ("failed", 1)]
    assert poisoned.query("SELECT count(*) FROM items WHERE attempts <> 1") == [(0,)]


def test_row_09_with_two_processes_the_innocent_complete_in_whichever_is_left(
    poisoned: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEATH", "abort")
    items = poisoned.items(120)
    command = ("run", "p.py:poison", items, "-c", "25", "--max-attempts", "3", "--retry-initial", "0", "--quiet")
    processes = [poisoned.start(*command) for _ in range(2)]
    deaths = 0
    while processes:
        for process in list(processes):
            try:
                process.communicate(timeout=0.05)
            except Exception:  # still running
                continue
            processes.remove(process)
            if process.returncode == -6:
                deaths += 1
                assert deaths <= 4
                processes.append(poisoned.start(*command))
    assert deaths in (3, 4), "beside other items it is convicted one crash later"
    assert verdict(poisoned) == [("completed", 119), ("failed", 1)]
    assert poisoned.query("SELECT id, crashes FROM items WHERE status = 'failed'") == [("17", deaths)]


async def lost_together(db: str, keys: list[str], batch: str, losses: int = 2) -> None:
    """Return a file whose items were all held by workers that died, as often as *losses*."""
    clock = FakeClock(time.time() - 1000 * losses)
    store = open_engine(db, clock=clock)
    await store.open()
    made = await store.open_batch(batch, batch, BatchOptions(max_attempts=5))
    await store.add(made.batch_id, [NewItem(key, key) for key in keys], on_change="error")
    for number in range(losses):
        await store.join(WorkerInfo(f"dead-{number}", "host", 1))
        suspicion = Suspicion.ISOLATED if number > 1 else Suspicion.NONE
        turn = await store.turn(f"dead-{number}", [], [Want(made.batch_id, 100, 5, suspicion=suspicion)])
        assert len(turn.claims) == len(keys)
        assert await store.recover(f"dead-{number}", describe(WorkerLost("it died"))) == len(keys)
        clock.jump(1000)
    await store.close()


async def test_row_09_orphans_of_another_batch_may_be_guilty_too(db: str) -> None:
    store = open_engine(db)
    await store.open()
    batches = [(await store.open_batch(name, name, BatchOptions(max_attempts=1))).batch_id for name in ("b", "other")]
    await store.join(WorkerInfo("w", "host", 1))
    for batch_id in batches:
        await store.add(batch_id, [NewItem("k", "1")], on_change="error")
        assert (await store.turn("w", [], [Want(batch_id, 1, 1)])).claims
    with changing(db) as connection:
        connection.execute("DELETE FROM workers")
    async with Control(db) as control:
        await control.recover(batch="b")
    assert rows_of(db, "SELECT status, crashes FROM items ORDER BY seq") == [(Status.PENDING, 1), (Status.PROCESSING, 0)]
    await store.close()


class Crowd:
    """Handlers that record which others run beside each item; *held* items end only when ``go`` is set."""

    def __init__(self, held: Callable[[int], bool]) -> None:
        self.running: set[int] = set()
        self.beside: dict[int, set[int]] = {}
        self.go = asyncio.Event()
        self._held = held

    async def run(self, n: int) -> None:
        self.running.add(n)
        for other in self.running:
            self.beside.setdefault(other, set()).update(self.running - {other})
        self.beside.setdefault(n, set()).update(self.running - {n})
        if self._held(n):
            await self.go.wait()
        else:
            await asyncio.sleep(0.002)
        self.running.discard(n)


async def test_row_51_after_one_loss_all_items_run_together(db: str, until: Until) -> None:
    await lost_together(db, ["1", "2", "3"], "b", losses=1)
    crowd = Crowd(lambda n: True)
    runner = Runner(db, concurrency=10)
    runner.handler(batch="b")(crowd.run)
    async with runner:
        await until(lambda: crowd.running == {1, 2, 3})
        crowd.go.set()
        await run_until_idle(runner)


async def test_row_09_suspects_run_one_at_a_time_beside_everything_else(db: str, until: Until) -> None:
    await lost_together(db, ["1", "2", "3"], "b")
    crowd = Crowd(lambda n: n > 3)
    runner = Runner(db, concurrency=20)

    @runner.handler(batch="b")
    async def suspected(n: int) -> None:
        await crowd.run(n)

    @runner.handler(batch="other")
    async def other(n: int) -> None:
        await crowd.run(n)

    async with Client(db) as client:
        await client.submit_many(suspected, range(4, 8))
        await client.submit_many(other, range(10, 14))
    async with runner:
        await until(lambda: crowd.running == {4, 5, 6, 7, 10, 11, 12, 13} and len(crowd.beside) == 11)
        crowd.go.set()
        await run_until_idle(runner)
    assert all(not crowd.beside[n] & {1, 2, 3} for n in (1, 2, 3))
    assert rows_of(db, "SELECT status, count(*) FROM items GROUP BY 1") == [(Status.COMPLETED, 11)]


async def test_row_51_a_suspect_that_hangs_delays_no_other_item_and_the_next_suspect_for_half_a_minute(
    db: str, until: Until
) -> None:
    await lost_together(db, ["1", "2"], "b")
    crowd = Crowd(lambda n: n == 1)
    runner = Runner(db, concurrency=5)
    runner.handler(batch="b")(crowd.run)
    clock = FakeClock(time.time())
    await internals_of(runner).start(store=open_engine(db, clock=clock), clock=clock)
    try:
        await until(lambda: 1 in crowd.running)
        async with Client(db) as client:
            await client.submit_many("b", [3, 4])
        await advance_until(clock, lambda: {3, 4} <= set(crowd.beside))
        assert 2 not in crowd.beside
        await advance_until(clock, lambda: 2 in crowd.beside, seconds=31)
        assert crowd.running >= {1}
    finally:
        crowd.go.set()
        await internals_of(runner).stop(drain=False)


async def advance_until(clock: FakeClock, condition: Callable[[], object], seconds: float = 20) -> None:
    """Move the clock in small steps until the condition holds, at most by *seconds*; then wait for the store's threads."""
    for _ in range(int(seconds / 0.25)):
        if condition():
            return
        await clock.advance(0.25)
        await asyncio.sleep(0.005)
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def isolated(db: str, key: str, batch: str) -> None:
    await lost_together(db, [key], batch, losses=3)
    assert rows_of(db, f"SELECT suspect FROM items WHERE id = '{key}'") == [(Suspicion.ISOLATED,)]


async def test_row_09_an_isolated_suspect_runs_alone(db: str, until: Until) -> None:
    await isolated(db, "1", "b")
    crowd = Crowd(lambda n: n == 2)
    runner = Runner(db, concurrency=5)
    runner.handler(batch="b")(crowd.run)
    other = runner.handler(batch="other")(crowd.run)
    async with Client(db) as client:
        await client.submit_many(other, [2])
    async with runner:
        await until(lambda: 2 in crowd.running)
        async with Client(db) as client:
            await client.submit_many(other, [3])
        await asyncio.sleep(0.3)  # a turn of the worker would have started item 3 by now
        assert crowd.running == {2}, "while one item waits to run alone, no other starts"
        crowd.go.set()
        await run_until_idle(runner)
    assert crowd.beside[1] == set()
    assert rows_of(db, "SELECT status, count(*) FROM items GROUP BY 1") == [(Status.COMPLETED, 3)]


async def test_row_51_an_isolated_suspect_waits_for_others_and_others_for_it_half_a_minute_at_most(db: str, until: Until) -> None:
    await isolated(db, "1", "b")
    crowd = Crowd(lambda n: n < 3)
    runner = Runner(db, concurrency=5)
    runner.handler(batch="b")(crowd.run)
    other = runner.handler(batch="other")(crowd.run)
    async with Client(db) as client:
        await client.submit_many(other, [2])
    clock = FakeClock(time.time())
    await internals_of(runner).start(store=open_engine(db, clock=clock), clock=clock)
    try:
        await until(lambda: 2 in crowd.running)
        await clock.advance(25)
        assert crowd.running == {2}
        await advance_until(clock, lambda: crowd.running == {1, 2})
        async with Client(db) as client:
            await client.submit_many(other, [3])
        await clock.advance(20)
        assert 3 not in crowd.beside
        await advance_until(clock, lambda: 3 in crowd.beside)
    finally:
        crowd.go.set()
        await internals_of(runner).stop(drain=False)


async def test_row_51_the_log_reports_each_step_of_an_isolation(db: str, until: Until, caplog: pytest.LogCaptureFixture) -> None:
    await isolated(db, "1", "b")
    crowd = Crowd(lambda n: n < 3)
    runner = Runner(db, concurrency=5)
    runner.handler(batch="b")(crowd.run)
    other = runner.handler(batch="other")(crowd.run)
    async with Client(db) as client:
        await client.submit_many(other, [2])
    clock = FakeClock(time.time())
    caplog.set_level("INFO", "asyncrunner")
    await internals_of(runner).start(store=open_engine(db, clock=clock), clock=clock)
    try:
        await until(lambda: 2 in crowd.running)
        await advance_until(clock, lambda: crowd.running == {1, 2}, seconds=40)
        async with Client(db) as client:
            await client.submit_many(other, [3])
        await advance_until(clock, lambda: 3 in crowd.beside, seconds=40)
    finally:
        crowd.go.set()
        await internals_of(runner).stop(drain=False)
    steps = [record.getMessage() for record in caplog.records if " 30 s" in record.getMessage()]
    waits = (
        "the worker waits up to 30 s for 1 item to end, and starts no others meanwhile: "
        "the next item runs alone, because workers died while it ran"
    )
    assert steps == [
        waits,
        "item '1' of 'b' starts beside 1 other item: 3 workers died while it ran; for 30 s, no other item starts in this worker",
        "item '1' of 'b' has not ended within 30 s: other items start beside it",
    ]


async def test_row_51_items_that_wait_for_an_isolated_one_start_after_half_a_minute_without_a_change_of_the_store(
    db: str, until: Until
) -> None:
    await isolated(db, "1", "b")
    crowd = Crowd(lambda n: n == 1)
    runner = Runner(db, concurrency=2)
    runner.handler(batch="b")(crowd.run)
    other = runner.handler(batch="other")(crowd.run)
    clock = FakeClock(time.time())
    await internals_of(runner).start(store=open_engine(db, clock=clock), clock=clock)
    try:
        await until(lambda: 1 in crowd.running)
        async with Client(db) as client:
            await client.submit_many(other, range(10, 20))
        await advance_until(clock, lambda: crowd.beside.keys() >= set(range(10, 20)), seconds=35)
    finally:
        crowd.go.set()
        await internals_of(runner).stop(drain=False)


class PumpRounds:
    """Counts the rounds of the pump of each worker that starts from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._count = 0
        self._polled = asyncio.Event()
        begin, watch = Worker._begin_lap, Watchdog._watch

        def counted(worker: Worker) -> bool:
            self._count += 1
            return begin(worker)

        async def reported(watchdog: Watchdog) -> None:
            await watch(watchdog)
            self._polled.set()

        monkeypatch.setattr(Worker, "_begin_lap", counted)
        monkeypatch.setattr(Watchdog, "_watch", reported)

    async def during_polls(self, clock: FakeClock, polls: int = 20) -> int:
        """Return the number of rounds while the worker reads its controls and looks at the others *polls* times.

        The pump and the polls take turns at the store, so a pump that never rests makes a round for each poll.
        """
        before = self._count
        for _ in range(polls):
            self._polled.clear()
            while not self._polled.is_set():
                await clock.advance(0.1)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._polled.wait(), 0.005)
        return self._count - before


async def test_row_51_a_worker_that_holds_others_back_makes_few_rounds_although_their_items_are_due(
    db: str, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    await isolated(db, "1", "b")
    crowd = Crowd(lambda n: n == 1)
    runner = Runner(db, concurrency=5)
    runner.handler(batch="b")(crowd.run)
    other = runner.handler(batch="other")(crowd.run)
    async with Client(db) as client:
        await client.submit(other, 2, delay=0.05)
    clock, rounds = FakeClock(time.time()), PumpRounds(monkeypatch)
    internals = internals_of(runner)
    await internals.start(store=open_engine(db, clock=clock), clock=clock)
    try:
        await until(lambda: 1 in crowd.running)
        assert await rounds.during_polls(clock) < 10
        assert crowd.running == {1}
        crowd.go.set()
        await until(lambda: 2 in crowd.beside)
    finally:
        crowd.go.set()
        await internals.stop(drain=False)


async def test_row_51_a_worker_that_drains_while_an_isolated_item_waits_makes_few_rounds(
    db: str, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    await isolated(db, "1", "b")
    crowd = Crowd(lambda n: n == 2)
    runner = Runner(db, concurrency=5, shutdown_timeout=60)
    runner.handler(batch="b")(crowd.run)
    other = runner.handler(batch="other")(crowd.run)
    async with Client(db) as client:
        await client.submit_many(other, [2])
    clock, rounds = FakeClock(time.time()), PumpRounds(monkeypatch)
    internals = internals_of(runner)
    await internals.start(store=open_engine(db, clock=clock), clock=clock)
    try:
        await until(lambda: 2 in crowd.running)
        runner.request_stop()
        await clock.advance(5)
        assert await rounds.during_polls(clock) < 10
        assert crowd.running == {2}
    finally:
        crowd.go.set()
        await internals.stop(drain=False)


async def test_row_09_a_handler_that_waits_for_an_item_does_not_keep_isolated_suspects_waiting(db: str) -> None:
    await isolated(db, "1", "b")
    runner = Runner(db, concurrency=5)

    @runner.handler(batch="b")
    async def suspected(n: int) -> int:
        return n

    @runner.handler(batch="other")
    async def waits(n: int) -> int:
        return await (await suspected.submit(n, key=str(n))).result(timeout=25)

    async with runner:
        handle = await waits.submit(1)
        assert await handle.result(timeout=28) == 1
