"""Several processes on one file all open it, commit and work; a large result or a stuck thread delays no other item."""

from __future__ import annotations

import asyncio
import threading

import pytest

from asyncrunner import Runner
from asyncrunner.errors import ItemNotStorable
from asyncrunner.sqlite.sql.schema import MIGRATIONS
from benchmarks.questions.sharing import share
from tests.conftest import Until
from tests.crash.sweep import first_schema
from tests.support.processes import Jobs
from tests.support.state import counts, rows_of


def test_row_26_two_saturating_processes_share_the_commits() -> None:
    commits = [len(times) for times in share(5.0)]
    assert min(commits) >= 0.3 * sum(commits), commits
    assert min(commits) >= 5, "at least one a second"


@pytest.mark.sqlite_file
def test_row_28_six_processes_that_open_an_old_file_at_the_same_time_migrate_it_once(jobs: Jobs) -> None:
    first_schema(jobs.db)
    items = jobs.items(60)
    runs = [jobs.start("run", "h.py:work", items, "--batch", "b", "-c", "2", "--quiet") for _ in range(6)]
    said = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * 6, said
    assert jobs.query("PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert jobs.query("SELECT status, count(*) FROM items GROUP BY 1") == [("completed", 60)]
    assert jobs.runs("end") == dict.fromkeys(range(60), 1)


def test_row_46_four_processes_on_one_batch_run_every_item_once(jobs: Jobs) -> None:
    items = jobs.items(600)
    runs = [jobs.start("run", "h.py:until_go", items, "--batch", "b", "-c", "4", "--quiet") for _ in range(4)]
    jobs.until(lambda: len({line[2] for line in jobs.lines("start")}) == 4)  # no process ends the batch before the others start
    jobs.go()
    said = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, said
    assert jobs.query("SELECT status, count(*), max(attempts), max(claim) FROM items GROUP BY 1") == [("completed", 600, 1, 1)]
    assert jobs.runs("start") == jobs.runs("end") == dict.fromkeys(range(600), 1)
    assert len({line[2] for line in jobs.lines("end")}) == 4, "all of them worked"
    assert jobs.query("SELECT total FROM batches") == [(600,)]


async def test_row_41_a_result_of_many_megabytes_is_stored_and_one_too_large_fails_with_that_reason(db: str) -> None:
    runner = Runner(db)

    @runner.handler
    async def grow(megabytes: int) -> str:
        return "x" * (megabytes * 2**20)

    async with runner:
        fits = await grow.submit(8, key=8)
        assert len(await fits.result(timeout=60)) == 8 * 2**20
        too_large = await grow.submit(101, key=101)
        with pytest.raises(Exception, match="101"):
            await too_large.result(timeout=60)
        with pytest.raises(ItemNotStorable, match="x"):
            await runner.handlers[grow.batch].submit("x" * (101 * 2**20))
    assert rows_of(db, "SELECT id, status, error IS NULL FROM items") == [("8", "completed", 1), ("101", "failed", 0)]
    assert rows_of(db, "SELECT seq, total(length(text)) FROM result_pieces GROUP BY 1") == [(1, 8 * 2**20 + 2)]


async def test_row_42_forty_stuck_threads_delay_neither_the_store_nor_the_heartbeat(db: str, until: Until) -> None:
    release = threading.Event()
    runner = Runner(db, concurrency=50)

    @runner.handler(batch="stuck")
    def stuck(n: int) -> int:
        release.wait(60)
        return n

    @runner.handler(batch="free")
    async def free(n: int) -> int:
        return n

    async with runner:
        await stuck.submit_many(range(40))
        await until(lambda: counts(db)["processing"] == 40)
        (beat,) = rows_of(db, "SELECT last_heartbeat FROM workers")
        handles = await free.submit_many(range(100))
        assert await asyncio.gather(*(handle.result(timeout=20) for handle in handles)) == list(range(100))
        await until(lambda: rows_of(db, "SELECT last_heartbeat FROM workers") != [beat])
        release.set()
        await until(lambda: counts(db)["completed"] == 140)
