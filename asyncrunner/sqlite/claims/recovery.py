"""Recover the items of lost workers and orphaned items: settle them, fenced by their claims as every outcome is."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from asyncrunner.sqlite import queries, sql
from asyncrunner.sqlite.claims.claim import claim_of
from asyncrunner.sqlite.claims.settle import prepare, settle
from asyncrunner.sqlite.large_results import delete_orphaned_pieces
from asyncrunner.sqlite.locks import bell, liveness_lock, slot_journal
from asyncrunner.store.rules.losses import loss_settlements
from asyncrunner.text.timestamps import from_text, to_text

if TYPE_CHECKING:
    from collections.abc import Sequence, Set
    from pathlib import Path

    from asyncrunner.domain.outcome import ErrorInfo, Settlement
    from asyncrunner.sqlite.file.connection import Connection


def recover(
    connection: sqlite3.Connection,
    rows: Sequence[sqlite3.Row],
    error: ErrorInfo,
    now: float,
    *,
    running: Set[int] | None = None,
    other_items: int = 0,
    other_workers: int = 0,
) -> list[Settlement]:
    """Settle the items of a lost worker, or orphaned items, and return their settlements; see ``loss_settlements``.

    *rows* are rows of HELD_BY or ORPHANS.
    """
    settlements = loss_settlements(
        [(claim_of(row[:-1]), from_text(row[-1])) for row in rows],
        error,
        now,
        lambda batch_id: queries.batch_options(connection, batch_id),
        running=running,
        other_items=other_items,
        other_workers=other_workers,
    )
    settle(connection, prepare(settlements, now))
    return settlements


def lose_worker(
    connection: sqlite3.Connection,
    worker_id: str,
    error: ErrorInfo,
    now: float,
    *,
    pulse: str | None = None,
    running: Set[int] | None = None,
) -> int:
    """Mark a worker as lost and recover the items that it holds; return how many were recovered.

    Returns 0 if the worker was already marked or has left. *pulse* is the last heartbeat that the caller read; if the worker
    has sent a heartbeat since then, the function does not mark it and returns 0. *running*: as in ``recover``.
    """
    if not connection.execute(sql.workers.LOSE_WORKER, (to_text(now), worker_id, pulse)).rowcount:
        return 0
    rows = connection.execute(sql.workers.HELD_BY, (worker_id,)).fetchall()
    other_workers: int = connection.execute(sql.workers.OTHER_WORKERS_LOST, (worker_id,)).fetchone()[0]
    return len(recover(connection, rows, error, now, running=running, other_workers=other_workers))


def adopt_orphans(connection: sqlite3.Connection, error: ErrorInfo, now: float, batch_id: int | None = None) -> int:
    """Recover the orphaned items, whose worker is not registered; return how many were recovered.

    With *batch_id*, only those of that batch are recovered.
    """
    orphans = connection.execute(sql.workers.ORPHANS).fetchall()
    rows = [row for row in orphans if batch_id is None or row[1] == batch_id]
    return len(recover(connection, rows, error, now, other_items=len(orphans) - len(rows)))


async def recover_items(
    connection: Connection,
    database: Path | None,
    worker_id: str | None,
    error: ErrorInfo,
    now: float,
    pulse: str | None = None,
    batch_id: int | None = None,
) -> int:
    """Recover the items of a lost worker, or the orphaned items if *worker_id* is None; return how many.

    With *batch_id*, only the orphaned items of that batch are recovered. A lost worker is always recovered as a whole.

    Workers and operators recover items with this function. It also deletes the pieces of large results that the recovery
    orphans, and the lock file of a dead worker. *database* is None for a store in memory. After a crash, the recovered items
    stay recovered, and a later recovery deletes the pieces.
    """
    if worker_id is None:
        recovered = await connection.write(lambda raw: adopt_orphans(raw, error, now, batch_id), rings=bool)
        await delete_orphaned_pieces(connection)
        return recovered
    running = None if database is None else slot_journal.running(database, worker_id)

    def operation(raw: sqlite3.Connection) -> tuple[int, bool]:
        count = lose_worker(raw, worker_id, error, now, pulse=pulse, running=running)
        ended = raw.execute(sql.workers.IS_OUTCAST, (worker_id,)).fetchone()
        return count, ended is None or bool(ended[0])

    recovered, has_ended = await connection.write(operation, rings=lambda found: found[0])
    await delete_orphaned_pieces(connection)
    # A worker may have sent its last heartbeat after the caller read the one before: its lock is still the proof of its death.
    if has_ended and database is not None and liveness_lock.is_held(database, worker_id) is False:
        liveness_lock.forget(database, worker_id)
        slot_journal.forget(database, worker_id)
        bell.forget(database, worker_id)
    return recovered
