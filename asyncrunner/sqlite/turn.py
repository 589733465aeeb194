"""The turn: settle what has finished and claim what there is room for, as functions of the raw connection.

They run inside the writer's transaction. Recovery settles through the same door.
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
"""How many of a batch's newest turns are kept for rates and durations."""

_DURATIONS: Final = 100
"""How many durations of a turn are kept at most: measuring each of a thousand took a tenth of the turn."""

_WINDOW: Final = 20_000  # items: more than any turn claims, so a suspect that one turn saw the next one finds

_Claims = msgspec.json.Decoder(list[Claim])


def turn(
    connection: sqlite3.Connection, worker_id: str, settled: Sequence[Settled], wants: Sequence[Want], saved: Sequence[Saved],
    now: float,
) -> Turn:  # fmt: skip
    """One turn of one worker; see Store.turn."""
    lost = _save(connection, saved) + settle(connection, settled, now)
    claims: list[Claim] = []
    states: dict[int, BatchState] = {}
    for want in wants:
        state, got = _claim(connection, worker_id, want, now)
        claims += got
        if len(got) < want.limit or state.suspects:
            states[want.batch_id] = state
    return Turn(claims, lost, states)


def _save(connection: sqlite3.Connection, saved: Sequence[Saved]) -> list[Claim]:
    if not saved:
        return []
    rows = [(save.claim.seq, save.claim.number, save.checkpoint) for save in saved]
    return [saved[index].claim for index in _execute_each(connection, sql.SAVE_CHECKPOINT, rows)]


def settle(connection: sqlite3.Connection, settled: Sequence[Settled], now: float) -> list[Claim]:
    """Make outcomes durable where their claim is current; returns the claims that were not."""
    if not settled:
        return []
    lost: list[Claim] = []
    kept: dict[type[Outcome], Sequence[Settled]] = {}
    for kind, group in _by_kind(settled).items():
        statement, rows_of = _SETTLEMENTS[kind]
        changed_nothing = set(_execute_each(connection, statement, rows_of(group, now)))
        if changed_nothing:
            lost += [group[index].claim for index in sorted(changed_nothing)]
            group = [done for index, done in enumerate(group) if index not in changed_nothing]
        if group:
            kept[kind] = group
    if kept:
        moment = to_text(now)
        _record_failures(connection, [*kept.get(Retrying, ()), *kept.get(Failed, ())], moment)
        _record_turn(connection, kept, moment)
    return lost


def _by_kind(settled: Sequence[Settled]) -> dict[type[Outcome], Sequence[Settled]]:
    kinds = {type(done.outcome) for done in settled}
    return {kind: settled if len(kinds) == 1 else [done for done in settled if type(done.outcome) is kind] for kind in kinds}


def recover(
    connection: sqlite3.Connection, held: Sequence[sqlite3.Row], error: ErrorInfo, now: float, *, other_workers: int = 0
) -> list[Settled]:
    """Settle the items that a lost worker held; *held* are rows of HELD_BY or ORPHANS.

    *other_workers* are those that were in its process, with items of their own.
    """
    options: dict[int, BatchOptions] = {}
    settled: list[Settled] = []
    rng = random.Random()  # noqa: S311 - it spreads retries
    for *fields, started_at in held:
        claim = Claim(*fields)
        if claim.batch_id not in options:
            options[claim.batch_id] = batch_options(connection, claim.batch_id)
        batch = options[claim.batch_id]
        outcome = conclude_loss(
            _evidence(error, claim, batch.max_attempts, len(held) - 1, other_workers),
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


def _evidence(error: ErrorInfo, claim: Claim, max_attempts: int, neighbours: int, other_workers: int) -> ErrorInfo:
    beside = "nothing beside it" if neighbours == 0 else f"{neighbours:,} other items in hand"
    if other_workers:
        beside += f" and {other_workers} more workers in its process"
    return msgspec.structs.replace(
        error,
        message=f"{error.message}. Attempt {claim.attempt} of {max_attempts}, with {beside}; "
        f"crashes of this item: {claim.crashes + 1}",
    )


def batch_options(connection: sqlite3.Connection, batch_id: int) -> BatchOptions:
    """The stored options of a batch; the defaults if a person broke them."""
    found = connection.execute(sql.BATCH_BY_ID, (batch_id,)).fetchone()
    try:
        options = msgspec.json.decode(found[1], type=BatchOptions)
        options.policy()
    except (msgspec.DecodeError, ValueError, TypeError):
        return BatchOptions()
    return options


def _completed(group: Sequence[Settled], now: float) -> Sequence[Row]:
    del now
    done = cast("Sequence[tuple[Claim, Completed, float, float]]", group)
    return [
        (claim.seq, claim.number, to_text(started_at), to_text(finished_at), IN_PIECES if outcome.kept else outcome.result)
        for claim, outcome, started_at, finished_at in done
    ]


def _retrying(group: Sequence[Settled], now: float) -> Sequence[Row]:
    done = cast("Sequence[tuple[Claim, Retrying, float, float]]", group)
    return [
        (
            claim.seq, claim.number, to_text(started_at), to_text(now + outcome.delay) if outcome.delay > 0 else None,
            str(outcome.error), outcome.crashed, outcome.suspect, outcome.refunded,
        )
        for claim, outcome, started_at, _ in done
    ]  # fmt: skip


def _failed(group: Sequence[Settled], now: float) -> Sequence[Row]:
    del now
    done = cast("Sequence[tuple[Claim, Failed, float, float]]", group)
    return [
        (
            claim.seq, claim.number, to_text(started_at), to_text(finished_at), str(outcome.error), outcome.permanent,
            outcome.crashed, outcome.error.fingerprint,
        )
        for claim, outcome, started_at, finished_at in done
    ]  # fmt: skip


def _released(group: Sequence[Settled], now: float) -> Sequence[Row]:
    del now
    return [(done.claim.seq, done.claim.number) for done in group]


def _cancelled(group: Sequence[Settled], now: float) -> Sequence[Row]:
    del now
    return [(done.claim.seq, done.claim.number, to_text(done.started_at), to_text(done.finished_at)) for done in group]


_SETTLEMENTS: Final[dict[type[Outcome], tuple[Blocks, Callable[[Sequence[Settled], float], Sequence[Row]]]]] = {
    Completed: (sql.SETTLE_COMPLETED, _completed),
    Retrying: (sql.SETTLE_RETRYING, _retrying),
    Failed: (sql.SETTLE_FAILED, _failed),
    Released: (sql.SETTLE_RELEASED, _released),
    Cancelled: (sql.SETTLE_CANCELLED, _cancelled),
}


def _execute_each(connection: sqlite3.Connection, statement: Blocks, rows: Sequence[Row]) -> Sequence[int]:
    """Which of the rows, by index, changed nothing. At once if all did something, which is the rule; else one by one."""
    connection.execute("SAVEPOINT settlements")
    if statement.execute(connection, rows) == len(rows):
        connection.execute("RELEASE settlements")
        return ()
    connection.execute("ROLLBACK TO settlements")
    connection.execute("RELEASE settlements")
    return [index for index, row in enumerate(rows) if not statement.execute(connection, [row])]


def _record_failures(connection: sqlite3.Connection, failed: Sequence[Settled], moment: str) -> None:
    failures: list[Row] = []
    rests: dict[int, float] = {}
    for done in failed:
        claim, outcome = done.claim, cast("Retrying | Failed", done.outcome)
        error = outcome.error
        failures.append(
            (claim.batch_id, claim.id, claim.attempt, claim.number, moment, error.type, error.message, error.traceback,
             error.fingerprint)
        )  # fmt: skip
        if isinstance(outcome, Retrying) and outcome.pause is not None:
            until = done.finished_at + outcome.pause
            rests[claim.batch_id] = max(until, rests.get(claim.batch_id, until))
    if failures:
        sql.INSERT_FAILURES.execute(connection, failures)
    for batch_id, until in rests.items():
        connection.execute(sql.COOL_DOWN, (to_text(until), batch_id))


def _record_turn(connection: sqlite3.Connection, kept: Mapping[type[Outcome], Sequence[Settled]], moment: str) -> None:
    batches: dict[int, dict[str, Sequence[Settled]]] = defaultdict(dict)
    for kind, group in kept.items():
        if kind in _KINDS:
            for batch_id, part in _by_batch(group).items():
                batches[batch_id][_KINDS[kind]] = part
    for batch_id, parts in batches.items():
        counts = {kind: len(part) for kind, part in parts.items()}
        durations = {kind: _some_durations(part) for kind, part in parts.items()}
        number: int = connection.execute(sql.NEXT_TURN_NUMBER, (batch_id,)).fetchone()[0]
        connection.execute(
            sql.RECORD_TURN,
            (batch_id, number % RING, number, moment, counts.get("completed", 0), counts.get("failed", 0),
             counts.get("retried", 0), msgspec.json.encode(durations).decode()),
        )  # fmt: skip


def _by_batch(group: Sequence[Settled]) -> dict[int, Sequence[Settled]]:
    ids = {done.claim.batch_id for done in group}
    return {each: group if len(ids) == 1 else [done for done in group if done.claim.batch_id == each] for each in ids}


def _some_durations(group: Sequence[Settled]) -> list[int]:
    """Microseconds, of all attempts if they are few, else of some, evenly chosen."""
    return [int(done.seconds * 1e6) for done in group[:: -(-len(group) // _DURATIONS)]]


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
        claims, suspects = _take(connection, worker_id, want._replace(limit=limit), moment)
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


def _take(connection: sqlite3.Connection, worker_id: str, want: Want, moment: str) -> tuple[Sequence[Claim], bool]:
    """Claim what *want* asks for; and whether there are suspects whose turn it is."""
    claims: Sequence[Claim] | None = None
    if want.suspect:
        row = connection.execute(sql.CLAIMABLE_SUSPECT, (want.batch_id, _WINDOW)).fetchone()
        found, suspects = ("[]", False) if row is None else (row[0], True)
    else:
        try:
            text, suspects = connection.execute(sql.CLAIMABLE, (want.max_attempts, want.batch_id, want.limit)).fetchone()
            claims = _Claims.decode(text)
            found = msgspec.json.encode([claim.seq for claim in claims]).decode()
        except (sqlite3.DataError, UnicodeError, msgspec.DecodeError):
            # Payloads of more than a gigabyte in all, which no single text holds, bytes that are no text, or odd numbers.
            found, suspects = connection.execute(sql.CLAIMABLE_SEQS, (want.batch_id, want.limit)).fetchone()
    if found == "[]":
        return (), bool(suspects)
    connection.execute(sql.CLAIM, (want.max_attempts, worker_id, moment, found))
    if claims is None:
        claims = [_claim_of(row) for row in connection.execute(sql.CLAIMED_ROWS, (found,))]
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
    found = connection.execute(sql.CONTROLS, (batch_id,)).fetchone()
    if found is None:
        raise StoreError(f"batch {batch_id} was deleted from the file while its items are worked on; start again to make it anew")
    paused, stopped, cooldown_until, concurrency, rate_spent = found
    resting_until = from_text(cooldown_until)
    if paused or stopped is not None:
        resting_until = math.inf
    elif resting_until is not None and resting_until <= now:
        resting_until = None
    return _Controls(resting_until, stopped, concurrency, rate_spent)
