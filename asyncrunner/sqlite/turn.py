"""The turn: settle finished attempts and claim items for free slots, as functions of a raw connection.

They run inside the writer's transaction. Recovery settles with the same functions.
"""

from __future__ import annotations

import math
import random
import sqlite3
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec

from asyncrunner.clock import from_text, to_text
from asyncrunner.errors import StoreError
from asyncrunner.item import Cancelled, Claim, Completed, Failed, Outcome, Released, Retrying, Settled, Status
from asyncrunner.retry import conclude_loss
from asyncrunner.sqlite import statements as sql
from asyncrunner.sqlite.blocks import Blocks, Row
from asyncrunner.sqlite.pieces import IN_PIECES
from asyncrunner.store import BatchOptions, BatchState, Saved, Turn, Want

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from asyncrunner.item import ErrorInfo

__all__ = ["RING", "recover", "settle", "turn"]

RING: Final = 1000
"""The number of newest turns of a batch that the table ``turns`` keeps for rates and durations."""

_MAX_DURATIONS: Final = 100
"""Durations stored per turn and outcome: to measure all of a thousand took a tenth of the turn."""

_MAX_SUSPECT_SCAN: Final = 20_000  # items: more than any turn claims, so the next turn finds a suspect that this turn reported

_Claims = msgspec.json.Decoder(list[Claim])


def turn(
    connection: sqlite3.Connection, worker_id: str, settled: Sequence[Settled], wants: Sequence[Want], saved: Sequence[Saved],
    now: float,
) -> Turn:  # fmt: skip
    """Run one turn of one worker; see Store.turn."""
    lost = _save(connection, saved) + settle(connection, settled, now)
    claims: list[Claim] = []
    states: dict[int, BatchState] = {}
    for want in wants:
        state, claimed = _claim(connection, worker_id, want, now)
        claims += claimed
        if len(claimed) < want.limit or state.suspects:
            states[want.batch_id] = state
    return Turn(claims, lost, states)


def _save(connection: sqlite3.Connection, saved: Sequence[Saved]) -> list[Claim]:
    if not saved:
        return []
    rows = [(save.claim.seq, save.claim.number, save.checkpoint) for save in saved]
    return [saved[index].claim for index in _execute_rows(connection, sql.SAVE_CHECKPOINT, rows)]


def settle(connection: sqlite3.Connection, settled: Sequence[Settled], now: float) -> list[Claim]:
    """Store the outcomes whose claim is current, with their failures and durations; return the claims that are not current.

    An outcome of a lost claim changes nothing.
    """
    if not settled:
        return []
    lost: list[Claim] = []
    stored: dict[type[Outcome], Sequence[Settled]] = {}
    for kind, group in _by_kind(settled).items():
        statement, rows_of = _SETTLEMENTS[kind]
        changed_nothing = set(_execute_rows(connection, statement, rows_of(group, now)))
        if changed_nothing:
            lost += [group[index].claim for index in sorted(changed_nothing)]
            group = [settlement for index, settlement in enumerate(group) if index not in changed_nothing]
        if group:
            stored[kind] = group
    if stored:
        moment = to_text(now)
        _record_failures(connection, [*stored.get(Retrying, ()), *stored.get(Failed, ())], moment)
        _record_turn(connection, stored, moment)
    return lost


def _by_kind(settled: Sequence[Settled]) -> dict[type[Outcome], Sequence[Settled]]:
    kinds = {type(one.outcome) for one in settled}
    return {kind: settled if len(kinds) == 1 else [one for one in settled if type(one.outcome) is kind] for kind in kinds}


def recover(
    connection: sqlite3.Connection, held: Sequence[sqlite3.Row], error: ErrorInfo, now: float, *, other_workers: int = 0
) -> list[Settled]:
    """Settle the items of a lost worker, and return their settlements.

    *held* are rows of HELD_BY or ORPHANS. *other_workers* is the number of other workers that died in the same process:
    their items may have caused the crash.
    """
    options: dict[int, BatchOptions] = {}
    settled: list[Settled] = []
    rng = random.Random()  # noqa: S311 - only spreads retries
    for *fields, started_at in held:
        claim = Claim(*fields)
        if claim.batch_id not in options:
            options[claim.batch_id] = batch_options(connection, claim.batch_id)
        batch = options[claim.batch_id]
        outcome = conclude_loss(
            _loss_error(error, claim, batch.max_attempts, len(held) - 1, other_workers),
            attempt=claim.attempt,
            crashes=claim.crashes + 1,
            max_attempts=batch.max_attempts,
            alone=len(held) == 1 and not other_workers,
            policy=batch.policy(),
            rng=rng,
        )
        began = from_text(started_at)
        began = now if began is None else began
        settled.append(Settled(claim, outcome, began, max(now, began)))
    settle(connection, settled, now)
    return settled


def _loss_error(error: ErrorInfo, claim: Claim, max_attempts: int, neighbours: int, other_workers: int) -> ErrorInfo:
    others = f"other items of the worker: {neighbours:,}"
    if other_workers:
        others += f"; other workers in its process: {other_workers}"
    return msgspec.structs.replace(
        error,
        message=f"{error.message}. Attempt {claim.attempt} of {max_attempts}; {others}; "
        f"crashes of this item: {claim.crashes + 1}",
    )


def batch_options(connection: sqlite3.Connection, batch_id: int) -> BatchOptions:
    """Return the stored options of a batch, or the defaults if the stored ones are invalid."""
    row = connection.execute(sql.BATCH_BY_ID, (batch_id,)).fetchone()
    try:
        options = msgspec.json.decode(row[1], type=BatchOptions)
        options.policy()
    except (msgspec.DecodeError, ValueError, TypeError):
        return BatchOptions()
    return options


def _completed(group: Sequence[Settled], now: float) -> Sequence[Row]:
    del now
    settlements = cast("Sequence[tuple[Claim, Completed, float, float]]", group)
    return [
        (claim.seq, claim.number, to_text(started_at), to_text(finished_at), IN_PIECES if outcome.kept else outcome.result)
        for claim, outcome, started_at, finished_at in settlements
    ]


def _retrying(group: Sequence[Settled], now: float) -> Sequence[Row]:
    settlements = cast("Sequence[tuple[Claim, Retrying, float, float]]", group)
    return [
        (
            claim.seq, claim.number, to_text(started_at), to_text(now + outcome.delay) if outcome.delay > 0 else None,
            str(outcome.error), outcome.crashed, outcome.suspect, outcome.refunded,
        )
        for claim, outcome, started_at, _ in settlements
    ]  # fmt: skip


def _failed(group: Sequence[Settled], now: float) -> Sequence[Row]:
    del now
    settlements = cast("Sequence[tuple[Claim, Failed, float, float]]", group)
    return [
        (
            claim.seq, claim.number, to_text(started_at), to_text(finished_at), str(outcome.error), outcome.permanent,
            outcome.crashed, outcome.error.fingerprint,
        )
        for claim, outcome, started_at, finished_at in settlements
    ]  # fmt: skip


def _released(group: Sequence[Settled], now: float) -> Sequence[Row]:
    del now
    return [(settlement.claim.seq, settlement.claim.number) for settlement in group]


def _cancelled(group: Sequence[Settled], now: float) -> Sequence[Row]:
    del now
    return [(claim.seq, claim.number, to_text(started_at), to_text(finished_at)) for claim, _, started_at, finished_at in group]


_SETTLEMENTS: Final[dict[type[Outcome], tuple[Blocks, Callable[[Sequence[Settled], float], Sequence[Row]]]]] = {
    Completed: (sql.SETTLE_COMPLETED, _completed),
    Retrying: (sql.SETTLE_RETRYING, _retrying),
    Failed: (sql.SETTLE_FAILED, _failed),
    Released: (sql.SETTLE_RELEASED, _released),
    Cancelled: (sql.SETTLE_CANCELLED, _cancelled),
}


def _execute_rows(connection: sqlite3.Connection, statement: Blocks, rows: Sequence[Row]) -> Sequence[int]:
    """Run *statement* for all *rows*, and return the indexes of the rows that changed nothing.

    Usually every row changes an item, and one block statement suffices. Otherwise the block is rolled back and each row is
    executed alone.
    """
    connection.execute("SAVEPOINT settlements")
    if statement.execute(connection, rows) == len(rows):
        connection.execute("RELEASE settlements")
        return ()
    connection.execute("ROLLBACK TO settlements")
    connection.execute("RELEASE settlements")
    return [index for index, row in enumerate(rows) if not statement.execute(connection, [row])]


def _record_failures(connection: sqlite3.Connection, failed: Sequence[Settled], moment: str) -> None:
    failures: list[Row] = []
    pauses: dict[int, float] = {}
    for settlement in failed:
        claim, outcome = settlement.claim, cast("Retrying | Failed", settlement.outcome)
        error = outcome.error
        failures.append(
            (claim.batch_id, claim.id, claim.attempt, claim.number, moment, error.type, error.message, error.traceback,
             error.fingerprint)
        )  # fmt: skip
        if isinstance(outcome, Retrying) and outcome.pause is not None:
            until = settlement.finished_at + outcome.pause
            pauses[claim.batch_id] = max(until, pauses.get(claim.batch_id, until))
    if failures:
        sql.INSERT_FAILURES.execute(connection, failures)
    for batch_id, until in pauses.items():
        connection.execute(sql.COOL_DOWN, (to_text(until), batch_id))


def _record_turn(connection: sqlite3.Connection, stored: Mapping[type[Outcome], Sequence[Settled]], moment: str) -> None:
    batches: dict[int, dict[str, Sequence[Settled]]] = defaultdict(dict)
    for kind, group in stored.items():
        if kind in _KINDS:
            for batch_id, part in _by_batch(group).items():
                batches[batch_id][_KINDS[kind]] = part
    for batch_id, parts in batches.items():
        counts = {kind: len(part) for kind, part in parts.items()}
        durations = {kind: _sample_durations(part) for kind, part in parts.items()}
        number: int = connection.execute(sql.NEXT_TURN_NUMBER, (batch_id,)).fetchone()[0]
        connection.execute(
            sql.RECORD_TURN,
            (batch_id, number % RING, number, moment, counts.get("completed", 0), counts.get("failed", 0),
             counts.get("retried", 0), msgspec.json.encode(durations).decode()),
        )  # fmt: skip


def _by_batch(group: Sequence[Settled]) -> dict[int, Sequence[Settled]]:
    ids = {one.claim.batch_id for one in group}
    return {batch_id: group if len(ids) == 1 else [one for one in group if one.claim.batch_id == batch_id] for batch_id in ids}


def _sample_durations(group: Sequence[Settled]) -> list[int]:
    """Return attempt durations in microseconds: all of them if they are few, else an evenly spaced sample."""
    return [int(settlement.seconds * 1e6) for settlement in group[:: -(-len(group) // _MAX_DURATIONS)]]


_KINDS: Final[dict[type, str]] = {
    Completed: Status.COMPLETED.value,
    Failed: Status.FAILED.value,
    Cancelled: Status.CANCELLED.value,
    Retrying: "retried",
}


def _claim(connection: sqlite3.Connection, worker_id: str, want: Want, now: float) -> tuple[BatchState, Sequence[Claim]]:
    moment = to_text(now)
    controls = _controls(connection, want.batch_id, now)
    resting_until = controls.resting_until
    limit = want.limit if want.rate is None else min(want.limit, want.rate.allowed(controls.rate_spent, now))
    claims: Sequence[Claim] = ()
    suspects = False
    if resting_until is None and limit > 0:
        connection.execute(sql.PROMOTE_DUE, (want.batch_id, moment, limit))
        claims, suspects = _claim_items(connection, worker_id, want._replace(limit=limit), moment)
    if want.rate is not None:
        spent = want.rate.spend(controls.rate_spent, now, len(claims))
        if claims:
            connection.execute(sql.SPEND_RATE, (spent, want.batch_id))
        if len(claims) == limit < want.limit and resting_until is None:
            resting_until = want.rate.next_at(spent, now)
    if len(claims) == want.limit:
        return BatchState(True, None, resting_until, controls.concurrency, suspects=suspects), claims
    unfinished = bool(claims) or bool(connection.execute(sql.UNFINISHED, (want.batch_id,)).fetchone()[0])
    due: str | None = connection.execute(sql.NEXT_DUE, (want.batch_id,)).fetchone()[0]
    state = BatchState(unfinished, from_text(due), resting_until, controls.concurrency, controls.stopped, suspects=suspects)
    return state, claims


def _claim_items(connection: sqlite3.Connection, worker_id: str, want: Want, moment: str) -> tuple[Sequence[Claim], bool]:
    """Claim the items that *want* requests; also return whether suspects are among the next items."""
    claims: Sequence[Claim] | None = None
    if want.suspect:
        row = connection.execute(sql.CLAIMABLE_SUSPECT, (want.batch_id, _MAX_SUSPECT_SCAN)).fetchone()
        seqs, suspects = ("[]", False) if row is None else (row[0], True)
    else:
        try:
            text, suspects = connection.execute(sql.CLAIMABLE, (want.max_attempts, want.batch_id, want.limit)).fetchone()
            claims = _Claims.decode(text)
            seqs = msgspec.json.encode([claim.seq for claim in claims]).decode()
        except (sqlite3.DataError, UnicodeError, msgspec.DecodeError):
            # The payloads exceed the gigabyte that one text can hold, or a column holds invalid text or an invalid number.
            seqs, suspects = connection.execute(sql.CLAIMABLE_SEQS, (want.batch_id, want.limit)).fetchone()
    if seqs == "[]":
        return (), bool(suspects)
    connection.execute(sql.CLAIM, (want.max_attempts, worker_id, moment, seqs))
    if claims is None:
        claims = [_claim_of(row) for row in connection.execute(sql.CLAIMED_ROWS, (seqs,))]
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
    row = connection.execute(sql.CONTROLS, (batch_id,)).fetchone()
    if row is None:
        raise StoreError(
            f"batch {batch_id} was deleted from the file while a worker was processing it; start again to create it again"
        )
    paused, stopped, cooldown_until, concurrency, rate_spent = row
    resting_until = from_text(cooldown_until)
    if paused or stopped is not None:
        resting_until = math.inf
    elif resting_until is not None and resting_until <= now:
        resting_until = None
    return _Controls(resting_until, stopped, concurrency, rate_spent)
