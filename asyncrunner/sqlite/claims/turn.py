"""The turn: settle finished attempts and claim items for free slots, as functions of a raw connection.

The functions run inside the writer's transaction. Recovery settles items with the same functions.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from asyncrunner.domain.item import Claim, Suspicion
from asyncrunner.domain.outcome import Settlement
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.claims.claim import claim_due, remove_ended
from asyncrunner.sqlite.claims.settle import Prepared, execute_rows, settle
from asyncrunner.store.batches import BatchState
from asyncrunner.store.turn import Checkpoint, Turn, Want

if TYPE_CHECKING:
    from collections.abc import Sequence


def turn(
    connection: sqlite3.Connection,
    worker_id: str,
    settlements: Sequence[Settlement],
    prepared: Prepared,
    wants: Sequence[Want],
    checkpoints: Sequence[Checkpoint],
) -> Turn:
    """Run one turn of one worker; see EngineStore.turn. *prepared*: the *settlements*, prepared."""
    lost = _save_checkpoints(connection, checkpoints)
    dropped = settle(connection, prepared)
    if any(want.only_given for want in wants):
        remove_ended(connection, settlements)
    claims, states = _claim(connection, worker_id, wants, prepared.now)
    return Turn(claims, lost + dropped.lost, states, reruns=dropped.reruns)


def _save_checkpoints(connection: sqlite3.Connection, checkpoints: Sequence[Checkpoint]) -> list[Claim]:
    """Store the checkpoints whose claim is current; return the claims that are not current."""
    if not checkpoints:
        return []
    rows = [(claim.seq, claim.number, checkpoint) for claim, checkpoint in checkpoints]
    return [checkpoints[index].claim for index in execute_rows(connection, sql.claims.SAVE_CHECKPOINT, rows)]


def _claim(
    connection: sqlite3.Connection, worker_id: str, wants: Sequence[Want], now: float
) -> tuple[list[Claim], dict[int, BatchState]]:
    """Claim items for each of *wants*; also return the state of each batch that had fewer due items or that has suspects."""
    claims: list[Claim] = []
    states: dict[int, BatchState] = {}
    for want in wants:
        state, claimed = claim_due(connection, worker_id, want, now)
        claims += claimed
        if len(claimed) < want.limit + (want.suspicion > Suspicion.NONE) or state.suspicion:
            states[want.batch_id] = state
    return claims, states
