"""Versions in a file: a dead worker is no rival, and an item that changed after it was found stays as it is."""

from __future__ import annotations

from pathlib import Path

from asyncrunner.domain.item import NewItem
from asyncrunner.domain.outcome import Completed, Settlement
from asyncrunner.sqlite import versions
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from tests.support.state import execute, rows_of


async def test_a_worker_whose_lock_is_free_is_no_rival(db: Path) -> None:
    dead, store = SQLiteStore(db), SQLiteStore(db)
    await dead.open()
    await store.open()
    batch = await store.open_batch("b", "h", BatchOptions())
    await dead.join(WorkerInfo("dead", "here", 1))
    await store.join(WorkerInfo("w", "here", 1))
    await dead.adopt_version("dead", batch.batch_id, "v1")
    (rival,) = (await store.adopt_version("w", batch.batch_id, "v2")).rivals
    assert rival.worker_id == "dead"
    await dead.close()  # without leave(): the lock is free, as after a kill
    assert (await store.adopt_version("w", batch.batch_id, "v2")).rivals == ()
    await store.close()


async def test_a_damaged_list_of_versions_is_as_an_empty_one(db: Path) -> None:
    store = SQLiteStore(db)
    await store.open()
    batch = await store.open_batch("b", "h", BatchOptions())
    for worker in ("v", "w"):
        await store.join(WorkerInfo(worker, "here", 1))
    execute(str(db), "UPDATE workers SET versions = 'no JSON'")
    assert (await store.adopt_version("w", batch.batch_id, "v1")).rivals == ()
    assert rows_of(str(db), "SELECT versions FROM workers WHERE worker_id = 'w'") == [('{"b":"v1"}',)]
    await store.close()


async def test_an_item_that_this_version_completed_after_it_was_found_stays_completed(db: Path) -> None:
    store = SQLiteStore(db)
    await store.open()
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.join(WorkerInfo("w", "here", 1))
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    answer = await store.adopt_version("w", batch.batch_id, "v1")
    (held,) = (await store.turn("w", [], [Want(batch.batch_id, 1, 3)])).claims
    await store.turn("w", [Settlement(held, Completed("1"), 0.0, 0.0)], [])
    await store.close()
    connection = store._connect()
    assert versions._reopen(connection, seqs=[held.seq], number=answer.number) == 0
    connection.close()
    assert rows_of(str(db), "SELECT status FROM items") == [("completed",)]
