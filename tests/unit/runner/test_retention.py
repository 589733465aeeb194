"""Completed items older than the retention are deleted, a few at a time; all others stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from asyncrunner import ConfigurationError, RetryPolicy, Runner, run_batch
from asyncrunner.backends import open_engine
from asyncrunner.errors import StoreUnavailable
from asyncrunner.runner.duties.retention import Retention
from asyncrunner.runner.runner import internals_of, run_until_idle
from asyncrunner.store.items import Cursor, PurgeStep
from asyncrunner.testing import FakeClock, in_memory
from asyncrunner.text.timestamps import from_text, to_text
from tests.conftest import Until
from tests.support.state import changing, rows_of, totals

DAY = 86400.0


async def double(n: int) -> int:
    return 2 * n


async def fails(n: int) -> int:
    raise ValueError(n)


def make_older(db: str, seconds: float, where: str = "1 = 1") -> None:
    completed = rows_of(db, f"SELECT completed_at, seq FROM items WHERE completed_at IS NOT NULL AND ({where})")
    with changing(db) as connection:
        connection.executemany(
            "UPDATE items SET completed_at = ? WHERE seq = ?",
            [(to_text((from_text(text) or 0) - seconds), seq) for text, seq in completed],
        )


# --- run_batch ------------------------------------------------------------------------------------------------------


async def test_old_completed_items_are_deleted_and_the_others_stay_and_the_counts_are_exact(db: str) -> None:
    await run_batch(range(3000), double, db=db, batch="b")
    await run_batch([1, 2], fails, db=db, batch="c", max_attempts=1)
    make_older(db, 2 * DAY, "CAST(id AS INTEGER) <= 2500 OR batch_id = 2")
    report = await run_batch([5000], double, db=db, batch="b", retention="1d")
    assert rows_of(db, "SELECT count(*), min(CAST(id AS INTEGER)) FROM items WHERE batch_id = 1") == [(500, 2501)]
    assert totals(db) == [("b", 500), ("c", 2)]
    assert rows_of(db, "SELECT count(*) FROM failures") == [(2,)]
    assert (report.completed, report.skipped, report.total, report.batch_counts.completed) == (1, 0, 1, 500)


async def test_the_failures_of_purged_items_are_purged_too(db: str) -> None:
    tried: list[int] = []

    async def fails_once(n: int) -> None:
        tried.append(n)
        if tried.count(n) == 1:
            raise ValueError(n)

    await run_batch([1, 2], fails_once, db=db, batch="b", retry=RetryPolicy(initial=0.001))
    make_older(db, 2 * DAY, "id = '1'")
    await run_batch(None, double, db=db, batch="b", retention="1d")
    assert rows_of(db, "SELECT id FROM failures") == [("2",)]


async def test_purged_items_run_again(db: str) -> None:
    await run_batch([1, 2], double, db=db)
    make_older(db, 2 * DAY, "id = '1'")
    await run_batch(None, double, db=db, retention=timedelta(days=1))
    report = await run_batch([1, 2], double, db=db)
    assert (report.completed, report.skipped) == (1, 1)


async def test_an_item_whose_retention_ends_immediately_is_still_reported(db: str, until: Until) -> None:
    done: list[int] = []

    async def note(n: int) -> None:
        done.append(n)

    async def source() -> AsyncIterator[int]:
        for n in range(5):
            yield n
        await until(lambda: len(done) == 5)
        await asyncio.sleep(0.05)  # fifty times the retention

    report = await run_batch(source(), note, db=db, retention=0.001, batch="note")
    assert (report.completed, report.failed) == (5, 0)
    assert rows_of(db, "SELECT count(*) FROM items") == [(0,)]


@pytest.mark.parametrize("wrong", [0, -1, "soon", "3 fortnights", "", True, float("nan"), timedelta(0), "1d2"])
def test_a_wrong_retention_is_refused_when_it_is_given(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="retention="):
        Runner(retention=wrong)  # type: ignore[arg-type]


# --- a runner -------------------------------------------------------------------------------------------------------


async def test_a_service_purges_old_items_while_it_runs(until: Until) -> None:
    runner = Runner(retention="1h")

    @runner.handler
    async def job(n: int) -> int:
        return n

    async with in_memory(runner) as clock:
        await job.submit_many(range(10))
        await run_until_idle(runner)
        await clock.advance(1800)
        late = await job.submit(99)
        await run_until_idle(runner)
        counts = await internals_of(runner).store.counts(internals_of(runner).submitter.batch_id(job.batch))
        assert counts.completed == 11
        for _ in range(300):
            await clock.advance(10)
            if (await internals_of(runner).store.counts(internals_of(runner).submitter.batch_id(job.batch))).completed == 1:
                break
        assert [
            row.id
            for row in (
                await internals_of(runner).store.item_page(internals_of(runner).submitter.batch_id(job.batch), None, 20)
            ).rows
        ] == [late.key]


# --- the walk -------------------------------------------------------------------------------------------------------


class Steps:
    """A store that only purges: *due* items in each step of a purge."""

    def __init__(self, *due: int) -> None:
        self.due = due
        self.cursors: list[str | None] = []
        self.ages: list[float] = []

    async def purge_step(self, batch_ids: object, *, older_than: float, cursor: Cursor | None) -> PurgeStep:
        self.cursors.append(cursor)
        self.ages.append(older_than)
        number = 0 if cursor is None else int(cursor)
        return PurgeStep(self.due[number], self.due[number], Cursor(str(number + 1)) if number + 1 < len(self.due) else None)


async def test_a_walk_comes_to_its_end_and_rests_between_its_steps() -> None:
    clock = FakeClock()
    store = Steps(2, 0, 1, 0)
    retention = Retention(store, lambda: [1], 60.0, clock=clock)  # type: ignore[arg-type]
    began = clock.monotonic()
    walking = asyncio.ensure_future(retention.walk())
    while not walking.done():
        await clock.advance(0.05)
    assert (store.cursors, set(store.ages), retention.removed) == ([None, "1", "2", "3"], {60.0}, 3)
    assert clock.monotonic() - began >= 0.4


async def test_a_purge_of_the_oldest_ends_when_no_items_are_due_or_when_it_may_not_continue() -> None:
    for store, may_continue, steps in ((Steps(1, 1, 0, 1), True, 3), (Steps(1, 1), True, 2), (Steps(1, 1), False, 1)):
        retention = Retention(store, lambda: [1], 60.0, clock=FakeClock())  # type: ignore[arg-type]
        await retention.purge_oldest(may_continue=lambda: may_continue)  # noqa: B023 - awaited here
        assert len(store.cursors) == steps


async def test_a_purge_continues_when_another_one_deletes_the_same_items() -> None:
    class Raced(Steps):
        async def purge_step(self, batch_ids: object, *, older_than: float, cursor: Cursor | None) -> PurgeStep:
            return (await super().purge_step(batch_ids, older_than=older_than, cursor=cursor))._replace(removed=0)

    store = Raced(1, 1, 1, 0)
    await Retention(store, lambda: [1], 60.0, clock=FakeClock()).purge_oldest()  # type: ignore[arg-type]
    assert len(store.cursors) == 4


async def test_a_busy_file_that_is_given_up_fails_no_runner() -> None:
    class Busy(Steps):
        async def purge_step(self, batch_ids: object, *, older_than: float, cursor: Cursor | None) -> PurgeStep:
            self.cursors.append(cursor)
            raise StoreUnavailable("locked")

    clock = FakeClock()
    store = Busy()
    running = asyncio.ensure_future(Retention(store, lambda: [1], 60.0, clock=clock).run())  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await clock.advance(1.3)
    assert not running.done()
    assert len(store.cursors) == 2  # the purge is retried
    running.cancel()


async def test_two_purges_at_the_same_time_delete_each_item_once(db: str) -> None:
    await run_batch(range(2500), double, db=db, batch="b")
    make_older(db, 10)
    clock = FakeClock(1_800_000_000.0 + DAY * 365 * 20)
    stores = [open_engine(db, clock=clock), open_engine(db, clock=clock)]
    for store in stores:
        await store.open()
    walks = [Retention(store, lambda: [1], 1.0, clock=clock) for store in stores]
    await asyncio.gather(*(walk.purge_oldest() for walk in walks))
    for store in stores:
        await store.close()
    assert sum(walk.removed for walk in walks) == 2500
    assert (totals(db), rows_of(db, "SELECT count(*) FROM items")) == ([("b", 0)], [(0,)])
