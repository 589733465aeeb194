"""Read a store for operators, as functions of a reader's connection.

Each function is one short read, however large the file is, except that find() and export_page() may scan the table of items
if few items match.
"""

from __future__ import annotations

import heapq
import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from asyncrunner.domain.item import Status, Suspicion
from asyncrunner.sqlite import queries, sql
from asyncrunner.sqlite.admin.patterns import like
from asyncrunner.sqlite.claims.claim import suspicion_of
from asyncrunner.sqlite.claims.recovery import batch_options
from asyncrunner.sqlite.locks import liveness_lock
from asyncrunner.sqlite.transitions import known_keys
from asyncrunner.store.admin_protocol import Filter
from asyncrunner.store.items import Cursor, Page
from asyncrunner.store.snapshot import (
    BatchRow,
    BatchSnapshot,
    CausePage,
    CauseRow,
    FailedAttempt,
    HistoryRow,
    ItemRecord,
    ItemSummary,
    PendingRow,
    Snapshot,
    StoredItem,
    StuckRow,
    SuspectRow,
    WorkerRow,
)
from asyncrunner.text.suggestions import variants
from asyncrunner.text.timestamps import to_text

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Sequence

_MAX_FAILURES: Final = 100  # failures that are read of one item
_MAX_NEWEST_FAILURES: Final = 5  # failures that a snapshot has
_MAX_STUCK: Final = 10  # stuck items of each batch that a snapshot has
_MAX_SUSPECTS: Final = 10_000  # suspects of each batch that a snapshot has
_MAX_PROCESSING: Final = 1000  # a snapshot has the start times of this many newest items in processing
_MAX_NEIGHBOURS: Final = 200  # ids that are read on each side of an id
_MAX_JUMPS: Final = 3000  # causes: counting each of more causes alone takes longer than grouping
_EXPORT_PAGE: Final = 1000  # items
_CLOCK_SLACK_SECONDS: Final = 3600.0  # the clock may be set back by this much between two inserts


# --- the state of the file -------------------------------------------------------------------------------------------


def snapshot(
    connection: sqlite3.Connection, database: Path, batch_ids: Sequence[int] | None, *, stuck_after: float | None, now: float
) -> Snapshot:
    """Return the state of batches, of all workers and the newest failures, in one read transaction; see AdminStore."""
    with _read_transaction(connection):
        every_row = queries.batches(connection)
        suspects = {row.name: _suspects(connection, row.batch_id) for row in every_row}
        rows = [row for row in every_row if batch_ids is None or row.batch_id in batch_ids]
        isolated = {row.name: _isolated(row, suspects[row.name]) for row in every_row}
        return Snapshot(
            now,
            [_batch_snapshot(connection, row, suspects[row.name], stuck_after, now) for row in rows],
            workers(connection, database),
            newest_failures(connection, batch_ids, _MAX_NEWEST_FAILURES),
            {name: items for name, items in isolated.items() if items},
        )


@contextmanager
def _read_transaction(connection: sqlite3.Connection) -> Generator[None, None, None]:
    connection.execute(sql.connection.BEGIN)
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute(sql.connection.ROLLBACK)


def _suspects(connection: sqlite3.Connection, batch_id: int) -> Sequence[SuspectRow]:
    return [
        SuspectRow(key, suspicion_of(suspicion), crashes, bool(is_running), *columns)
        for key, suspicion, crashes, is_running, *columns in connection.execute(sql.reports.SUSPECTS, (batch_id, _MAX_SUSPECTS))
    ]


def _isolated(row: BatchRow, suspects: Sequence[SuspectRow]) -> Sequence[SuspectRow]:
    """Return the isolated items of a batch, without the pending ones while the batch starts no items."""
    may_start = not row.paused and row.stopped is None
    return [each for each in suspects if each.suspicion is Suspicion.ISOLATED and (each.is_running or may_start)]


def _batch_snapshot(
    connection: sqlite3.Connection, row: BatchRow, suspects: Sequence[SuspectRow], stuck_after: float | None, now: float
) -> BatchSnapshot:
    starts = connection.execute(sql.reports.PROCESSING_STARTS, (row.batch_id, _MAX_PROCESSING))
    return BatchSnapshot(
        row,
        queries.counts(connection, row.batch_id, now),
        queries.recent_turns(connection, row.batch_id),
        [started_at for (started_at,) in starts],
        () if stuck_after is None else _stuck(connection, row, now - stuck_after, _MAX_STUCK),
        suspects,
        connection.execute(sql.reports.NEXT_WAITING, (row.batch_id, to_text(now))).fetchone()[0],
        oldest_pending(connection, row.batch_id),
        _last_hour(connection, row.batch_id, now),
    )


def _last_hour(connection: sqlite3.Connection, batch_id: int, now: float) -> Sequence[HistoryRow]:
    until = int(now // 60 + 1) * 60
    return queries.history(connection, batch_id, until - 3600, until, 60)


def workers(connection: sqlite3.Connection, database: Path, batch_id: int | None = None) -> Sequence[WorkerRow]:
    """Return the workers that have not left, the oldest first; with *batch_id*, only those that hold items of it."""
    holdings: dict[str | None, int] = dict(connection.execute(sql.admin.HOLDINGS, (batch_id,)).fetchall())
    rows: list[WorkerRow] = []
    for worker_id, host, pid, role, batches, started_at, last_heartbeat, *statistics in connection.execute(sql.workers.WORKERS):
        holding = holdings.get(worker_id, 0)
        if batch_id is None or holding:
            statistics[-2] = queries.throttles_in(statistics[-2])
            alive = liveness_lock.is_held(database, worker_id)
            rows.append(
                WorkerRow(
                    worker_id,
                    host,
                    pid,
                    role,
                    queries.batch_names_in(batches),
                    alive,
                    liveness_lock.EVIDENCE[alive],
                    started_at,
                    last_heartbeat,
                    holding,
                    *statistics,
                )
            )
    return rows


def pulses(connection: sqlite3.Connection, database: Path) -> dict[str, str]:
    """Return the pulse of each worker without a lock file, by worker id."""
    return {worker.worker_id: worker.pulse for worker in workers(connection, database) if worker.alive is None}


def stuck(connection: sqlite3.Connection, batch_ids: Sequence[int], before: float, limit: int) -> Sequence[StuckRow]:
    """Return up to *limit* items of each batch whose processing started before the instant *before*, the oldest first."""
    rows = [row for row in queries.batches(connection) if row.batch_id in batch_ids]
    return [item for row in rows for item in _stuck(connection, row, before, limit)]


def _stuck(connection: sqlite3.Connection, row: BatchRow, before: float, limit: int) -> Sequence[StuckRow]:
    values = (row.batch_id, to_text(before), limit)
    return [StuckRow(row.name, *columns) for columns in connection.execute(sql.reports.STUCK, values)]


def oldest_pending(connection: sqlite3.Connection, batch_id: int) -> PendingRow | None:
    """Return the first pending item without a due time, in input order; None if no item is pending without a due time."""
    row = connection.execute(sql.admin.OLDEST_PENDING, (batch_id,)).fetchone()
    return None if row is None else PendingRow(*row)


def has_orphans(connection: sqlite3.Connection, batch_id: int | None = None) -> bool:
    """Return whether any item, of one batch or of all, is orphaned: processing, but held by no registered worker."""
    return any(batch_id in (None, orphan[1]) for orphan in connection.execute(sql.workers.ORPHANS))


def _name_of(connection: sqlite3.Connection, batch_id: int) -> str:
    row = connection.execute(sql.batches.BATCH_BY_ID, (batch_id,)).fetchone()
    return "" if row is None else str(row[0])  # a deleted batch has no items


# --- items -----------------------------------------------------------------------------------------------------------


def find(
    connection: sqlite3.Connection, batch_id: int, criteria: Filter, *, after: str | None, limit: int
) -> Sequence[ItemSummary] | None:
    """Return up to *limit* items after the item with the id *after* (None: from the first), in input order.

    Returns None if no item has the id *after*.
    """
    start: float = queries.BEFORE_EVERY_SEQ
    if after is not None:
        row = connection.execute(sql.admin.SEQ_OF_ID, (batch_id, after)).fetchone()
        if row is None:
            return None
        start = row[0]
    if criteria.status is Status.FAILED and criteria.error is not None:
        statement = sql.admin.LIST_FAILED_LIKE
    elif criteria.status in (None, Status.COMPLETED) or (
        criteria.before is not None and criteria.status is not Status.PROCESSING
    ):
        # An item's age is only in its row, not in the index. If there are many old items, a scan of the table finds the first
        # ones soon. If there is none, the scan reads the whole table, which takes no longer than reading the row of each entry
        # of the index.
        statement = sql.admin.LIST
    else:
        statement = sql.admin.LIST_OPEN
    newest: int = connection.execute(sql.items.NEWEST_SEQ).fetchone()[0]
    if criteria.before is not None and statement is sql.admin.LIST:
        newest = _last_arrived_before(connection, to_text(criteria.before + _CLOCK_SLACK_SECONDS), newest)
    values: dict[str, Any] = {
        "batch_id": batch_id,
        "status": criteria.status,
        "pattern": None if criteria.error is None else like(criteria.error),
        "exact": criteria.error,
        "before": None if criteria.before is None else to_text(criteria.before),
        "after": start,
        "newest": newest,
        "limit": limit,
    }
    return [ItemSummary(*row[1:]) for row in connection.execute(statement, values)]


def _last_arrived_before(connection: sqlite3.Connection, moment: str, newest: int) -> int:
    """Return the ``seq`` of the last item that arrived before *moment*.

    The search is binary, because arrival times grow with ``seq``. An item whose latest change is before *moment* also arrived
    before *moment*, so later items need no check.
    """
    low, high = 0, newest
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(sql.admin.NEXT_ARRIVAL, (middle,)).fetchone()
        if row is None or row[1] >= moment:
            high = middle
        else:
            low = row[0]
    return low


def similar_keys(connection: sqlite3.Connection, batch_id: int, key: str) -> Sequence[str]:
    """Return ids that resemble *key*, an id that does not exist.

    Returns up to 3 ids that differ from *key* by a likely typing error. If no such id exists, returns the neighbours of *key*
    and of its prefixes in the order of ids.
    """
    candidates = variants(key)
    existing = {item.id for item in known_keys(connection, batch_id, candidates)}
    if existing:
        return [candidate for candidate in candidates if candidate in existing][:3]
    near: dict[str, None] = {}
    prefixes = {key, *(key[: max(1, len(key) - cut)] for cut in (1, 2, 3)), key[: max(1, len(key) // 2)], key[:1]}
    for prefix in sorted(prefixes, key=len, reverse=True):
        for statement in (sql.admin.IDS_FROM, sql.admin.IDS_BEFORE):
            near.update((neighbour, None) for (neighbour,) in connection.execute(statement, (batch_id, prefix, _MAX_NEIGHBOURS)))
    return list(near)


def batches_with(connection: sqlite3.Connection, key: str) -> Sequence[str]:
    """Return the names of the batches that have an item with that id."""
    return [name for (name,) in connection.execute(sql.admin.BATCHES_WITH_ID, (key,))]


def item(connection: sqlite3.Connection, batch_id: int, key: str) -> StoredItem | None:
    """Return all columns of an item, with its newest 100 failures; None if no item has that id."""
    row = connection.execute(sql.admin.ITEM, (batch_id, key)).fetchone()
    if row is None:
        return None
    batch = _name_of(connection, batch_id)
    key, status, attempts, crashes, priority, permanent, suspect, *columns, put_offs, put_off_at = row[:-4]
    failures = connection.execute(sql.admin.FAILURES_OF_ITEM, (batch_id, key, _MAX_FAILURES)).fetchall()
    named_failures = [FailedAttempt(batch, *failure) for failure in reversed(failures)]
    flags = (bool(permanent), bool(suspect), suspicion_of(suspect) is Suspicion.ISOLATED)
    times: tuple[str | None, str | None] = (None, None)
    if put_off_at is not None and status in (Status.PENDING, Status.PROCESSING):
        times = (to_text(put_off_at), to_text(put_off_at + batch_options(connection, batch_id).throttled_for))
    numbers = (attempts, crashes, priority)
    values: tuple[Any, ...] = (batch, key, status, *numbers, *flags, *columns, put_offs, *times, *row[-4:], named_failures)
    return StoredItem(*values)


def export_page(
    connection: sqlite3.Connection, batch_id: int, statuses: Collection[Status] | None, cursor: Cursor | None
) -> Page[ItemRecord]:
    """Return the next page of items in input order; the cursor is the ``seq`` of the last item of the previous page."""
    batch = _name_of(connection, batch_id)
    states = None if statuses is None else msgspec.json.encode(list(statuses)).decode()
    after = queries.BEFORE_EVERY_SEQ if cursor is None else int(cursor)
    values = (after, batch_id, states, _EXPORT_PAGE)
    rows = connection.execute(sql.admin.EXPORT, values).fetchall()
    end = Cursor(str(rows[-1][0])) if rows else None  # the walk ends with an empty page, because items may be added meanwhile
    return Page([ItemRecord(batch, *row[1:]) for row in rows], end)


# --- failures --------------------------------------------------------------------------------------------------------


def newest_failures(connection: sqlite3.Connection, batch_ids: Sequence[int] | None, limit: int) -> Sequence[FailedAttempt]:
    """Return the newest failures of failed items, the last of each; only the newest 10,000 failed attempts are searched."""
    ids = None if batch_ids is None else msgspec.json.encode(batch_ids).decode()
    return [FailedAttempt(*row) for row in connection.execute(sql.admin.NEWEST_FAILURES, (ids, limit))]


def failure_causes(connection: sqlite3.Connection, batch_id: int, limit: int) -> CausePage:
    """Return causes of failure: first those with the most failed items, then those with the most failed attempts.

    The attempts are counted in a table that a trigger maintains, and the failed items in their index.
    """
    with _read_transaction(connection):
        attempts: dict[str, int] = dict(connection.execute(sql.admin.ATTEMPTS_BY_CAUSE, (batch_id,)).fetchall())
        (has_many,) = connection.execute(sql.admin.HAS_MANY_CAUSES, (batch_id, _MAX_JUMPS)).fetchone()
        statement = sql.admin.ITEMS_BY_MANY_CAUSES if has_many else sql.admin.ITEMS_BY_CAUSE
        items: dict[tuple[str | None, str | None], int] = {
            (fingerprint, None): count for fingerprint, count in connection.execute(statement, (batch_id,))
        }
        items |= {(None, error): count for error, count in connection.execute(sql.admin.ITEMS_BY_ERROR, (batch_id,))}
        causes = items | {(each, None): 0 for each in attempts if (each, None) not in items}
        largest = heapq.nsmallest(
            limit, causes, key=lambda cause: (-causes[cause], -attempts.get(cause[0] or "", 0), cause[0] or "", cause[1] or "")
        )
        rows = [_cause(connection, batch_id, *cause, causes[cause], attempts.get(cause[0] or "", 0)) for cause in largest]
        return CausePage(rows, len(causes), sum(items.values()))


def _cause(
    connection: sqlite3.Connection, batch_id: int, fingerprint: str | None, error: str | None, items: int, attempts: int
) -> CauseRow:
    first = last = None
    example, trace = "", ""
    if attempts:
        (first,) = connection.execute(sql.admin.FIRST_OF_CAUSE, (batch_id, fingerprint)).fetchone()
        row = connection.execute(sql.admin.NEWEST_OF_CAUSE, (batch_id, fingerprint)).fetchone()
        last, example, kind, message, trace = row
        error = f"{kind}: {message}" if message else kind
    if items:
        example, error = connection.execute(sql.admin.ITEM_OF_CAUSE, (batch_id, fingerprint, error)).fetchone()
    return CauseRow(fingerprint, items, attempts, first, last, example, error or "", trace)
