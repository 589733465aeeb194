"""Settle items: store outcomes, fenced by their claims, with statements that change many rows."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import msgspec

from asyncrunner.domain.item import Claim
from asyncrunner.domain.outcome import Cancelled, Completed, Failed, Outcome, PutOff, Released, Retrying, Settlement
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.claims.statistics import TurnNumbers, by_batch, numbers_of, record_turn
from asyncrunner.sqlite.large_results import IN_PIECES
from asyncrunner.sqlite.sql.bulk import Block, BulkStatement, Row, execute_blocks
from asyncrunner.text.timestamps import span_to_text, to_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Dropped(NamedTuple):
    """The claims whose outcomes were not stored.

    ``lost``: claims that are not current. ``reruns``: current claims whose item is pending again with a new payload.
    """

    lost: list[Claim]
    reruns: list[Claim]


class _Group(NamedTuple):
    """The settlements of one kind of outcome, and the calls that store them."""

    kind: type[Outcome]
    settlements: Sequence[Settlement]
    blocks: Sequence[Block]


class Prepared(NamedTuple):
    """Settlements that are ready to be stored, with the numbers of a turn that stores all of them."""

    groups: Sequence[_Group]
    numbers: Sequence[TurnNumbers]
    now: float


def prepare(settlements: Sequence[Settlement], now: float) -> Prepared:
    """Prepare settlements for ``settle()``, before the transaction, so that it is short."""
    kinds = _by_kind(settlements) if settlements else {}
    groups = [
        _Group(kind, group, _SETTLEMENTS[kind][0].blocks(_SETTLEMENTS[kind][1](group, now))) for kind, group in kinds.items()
    ]
    return Prepared(groups, numbers_of(kinds), now)


def settle(connection: sqlite3.Connection, prepared: Prepared) -> Dropped:
    """Store the outcomes whose claim is current, with their failures and durations; return the claims of the others.

    An outcome of a lost claim changes nothing. If a rerun of the item was requested, the item is pending again with the new
    payload in place of any outcome but a cancellation; only a failure is recorded.
    """
    dropped = Dropped([], [])
    stored: dict[type[Outcome], Sequence[Settlement]] = {}
    failed: list[Settlement] = []
    now = prepared.now
    numbers: Sequence[TurnNumbers] | None = prepared.numbers
    for kind, group, blocks in prepared.groups:
        if not _execute_all(connection, blocks, len(group)):
            numbers = None
            statement, rows_of = _SETTLEMENTS[kind]
            if kind is not Cancelled:
                group, reruns = _run_again(connection, group)
                dropped.reruns.extend(settlement.claim for settlement in reruns)
                failed += reruns if kind in _FAILURES else ()
            rejected = set(execute_rows(connection, statement, rows_of(group, now)))
            dropped.lost.extend(group[index].claim for index in sorted(rejected))
            group = [settlement for index, settlement in enumerate(group) if index not in rejected]
        if group:
            stored[kind] = group
    if stored or failed:
        moment = to_text(now)
        _record_failures(connection, [*stored.get(Retrying, ()), *stored.get(Failed, ()), *failed], moment)
        record_turn(connection, numbers_of(stored) if numbers is None else numbers, now, moment)
        if PutOff in stored:
            for batch_id, put_off in by_batch(stored[PutOff]).items():
                connection.execute(sql.batches.COUNT_PUT_OFFS, (len(put_off), batch_id))
    return dropped


def _run_again(connection: sqlite3.Connection, group: Sequence[Settlement]) -> tuple[Sequence[Settlement], Sequence[Settlement]]:
    """Make the items of *group* pending whose rerun was requested; return the other settlements, and those of these items."""
    pairs = msgspec.json.encode([(settlement.claim.seq, settlement.claim.number) for settlement in group]).decode()
    requested = dict(connection.execute(sql.claims.RERUN_REQUESTED, (pairs,)))
    if not requested:
        return group, ()
    connection.execute(sql.claims.RERUN, (msgspec.json.encode(list(requested.values())).decode(),))
    others = [settlement for index, settlement in enumerate(group) if index not in requested]
    return others, [settlement for index, settlement in enumerate(group) if index in requested]


def _by_kind(settlements: Sequence[Settlement]) -> dict[type[Outcome], Sequence[Settlement]]:
    kinds = {type(settlement.outcome) for settlement in settlements}
    if len(kinds) == 1:
        return dict.fromkeys(kinds, settlements)
    return {kind: [settlement for settlement in settlements if type(settlement.outcome) is kind] for kind in kinds}


def _completed(group: Sequence[Settlement], now: float) -> Sequence[Row]:
    del now
    return [
        (
            (claim := settled.claim).seq,
            claim.number,
            *span_to_text(settled.started_at, settled.finished_at),
            IN_PIECES if (outcome := cast("Completed", settled.outcome)).kept else outcome.result,
        )
        for settled in group
    ]


def _retrying(group: Sequence[Settlement], now: float) -> Sequence[Row]:
    rows: list[Row] = []
    for settled in group:
        outcome = cast("Retrying", settled.outcome)
        rows.append((*_pending_again(settled, outcome, now), outcome.crashed, outcome.suspicion, outcome.refunded))
    return rows


def _put_off(group: Sequence[Settlement], now: float) -> Sequence[Row]:
    return [(*_pending_again(settled, cast("PutOff", settled.outcome), now), now) for settled in group]


def _pending_again(settled: Settlement, outcome: Retrying | PutOff, now: float) -> Row:
    due_at = to_text(now + outcome.delay) if outcome.delay > 0 else None
    return (settled.claim.seq, settled.claim.number, to_text(settled.started_at), due_at, str(outcome.error))


def _failed(group: Sequence[Settlement], now: float) -> Sequence[Row]:
    del now
    rows: list[Row] = []
    for settled in group:
        outcome = cast("Failed", settled.outcome)
        span = span_to_text(settled.started_at, settled.finished_at)
        error = outcome.error
        rows.append(
            (settled.claim.seq, settled.claim.number, *span, str(error), outcome.permanent, outcome.crashed, error.fingerprint)
        )
    return rows


def _released(group: Sequence[Settlement], now: float) -> Sequence[Row]:
    del now
    return [(settlement.claim.seq, settlement.claim.number) for settlement in group]


def _cancelled(group: Sequence[Settlement], now: float) -> Sequence[Row]:
    del now
    return [
        (settled.claim.seq, settled.claim.number, *span_to_text(settled.started_at, settled.finished_at)) for settled in group
    ]


_SETTLEMENTS: Final[dict[type[Outcome], tuple[BulkStatement, Callable[[Sequence[Settlement], float], Sequence[Row]]]]] = {
    Completed: (sql.claims.SETTLE_COMPLETED, _completed),
    Retrying: (sql.claims.SETTLE_RETRYING, _retrying),
    PutOff: (sql.claims.SETTLE_PUT_OFF, _put_off),
    Failed: (sql.claims.SETTLE_FAILED, _failed),
    Released: (sql.claims.SETTLE_RELEASED, _released),
    Cancelled: (sql.claims.SETTLE_CANCELLED, _cancelled),
}


def execute_rows(connection: sqlite3.Connection, statement: BulkStatement, rows: Sequence[Row]) -> Sequence[int]:
    """Run *statement* for all *rows*, and return the indexes of the rows that changed nothing.

    Usually every row changes an item, and one execution suffices. Otherwise that execution is rolled back and each row is
    executed alone.
    """
    if _execute_all(connection, statement.blocks(rows), len(rows)):
        return ()
    return [index for index, row in enumerate(rows) if not statement.execute(connection, [row])]


def _execute_all(connection: sqlite3.Connection, blocks: Sequence[Block], count: int) -> bool:
    """Run *blocks* and return True, or change nothing and return False if they would change fewer items than *count*."""
    connection.execute(sql.connection.BEGIN_SETTLEMENTS)
    has_changed_all = execute_blocks(connection, blocks) == count
    if not has_changed_all:
        connection.execute(sql.connection.UNDO_SETTLEMENTS)
    connection.execute(sql.connection.KEEP_SETTLEMENTS)
    return has_changed_all


def _record_failures(connection: sqlite3.Connection, failed: Sequence[Settlement], moment: str) -> None:
    failures: list[Row] = []
    pauses: dict[int, float] = {}
    for settlement in failed:
        claim, started_at, finished_at = settlement.claim, settlement.started_at, settlement.finished_at
        outcome = cast("Retrying | Failed", settlement.outcome)
        error = outcome.error
        failures.append(
            (
                claim.batch_id,
                claim.id,
                claim.attempt,
                claim.number,
                moment,
                error.type,
                error.message,
                error.traceback,
                error.fingerprint,
                to_text(started_at),
                max(0.0, finished_at - started_at),
            )
        )
        if isinstance(outcome, Retrying) and outcome.pause is not None:
            until = settlement.finished_at + outcome.pause
            pauses[claim.batch_id] = max(until, pauses.get(claim.batch_id, until))
    if failures:
        sql.claims.INSERT_FAILURES.execute(connection, failures)
    for batch_id, until in pauses.items():
        connection.execute(sql.batches.COOL_DOWN, (to_text(until), batch_id))


_FAILURES: Final = (Retrying, Failed)
