"""Claim due items of a batch within a turn."""

from __future__ import annotations

import math
import sqlite3
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from asyncrunner.domain.item import Claim
from asyncrunner.errors import StoreError
from asyncrunner.sqlite import sql
from asyncrunner.store.batches import BatchState
from asyncrunner.store.turn import Want
from asyncrunner.text.timestamps import from_text, to_text

if TYPE_CHECKING:
    from collections.abc import Sequence

# Items to scan for a suspect: more than any turn claims, so that the next turn finds a suspect that this turn reports.
_MAX_SUSPECT_SCAN: Final = 20_000

_Claims = msgspec.json.Decoder(list[Claim])


def claim_due(connection: sqlite3.Connection, worker_id: str, want: Want, now: float) -> tuple[BatchState, Sequence[Claim]]:
    """Claim the due items that *want* requests, as far as pause, cool-down and rate limit allow.

    Returns the state of the batch and the claims. Raises StoreError if the batch was deleted.
    """
    moment = to_text(now)
    controls = _controls(connection, want.batch_id, now)
    resting_until = controls.resting_until
    limit = want.limit if want.rate is None else min(want.limit, want.rate.allowed(controls.rate_spent, now))
    claims: Sequence[Claim] = ()
    suspects = False
    if resting_until is None and limit > 0:
        connection.execute(sql.claims.PROMOTE_DUE, (want.batch_id, moment, limit))
        claims, suspects = _claim_items(connection, worker_id, want._replace(limit=limit), moment)
    if want.rate is not None:
        spent = want.rate.spend(controls.rate_spent, now, len(claims))
        if claims:
            connection.execute(sql.batches.SPEND_RATE, (spent, want.batch_id))
        if len(claims) == limit < want.limit and resting_until is None:
            resting_until = want.rate.next_at(spent, now)
    if len(claims) == want.limit:
        return BatchState(True, None, resting_until, controls.concurrency, suspects=suspects), claims
    unfinished = bool(claims) or bool(connection.execute(sql.claims.UNFINISHED, (want.batch_id,)).fetchone()[0])
    due: str | None = connection.execute(sql.claims.NEXT_DUE, (want.batch_id,)).fetchone()[0]
    state = BatchState(unfinished, from_text(due), resting_until, controls.concurrency, controls.stopped, suspects=suspects)
    return state, claims


def _claim_items(connection: sqlite3.Connection, worker_id: str, want: Want, moment: str) -> tuple[Sequence[Claim], bool]:
    """Claim the items that *want* requests; also return whether the next items in claim order include a suspect."""
    claims: Sequence[Claim] | None = None
    if want.suspect:
        row = connection.execute(sql.claims.CLAIMABLE_SUSPECT, (want.batch_id, _MAX_SUSPECT_SCAN)).fetchone()
        seqs, suspects = ("[]", False) if row is None else (row[0], True)
    else:
        try:
            text, suspects = connection.execute(sql.claims.CLAIMABLE, (want.max_attempts, want.batch_id, want.limit)).fetchone()
            claims = _Claims.decode(text)
            seqs = msgspec.json.encode([claim.seq for claim in claims]).decode()
        except (sqlite3.DataError, UnicodeError, msgspec.DecodeError):
            # The payloads together exceed one gigabyte, the limit of a text, or a column has invalid text or an invalid number.
            seqs, suspects = connection.execute(sql.claims.CLAIMABLE_SEQS, (want.batch_id, want.limit)).fetchone()
    if seqs == "[]":
        return (), bool(suspects)
    connection.execute(sql.claims.CLAIM, (want.max_attempts, worker_id, moment, seqs))
    if claims is None:
        claims = [_claim_of(row) for row in connection.execute(sql.claims.CLAIMED_ROWS, (seqs,))]
    return claims, bool(suspects)


def _claim_of(row: Sequence[Any]) -> Claim:
    claim = Claim(*row)
    return claim._replace(id=claim.id.encode("utf-8", "replace").decode())


class _Controls(NamedTuple):
    resting_until: float | None
    stopped: str | None
    concurrency: int | None
    rate_spent: float | None


def _controls(connection: sqlite3.Connection, batch_id: int, now: float) -> _Controls:
    row = connection.execute(sql.batches.CONTROLS, (batch_id,)).fetchone()
    if row is None:
        raise StoreError(
            f"batch {batch_id} was deleted from the file while a worker was processing it; start the program again, which "
            "creates the batch again"
        )
    paused, stopped, cooldown_until, concurrency, rate_spent = row
    resting_until = from_text(cooldown_until)
    if paused or stopped is not None:
        resting_until = math.inf
    elif resting_until is not None and resting_until <= now:
        resting_until = None
    return _Controls(resting_until, stopped, concurrency, rate_spent)
