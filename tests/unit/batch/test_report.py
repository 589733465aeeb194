"""The report is of what the call was given: outcomes and results in input order, duplicates included."""

from __future__ import annotations

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
    StoreError,
    run_batch,
)
from tests.support.state import execute


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
