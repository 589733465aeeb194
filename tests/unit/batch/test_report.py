"""The report is of what the call was given: outcomes and results in input order, duplicates included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import (
    BatchFailed,
    BatchReport,
    Fail,
    ItemCancelled,
    ItemFailed,
    ItemNotFound,
    ItemUnfinished,
    ProgressUpdate,
    StoreError,
    run_batch,
)
from asyncrunner.domain.item import Counts
from tests.support.leftovers import leave_pending
from tests.support.state import execute, rows_of


async def double(number: int) -> int:
    if number < 0:
        raise Fail("negative")
    return 2 * number


async def ids(report: BatchReport[Any, Any]) -> list[str]:
    return [outcome.id async for outcome in report.outcomes()]


async def test_outcomes_and_results_are_of_what_was_given_in_its_order_with_duplicates(db: Path) -> None:
    await run_batch(range(700), double, db=db, batch="b")
    report = await run_batch([650, 3, 650, 1000, 3], double, db=db, batch="b")
    assert await ids(report) == ["650", "3", "650", "1000", "3"]
    assert await report.results() == [1300, 6, 1300, 2000, 6]
    assert report.duplicates == 2


async def test_results_of_more_than_a_page_are_beside_their_items(db: Path) -> None:
    items = [*range(1200, 0, -1), *range(1, 1200)]
    report = await run_batch(items, double, db=db, batch="b")
    assert await report.results() == [2 * item for item in items]


async def test_without_items_the_given_items_are_those_of_the_batch(db: Path) -> None:
    await run_batch([3, 1, 2], double, db=db, batch="b")
    report: BatchReport[int, int] = await run_batch(None, double, db=db, batch="b")
    assert (await ids(report), await report.results()) == (["3", "1", "2"], [6, 2, 4])


async def test_results_raise_for_failures_or_have_the_exceptions_in_their_places(db: Path) -> None:
    report = await run_batch([1, -1, 2, -1], double, db=db, batch="b")
    with pytest.raises(BatchFailed, match="negative"):
        await report.results()
    first, failed, second, again = await report.results(return_exceptions=True)
    assert (first, second) == (2, 4)
    assert isinstance(failed, ItemFailed)
    assert isinstance(again, ItemFailed)
    assert (failed.key, failed.batch, failed.error, failed.attempts) == ("-1", "b", "Fail: negative", 1)


async def test_a_cancelled_a_deleted_and_a_damaged_item_have_exceptions_of_their_own(db: Path) -> None:
    report = await run_batch([1, 2, 3, 4], double, db=db, batch="b")
    for statement, kind, message in (
        ("UPDATE items SET result = 'no JSON' WHERE id = '4'", StoreError, "the result of item '4' cannot be read"),
        ("DELETE FROM items WHERE id = '3'", ItemNotFound, "item 2 of the input was deleted from 'b' after it was given"),
        ("UPDATE items SET status = 'cancelled' WHERE id = '2'", ItemCancelled, "item '2' of 'b' was cancelled"),
    ):
        execute(db, statement)
        with pytest.raises(kind, match=message):
            await report.results()
    results = await report.results(return_exceptions=True)
    assert results[0] == 2
    assert [type(each) for each in results[1:]] == [ItemCancelled, ItemNotFound, StoreError]
    assert await ids(report) == ["1", "2", "4"], "a deleted item has no outcome"


async def test_results_of_a_stopped_call_are_refused_or_have_unfinished_items_in_their_places(db: Path) -> None:
    report = await run_batch([1, 2, -1, 3], double, db=db, batch="b", concurrency=1, max_failures=1)
    execute(db, "UPDATE items SET status = 'completed', result = '0' WHERE id = '-1'")
    results = await report.results(return_exceptions=True)
    assert results[:3] == [2, 4, 0]
    (unfinished,) = results[3:]
    assert isinstance(unfinished, ItemUnfinished)
    assert (unfinished.key, unfinished.batch) == ("3", "b")
    assert "item '3' of 'b' is pending, because the call stopped early: " in str(unfinished)
    assert await ids(report) == ["1", "2", "-1"]


async def test_results_of_a_call_that_ran_nothing_are_refused(db: Path) -> None:
    past = datetime(2020, 1, 1, tzinfo=UTC)
    report = await run_batch([1, 2], double, db=db, batch="b", deadline=past)
    with pytest.raises(ItemUnfinished, match=r"because the call stopped early: its deadline passed .*Run it again to continue"):
        await report.results()


# --- counts ---------------------------------------------------------------------------------------------------------


def counts_of(report: BatchReport[Any, Any]) -> dict[str, int]:
    names = ("total", "completed", "skipped", "failed", "cancelled", "pending")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


async def test_the_counts_are_of_what_was_given_and_the_leftovers_are_counted_apart(db: Path) -> None:
    await leave_pending(db, [*range(-5, 0), *range(100, 790)])
    ran: list[int] = []

    async def handler(number: int) -> int:
        ran.append(number)
        return await double(number)

    report = await run_batch([1, 2, 3, 1], handler, db=db, batch="b")
    assert len(ran) == 698, "leftovers run too"
    assert (counts_of(report), report.duplicates) == ({"total": 3, "completed": 3}, 1)
    assert report.leftovers == Counts(completed=690, failed=5)
    assert report.batch_counts == Counts(completed=693, failed=5)
    assert report.attempts == 698
    assert (report.ok, report.failures, report.raise_for_failures()) == (True, (), report)
    assert (await report.results(), await ids(report)) == ([2, 4, 6, 2], ["1", "2", "3", "1"])


async def test_given_items_that_earlier_runs_left_are_completed_by_this_call_and_others_are_skipped(db: Path) -> None:
    await run_batch([1, 2, -1], double, db=db, batch="b")
    await leave_pending(db, [3, 4])
    report = await run_batch([1, 3, 5, -1], double, db=db, batch="b")
    assert counts_of(report) == {"total": 4, "completed": 2, "skipped": 1, "failed": 1}
    assert (report.leftovers, report.batch_counts) == (Counts(completed=1), Counts(completed=5, failed=1))
    assert [(group.error, group.items) for group in report.failures] == [("Fail: negative", 1)]


async def test_a_leftover_that_completes_before_the_source_gives_it_is_completed_by_the_call(db: Path) -> None:
    await leave_pending(db, [1])

    async def handler(number: int) -> int:
        return number

    async def source() -> AsyncIterator[int]:
        while not rows_of(db, "SELECT 1 FROM items WHERE status = 'completed'"):
            await asyncio.sleep(0)
        yield 1

    report = await run_batch(source(), handler, db=db, batch="b")
    assert counts_of(report) == {"total": 1, "completed": 1}
    assert report.leftovers.total == 0


async def test_the_causes_are_those_of_the_given_items_that_failed(db: Path) -> None:
    async def fail(number: int) -> int:
        raise Fail("even" if number % 2 == 0 else "odd")

    await run_batch(range(7), fail, db=db, batch="b")
    report = await run_batch([1, 2, 4, 4], fail, db=db, batch="b")
    assert [(group.error, group.items) for group in report.failures] == [("Fail: even", 2), ("Fail: odd", 1)]
    assert (counts_of(report), report.batch_counts.failed) == ({"total": 3, "failed": 3}, 7)
    with pytest.raises(BatchFailed, match=r"3 of 3 items of 'b' failed: 2 x Fail: even; 1 x Fail: odd\.") as caught:
        report.raise_for_failures()
    assert (caught.value.failed, caught.value.total) == (3, 3)


async def test_an_item_that_runs_again_with_another_payload_is_not_skipped(db: Path) -> None:
    async def value(item: dict[str, int]) -> int:
        return item["v"]

    items = [{"n": 1, "v": 1}, {"n": 2, "v": 1}]
    await run_batch(items, value, key="n", db=db, batch="b")
    items[0] = {"n": 1, "v": 5}
    report = await run_batch(items, value, key="n", db=db, batch="b", on_change="rerun")
    assert (counts_of(report), await report.results()) == ({"total": 2, "completed": 1, "skipped": 1}, [5, 1])


async def test_a_stopped_call_counts_its_pending_items(db: Path) -> None:
    report = await run_batch([1, -1, 2, 3], double, db=db, batch="b", concurrency=1, max_failures=1)
    assert counts_of(report) == {"total": 4, "completed": 1, "failed": 1, "pending": 2}
    assert not report.ok


async def test_items_that_retention_deletes_stay_in_the_counts(db: Path) -> None:
    await run_batch([1, 2], double, db=db, batch="b")
    execute(db, "UPDATE items SET completed_at = '2020-01-01T00:00:00.000Z' WHERE id = '1'")

    report = await run_batch([1, 2, 3], double, db=db, batch="b", retention="30d")
    assert (report.total, report.completed + report.skipped, report.ok) == (3, 3, True)
    assert report.batch_counts.total in (2, 3), "item 1 is deleted, and runs again if that was before it was given"


async def test_the_start_names_the_items_of_earlier_runs_in_the_log_and_to_the_progress(
    db: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await leave_pending(db, range(100, 795))
    caplog.set_level("INFO", "asyncrunner")
    updates: list[ProgressUpdate] = []
    await run_batch([100, 1, 2, 3], double, db=db, batch="b", progress=updates.append)
    note = "resuming 694 items of earlier runs; leftovers='leave' runs only what is given"
    assert [record.message for record in caplog.records if "resuming" in record.message] == [f"b: {note}"]
    assert updates[-1].note == note
    caplog.clear()
    await leave_pending(db, range(1000, 1003))
    await run_batch(iter([1, 1000]), double, db=db, batch="b", progress=updates.append)  # its length is not known
    note = "resuming 3 items of earlier runs, given or not; leftovers='leave' runs only what is given"
    assert [record.message for record in caplog.records if "resuming" in record.message] == [f"b: {note}"]
    assert updates[-1].note == note
    caplog.clear()
    await run_batch([1, 2, 3], double, db=db, batch="b", progress=updates.append)
    await run_batch(None, double, db=db, batch="b")
    assert not any("resuming" in record.message for record in caplog.records)
    assert updates[-1].note is None


async def test_the_error_of_a_batch_counts_the_items_of_the_causes_that_it_does_not_name(db: str) -> None:
    report = await run_batch(range(26), _fails_in_its_own_way, db=db, batch="b", max_attempts=1)
    with pytest.raises(BatchFailed, match=r"26 of 26 items .*; and 23 items with other causes\. "):
        await report.results()
    assert (len(report.failures), report.other_failures, report.to_dict()["other_failures"]) == (20, 6, 6)
    few = await run_batch(range(30, 32), _fails, db=db, batch="few", max_attempts=1)
    assert (len(few.failures), few.other_failures) == (1, 0)


async def _fails(number: int) -> None:
    raise Fail("no")


async def _fails_in_its_own_way(number: int) -> None:
    raise type(f"Error{'abcdefghijklmnopqrstuvwxyz'[number]}", (Exception,), {})("no")
