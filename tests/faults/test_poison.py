"""Row 9: an item that kills its process, among many that do not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncrunner import Client, Runner
from asyncrunner.backends import open_engine
from asyncrunner.domain.item import NewItem, Status
from asyncrunner.errors import WorkerLost
from asyncrunner.runner.idle import run_until_idle
from asyncrunner.runner.runner import internals_of
from asyncrunner.serialization.error_info import describe
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.worker.admission import Blocked
from tests.conftest import Until
from tests.support.processes import Jobs
from tests.support.state import rows_of

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
    while poisoned.run("run", "p.py:poison", items, "-c", "50", "--retry-initial", "0", "--quiet")[0] not in (1, 2):
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
        for _ in range(3)
    ]
    assert codes == [0, 0, 1], "os._exit(0) twice: once among the others, which are innocent, and once alone"
    assert verdict(poisoned) == [("completed", 49), ("failed", 1)]
    assert poisoned.query("SELECT count(*) FROM items WHERE attempts <> 1") == [(0,)]


def test_row_09_with_two_processes_the_innocent_complete_in_whichever_is_left(
    poisoned: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEATH", "abort")
    items = poisoned.items(120)
    command = ("run", "p.py:poison", items, "-c", "25", "--retry-initial", "0", "--quiet")
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
                assert deaths <= 3
                processes.append(poisoned.start(*command))
    assert deaths == 3
    assert verdict(poisoned) == [("completed", 119), ("failed", 1)]
    assert poisoned.query("SELECT id, crashes FROM items WHERE status = 'failed'") == [("17", 3)]


async def lost_together(db: str, keys: list[str], batch: str) -> None:
    """Return a file whose items were all held by a worker that died, on their last attempt but one."""
    store = open_engine(db)
    await store.open()
    made = await store.open_batch(batch, batch, BatchOptions(max_attempts=2))
    await store.add(made.batch_id, [NewItem(key, key) for key in keys], on_change="error")
    await store.join(WorkerInfo("dead", "host", 1))
    await store.turn("dead", [], [Want(made.batch_id, 100, 2)])
    assert await store.recover("dead", describe(WorkerLost("it died"))) == len(keys)
    await store.close()


async def test_row_09_suspects_run_alone_and_the_rest_runs_together(db: str, until: Until) -> None:
    await lost_together(db, ["1", "2", "3"], "b")
    runner = Runner(db, concurrency=10)
    together: dict[int, int] = {}
    running: set[int] = set()
    go = asyncio.Event()

    @runner.handler(batch="b", max_attempts=2)
    async def suspected(n: int) -> None:
        running.add(n)
        together[n] = len(running)
        if n > 3:
            await go.wait()
        await asyncio.sleep(0.002)
        together[n] = max(together[n], len(running))
        running.discard(n)

    @runner.handler(batch="other")
    async def other(n: int) -> None:
        await suspected(n)

    async with runner:
        await until(lambda: len(together) == 3 and not running)
        await other.submit_many(range(10, 14))
        await suspected.submit_many(range(4, 8))
        await until(lambda: len(running) == 8)
        go.set()
        await run_until_idle(runner)
    assert {n: count for n, count in together.items() if n <= 3} == {1: 1, 2: 1, 3: 1}
    assert rows_of(db, "SELECT status, count(*) FROM items GROUP BY 1") == [(Status.COMPLETED, 11)]


async def test_row_09_the_others_continue_when_no_suspect_is_left(db: str) -> None:
    await lost_together(db, ["1", "2", "3"], "b")
    runner = Runner(db, concurrency=2)

    @runner.handler(batch="b", max_attempts=2)
    async def suspected(n: int) -> int:
        return n

    async with Client(db) as client:
        await client.submit_many(suspected, range(4, 10))
    async with runner:
        await run_until_idle(runner)
    assert rows_of(db, "SELECT status, count(*) FROM items GROUP BY 1") == [(Status.COMPLETED, 9)]


async def test_row_09_running_items_end_before_a_suspect_starts(db: str, until: Until) -> None:
    runner = Runner(db, concurrency=5)
    running: set[int] = set()
    alone: list[bool] = []
    go = asyncio.Event()

    @runner.handler(batch="b", max_attempts=2)
    async def suspected(n: int) -> None:
        alone.append(not running)

    @runner.handler(batch="other")
    async def slow(n: int) -> None:
        running.add(n)
        await go.wait()
        running.discard(n)

    async with runner:
        await slow.submit(1)
        await until(lambda: running)
        await lost_together(db, ["1", "2"], "b")
        await until(lambda: any(queue.blocked is Blocked.SUSPECT_ALONE for queue in internals_of(runner).worker._queues))  # type: ignore[union-attr]
        await slow.submit(2)  # while one item must run alone, no other starts
        assert (alone, running) == ([], {1})
        go.set()
        await run_until_idle(runner)
    assert alone == [True, True]
    assert rows_of(db, "SELECT status, count(*) FROM items GROUP BY 1") == [(Status.COMPLETED, 4)]


async def test_row_09_a_handler_that_waits_for_an_item_does_not_keep_suspects_waiting(db: str, until: Until) -> None:
    runner = Runner(db, concurrency=5)

    @runner.handler(batch="b", max_attempts=2)
    async def suspected(n: int) -> int:
        return n

    @runner.handler(batch="other")
    async def waits(n: int) -> int:
        return await (await suspected.submit(n, key=str(n))).result(timeout=30)

    await lost_together(db, ["1", "2"], "b")
    async with runner:
        handle = await waits.submit(2)
        assert await handle.result(timeout=30) == 2
