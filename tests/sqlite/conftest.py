"""A file with one item of each kind, for tests of queries and of changes by hand."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncrunner.domain.item import Counts, NewItem
from asyncrunner.domain.outcome import Completed, ErrorInfo, Failed, Outcome, Settlement
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.testing import FakeClock

STUCK = "status = 'processing' AND julianday('now') - julianday(started_at) > 0.0035"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """The path of a file that does not exist yet."""
    return tmp_path / "jobs.db"


class Prepared:
    """Create a file with one item of each kind: completed, failed with all attempts, failed with one, processing for long, pending."""

    def __init__(self, store: SQLiteStore, batch_id: int, db: Path, now: float) -> None:
        self.store = store
        self.batch_id = batch_id
        self.now = now
        self.other = sqlite3.connect(db, isolation_level=None)

    def ask(self, query: str) -> list[Any]:
        return self.other.execute(query).fetchall()

    async def counts(self) -> Counts:
        counted = await self.store.counts(self.batch_id)
        grouped = dict(self.ask("SELECT status, COUNT(*) FROM items GROUP BY status"))
        for status in ("pending", "processing", "completed", "failed", "cancelled"):
            assert getattr(counted, status) == grouped.get(status, 0), status
        return counted


@pytest.fixture
async def prepared(db: Path) -> AsyncIterator[Prepared]:
    now = time.time() - 600  # ten minutes ago: an item started then is stuck
    clock = FakeClock(now)
    store = SQLiteStore(db, clock=clock)
    await store.open()
    batch_id = (await store.open_batch("b", "h", BatchOptions())).batch_id
    await store.join(WorkerInfo("w", "here", 1))
    keys = ["done", "used up", "some-id", "stuck", "waiting"]
    await store.add(batch_id, [NewItem(key, "1") for key in keys], on_change="error")
    claims = {each.id: each for each in (await store.turn("w", [], [Want(batch_id, 4, 3)])).claims}
    boom = ErrorInfo("ValueError", "boom")
    outcomes: dict[str, Outcome] = {
        "done": Completed("2"),
        "used up": Failed(boom, permanent=False),
        "some-id": Failed(boom, permanent=True),
    }
    settled = [Settlement(claims[key], outcome, now, now + 2) for key, outcome in outcomes.items()]
    clock.jump(2)
    await store.turn("w", settled, [])
    clock.jump(-2)
    made = Prepared(store, batch_id, db, now)
    made.other.execute("UPDATE items SET attempts = 3 WHERE id = 'used up'")
    yield made
    made.other.close()
    await store.close()
