"""The file is an interface: the public queries, people's changes by hand, and the plans of what is asked often."""

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

from asyncrunner.domain.item import Counts, NewItem
from asyncrunner.domain.outcome import Completed, ErrorInfo, Failed, Outcome, Settlement
from asyncrunner.sqlite import SQLiteStore, sql
from asyncrunner.sqlite.admin import queries as admin_queries
from asyncrunner.sqlite.sql.schema import APPLICATION_ID, MIGRATIONS
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.text.timestamps import to_text
from tests.conftest import rows_of

NOW = 1_800_000_000.0

STUCK = "status = 'processing' AND julianday('now') - julianday(started_at) > 0.0035"


class Prepared:
    """One item of each kind: completed, failed with all attempts, failed with one, processing for long, pending."""

    def __init__(self, store: SQLiteStore, batch_id: int, db: Path, now: float) -> None:
        self.store = store
        self.batch_id = batch_id
        self.now = now
        self.other = sqlite3.connect(db, isolation_level=None)

    def ask(self, query: str) -> list[Any]:
        return self.other.execute(query).fetchall()

    async def counts(self) -> Counts:
        counted = await self.store.counts(self.batch_id, now=self.now)
        grouped = dict(self.ask("SELECT status, COUNT(*) FROM items GROUP BY status"))
        for status in ("pending", "processing", "completed", "failed", "cancelled"):
            assert getattr(counted, status) == grouped.get(status, 0), status
        return counted


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


async def test_the_public_queries_work_as_they_stand(prepared: Prepared) -> None:
    ask = prepared.ask
    assert ask("SELECT id FROM items WHERE status IN ('pending','failed') AND attempts < 3") == [("some-id",), ("waiting",)]
    assert sorted(ask("SELECT status, COUNT(*) FROM items GROUP BY status")) == [
        ("completed", 1), ("failed", 2), ("pending", 1), ("processing", 1),
    ]  # fmt: skip
    assert ask("SELECT id, error FROM items WHERE status = 'failed'") == [
        ("used up", "ValueError: boom"), ("some-id", "ValueError: boom"),
    ]  # fmt: skip
    assert ask("SELECT id, error, attempts FROM items WHERE status = 'failed' AND attempts >= 3") == [
        ("used up", "ValueError: boom", 3)
    ]
    assert ask(f"SELECT id, worker_id, started_at FROM items WHERE {STUCK}") == [("stuck", "w", to_text(prepared.now))]
    averages = ask(
        "SELECT status, COUNT(*), AVG((julianday(completed_at) - julianday(started_at)) * 86400) "
        "FROM items WHERE started_at IS NOT NULL GROUP BY status"
    )
    assert {status: (count, seconds and round(seconds, 2)) for status, count, seconds in averages} == {
        "completed": (1, 2.0), "failed": (2, 2.0), "processing": (1, None),
    }  # fmt: skip


async def test_a_stuck_item_put_back_by_hand_is_claimed_again_and_the_old_holder_is_fenced_off(prepared: Prepared) -> None:
    store, now = prepared.store, prepared.now
    held = Settlement((await _claim_of(prepared, "stuck")), Completed('"late"'), now, now)
    prepared.ask(f"UPDATE items SET status = 'pending', worker_id = NULL WHERE {STUCK}")
    assert (await prepared.counts()).pending == 2
    assert [claim.id for claim in (await store.turn("w", [held], [], now=now)).lost] == ["stuck"]
    claims = (await store.turn("w", [], [Want(prepared.batch_id, 5, 3)], now=now)).claims
    assert [claim.id for claim in claims] == ["stuck", "waiting"]
    assert [claim.id for claim in (await store.turn("w", [held], [], now=now)).lost] == ["stuck"]
    assert (await prepared.counts()).processing == 2


async def _claim_of(prepared: Prepared, key: str):  # type: ignore[no-untyped-def]
    from asyncrunner.domain.item import Claim

    return Claim(*prepared.ask(f"SELECT seq, batch_id, id, payload, claim, attempts, crashes FROM items WHERE id = '{key}'")[0])


async def test_a_failed_item_put_back_by_hand_runs_once_more_even_if_its_attempts_are_used_up(prepared: Prepared) -> None:
    prepared.ask("UPDATE items SET status = 'pending' WHERE id = 'some-id' AND status = 'failed'")
    prepared.ask("UPDATE items SET status = 'pending' WHERE id = 'used up' AND status = 'failed'")
    assert (await prepared.counts()).failed == 0
    claims = (await prepared.store.turn("w", [], [Want(prepared.batch_id, 5, 3)], now=prepared.now)).claims
    assert {claim.id: claim.attempt for claim in claims} == {"used up": 3, "some-id": 2, "waiting": 1}


async def test_rows_inserted_and_deleted_by_hand_are_counted_and_run(prepared: Prepared) -> None:
    prepared.ask(f"INSERT INTO items (batch_id, id, payload) VALUES ({prepared.batch_id}, 'by hand', '7')")
    prepared.ask("DELETE FROM items WHERE id = 'done'")
    assert await prepared.counts() == Counts(pending=2, processing=1, failed=2)
    claims = (await prepared.store.turn("w", [], [Want(prepared.batch_id, 5, 3)], now=prepared.now)).claims
    assert [claim.id for claim in claims] == ["waiting", "by hand"]


async def test_a_paused_batch_is_left_alone(prepared: Prepared) -> None:
    prepared.ask("UPDATE batches SET paused = 1, concurrency = 5")
    turn = await prepared.store.turn("w", [], [Want(prepared.batch_id, 5, 3)], now=prepared.now)
    state = turn.batches[prepared.batch_id]
    assert (list(turn.claims), state.resting_until, state.concurrency) == ([], float("inf"), 5)


async def test_times_are_utc_text_with_milliseconds(prepared: Prepared) -> None:
    (row,) = prepared.ask("SELECT created_at, started_at, completed_at FROM items WHERE id = 'done'")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", str(text)) for text in row)
    prepared.ask(f"INSERT INTO items (batch_id, id, payload) VALUES ({prepared.batch_id}, 'by hand', '7')")
    ((age,),) = prepared.ask("SELECT abs(julianday('now') - julianday(created_at)) FROM items WHERE id = 'by hand'")
    assert age < 0.01


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


async def test_an_older_file_gets_the_causes_of_what_has_failed(db: Path) -> None:
    connection = sqlite3.connect(db, isolation_level=None)
    for script in MIGRATIONS[:3]:
        connection.executescript(script)
    connection.executescript(
        f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 3;"
        "INSERT INTO batches (name, handler, options, created_at) VALUES ('b', 'h', '{}', '');"
        "INSERT INTO items (batch_id, id, status, payload) VALUES (1, 'a', 'failed', '1'), (1, 'c', 'completed', '1');"
        "INSERT INTO failures (batch_id, id, attempt, claim, failed_at, error_type, message, traceback, fingerprint)"
        "VALUES (1, 'a', 1, 1, '', 'E', '', '', 'first'), (1, 'a', 2, 2, '', 'E', '', '', 'last'), (1, 'c', 1, 1, '', 'E', '', '', 'x');"
    )
    connection.close()
    store = SQLiteStore(db)
    await store.open()
    await store.close()
    assert rows_of(db, "SELECT id, fingerprint FROM items ORDER BY id") == [("a", "last"), ("c", None)]


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


async def test_a_key_that_is_there_uses_no_number_up(db: Path) -> None:
    def last() -> int:
        return int(rows_of(db, "SELECT seq FROM sqlite_sequence WHERE name = 'items'")[0][0])

    store = SQLiteStore(db)
    await store.open()
    batch_id = (await store.open_batch("b", "h", BatchOptions(), now=NOW)).batch_id
    entries = [NewItem(str(number), "1") for number in range(5)]
    for _ in range(3):
        await store.add(batch_id, entries, on_change="error", now=NOW)
        assert last() == 5
    await store.add(batch_id, [*entries[:2], NewItem("new", "1"), *entries], on_change="error", now=NOW)
    assert rows_of(db, "SELECT max(seq) FROM items") == [(last(),)]
    with sqlite3.connect(db) as connection:
        connection.execute("DELETE FROM items WHERE id = 'new'")
    connection.close()
    before = last()
    await store.add(batch_id, [*entries, NewItem("new", "1")], on_change="error", now=NOW)
    assert rows_of(db, f"SELECT seq > {before} FROM items WHERE id = 'new'") == [(1,)], (
        "the number of a deleted row is not given again"
    )
    await store.close()


async def test_a_row_number_is_not_given_again_so_a_late_outcome_finds_nobody(db: Path) -> None:
    store = SQLiteStore(db)
    await store.open()
    batch = await store.open_batch("b", "h", BatchOptions(), now=NOW)
    await store.add(batch.batch_id, [NewItem("old", "1")], on_change="error", now=NOW)
    await store.join(WorkerInfo("w", "here", 1), now=NOW)
    want = Want(batch.batch_id, 1, 3)
    (held,) = (await store.turn("w", [], [want], now=NOW)).claims
    with sqlite3.connect(db) as connection:
        connection.execute("DELETE FROM items WHERE id = 'old'")
    connection.close()
    await store.add(batch.batch_id, [NewItem("old", "2")], on_change="error", now=NOW)
    (again,) = (await store.turn("w", [], [want], now=NOW)).claims
    turn = await store.turn("w", [Settlement(held, Completed('"late"'), NOW, NOW)], [], now=NOW)
    assert list(turn.lost) == [held]
    assert again.seq > held.seq
    assert rows_of(db, "SELECT status, result FROM items") == [("processing", None)]
    await store.close()


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("2027-01-15T08:00:10", "2027-01-15 08:00:10.000"),
        ("2027-01-15 10:00:10.5+02:00", "2027-01-15 08:00:10.500"),
        ("2027-01-15 08:00:10", "2027-01-15 08:00:10.000"),
        ("2027-01-15 08:00:10.123", "2027-01-15 08:00:10.123"),
        ("soon", None),
        (None, None),
    ],
)
async def test_a_time_that_a_person_writes_is_understood_in_every_form(db: Path, written: str | None, kept: str | None) -> None:
    store = SQLiteStore(db)
    await store.open()
    batch = await store.open_batch("b", "h", BatchOptions(), now=NOW)
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error", now=NOW)
    connection = sqlite3.connect(db)
    connection.execute("UPDATE items SET due_at = ?", (written,))
    connection.execute("INSERT INTO items (batch_id, id, payload, due_at) VALUES (?, 'b', '2', ?)", (batch.batch_id, written))
    connection.commit()
    connection.close()
    assert rows_of(db, "SELECT due_at FROM items") == [(kept,), (kept,)]
    await store.join(WorkerInfo("w", "here", 1), now=NOW)
    want = Want(batch.batch_id, 5, 3)
    assert len((await store.turn("w", [], [want], now=NOW)).claims) == (0 if kept else 2)
    assert len((await store.turn("w", [], [want], now=NOW + 11)).claims) == (2 if kept else 0)
    await store.close()


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
