"""Failed items are made pending in short transactions, so that other processes can write in between."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from asyncrunner.domain.item import NewItem
from asyncrunner.sqlite import store as store_module
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.batches import BatchOptions

FAIL = "UPDATE items SET status = 'failed', attempts = 2, error = 'E: e', completed_at = created_at"


@pytest.mark.parametrize("max_attempts", [None, 3])
async def test_a_large_change_is_committed_in_steps(
    max_attempts: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_REOPENED_PER_STEP", 2)
    db = tmp_path / "jobs.db"
    store = SQLiteStore(db)
    await store.open()
    batch_id = (await store.open_batch("b", "h", BatchOptions())).batch_id
    await store.add(batch_id, [NewItem(str(number), "1") for number in range(5)], on_change="error")
    other = sqlite3.connect(db, isolation_level=None)
    other.execute(FAIL)
    pending: list[int] = []
    write = store._connection.write

    async def observed(*args: object, **options: object) -> object:
        value: object = await write(*args, **options)  # type: ignore[arg-type]
        pending.append(other.execute("SELECT count(*) FROM items WHERE status = 'pending'").fetchone()[0])
        if len(pending) == 1:
            other.execute("DELETE FROM items WHERE id = '4'")  # another process writes in between
        return value

    monkeypatch.setattr(store._connection, "write", observed)
    assert await store.reopen_failed(batch_id, max_attempts=max_attempts) == 4
    assert pending == [2, 4, 4]
    other.close()
    await store.close()
