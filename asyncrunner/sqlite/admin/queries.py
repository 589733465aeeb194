"""Read a store for operators, as functions of a reader's connection.

Each function is one short read, however large the file is. items.py reads items.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from asyncrunner.domain.item import Suspicion, suspicion_of
from asyncrunner.sqlite import queries, sql
from asyncrunner.sqlite.locks import liveness_lock
from asyncrunner.store.rules.causes import largest_causes
from asyncrunner.store.rules.columns import batch_names_in, throttles_in
from asyncrunner.store.snapshot import (
    BatchRow,
    BatchSnapshot,
    CausePage,
    CauseRow,
    FailedAttempt,
    HistoryRow,
    PendingRow,
    Snapshot,
    StuckRow,
    SuspectRow,
    WorkerRow,
)
from asyncrunner.text.timestamps import to_text

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

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
    with read_transaction(connection):
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
def read_transaction(connection: sqlite3.Connection) -> Generator[None, None, None]:
    """Read one snapshot during the ``with`` block."""
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
            statistics[-2] = throttles_in(statistics[-2])
            alive = liveness_lock.is_held(database, worker_id)
            rows.append(
                WorkerRow(
                    worker_id,
                    host,
                    pid,
                    role,
                    batch_names_in(batches),
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


# --- failures --------------------------------------------------------------------------------------------------------


def newest_failures(connection: sqlite3.Connection, batch_ids: Sequence[int] | None, limit: int) -> Sequence[FailedAttempt]:
    """Return the newest failures of failed items, the last of each; only the newest 10,000 failed attempts are searched."""
    ids = None if batch_ids is None else msgspec.json.encode(batch_ids).decode()
    return [FailedAttempt(*row) for row in connection.execute(sql.reports.NEWEST_FAILURES, (ids, limit))]


def failure_causes(connection: sqlite3.Connection, batch_id: int, limit: int) -> CausePage:
    """Return causes of failure: first those with the most failed items, then those with the most failed attempts.

    The attempts are counted in a table that a trigger maintains, and the failed items in their index.
    """
    with read_transaction(connection):
        attempts: dict[str, int] = dict(connection.execute(sql.reports.ATTEMPTS_BY_CAUSE, (batch_id,)).fetchall())
        (has_many,) = connection.execute(sql.reports.HAS_MANY_CAUSES, (batch_id, _MAX_JUMPS)).fetchone()
        statement = sql.reports.ITEMS_BY_MANY_CAUSES if has_many else sql.reports.ITEMS_BY_CAUSE
        items: dict[str, int] = dict(connection.execute(statement, (batch_id,)).fetchall())
        by_error: dict[str | None, int] = dict(connection.execute(sql.reports.ITEMS_BY_ERROR, (batch_id,)).fetchall())
        causes = largest_causes(attempts, items, by_error, limit)
        return CausePage([_cause(connection, batch_id, *cause) for cause in causes.largest], causes.total, causes.items)


def cause_minutes(
    connection: sqlite3.Connection, batch_id: int, fingerprints: Sequence[str], since: float, limit: int
) -> Mapping[str, Mapping[str, int]]:
    """Return how many attempts failed with each cause in each minute; see InspectionStore.cause_minutes."""
    first = to_text(since)
    return {
        each: dict(connection.execute(sql.reports.MINUTES_OF_CAUSE, (batch_id, each, first, limit)).fetchall())
        for each in fingerprints
    }


def _cause(
    connection: sqlite3.Connection, batch_id: int, fingerprint: str | None, error: str | None, items: int, attempts: int
) -> CauseRow:
    first = last = None
    example, trace = "", ""
    if attempts:
        (first,) = connection.execute(sql.reports.FIRST_OF_CAUSE, (batch_id, fingerprint)).fetchone()
        row = connection.execute(sql.reports.NEWEST_OF_CAUSE, (batch_id, fingerprint)).fetchone()
        last, example, kind, message, trace = row
        error = f"{kind}: {message}" if message else kind
    if items:
        example, error = connection.execute(sql.reports.ITEM_OF_CAUSE, (batch_id, fingerprint, error)).fetchone()
    return CauseRow(fingerprint, items, attempts, first, last, example, error or "", trace)
