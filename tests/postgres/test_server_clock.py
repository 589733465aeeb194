"""The rows of a server have the server's times, whatever the clock of a worker's machine says."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from asyncrunner.backends import open_engine
from asyncrunner.domain.item import NewItem
from asyncrunner.domain.outcome import Completed, Retrying, Settlement
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import Vitals, WorkerInfo
from tests.contract.stores import BOOM
from tests.support.kinds import KINDS
from tests.support.state import rows_of

if TYPE_CHECKING:
    import pytest

WRONG = 86_400.0  # seconds by which the clock of the worker's machine is ahead

ARE_NOW = """SELECT count(*) FROM items WHERE abs(extract(epoch FROM created_at - now())) < 60
    AND abs(extract(epoch FROM coalesce(started_at, now()) - now())) < 60
    AND abs(extract(epoch FROM coalesce(completed_at, now()) - now())) < 60
    AND extract(epoch FROM coalesce(due_at, now() + interval '300 s') - now()) BETWEEN 240 AND 360"""


async def test_times_are_those_of_the_server(server_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + WRONG)
    db = KINDS["postgres"].new_location(tmp_path, "jobs.db")
    store = open_engine(db)
    await store.open()
    batch = await store.open_batch("b", "m:h", BatchOptions())
    await store.add(batch.batch_id, [NewItem("a", "1"), NewItem("b", "2")], on_change="error")
    await store.join(WorkerInfo("w", "here", 1))
    await store.beat("w", Vitals())
    done, again = (await store.turn("w", [], [Want(batch.batch_id, 2, 3)])).claims
    now = time.time()  # as the worker measures it
    await store.turn(
        "w", [Settlement(done, Completed("1"), now - 2, now), Settlement(again, Retrying(BOOM, 300.0), now - 2, now)], []
    )
    await store.close()
    assert rows_of(db, ARE_NOW) == [(2,)]
    assert rows_of(db, "SELECT round(extract(epoch FROM completed_at - started_at))::integer FROM items WHERE id = 'a'") == [(2,)]
    assert rows_of(db, "SELECT count(*) FROM workers WHERE abs(extract(epoch FROM last_heartbeat - now())) < 60") == [(1,)]
    assert rows_of(db, "SELECT count(*) FROM failures WHERE abs(extract(epoch FROM started_at - now())) < 60") == [(1,)]
