"""Every statement of the store is in ``sqlite/sql/``, stands whole, has a comment, and reads large tables by an index."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncrunner.sqlite
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.admin import items as admin_items
from asyncrunner.sqlite.file.opening import connect_memory
from asyncrunner.sqlite.sql.bulk import BulkStatement

ROOM: Final = Path(asyncrunner.sqlite.__file__).parent

OPEN: Final = "items_open (batch_id=? AND status=?"
FAILED: Final = "items_failed (batch_id=? AND status=?"
BY_KEY: Final = "sqlite_autoindex_items_1 (batch_id=? AND id=?)"
BY_SEQ: Final = "items USING INTEGER PRIMARY KEY (rowid=?)"
FROM_SEQ: Final = "items USING INTEGER PRIMARY KEY (rowid>?"
OF_BATCH: Final = "sqlite_autoindex_items_1 (batch_id=?)"

PLANS: Final[dict[str, str]] = {
    "batches.COPIED_FAILURES": "SEARCH failures USING INTEGER PRIMARY KEY (rowid>?)",
    "batches.COPIED_ITEMS": "SEARCH items USING INTEGER PRIMARY KEY (rowid>?)",
    "batches.COPIED_KEYS": "COVERING INDEX sqlite_autoindex_items_1 (batch_id=? AND id=?)",
    "batches.COPIED_PIECES": "SEARCH result_pieces USING INDEX sqlite_autoindex_result_pieces_1 (seq>?)",
    "batches.DISCARD_BATCH": "=?)",
    "batches.DISCARD_FAILURES": "failures_of_item (batch_id=? AND id=?)",
    "batches.DISCARD_ITEMS": BY_SEQ,
    "batches.INSERT_COPIED_PIECE": "sqlite_autoindex_items_1 (batch_id=? AND id=?)",
    "claims.OPEN_STATES": OPEN,
    "items.BEFORE_INSERT": OPEN,
    "items.SAME_ITEMS": BY_KEY,
    "items.SET_TRACEPARENT": "SEARCH items USING INTEGER PRIMARY KEY (rowid>?)",
    "reports.FIRST_OF_CAUSE": "COVERING INDEX failures_of_cause (batch_id=? AND fingerprint=?)",
    "reports.ITEMS_BY_CAUSE": f"COVERING INDEX {FAILED}",
    "reports.ITEMS_BY_ERROR": f"COVERING INDEX {FAILED}",
    "reports.ITEMS_BY_MANY_CAUSES": f"COVERING INDEX {FAILED}",
    "reports.ITEM_OF_CAUSE": FAILED,
    "admin.BATCHES_WITH_ID": BY_KEY,
    "admin.CORRECT_TOTAL": f"COVERING INDEX {OF_BATCH}",
    "admin.EXPORT": FROM_SEQ,
    "admin.FAILED_SEQS_LIKE": f"COVERING INDEX {FAILED}",
    "admin.FAILURES_OF_ITEM": "failures_of_item (batch_id=? AND id=?)",
    "admin.HOLDINGS": OPEN,
    "admin.HELD_RERUNS": OPEN,
    "admin.IDS_BEFORE": "COVERING INDEX sqlite_autoindex_items_1 (batch_id=? AND id<?)",
    "admin.IDS_FROM": "COVERING INDEX sqlite_autoindex_items_1 (batch_id=? AND id>?)",
    "admin.ITEM": BY_KEY,
    "admin.KNOWN_ITEMS": BY_KEY,
    "admin.LIST": FROM_SEQ,
    "admin.LIST_FAILED_LIKE": FAILED,
    "admin.LIST_FAILED_LIKE_NEWEST": FAILED,
    "admin.LIST_NEWEST": "items USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
    "admin.LIST_OPEN": OPEN,
    "admin.LIST_OPEN_NEWEST": OPEN,
    "reports.MINUTES_OF_CAUSE": "COVERING INDEX failures_of_cause (batch_id=? AND fingerprint=? AND failed_at>?)",
    "reports.NEWEST_OF_CAUSE": "failures_of_cause (batch_id=? AND fingerprint=?)",
    "admin.NEXT_ARRIVAL": FROM_SEQ,
    "admin.NEXT_SELECTED": FROM_SEQ,
    "admin.OPEN_SEQS_LIKE": OPEN,
    "admin.PENDING_BEFORE": BY_SEQ,
    "admin.SEARCH": BY_SEQ,
    "admin.TEXTS_OF_ITEM": BY_SEQ,
    "admin.IDS_OF_SEQS": BY_SEQ,
    "admin.EXPORT_SELECTED": BY_SEQ,
    "admin.COUNT_CAUSES": "COVERING INDEX failures_of_cause (batch_id=?)",
    "admin.NEWEST_IDS": FROM_SEQ,
    "admin.OLDEST_PENDING": "COVERING INDEX items_open (batch_id=? AND status=? AND due_at=?)",
    "admin.RELEASE_HELD": OPEN,
    "admin.REOPENABLE": FAILED,
    "admin.SEQ_OF_ID": BY_KEY,
    "admin.WORKERS_AND_HOLDINGS": OPEN,
    "admin.WRONG_TOTALS": f"COVERING INDEX {OF_BATCH}",
    "claims.CLAIM": BY_SEQ,
    "claims.CLAIM_DUE": BY_SEQ,
    "claims.CLAIMABLE": "items_open (batch_id=? AND status=? AND due_at=?)",
    "claims.CLAIMABLE_SEQS": "items_open (batch_id=? AND status=? AND due_at=?)",
    "claims.CLAIMABLE_SUSPECT": "items_suspect (batch_id=? AND suspect>?)",
    "claims.CLAIMED_ROWS": BY_SEQ,
    "claims.CLAIMABLE_GIVEN": BY_SEQ,
    "claims.CLAIMABLE_GIVEN_SUSPECT": "items_suspect (batch_id=? AND suspect>?)",
    "claims.GIVEN_NEXT_DUE": BY_SEQ,
    "claims.GIVEN_UNFINISHED": BY_SEQ,
    "claims.LOST_CLAIMS": BY_SEQ,
    "claims.NEXT_DUE": "items_open (batch_id=? AND status=? AND due_at>?)",
    "claims.PROMOTE_DUE": "items_due (batch_id=? AND priority=? AND due_at<?)",
    "claims.PROMOTE_EARLIEST": "items_open (batch_id=? AND status=? AND due_at<?)",
    "claims.REMOVE_ENDED": BY_SEQ,
    "claims.REMOVE_FIRST_ENDED": BY_SEQ,
    "claims.RERUN": BY_SEQ,
    "claims.RERUN_REQUESTED": BY_SEQ,
    "claims.SAVE_CHECKPOINT": BY_SEQ,
    "claims.SETTLE_CANCELLED": BY_SEQ,
    "claims.SETTLE_COMPLETED": BY_SEQ,
    "claims.SETTLE_FAILED": BY_SEQ,
    "claims.SETTLE_PUT_OFF": BY_SEQ,
    "claims.SETTLE_RELEASED": BY_SEQ,
    "claims.SETTLE_RETRYING": BY_SEQ,
    "claims.UNFINISHED": f"COVERING INDEX {OPEN}",
    "items.CANCEL": BY_SEQ,
    "items.COMPLETED_BY_OTHER_VERSION": FROM_SEQ,
    "items.EXISTING_KEYS": BY_KEY,
    "items.EXPIRED": FROM_SEQ,
    "items.FREE_UNUSED_SEQS": "SEARCH items",
    "items.ITEMS_BY_ID": BY_KEY,
    "items.ITEMS_BY_SEQ": BY_SEQ,
    "items.LAST_SEQ": "SEARCH items",
    "items.NEWEST_SEQ": "SEARCH items",
    "items.OLDEST_SEQ": "SEARCH items",
    "items.OPEN_SEQS": f"COVERING INDEX {OPEN}",
    "items.PAYLOADS_OF_KEYS": BY_KEY,
    "items.PURGE_FAILURES": "failures_of_item (batch_id=? AND id=?)",
    "items.PURGE_ITEMS": BY_SEQ,
    "items.REOPEN": BY_SEQ,
    "items.REOPENABLE_SEQS": FAILED,
    "items.REOPEN_FAILED": BY_SEQ,
    "items.REPLACE_PAYLOAD": BY_KEY,
    "items.REQUEST_RERUN": BY_KEY,
    "items.ROWS": OF_BATCH,
    "items.RUN_AGAIN": BY_SEQ,
    "items.RUN_AGAIN_AFTER_ATTEMPT": BY_SEQ,
    "items.RUN_AGAIN_OTHER_VERSION": BY_SEQ,
    "items.WHOLE_ITEMS_BY_ID": BY_KEY,
    "items.WHOLE_ITEMS_BY_SEQ": BY_SEQ,
    "items.WHOLE_ROWS": OF_BATCH,
    "large_results.DELETE_ORPHANED_PIECES": BY_SEQ,
    "large_results.ORPHANED_PIECES": BY_SEQ,
    "large_results.PIECE": "result_pieces USING INDEX sqlite_autoindex_result_pieces_1 (seq=? AND claim=? AND piece=?)",
    "large_results.PIECES_OF_RESULT": "result_pieces USING COVERING INDEX sqlite_autoindex_result_pieces_1 (seq=? AND claim=?)",
    "large_results.ROWIDS_OF_PIECES": "result_pieces USING COVERING INDEX sqlite_autoindex_result_pieces_1 (seq=? AND claim=?)",
    "large_results.STORE_PIECE": BY_SEQ,
    "reports.COUNTS": f"COVERING INDEX {OPEN}",
    "reports.FAILURE_CAUSES": "COVERING INDEX items_failed (batch_id=?",
    "reports.FAILURE_CAUSES_OF_ITEMS": "COVERING INDEX items_failed (batch_id=?",
    "reports.DELETE_OLD_MINUTES": "COVERING INDEX minutes_oldest (minute<?)",
    "reports.HISTORY": "minutes USING PRIMARY KEY (batch_id=? AND minute>? AND minute<?)",
    "reports.NEXT_WAITING": "COVERING INDEX items_open (batch_id=? AND status=? AND due_at>?)",
    "reports.PROCESSING_STARTS": OPEN,
    "reports.STUCK": OPEN,
    "reports.SUSPECTS": "items_suspect (batch_id=? AND suspect>?)",
    "workers.HELD_BY": OPEN,
    "workers.ORPHANS": OPEN,
    "workers.SET_BACK_RETRIES": "items_open (batch_id=? AND status=? AND due_at>?)",
}
"""The step of each plan that finds the rows of ``items``, ``failures``, ``result_pieces`` or ``minutes``."""

SCANS: Final[dict[str, str]] = {
    "reports.NEWEST_FAILURES": "reads the newest 10,000 failures",
    "batches.COPY_TOTALS": "counts every row at the end of a copy, which has read them all",
    "admin.HUGE_CLAIMS": "doctor reads every page of the file anyway",
    "admin.INCOMPLETE_RESULTS": "doctor reads every page of the file anyway",
    "admin.OF_OTHER_VERSION": "a dry run after an interrupted change of the version",
    "admin.DELETE_OTHER_BATCHES": "deletes most of a copy",
    "admin.WRONG_CAUSES": "doctor reads every page of the file anyway, and this only an index",
    "large_results.ORPHANED_PIECES": "reads only the index, which has one entry per megabyte of results",
    "large_results.DELETE_ORPHANED_PIECES": "reads only the index, which has one entry per megabyte of results",
}
"""Why a statement may read a large table from its start."""

UNSORTED: Final = ("claims.CLAIMABLE", "claims.CLAIMABLE_SEQS", "claims.CLAIMABLE_SUSPECT", "items.EXPIRED", "admin.SEARCH")
"""Statements that stop after a few rows: they read the rows in their order and never sort all of them first."""

ALL_STATEMENTS: Final[dict[str, str | BulkStatement | tuple[str, ...]]] = {
    f"{module}.{name}": value
    for module in sql.__all__
    for name, value in vars(getattr(sql, module)).items()
    if name.isupper() and not name.startswith("_") and name not in ("DAMAGED", "APPLICATION_ID", "MIGRATIONS")
}

PLANNED: Final = [
    name
    for name, value in ALL_STATEMENTS.items()
    if isinstance(value, BulkStatement | tuple) or re.match(r"\s*(WITH|SELECT|INSERT|UPDATE|DELETE)\b", value)
]


class AnyValues(dict[str, Any]):
    """Return a value for every named parameter."""

    def __missing__(self, name: str) -> int:
        return 1


@pytest.fixture(scope="module")
def store() -> Iterator[sqlite3.Connection]:
    connection = connect_memory()
    connection.execute(sql.admin.CREATE_SEEN_KEYS)
    connection.execute(sql.claims.CREATE_GIVEN)
    yield connection
    connection.close()


def forms(name: str) -> list[str]:
    """Return the texts of a statement: a bulk statement has one for each size."""
    value = ALL_STATEMENTS[name]
    if isinstance(value, BulkStatement):
        return list(value._statements.values())
    return [value] if isinstance(value, str) else list(value)


def plan_of(connection: sqlite3.Connection, statement: str) -> list[str]:
    count = 0
    for number in re.findall(r"\?(\d*)", statement):
        count = max(count, int(number)) if number else count + 1
    values: Any = [1] * count if count else AnyValues()
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


@pytest.mark.parametrize("name", PLANNED)
def test_a_statement_finds_its_rows_by_an_index(name: str, store: sqlite3.Connection) -> None:
    for statement in forms(name):
        plan = plan_of(store, statement)
        assert name not in PLANS or any(PLANS[name] in step for step in plan), plan
        large = [step for step in plan if re.search(r"\b(items|failures|result_pieces|minutes)\b", step)]
        assert not large or name in PLANS or name in SCANS, f"say in PLANS how {name} finds its rows: {plan}"
        scans = [step for step in large if step.startswith("SCAN")]
        assert not scans or name in SCANS, scans
        assert name not in UNSORTED or not any("TEMP B-TREE" in step for step in plan), plan


def test_the_tables_of_plans_name_existing_statements() -> None:
    assert {*PLANS, *SCANS, *UNSORTED} <= {*PLANNED}


@pytest.mark.parametrize("path", sorted((ROOM / "sql").glob("*.py")), ids=lambda path: path.stem)
def test_each_statement_has_a_comment_about_its_purpose(path: Path) -> None:
    lines = path.read_text().splitlines()
    names = [
        (number, line.partition(":")[0])
        for number, line in enumerate(lines)
        if f"{path.stem}.{line.partition(':')[0]}" in ALL_STATEMENTS
    ]
    without = [name for number, name in names if not lines[number - 1].startswith("#")]
    assert not without


def test_sql_is_only_in_its_folder() -> None:
    elsewhere = [
        f"{path.relative_to(ROOM)}: {call}"
        for path in ROOM.rglob("*.py")
        if path.parent.name != "sql"
        for call in re.findall(r"""\bexecute(?:many|script)?\(\s*f?["'][^"']*""", path.read_text())
        if not call.startswith('execute("BEGIN IMMEDIATE')  # in a message
    ]
    assert not elsewhere


@pytest.mark.parametrize("name", ALL_STATEMENTS)
def test_a_statement_stands_whole(name: str) -> None:
    module, _, constant = name.partition(".")
    text = (ROOM / "sql" / f"{module}.py").read_text()
    definition = text.partition(f"\n{constant}: Final = ")[2].partition("\n\n")[0]
    assert re.match(r'("|\(|BulkStatement\()', definition), definition


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
    found = admin_items._last_arrived_before(connection, f"{max(moment, 0):04d}", seq)
    connection.close()
    earlier = [number for number, came_in in rows if came_in < f"{max(moment, 0):04d}"]
    assert [number for number, _ in rows if number <= found] == earlier
