"""Claim due items of a batch within a turn.

Priorities hold among the items that became due, too. A turn finds 500 of 100,000 or 500,000 due items in 2 to 3 ms (CPU
time; it holds the write lock meanwhile), with 1, 3 or 1,000 priorities; sorting all of them would take 22 or 108 ms. If
the items that wait have more than 1,000 priorities and none of the highest 1,000 has a due item, the items that became
due first come first.
"""

from __future__ import annotations

import math
import sqlite3
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from asyncrunner.domain.item import Claim, Suspicion, suspicion_of
from asyncrunner.domain.outcome import Settlement
from asyncrunner.errors import StoreError
from asyncrunner.sqlite import sql
from asyncrunner.store.batches import OTHER_VERSION, BatchState
from asyncrunner.store.turn import Want
from asyncrunner.text.timestamps import from_text, to_text

if TYPE_CHECKING:
    from collections.abc import Sequence

_MIN_PROMOTED: Final = 500  # a turn makes at least this many due items claimable
_GIVEN_WINDOW: Final = 2_000  # a turn compares the priorities of this many given items, and removes ended ones among as many
_Claims = msgspec.json.Decoder(list[Claim])


def claim_due(connection: sqlite3.Connection, worker_id: str, want: Want, now: float) -> tuple[BatchState, Sequence[Claim]]:
    """Claim the due items that *want* requests, as far as pause, cool-down and rate limit allow.

    Returns the state of the batch and the claims. Raises StoreError if the batch was deleted.
    """
    moment = to_text(now)
    controls = _controls(connection, want.batch_id, now)
    if want.version is not None and want.version != controls.version:
        return BatchState(True, None, math.inf, controls.concurrency, OTHER_VERSION), ()
    want = want._replace(version=controls.version)
    resting_until = controls.resting_until
    requested = want.limit + (want.suspicion > Suspicion.NONE)
    limit = requested if want.rate is None else min(requested, want.rate.allowed(controls.rate_spent, now))
    claims: Sequence[Claim] = ()
    suspicion = Suspicion.NONE
    if resting_until is None and limit > 0:
        if not want.only_given:  # the statement of given items reads due_at itself
            promoted = max(limit, _MIN_PROMOTED)
            if connection.execute(sql.claims.PROMOTE_DUE, (want.batch_id, moment, promoted)).rowcount == 0:
                connection.execute(sql.claims.PROMOTE_EARLIEST, (want.batch_id, moment, promoted))
        claims = _claim_suspect(connection, worker_id, want, moment)
        limit_of_others = min(want.limit, limit - len(claims))
        if limit_of_others > 0:
            claim_others = _claim_given if want.only_given else _claim_items
            others = claim_others(connection, worker_id, want._replace(limit=limit_of_others), moment)
            claims = [*claims, *others] if claims else others
        suspicion = _next_suspicion(connection, want, moment)
    if want.rate is not None:
        spent = want.rate.spend(controls.rate_spent, now, len(claims))
        if claims:
            connection.execute(sql.batches.SPEND_RATE, (spent, want.batch_id))
        if len(claims) == limit < requested and resting_until is None:
            resting_until = want.rate.next_at(spent, now)
    if len(claims) == requested:
        return BatchState(True, None, resting_until, controls.concurrency, suspicion=suspicion), claims
    due: str | None
    if want.only_given:
        (unfinished,) = connection.execute(sql.claims.GIVEN_UNFINISHED, (want.batch_id,)).fetchone()
        (due,) = connection.execute(sql.claims.GIVEN_NEXT_DUE, (want.batch_id, moment)).fetchone()
    else:
        (unfinished,) = (True,) if claims else connection.execute(sql.claims.UNFINISHED, (want.batch_id,)).fetchone()
        (due,) = connection.execute(sql.claims.NEXT_DUE, (want.batch_id,)).fetchone()
    state = BatchState(
        bool(unfinished), from_text(due), resting_until, controls.concurrency, controls.stopped, suspicion=suspicion
    )
    return state, claims


def _claim_suspect(connection: sqlite3.Connection, worker_id: str, want: Want, moment: str) -> Sequence[Claim]:
    """Claim the next suspect if *want* requests one of its suspicion."""
    if want.suspicion is Suspicion.NONE:
        return ()
    row = _next_suspect(connection, want, moment)
    return (
        () if row is None or suspicion_of(row[1]) > want.suspicion else _claim_seqs(connection, worker_id, want, moment, row[0])
    )


def _next_suspicion(connection: sqlite3.Connection, want: Want, moment: str) -> Suspicion:
    """Return the suspicion of the next suspect that is due, or NONE without one."""
    row = _next_suspect(connection, want, moment)
    return Suspicion.NONE if row is None else suspicion_of(row[1])


def _next_suspect(connection: sqlite3.Connection, want: Want, moment: str) -> tuple[str, int] | None:
    statement = sql.claims.CLAIMABLE_GIVEN_SUSPECT if want.only_given else sql.claims.CLAIMABLE_SUSPECT
    row: tuple[str, int] | None = connection.execute(statement, (want.batch_id, moment)).fetchone()
    return row


def remove_ended(connection: sqlite3.Connection, settlements: Sequence[Settlement]) -> None:
    """Remove from the given items those that have ended: those of *settlements*, and the first ones, wherever they ended.

    Then a turn finds the items to claim without reading all that have ended.
    """
    connection.execute(sql.claims.CREATE_GIVEN)
    if settlements:
        seqs = msgspec.json.encode([settlement.claim.seq for settlement in settlements]).decode()
        connection.execute(sql.claims.REMOVE_ENDED, (seqs,))
    connection.execute(sql.claims.REMOVE_FIRST_ENDED, (_GIVEN_WINDOW,))


def _claim_given(connection: sqlite3.Connection, worker_id: str, want: Want, moment: str) -> Sequence[Claim]:
    """Claim up to ``want.limit`` given items that are no suspects."""
    window = max(_GIVEN_WINDOW, want.limit)
    (seqs,) = connection.execute(sql.claims.CLAIMABLE_GIVEN, (want.batch_id, moment, window, want.limit)).fetchone()
    return _claim_seqs(connection, worker_id, want, moment, seqs)


def _claim_items(connection: sqlite3.Connection, worker_id: str, want: Want, moment: str) -> Sequence[Claim]:
    """Claim up to ``want.limit`` items that are no suspects."""
    try:
        (text,) = connection.execute(sql.claims.CLAIMABLE, (want.max_attempts, want.batch_id, want.limit)).fetchone()
        claims = _Claims.decode(text)
    except (sqlite3.DataError, UnicodeError, msgspec.DecodeError):
        # The payloads together exceed one gigabyte, the limit of a text, or a column has invalid text or an invalid number.
        (seqs,) = connection.execute(sql.claims.CLAIMABLE_SEQS, (want.batch_id, want.limit)).fetchone()
        return _claim_seqs(connection, worker_id, want, moment, seqs)
    if claims:
        seqs = msgspec.json.encode([claim.seq for claim in claims]).decode()
        connection.execute(sql.claims.CLAIM, (want.max_attempts, worker_id, moment, want.version, seqs))
    return claims


def _claim_seqs(connection: sqlite3.Connection, worker_id: str, want: Want, moment: str, seqs: str) -> Sequence[Claim]:
    if seqs == "[]":
        return ()
    connection.execute(sql.claims.CLAIM_DUE, (want.max_attempts, worker_id, moment, want.version, seqs))
    return [claim_of(row) for row in connection.execute(sql.claims.CLAIMED_ROWS, (seqs,))]


def claim_of(row: Sequence[Any]) -> Claim:
    """Return the claim of a row with the columns of a Claim; a person may have written any text and number."""
    claim = Claim(*row)
    return msgspec.structs.replace(
        claim, id=claim.id.encode("utf-8", "replace").decode(), suspicion=suspicion_of(claim.suspicion)
    )


class _Controls(NamedTuple):
    resting_until: float | None
    stopped: str | None
    concurrency: int | None
    rate_spent: float | None
    version: int


def _controls(connection: sqlite3.Connection, batch_id: int, now: float) -> _Controls:
    row = connection.execute(sql.batches.CONTROLS, (batch_id,)).fetchone()
    if row is None:
        raise StoreError(
            f"batch {batch_id} was deleted from the file while a worker was processing it; start the program again, which "
            "creates the batch again"
        )
    paused, stopped, cooldown_until, concurrency, rate_spent, version = row
    resting_until = from_text(cooldown_until)
    if paused or stopped is not None:
        resting_until = math.inf
    elif resting_until is not None and resting_until <= now:
        resting_until = None
    return _Controls(resting_until, stopped, concurrency, rate_spent, version)
