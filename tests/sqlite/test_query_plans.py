"""Frequent statements and those of operators use an index, and never read the whole table."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrunner.domain.item import NewItem
from asyncrunner.domain.outcome import Completed, ErrorInfo, Failed, Outcome, Settlement
from asyncrunner.sqlite import SQLiteStore, sql
from asyncrunner.sqlite.admin import queries as admin_queries
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from tests.sqlite.conftest import Prepared


@pytest.fixture
async def prepared(db: Path) -> AsyncIterator[Prepared]:
    now = time.time() - 600  # ten minutes ago: what was started then is stuck
    store = SQLiteStore(db)
    await store.open()
    batch_id = (await store.open_batch("b", "h", BatchOptions(), now=now)).batch_id
    await store.join(WorkerInfo("w", "here", 1), now=now)
    keys = ["done", "used up", "some-id", "stuck", "waiting"]
    await store.add(batch_id, [NewItem(key, "1") for key in keys], on_change="error", now=now)
    claims = {each.id: each for each in (await store.turn("w", [], [Want(batch_id, 4, 3)], now=now)).claims}
    boom = ErrorInfo("ValueError", "boom")
    outcomes: dict[str, Outcome] = {
        "done": Completed("2"),
        "used up": Failed(boom, permanent=False),
        "some-id": Failed(boom, permanent=True),
    }
    settled = [Settlement(claims[key], outcome, now, now + 2) for key, outcome in outcomes.items()]
    await store.turn("w", settled, [], now=now + 2)
    made = Prepared(store, batch_id, db, now)
    made.other.execute("UPDATE items SET attempts = 3 WHERE id = 'used up'")
    yield made
    made.other.close()
    await store.close()


HOT: dict[str, tuple[str, Any]] = {
    "PROMOTE_DUE": (sql.claims.PROMOTE_DUE, (1, "2026", 5)),
    "CLAIMABLE": (sql.claims.CLAIMABLE, (3, 1, 5)),
    "CLAIMABLE_SEQS": (sql.claims.CLAIMABLE_SEQS, (1, 5)),
    "NEXT_DUE": (sql.claims.NEXT_DUE, (1,)),
    "UNFINISHED": (sql.claims.UNFINISHED, (1,)),
    "HELD_BY": (sql.workers.HELD_BY, ("w",)),
    "STUCK": (sql.reports.STUCK, (1, "2026", 5)),
    "PROCESSING_STARTS": (sql.reports.PROCESSING_STARTS, (1, 5)),
    "COUNTS": (sql.items.COUNTS, {"batch_id": 1, "now": "2026"}),
}


@pytest.mark.parametrize("name", list(HOT))
async def test_what_is_asked_often_uses_the_index_of_open_items(name: str, prepared: Prepared) -> None:
    statement, parameters = HOT[name]
    plan = [row[3] for row in prepared.other.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert any("items_open" in step for step in plan), plan
    assert not any(re.match(r"SCAN items", step) for step in plan), plan
    if name.startswith("CLAIMABLE"):
        assert not any("TEMP B-TREE" in step for step in plan), plan


FILTER = {
    "batch_id": 1, "status": "failed", "pattern": "%x%", "exact": "x", "before": None, "after": 0, "newest": 9, "limit": 5,
}  # fmt: skip


LOOKS: dict[str, tuple[str, Any, str]] = {
    "LIST": (sql.admin.LIST, FILTER, "SEARCH items USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
    "LIST_OPEN": (sql.admin.LIST_OPEN, FILTER, "SEARCH items USING INDEX items_open (batch_id=? AND status=?"),
    "LIST_FAILED_LIKE": (sql.admin.LIST_FAILED_LIKE, FILTER, "INDEX items_failed (batch_id=? AND status=?)"),
    "ITEM": (sql.admin.ITEM, (1, "a"), "(batch_id=? AND id=?)"),
    "FAILURES_OF_ITEM": (sql.admin.FAILURES_OF_ITEM, (1, "a", 5), "failures_of_item (batch_id=? AND id=?)"),
    "FAILURE_GROUPS": (sql.reports.FAILURE_GROUPS, (1, 5), "COVERING INDEX items_failed (batch_id=?"),
    "ATTEMPTS_OF_CAUSE": (sql.admin.ATTEMPTS_OF_CAUSE, (1, "f"), "COVERING INDEX failures_of_cause (batch_id=? AND fingerprint=?)"),
    "ATTEMPTS_BY_CAUSE": (sql.admin.ATTEMPTS_BY_CAUSE, (1, 5), "COVERING INDEX failures_of_cause (batch_id=?)"),
    "NEWEST_OF_CAUSE": (sql.admin.NEWEST_OF_CAUSE, (1, "f"), "failures_of_cause (batch_id=? AND fingerprint=?)"),
    "HOLDINGS": (sql.admin.HOLDINGS, (1,), "items_open (batch_id=? AND status=?)"),
    "OLDEST_PENDING": (sql.admin.OLDEST_PENDING, (1,), "COVERING INDEX items_open (batch_id=? AND status=? AND due_at=?)"),
    "EXPORT": (sql.admin.EXPORT, (0, 1, None, 5), "SEARCH items USING INTEGER PRIMARY KEY (rowid>?)"),
    "PURGEABLE": (sql.admin.PURGEABLE, (0, 1, "[]", "2026", 5), "SEARCH items USING INTEGER PRIMARY KEY (rowid>?)"),
    "RETRY": (sql.admin.RETRY, ("[]",), "INTEGER PRIMARY KEY (rowid=?)"),
    "CANCEL": (sql.admin.CANCEL, ("", "[]"), "INTEGER PRIMARY KEY (rowid=?)"),
    "CANCEL_PENDING": (sql.admin.CANCEL_PENDING, ("", "[]"), "INTEGER PRIMARY KEY (rowid=?)"),
    "OPEN_SEQS": (sql.admin.OPEN_SEQS, (1, "pending"), "COVERING INDEX items_open (batch_id=? AND status=?)"),
    "FAILED_SEQS_LIKE": (sql.admin.FAILED_SEQS_LIKE, FILTER, "COVERING INDEX items_failed (batch_id=? AND status=?)"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LOOKS))
async def test_what_operators_ask_takes_an_index_and_never_the_whole_table(name: str, prepared: Prepared) -> None:
    statement, parameters, expected = LOOKS[name]
    plan = [row[3] for row in prepared.other.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert any(expected in step for step in plan), plan
    assert not any(re.match(r"SCAN (items|failures)\b", step) for step in plan), plan


async def test_a_purge_reads_a_window_and_finds_what_it_removes_by_number(prepared: Prepared) -> None:
    def plan_of(statement: str, **parameters: object) -> list[str]:
        return [row[3] for row in prepared.other.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]

    window = plan_of(sql.items.EXPIRED, before="2026", batches="[1]", after=0, limit=10)
    assert "SEARCH items USING INTEGER PRIMARY KEY (rowid>?)" in window
    assert not any("TEMP B-TREE" in step for step in window)
    failures = plan_of(sql.items.PURGE_FAILURES, before="2026", found="[1]", statuses="[]")
    assert any("failures_of_item (batch_id=? AND id=?)" in step for step in failures), failures
    assert any("SEARCH items USING INTEGER PRIMARY KEY (rowid=?)" in step for step in failures), failures
    assert "SEARCH items USING INTEGER PRIMARY KEY (rowid=?)" in plan_of(
        sql.items.PURGE_ITEMS, before="2026", found="[1]", statuses="[]"
    )


@pytest.mark.parametrize("name", ["SETTLE_COMPLETED", "SETTLE_RETRYING", "SETTLE_FAILED", "SETTLE_RELEASED", "SETTLE_CANCELLED"])
async def test_a_settlement_finds_its_row_by_number(name: str, prepared: Prepared) -> None:
    statements = getattr(sql.claims, name)._statements
    for size, statement in statements.items():
        columns = statement.count("?") // size
        plan = [row[3] for row in prepared.other.execute(f"EXPLAIN QUERY PLAN {statement}", [1] * columns * size)]
        assert any("SEARCH items USING INTEGER PRIMARY KEY (rowid=?)" in step for step in plan), plan


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2)), max_size=30),
    st.integers(-1, 70),
)
def test_the_last_item_that_came_in_before_a_moment_is_found_by_halves(steps: list[tuple[int, int]], moment: int) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE items (seq INTEGER PRIMARY KEY, created_at TEXT NOT NULL)")
    rows: list[tuple[int, str]] = []
    seq = created = 0
    for gap, later in steps:
        seq, created = seq + gap, created + later
        rows.append((seq, f"{created:04d}"))
    connection.executemany("INSERT INTO items VALUES (?, ?)", rows)
    found = admin_queries._last_arrived_before(connection, f"{max(moment, 0):04d}", seq)
    connection.close()
    earlier = [number for number, came_in in rows if came_in < f"{max(moment, 0):04d}"]
    assert [number for number, _ in rows if number <= found] == earlier
