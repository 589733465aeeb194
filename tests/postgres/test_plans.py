"""What the statements of a turn read: a claim reads the claimed items, however many the batch has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncrunner.backends import open_engine
from asyncrunner.domain.item import NewItem
from asyncrunner.domain.outcome import Completed, Outcome, PutOff, Retrying, Settlement
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.protocols import Store
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.testing import FakeClock
from tests.contract.stores import BOOM, NOW
from tests.support.kinds import KINDS
from tests.support.state import changing

ITEMS = 20_000
READ = """SELECT (SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes WHERE schemaname = current_schema()
        AND relname IN ('items', 'ready', 'waiting', 'held'))::bigint,
    (SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_user_tables WHERE schemaname = current_schema()
        AND relname IN ('items', 'ready', 'waiting', 'held'))::bigint"""


@pytest.fixture
def db(server_dsn: str, tmp_path: Path) -> str:
    return KINDS["postgres"].new_location(tmp_path, "jobs.db")


@pytest.fixture
async def store(db: str) -> AsyncIterator[Store]:
    made = open_engine(db, clock=FakeClock(NOW))
    await made.open()
    yield made
    await made.close()


def rows_read(db: str) -> tuple[int, int]:
    """Return how many entries of indexes, and how many rows of whole tables, all statements have read."""
    with changing(db) as connection:
        ((by_index, by_table),) = connection.execute(READ).fetchall()
    return by_index, by_table


async def test_turns_read_a_few_rows_for_each_item_they_claim_and_settle(db: str, store: Store) -> None:
    batch_id = (await store.open_batch("b", "m:h", BatchOptions(max_attempts=9))).batch_id
    await store.join(WorkerInfo("w", "here", 1))
    await store.add(batch_id, [NewItem("first", "1"), NewItem("later", "1", due_at=NOW)], on_change="error")
    claims = (await store.turn("w", [], [Want(batch_id, 10, 9)])).claims  # the session keeps the plans for this small table
    await store.turn("w", [Settlement(claim, Completed("1"), NOW, NOW) for claim in claims], [])
    for first in range(0, ITEMS, 2000):
        entries = [NewItem(str(n), "1", due_at=NOW + 1e6 if n % 2 else None) for n in range(first, first + 2000)]
        await store.add(batch_id, entries, on_change="error")
    settlements: list[Settlement] = []
    for _ in range(20):
        turn = await store.turn("w", settlements, [Want(batch_id, 10, 9)])
        outcomes: list[Outcome] = [Completed("1"), Retrying(BOOM, 0.0), PutOff(BOOM, 60.0)]
        settlements = [Settlement(claim, outcomes[number % 3], NOW, NOW) for number, claim in enumerate(turn.claims)]
    await store.close()  # the server counts what a session has read at its end
    by_index, by_table = rows_read(db)
    assert by_table == 0
    assert by_index < 2 * ITEMS, f"{ITEMS} additions and 20 turns of 10 items read {by_index} entries of indexes"
