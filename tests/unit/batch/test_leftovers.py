"""leftovers="leave": the call runs what it was given, and no other item of the batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import (
    ConfigurationError,
    Control,
    Fail,
    ProgressUpdate,
    RetryPolicy,
    StoreError,
    plan_batch,
    run_batch,
    stream_batch,
)
from asyncrunner.batch.batch_run import BatchRun
from asyncrunner.domain.item import Counts
from asyncrunner.domain.options import RunOptions
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.items import OpenItems
from tests.support.leftovers import leave_pending
from tests.support.state import rows_of

STATES = "SELECT status, count(*) FROM items GROUP BY status ORDER BY status"


async def double(number: int) -> int:
    if number < 0:
        raise Fail("negative")
    return 2 * number


async def test_three_of_698_items_run_and_the_others_stay_pending(db: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "asyncrunner")
    await leave_pending(db, range(1, 699))
    updates: list[ProgressUpdate] = []
    report = await run_batch([1, 2, 3, 2], double, db=db, batch="b", leftovers="leave", progress=updates.append)
    assert await report.results() == [2, 4, 6, 4]
    assert (report.total, report.completed, report.duplicates, report.attempts, report.ok) == (3, 3, 1, 3, True)
    assert report.leftovers == Counts(pending=695)
    assert rows_of(db, STATES) == [("completed", 3), ("pending", 695)]
    assert (updates[-1].total, updates[-1].completed, updates[-1].note) == (3, 3, None)
    assert not any("resuming" in record.message for record in caplog.records)


async def test_the_progress_counts_only_given_items_that_are_done(db: Path) -> None:
    await run_batch([1, 2], double, db=db, batch="b")
    await leave_pending(db, [5])
    started, go = asyncio.Event(), asyncio.Event()
    updates: list[ProgressUpdate] = []

    async def handler(number: int) -> int:
        started.set()
        await go.wait()
        return number

    options = RunOptions.of("run_batch", {"db": db, "batch": "b", "leftovers": "leave", "progress": updates.append})
    run: BatchRun[int, int] = BatchRun([1, 3, 4, 5], handler, options)
    async with run:
        await started.wait()
        assert run.progress is not None
        assert (run.progress.update().completed, run.progress.update().total) == (1, 4)
        go.set()
        await run.finish()
    assert (updates[-1].completed, updates[-1].total) == (4, 4)
    assert "nothing left" not in updates[-1].pace_text


async def test_only_given_failed_items_are_retried(db: Path) -> None:
    attempts: list[int] = []

    async def fail_once(number: int) -> int:
        attempts.append(number)
        if attempts.count(number) == 1:
            raise Fail("once")
        return number

    await run_batch([1, 2, 3], fail_once, db=db, batch="b")
    report = await run_batch([1, 3, 1], fail_once, db=db, batch="b", leftovers="leave", retry_failed=True)
    assert (report.completed, report.failed, sorted(attempts)) == (2, 0, [1, 1, 2, 3, 3])
    assert rows_of(db, "SELECT id, status FROM items WHERE status <> 'completed'") == [("2", "failed")]
    report = await run_batch([1, 2], fail_once, db=db, batch="b", leftovers="leave")
    assert (report.skipped, report.failed) == (1, 1)


async def test_an_item_that_fails_in_the_call_and_is_given_again_in_it_is_not_retried(db: Path) -> None:
    ran: list[int] = []

    async def fail(number: int) -> int:
        ran.append(number)
        raise Fail("always")

    async def source() -> Any:
        yield 1
        while not rows_of(db, "SELECT 1 FROM items WHERE status = 'failed'"):
            await asyncio.sleep(0)
        yield 1

    report = await run_batch(source(), fail, db=db, batch="b", leftovers="leave", retry_failed=True)
    assert (ran, report.failed, report.duplicates) == ([1], 1, 1)


async def test_retries_of_given_items_run(db: Path) -> None:
    await leave_pending(db, [5, 6])
    ran: list[int] = []

    async def fail_once(number: int) -> int:
        ran.append(number)
        if ran.count(number) == 1:
            raise ValueError("once")
        return number

    report = await run_batch([6, 7], fail_once, db=db, batch="b", leftovers="leave", retry=RetryPolicy(initial=0))
    assert (sorted(ran), report.completed, report.retried) == ([6, 6, 7, 7], 2, 2)
    assert rows_of(db, "SELECT id FROM items WHERE status = 'pending'") == [("5",)]


async def test_a_completed_item_that_gets_another_payload_runs_again(db: Path) -> None:
    async def value(item: dict[str, int]) -> int:
        return item["v"]

    async def source() -> Any:
        yield {"n": 1, "v": 1}
        while not rows_of(db, "SELECT 1 FROM items WHERE status = 'completed'"):
            await asyncio.sleep(0)
        yield {"n": 1, "v": 2}

    report = await run_batch(source(), value, key="n", db=db, batch="b", leftovers="leave", on_change="rerun")
    assert (await report.results(), report.completed) == ([2, 2], 1)


async def test_calls_at_the_same_time_each_run_what_they_were_given_and_end(db: Path) -> None:
    await leave_pending(db, range(100, 110))
    both = asyncio.Barrier(2)
    ran: list[int] = []

    async def handler(number: int) -> int:
        ran.append(number)
        if number in (1, 3):  # both calls run now, and item 2 is of both
            await both.wait()
        return number

    first, second = await asyncio.gather(
        run_batch([1, 2], handler, db=db, batch="b", leftovers="leave", concurrency=1),
        run_batch([3, 2], handler, db=db, batch="b", leftovers="leave", concurrency=1),
    )
    assert (sorted(ran), await first.results(), await second.results()) == ([1, 2, 3], [1, 2], [3, 2])
    assert rows_of(db, STATES) == [("completed", 3), ("pending", 10)]


async def test_a_given_item_that_a_person_retries_meanwhile_runs_again(db: Path) -> None:
    await leave_pending(db, [5])
    ran: list[int] = []

    async def fail_once(number: int) -> int:
        ran.append(number)
        if number == 2:
            while not rows_of(db, "SELECT 1 FROM items WHERE status = 'failed'"):
                await asyncio.sleep(0)
            async with Control(db) as control:  # the turn that stored the failure has removed item 1 from the given items
                assert (await control.retry(["1"], "b")).changed == 1
        elif ran.count(number) == 1:
            raise Fail("once")
        return number

    report = await run_batch([1, 2], fail_once, db=db, batch="b", leftovers="leave", concurrency=1, max_attempts=1)
    assert (ran, report.completed, report.failed, report.pending, report.ok) == ([1, 2, 1], 2, 0, 0, True)
    assert rows_of(db, STATES) == [("completed", 2), ("pending", 1)]


async def test_a_stream_yields_only_what_was_given_those_that_were_done_last(db: Path) -> None:
    await run_batch([1, 2], double, db=db, batch="b")
    await leave_pending(db, [5])
    async with stream_batch([2, 3, 3], double, db=db, batch="b", leftovers="leave") as outcomes:
        assert [outcome.id async for outcome in outcomes] == ["3", "2"]
    assert rows_of(db, STATES) == [("completed", 3), ("pending", 1)]


async def test_the_dry_run_predicts_the_items_that_each_kind_of_run_runs(db: Path) -> None:
    await run_batch([1, -1, -2], double, db=db, batch="b")
    await leave_pending(db, range(10, 20))
    given = [1, -1, 10, 11, 50]
    options: dict[str, Any] = {"db": db, "batch": "b", "retry_failed": True}
    leave = await plan_batch(given, double, **options, leftovers="leave")
    run = await plan_batch(given, double, **options)
    assert (leave.to_run, leave.retried, leave.leftovers) == (4, 1, 8)
    assert (run.to_run, run.retried, run.leftovers) == (13, 2, 8)
    report = await run_batch(given, double, **options, leftovers="leave")
    assert report.attempts == leave.to_run
    assert report.leftovers == Counts(pending=8)


async def test_an_invalid_value_and_a_call_without_items_are_refused(db: Path) -> None:
    wrong: Any = "stay"
    with pytest.raises(ConfigurationError, match="leftovers"):
        await run_batch([1], double, db=db, leftovers=wrong)
    for refused in (run_batch(None, double, db=db, leftovers="leave"), plan_batch(None, double, db=db, leftovers="leave")):
        with pytest.raises(ConfigurationError, match="leftovers='leave' runs only what is given, and no items are given"):
            await refused


async def test_a_new_version_runs_only_given_items_again_and_the_others_keep_their_results(db: Path) -> None:
    await run_batch(range(10), double, db=db, batch="b", version="1")
    plan = await plan_batch([1, 2], double, db=db, batch="b", version="2", leftovers="leave")
    report = await run_batch([1, 2], double, db=db, batch="b", version="2", leftovers="leave")
    assert (plan.other_version, plan.to_run, report.completed, report.attempts) == (2, 2, 2, 2)
    assert rows_of(db, STATES) == [("completed", 2), ("pending", 8)]
    assert rows_of(db, "SELECT id, result FROM items WHERE id = '7'") == [("7", "14")]
    report = await run_batch(range(10), double, db=db, batch="b", version="2")
    assert (report.completed, report.skipped) == (8, 2)


@pytest.mark.sqlite_file
async def test_the_items_of_earlier_runs_start_before_all_of_their_numbers_are_read(
    db: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await run_batch([1], double, db=db, batch="b")
    await leave_pending(db, [2, 3])
    caplog.set_level("INFO", "asyncrunner")
    open_items, has_started = SQLiteStore.open_items, asyncio.Event()

    async def slow(self: SQLiteStore, batch_id: int, *, on_snapshot: Callable[[], object] | None = None) -> OpenItems:
        found = await open_items(self, batch_id, on_snapshot=on_snapshot)
        if on_snapshot is not None:
            await has_started.wait()
        return found

    async def start(number: int) -> int:
        has_started.set()
        return number

    monkeypatch.setattr(SQLiteStore, "open_items", slow)
    async with asyncio.timeout(30):
        report = await run_batch([1, 2, 4], start, db=db, batch="b")
    assert (report.completed, report.skipped, report.leftovers) == (2, 1, Counts(completed=1))
    assert "resuming 1 item of earlier runs" in caplog.text


@pytest.mark.sqlite_file
async def test_an_error_while_the_open_items_are_read_ends_the_run_with_it(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await leave_pending(db, [2, 3])

    async def failing(self: SQLiteStore, batch_id: int, *, on_snapshot: Callable[[], object] | None = None) -> OpenItems:
        if on_snapshot is not None:
            on_snapshot()
        await asyncio.sleep(0)
        raise StoreError("the disk failed")

    monkeypatch.setattr(SQLiteStore, "open_items", failing)
    with pytest.raises(StoreError, match="the disk failed"):
        await run_batch([1, 2], double, db=db, batch="b")
