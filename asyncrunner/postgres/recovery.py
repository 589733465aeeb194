"""Recover the items of lost workers and orphaned items, for workers and for operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from asyncrunner.domain.item import Claim
from asyncrunner.postgres import sql
from asyncrunner.postgres.outcomes import encoded_outcomes
from asyncrunner.postgres.turns import claim_of
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.rules.columns import options_in
from asyncrunner.store.rules.losses import loss_settlements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Record

    from asyncrunner.domain.outcome import ErrorInfo
    from asyncrunner.postgres.connection.session import Session


async def recover_items(
    session: Session, worker_id: str | None, error: ErrorInfo, now: float, pulse: str | None = None, batch_id: int | None = None
) -> int:
    """Recover the items of a lost worker, or the orphaned items if *worker_id* is None; return how many.

    With *batch_id*, only the orphaned items of that batch are recovered. A lost worker is always recovered as a whole. After
    a crash of the caller, the recovery has happened or it has not.
    """
    if worker_id is None:
        recovered = await _recover_orphans(session, error, now, batch_id)
    else:
        recovered = await _recover_worker(session, worker_id, error, now, pulse)
    if recovered:
        await delete_orphaned_pieces(session)
    return recovered


async def _recover_worker(session: Session, worker_id: str, error: ErrorInfo, now: float, pulse: str | None) -> int:
    while True:
        rows = await session.fetch(sql.workers.HELD_BY, worker_id)
        other_workers: int = await session.value(sql.workers.OTHER_WORKERS_LOST, worker_id)
        options = await _options(session, rows)
        settlements = loss_settlements(_claims(rows), error, now, options.__getitem__, other_workers=other_workers)
        answer = await session.recorded(
            sql.workers.RECOVER,
            worker_id,
            now,
            pulse,
            encoded_outcomes(settlements, now) or "[]",
            identity=("recover", worker_id, pulse),
        )
        recovered: int | None = msgspec.json.decode(answer or "{}").get("recovered")
        if recovered is not None:
            return max(recovered, 0)
        # The worker has claimed or settled items since the rows were read, so it is alive, or was a moment ago.


async def _recover_orphans(session: Session, error: ErrorInfo, now: float, batch_id: int | None) -> int:
    orphans = await session.fetch(sql.workers.ORPHANS)
    rows = [row for row in orphans if batch_id is None or row[1] == batch_id]
    if not rows:
        return 0
    options = await _options(session, rows)
    settlements = loss_settlements(_claims(rows), error, now, options.__getitem__, other_items=len(orphans) - len(rows))
    recovered: int = await session.value(sql.workers.RECOVER_ORPHANS, now, encoded_outcomes(settlements, now))
    return recovered


def _claims(rows: Sequence[Record]) -> list[tuple[Claim, float | None]]:
    return [(claim_of(row[:11]), row[11]) for row in rows]


async def _options(session: Session, rows: Sequence[Record]) -> dict[int, BatchOptions]:
    batch_ids = list({row[1] for row in rows})
    if not batch_ids:
        return {}
    return {batch_id: options_in(text) for batch_id, text in await session.fetch(sql.batches.OPTIONS, batch_ids)}


async def delete_orphaned_pieces(session: Session) -> None:
    """Delete the pieces of large results that no item uses, a hundred a transaction."""
    while await session.value(sql.claims.DELETE_ORPHANED_PIECES):
        pass
