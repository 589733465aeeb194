"""A store with items in every state, for the tests of operators' commands."""

from __future__ import annotations

import asyncio
from pathlib import Path

from asyncrunner import Fail, RetryPolicy, run_batch
from asyncrunner.backends import open_engine
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.workers import WorkerInfo
from tests.support.kinds import Location
from tests.support.state import changing

WHOLE_RESULT = """
    CASE WHEN result = '' THEN (
        SELECT group_concat(text, '') FROM (
            SELECT text FROM result_pieces WHERE result_pieces.seq = items.seq AND result_pieces.claim = items.claim
            ORDER BY piece)
    ) ELSE result END"""
"""The SQL expression for an item's whole result, joined from its pieces where necessary."""

BATCH = "shop"


async def book(item: str) -> dict[str, str]:
    kind, _, number = item.partition("-")
    if kind == "refused":
        raise ConnectionError(f"cannot reach 10.0.0.{number}")
    if kind == "wrong":
        raise Fail(f"a negative amount in order {number}")
    return {"booked": item}


def make_store(db: Location, batch: str = BATCH) -> None:
    """Create a store with 4 completed items, 5 failed, 1 cancelled, 2 pending and 1 orphaned.

    The failed items have two causes; those of the first cause failed in two attempts each.
    """
    items = [
        "fine-1", "refused-1", "fine-2", "wrong-1", "refused-2", "fine-3", "refused-3", "wrong-2", "fine-4",
        "off-1", "open-1", "open-2", "held-1",
    ]  # fmt: skip
    asyncio.run(run_batch(items, book, db=db, batch=batch, max_attempts=2, retry=RetryPolicy(initial=0, jitter="none")))
    with changing(db) as connection:
        done = f"batch_id = (SELECT batch_id FROM batches WHERE name = '{batch}') AND id"
        connection.execute(f"UPDATE items SET status = 'cancelled', result = NULL WHERE {done} = 'off-1'")
        connection.execute(
            f"UPDATE items SET status = 'pending', result = NULL, attempts = 0, completed_at = NULL, started_at = NULL WHERE {done} LIKE 'open-%'"
        )
        connection.execute(
            f"UPDATE items SET status = 'processing', result = NULL, completed_at = NULL, started_at = '2026-01-02 03:04:05.678', worker_id = 'gone' WHERE {done} = 'held-1'"
        )


async def lose_workers(db: str, *names: str) -> None:
    """Leave workers in the store that have not deregistered and whose processes are dead."""
    store = open_engine(db)
    await store.open()
    for pid, name in enumerate(names, 1):
        await store.join(WorkerInfo(name, "h", pid))
    await store.close()


async def opened(db: Path) -> SQLiteStore:
    """Return an open store on the file."""
    store = SQLiteStore(db)
    await store.open()
    return store
