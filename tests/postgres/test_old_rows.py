"""Rows of the store's own that would otherwise stay forever are deleted."""

from __future__ import annotations

from pathlib import Path

from asyncrunner.backends import open_engine
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.testing import FakeClock
from tests.contract.stores import LOST, NOW
from tests.support.kinds import KINDS
from tests.support.state import rows_of

WEEK = 7 * 86400.0


async def test_a_lost_worker_leaves_nothing_after_a_week(server_dsn: str, tmp_path: Path) -> None:
    db, clock = KINDS["postgres"].new_location(tmp_path, "jobs.db"), FakeClock(NOW)
    store = open_engine(db, clock=clock)
    await store.open()
    await store.join(WorkerInfo("lost", "here", 1))
    await store.recover("lost", LOST)
    clock.jump(WEEK - 1)
    await store.join(WorkerInfo("second", "here", 2))
    assert rows_of(db, "SELECT worker_id FROM turn_marks ORDER BY worker_id") == [("lost",), ("second",)]
    clock.jump(2)
    await store.join(WorkerInfo("third", "here", 3))
    for table in ("workers", "turn_marks"):
        assert rows_of(db, f"SELECT worker_id FROM {table} ORDER BY worker_id") == [("second",), ("third",)]
    await store.close()
