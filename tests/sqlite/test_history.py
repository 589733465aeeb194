"""How a file keeps the history: the running minute in the row of the batch, the others in ``minutes``, all in the view."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncrunner import Control
from asyncrunner.domain.item import NewItem
from asyncrunner.domain.outcome import Completed, Settlement
from asyncrunner.sqlite.claims import statistics
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.batches import BatchOptions
from asyncrunner.testing import FakeClock
from tests.contract.stores import NOW, batch_of, claim, joined, settle
from tests.support.state import execute, rows_of

MINUTE = int(NOW)
LARGEST = 2**63 - 1


@pytest.fixture
async def store(db: Path, clock: FakeClock) -> SQLiteStore:
    opened = SQLiteStore(db, clock=clock)
    await opened.open()
    await joined(opened, "w")
    return opened


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


async def complete(store: SQLiteStore, batch_id: int, key: str) -> None:
    await store.add(batch_id, [NewItem(key, "1")], on_change="error")
    (held,) = await claim(store, batch_id, 1)
    assert (await settle(store, held, Completed("1"))).lost == []


async def test_a_turn_writes_no_page_for_the_history_until_another_minute_begins(
    db: Path, store: SQLiteStore, clock: FakeClock
) -> None:
    batch_id = await batch_of(store)
    for key in ("a", "b"):
        await complete(store, batch_id, key)
    assert rows_of(db, "SELECT count(*) FROM minutes") == [(0,)]
    clock.jump(60)
    await complete(store, batch_id, "c")
    assert rows_of(db, "SELECT * FROM minutes") == [(batch_id, MINUTE, 2, 0, 0, 3.0)]
    assert rows_of(db, "SELECT * FROM history ORDER BY minute") == [
        (batch_id, MINUTE, 2, 0, 0, 3.0),
        (batch_id, MINUTE + 60, 1, 0, 0, 1.5),
    ]
    await store.close()


async def test_a_new_minute_deletes_a_bounded_number_of_old_ones_of_any_batch(
    db: Path, store: SQLiteStore, clock: FakeClock
) -> None:
    batch_id, ended = await batch_of(store), await batch_of(store, name="ended")
    old = MINUTE - statistics.HISTORY_SECONDS
    for minute in range(statistics._MAX_DELETED + 5):
        execute(db, "INSERT INTO minutes VALUES (?, ?, 1, 0, 0, 1.0)", ended, old - 60 * minute)
    await complete(store, batch_id, "a")
    assert rows_of(db, "SELECT count(*) FROM minutes") == [(5,)]
    await complete(store, batch_id, "b")
    assert rows_of(db, "SELECT count(*) FROM minutes") == [(5,)], "no minute has begun"
    clock.jump(60)
    await complete(store, batch_id, "c")
    assert rows_of(db, "SELECT batch_id, minute FROM minutes") == [(batch_id, MINUTE)]
    await store.close()


async def test_the_history_of_a_deleted_batch_is_deleted_with_it(db: Path, store: SQLiteStore, clock: FakeClock) -> None:
    batch_id, other = await batch_of(store), await batch_of(store, name="other")
    for key in ("a", "b"):
        await complete(store, batch_id, key)
        await complete(store, other, key)
        clock.jump(60)
    await store.close()
    execute(db, "DELETE FROM items WHERE batch_id = ?", batch_id)
    execute(db, "DELETE FROM batches WHERE batch_id = ?", batch_id)
    assert rows_of(db, "SELECT DISTINCT batch_id FROM history") == [(other,)]


async def test_a_backup_of_one_batch_has_only_its_history(db: Path, store: SQLiteStore, clock: FakeClock, tmp_path: Path) -> None:
    for name in ("b", "other"):
        batch_id = await batch_of(store, name=name)
        for _ in range(2):
            await complete(store, batch_id, f"{clock.now()}")
            clock.jump(60)
    async with Control(db) as control:
        await control.backup(tmp_path / "copy.db", "other")
    assert rows_of(tmp_path / "copy.db", "SELECT batch_id, count(*) FROM history GROUP BY 1") == [(batch_id, 2)]
    await store.close()


async def test_the_largest_numbers_that_a_person_writes_stop_no_turn(db: Path, store: SQLiteStore, clock: FakeClock) -> None:
    batch_id = await batch_of(store)
    await complete(store, batch_id, "a")
    execute(db, f"UPDATE batches SET minute_completed = {LARGEST}")
    execute(db, "INSERT INTO minutes SELECT batch_id, minute, minute_completed, 0, 0, 0.0 FROM batches")
    await complete(store, batch_id, "b")
    clock.jump(60)
    await complete(store, batch_id, "c")
    assert rows_of(db, "SELECT completed FROM history ORDER BY minute") == [(LARGEST,), (1,)]
    await store.close()


async def test_a_large_turn_adds_the_durations_of_all_its_attempts(db: Path, store: SQLiteStore) -> None:
    count = statistics._MAX_DURATIONS + 1
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.add(batch.batch_id, [NewItem(str(number), "1") for number in range(count)], on_change="error")
    held = await claim(store, batch.batch_id, count)
    spans = [float(number) for number in range(count - 1)] + [-5.0]  # the clock was set back during the last one
    await store.turn("w", [Settlement(each, Completed("1"), NOW - span, NOW) for each, span in zip(held, spans, strict=True)], [])
    assert rows_of(db, "SELECT completed, seconds FROM history") == [(count, pytest.approx(sum(spans[:-1])))]
    await store.close()
