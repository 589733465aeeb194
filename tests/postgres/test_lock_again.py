"""A live worker that loses its session twice is not taken for dead by a worker that saw its lock free both times."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from asyncrunner.backends import open_engine
from asyncrunner.postgres import listener
from asyncrunner.postgres.connection.session import Session
from asyncrunner.store.protocols import Store
from asyncrunner.store.workers import WorkerInfo
from tests.conftest import Until
from tests.support.kinds import KINDS
from tests.support.state import rows_of

IS_LOCKED = """SELECT count(*) FROM workers JOIN liveness_locks USING (lock_key) WHERE worker_id = 'victim'"""
TERMINATE = """SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
AND (classid::bigint << 32) | objid::bigint = (SELECT lock_key FROM {}.workers WHERE worker_id = 'victim')"""


@pytest.fixture
def db(server_dsn: str, tmp_path: Path) -> str:
    del server_dsn
    return KINDS["postgres"].new_location(tmp_path, "jobs.db")


async def opened(db: str, worker_id: str) -> Store:
    store = open_engine(db)
    await store.open()
    await store.join(WorkerInfo(worker_id, "host", 1))
    return store


@pytest.fixture
async def victim(db: str) -> AsyncIterator[Store]:
    store = await opened(db, "victim")
    yield store
    await store.close()


@pytest.fixture
async def watcher(db: str) -> AsyncIterator[Store]:
    store = await opened(db, "watcher")
    yield store
    await store.close()


async def test_two_looks_at_a_free_lock_are_no_proof_if_it_was_held_between_them(
    db: str, victim: Store, watcher: Store, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "GRACE_SECONDS", 1e-9)  # each look after the first one proves
    address, schema = db.split("?schema=")

    def terminate() -> None:
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(TERMINATE.format(schema))

    async def look() -> bool | None:
        (peer,) = await watcher.peers("watcher")
        return peer.alive

    connects = Session._connect

    async def refused(self: Session) -> object:
        raise OSError

    assert await look() is True
    monkeypatch.setattr(Session, "_connect", refused)
    terminate()
    await until(lambda: rows_of(db, IS_LOCKED) == [(0,)])
    assert await look() is None
    monkeypatch.setattr(Session, "_connect", connects)
    await until(lambda: rows_of(db, IS_LOCKED) == [(1,)])
    await until(lambda: rows_of(db, "SELECT beats > 0 FROM workers WHERE worker_id = 'victim'") == [(True,)])
    monkeypatch.setattr(Session, "_connect", refused)
    terminate()
    await until(lambda: rows_of(db, IS_LOCKED) == [(0,)])
    assert await look() is None, "the lock was held in between"
    monkeypatch.setattr(Session, "_connect", connects)
