"""Read the state of batches, workers and failures for operators, as functions of a connection. items.py reads items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from asyncrunner.domain.item import Counts, Suspicion, suspicion_of
from asyncrunner.postgres import sql
from asyncrunner.postgres.listener import HELD, UNPROVEN
from asyncrunner.store.rules.causes import Cause, largest_causes
from asyncrunner.store.rules.columns import batch_names_in, durations_in, throttles_in
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
    TurnRow,
    WorkerRow,
)

if TYPE_CHECKING:
    from asyncpg import Connection, Record
    from asyncpg.transaction import Transaction

_MAX_NEWEST_FAILURES: Final = 5  # failures that a snapshot has
_MAX_STUCK: Final = 10  # stuck items of each batch that a snapshot has
_MAX_SUSPECTS: Final = 10_000  # suspects of each batch that a snapshot has
_MAX_PROCESSING: Final = 1000  # a snapshot has the start times of this many newest items in processing
_MAX_TURNS: Final = 1000  # recorded turns of each batch that a snapshot has


def one_moment(connection: Connection[Record]) -> Transaction:
    """Return a transaction whose statements read the rows of one moment."""
    return connection.transaction(isolation="repeatable_read", readonly=True)


# --- the state of the store ------------------------------------------------------------------------------------------


async def snapshot(
    connection: Connection[Record], batch_ids: Sequence[int] | None, *, stuck_after: float | None, now: float
) -> Snapshot:
    """Return the state of batches, of all workers and the newest failures, at one moment; see AdminStore."""
    async with one_moment(connection):
        every_row = await batches(connection)
        suspects = _by_batch(await connection.fetch(sql.reports.SUSPECTS, _MAX_SUSPECTS), _suspect)
        rows = [row for row in every_row if batch_ids is None or row.batch_id in batch_ids]
        isolated = {row.name: _isolated(row, suspects[row.batch_id]) for row in every_row}
        return Snapshot(
            now,
            await _batch_snapshots(connection, rows, suspects, stuck_after, now),
            await workers(connection),
            await newest_failures(connection, batch_ids, _MAX_NEWEST_FAILURES),
            {name: items for name, items in isolated.items() if items},
        )


async def batches(connection: Connection[Record]) -> Sequence[BatchRow]:
    """Return all batches, in the order of their creation."""
    return [BatchRow(*row) for row in await connection.fetch(sql.reports.BATCHES)]


def _by_batch(rows: Sequence[Record], made: Any) -> Mapping[int, list[Any]]:
    """Return what *made* makes of the columns of *rows* behind the batch id, by batch id."""
    found: dict[int, list[Any]] = defaultdict(list)
    for batch_id, *columns in rows:
        found[batch_id].append(made(*columns))
    return found


def _suspect(key: str, suspicion: int, crashes: int, is_running: bool, *columns: Any) -> SuspectRow:
    return SuspectRow(key, suspicion_of(suspicion), crashes, is_running, *columns)


def _isolated(row: BatchRow, suspects: Sequence[SuspectRow]) -> Sequence[SuspectRow]:
    """Return the isolated items of a batch, without the pending ones while the batch starts no items."""
    may_start = not row.paused and row.stopped is None
    return [each for each in suspects if each.suspicion is Suspicion.ISOLATED and (each.is_running or may_start)]


async def _batch_snapshots(
    connection: Connection[Record],
    rows: Sequence[BatchRow],
    suspects: Mapping[int, Sequence[SuspectRow]],
    stuck_after: float | None,
    now: float,
) -> Sequence[BatchSnapshot]:
    ids = [row.batch_id for row in rows]
    counts = {batch_id: columns for batch_id, *columns in await connection.fetch(sql.reports.COUNTS, ids, now)}
    turns = _by_batch(await connection.fetch(sql.reports.RECENT_TURNS, ids, _MAX_TURNS), _turn)
    starts = _by_batch(await connection.fetch(sql.reports.PROCESSING_STARTS, ids, _MAX_PROCESSING), _only)
    stuck: Mapping[int, list[StuckRow]] = defaultdict(list)
    if stuck_after is not None:
        stuck = _by_batch(await connection.fetch(sql.reports.STUCK, ids, now - stuck_after, _MAX_STUCK), StuckRow)
    oldest = _by_batch(await connection.fetch(sql.reports.OLDEST_PENDING, ids), PendingRow)
    until = int(now // 60 + 1) * 60
    minutes = _by_batch(await connection.fetch(sql.reports.HISTORY, ids, until - 3600, until, 60), HistoryRow)
    return [
        BatchSnapshot(
            row,
            Counts(*counts[row.batch_id][:-1]),
            turns[row.batch_id],
            starts[row.batch_id],
            stuck[row.batch_id],
            suspects[row.batch_id],
            counts[row.batch_id][-1],
            next(iter(oldest[row.batch_id]), None),
            minutes[row.batch_id],
        )
        for row in rows
    ]


def _only(column: str | None) -> str | None:
    return column


def _turn(at: float, completed: int, failed: int, retried: int, durations: str) -> TurnRow:
    return TurnRow(at, completed, failed, retried, durations_in(durations))


async def history(connection: Connection[Record], batch_id: int, *, since: int, until: int, step: int) -> Sequence[HistoryRow]:
    """Return the steps of *step* seconds of a batch's history that have settled attempts; see AdminStore.history."""
    rows = await connection.fetch(sql.reports.HISTORY, [batch_id], since, until, step)
    return [HistoryRow(*columns) for _, *columns in rows]


async def workers(connection: Connection[Record], batch_id: int | None = None) -> Sequence[WorkerRow]:
    """Return the workers that have not left, the oldest first; with *batch_id*, only those that hold items of it.

    A free lock does not prove a death: the session may have been cut from a worker that connects again.
    """
    rows: list[WorkerRow] = []
    for worker_id, host, pid, role, names, is_locked, *columns, throttles, pulse in await connection.fetch(
        sql.reports.WORKERS, batch_id
    ):
        alive, evidence = (True, HELD) if is_locked else (None, UNPROVEN)
        values: tuple[Any, ...] = (*columns, throttles_in(throttles), pulse)
        rows.append(WorkerRow(worker_id, host, pid, role, batch_names_in(names), alive, evidence, *values))
    return rows


async def pulses(connection: Connection[Record]) -> dict[str, str]:
    """Return the pulse of each worker whose lock is free, by worker id, as soon as a worker can write a heartbeat."""
    return dict(_pairs(await connection.fetch(sql.reports.PULSES)))


async def stuck(connection: Connection[Record], batch_ids: Sequence[int], before: float, limit: int) -> Sequence[StuckRow]:
    """Return up to *limit* items of each batch whose processing started before the instant *before*, the oldest first."""
    rows = await connection.fetch(sql.reports.STUCK, list(batch_ids), before, limit)
    return [StuckRow(*columns) for _, *columns in rows]


async def oldest_pending(connection: Connection[Record], batch_id: int) -> PendingRow | None:
    """Return the first pending item without a due time, in input order; None if no item is pending without a due time."""
    row = await connection.fetchrow(sql.reports.OLDEST_PENDING, [batch_id])
    return None if row is None else PendingRow(*row[1:])


async def has_orphans(connection: Connection[Record], batch_id: int | None = None) -> bool:
    """Return whether any item, of one batch or of all, is orphaned: processing, but held by no registered worker."""
    return bool(await connection.fetchval(sql.reports.HAS_ORPHANS, batch_id))


# --- failures --------------------------------------------------------------------------------------------------------


async def newest_failures(connection: Connection[Record], batch_ids: Sequence[int] | None, limit: int) -> Sequence[FailedAttempt]:
    """Return the newest failures of failed items, the last of each; only the newest 10,000 failed attempts are searched."""
    ids = None if batch_ids is None else list(batch_ids)
    return [FailedAttempt(*row) for row in await connection.fetch(sql.reports.NEWEST_FAILURES, ids, limit)]


async def failure_causes(connection: Connection[Record], batch_id: int, limit: int) -> CausePage:
    """Return causes of failure: first those with the most failed items, then those with the most failed attempts.

    The attempts are counted in a table that a trigger maintains, and the failed items in an index.
    """
    async with one_moment(connection):
        attempts: dict[str, int] = dict(_pairs(await connection.fetch(sql.reports.ATTEMPTS_BY_CAUSE, batch_id)))
        items: dict[str, int] = dict(_pairs(await connection.fetch(sql.reports.ITEMS_BY_CAUSE, batch_id)))
        by_error: dict[str | None, int] = dict(_pairs(await connection.fetch(sql.reports.ITEMS_BY_ERROR, batch_id)))
        causes = largest_causes(attempts, items, by_error, limit)
        rows = [await _cause(connection, batch_id, each) for each in causes.largest]
        return CausePage(rows, causes.total, causes.items)


async def cause_minutes(
    connection: Connection[Record], batch_id: int, fingerprints: Sequence[str], *, since: float, limit: int
) -> Mapping[str, Mapping[str, int]]:
    """Return how many attempts failed with each cause in each minute; see InspectionStore.cause_minutes."""
    first = datetime.fromtimestamp(since, UTC)
    return {
        each: dict(_pairs(await connection.fetch(sql.reports.MINUTES_OF_CAUSE, batch_id, each, first, limit)))
        for each in fingerprints
    }


def _pairs(rows: Sequence[Record]) -> Sequence[tuple[Any, Any]]:
    return [(first, second) for first, second in rows]


async def _cause(connection: Connection[Record], batch_id: int, cause: Cause) -> CauseRow:
    first = last = None
    example, trace, error = "", "", cause.error
    if cause.attempts:
        first = await connection.fetchval(sql.reports.FIRST_OF_CAUSE, batch_id, cause.fingerprint)
        row = await connection.fetchrow(sql.reports.NEWEST_OF_CAUSE, batch_id, cause.fingerprint)
        if row is not None:
            last, example, kind, message, trace = row
            error = f"{kind}: {message}" if message else kind
    if cause.items:
        if cause.fingerprint is None:
            row = await connection.fetchrow(sql.reports.ITEM_OF_ERROR, batch_id, cause.error)
        else:
            row = await connection.fetchrow(sql.reports.ITEM_OF_CAUSE, batch_id, cause.fingerprint)
        if row is not None:
            example, error = row
    return CauseRow(cause.fingerprint, cause.items, cause.attempts, first, last, example, error or "", trace)
