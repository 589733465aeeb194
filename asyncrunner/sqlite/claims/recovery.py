"""Recover the items of lost workers and orphaned items: settle them, fenced by their claims as every outcome is."""

from __future__ import annotations

import random
import sqlite3
from typing import TYPE_CHECKING

import msgspec

from asyncrunner.domain.item import Claim, Suspicion
from asyncrunner.domain.outcome import Released, Settlement
from asyncrunner.domain.retry import conclude_loss
from asyncrunner.sqlite import queries, sql
from asyncrunner.sqlite.claims.claim import claim_of
from asyncrunner.sqlite.claims.settle import settle
from asyncrunner.sqlite.large_results import delete_orphaned_pieces
from asyncrunner.sqlite.locks import liveness_lock, slot_journal
from asyncrunner.store.batches import BatchOptions
from asyncrunner.text.timestamps import from_text, to_text

if TYPE_CHECKING:
    from collections.abc import Sequence, Set
    from pathlib import Path

    from asyncrunner.domain.outcome import ErrorInfo
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
    """Settle the items of a lost worker, or orphaned items, and return their settlements.

    *rows* are rows of HELD_BY or ORPHANS. *running* has the seqs of the items that the worker's slots ran last, None if
    they are unknown: the other items had not started, so they are released without a crash. *other_items* is the number of
    items that may have caused the crash and are not recovered now. *other_workers* is the number of other workers that died
    in the same process: the items of those workers may have caused the crash.
    """
    claims = [(claim_of(row[:-1]), from_text(row[-1])) for row in rows]
    started = [(claim, start) for claim, start in claims if running is None or claim.seq in running]
    neighbours = len(started) - 1 + other_items
    suspects = sum(claim.suspicion > Suspicion.NONE for claim, _ in started)
    options: dict[int, BatchOptions] = {}
    settlements = [
        Settlement(claim, Released(), now, now) for claim, _ in claims if running is not None and claim.seq not in running
    ]
    rng = random.Random()  # noqa: S311 - it only spreads the retries
    for claim, started_at in started:
        if claim.batch_id not in options:
            options[claim.batch_id] = queries.batch_options(connection, claim.batch_id)
        batch = options[claim.batch_id]
        outcome = conclude_loss(
            _loss_error(error, claim, batch.max_attempts, neighbours, other_workers),
            attempt=claim.attempt,
            crashes=claim.crashes + 1,
            max_attempts=batch.max_attempts,
            suspicion=claim.suspicion,
            only_suspect=suspects == 1 and not other_workers,
            alone=not neighbours and not other_workers,
            policy=batch.policy(),
            rng=rng,
        )
        start = now if started_at is None else started_at
        settlements.append(Settlement(claim, outcome, start, max(now, start)))
    settle(connection, settlements, now)
    return settlements


def _loss_error(error: ErrorInfo, claim: Claim, max_attempts: int, neighbours: int, other_workers: int) -> ErrorInfo:
    others = f"other items of the worker: {neighbours:,}"
    if other_workers:
        others += f"; other workers in its process: {other_workers}"
    return msgspec.structs.replace(
        error,
        message=f"{error.message}. Attempt {claim.attempt} of {max_attempts}; {others}; "
        f"crashes of this item: {claim.crashes + 1}",
    )


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
        recovered = await connection.write(lambda raw: adopt_orphans(raw, error, now, batch_id))
    else:
        running = None if database is None else slot_journal.running(database, worker_id)
        recovered = await connection.write(lambda raw: lose_worker(raw, worker_id, error, now, pulse=pulse, running=running))
    await delete_orphaned_pieces(connection)
    if worker_id is not None and database is not None and liveness_lock.is_held(database, worker_id) is False:
        liveness_lock.forget(database, worker_id)
        slot_journal.forget(database, worker_id)
    return recovered
