"""A purge reads the items by number, from the oldest on and then around the file."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from asyncrunner.domain.item import NewItem
from asyncrunner.domain.outcome import Completed, ErrorInfo, Retrying, Settlement
from asyncrunner.sqlite.purge import find_expired
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.items import Cursor
from asyncrunner.store.rules.purge_walk import STEP_ITEMS, Walk, Window
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.testing import FakeClock
from asyncrunner.text.timestamps import to_text
from tests.support.state import rows_of

NOW = 1_800_000_000.0


class Numbers:
    """Items with the numbers 1 to *newest*, of which those in *due* have expired; ``looked``: where each step began."""

    def __init__(self, newest: int, due: set[int]) -> None:
        self.newest = newest
        self.due = due
        self.looked: list[int] = []

    def window(self, after: int) -> Window:
        self.looked.append(after)
        reached = min(after + STEP_ITEMS, self.newest)
        gone = {number for number in self.due if after < number <= reached}
        self.due -= gone
        return Window(len(gone), "", reached if reached > after else None, self.newest)

    def step(self, cursor: Cursor | None) -> Cursor | None:
        walk = Walk.at(cursor)
        return walk.next(self.window(walk.after or 0))


@pytest.mark.parametrize("seed", range(20))
def test_a_purge_reads_all_items_and_begins_with_the_oldest(seed: int) -> None:
    random.seed(seed)
    numbers = Numbers(20_000, {1, 1500, 7000, 13_500, 20_000})
    cursor = numbers.step(None)
    while cursor is not None:
        cursor = numbers.step(cursor)
    assert numbers.due == set()
    assert numbers.looked[:3] == [0, 1000, 2000]
    assert len(numbers.looked) <= 23


@pytest.mark.parametrize("newest", [0, 1, 999, 1000, 1001])
def test_a_small_file_is_walked_in_a_step_or_two(newest: int) -> None:
    numbers = Numbers(newest, set())
    cursor, steps = numbers.step(None), 1
    while cursor is not None:
        cursor, steps = numbers.step(cursor), steps + 1
    assert steps <= 3


@pytest.mark.parametrize("seed", range(20))
def test_a_walk_ends_although_the_newest_items_are_deleted_meanwhile(seed: int) -> None:
    random.seed(seed)
    numbers = Numbers(20_000, {1})
    cursor = numbers.step(numbers.step(None))
    numbers.newest = 500
    steps = 0
    while cursor is not None:
        cursor, steps = numbers.step(cursor), steps + 1
        assert steps < 30


async def completed_after_a_failure(purged: SQLiteStore) -> int:
    """Complete an item with its second attempt, and return the id of its batch."""
    batch_id = (await purged.open_batch("b", "h", BatchOptions())).batch_id
    await purged.add(batch_id, [NewItem("a", "1")], on_change="error")
    await purged.join(WorkerInfo("w", "here", 1))
    for outcome in (Retrying(ErrorInfo("ValueError", "boom"), 0.0), Completed("1")):
        (claim,) = (await purged.turn("w", [], [Want(batch_id, 1, 3)])).claims
        await purged.turn("w", [Settlement(claim, outcome, NOW, NOW)], [])
    return batch_id


@pytest.mark.parametrize(
    "meanwhile", ["status = 'pending'", f"completed_at = '{to_text(NOW + 99)}'"], ids=["made pending", "completed once more"]
)
async def test_an_item_that_changes_between_the_look_and_the_deletion_stays_with_its_failures(
    meanwhile: str, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def then_changed(connection: sqlite3.Connection, *arguments: Any) -> Window:
        window = find_expired(connection, *arguments)
        connection.execute(f"UPDATE items SET {meanwhile}")
        return window

    clock = FakeClock(NOW)
    purged = SQLiteStore(db, clock=clock)
    await purged.open()
    batch_id = await completed_after_a_failure(purged)
    clock.jump(100)
    with monkeypatch.context() as patch:
        patch.setattr("asyncrunner.sqlite.store.find_expired", then_changed)
        step = await purged.purge_step([batch_id], older_than=50, cursor=None)
    assert (step.due, step.removed) == (1, 0)
    assert rows_of(db, "SELECT (SELECT count(*) FROM items), (SELECT count(*) FROM failures)") == [(1, 1)]
    await purged.close()
