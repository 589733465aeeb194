"""Record the numbers of a turn: in the ring of turns, for rates and durations, and in the running minute, for the history.

The transaction of the turn has them, so they are exact also after a kill. The row of the batch, which each turn changes
anyway, holds the running minute. So the history costs 3 to 6 us of CPU time per turn of one item and 5 to 10 us
per turn of a hundred. An upsert in a table of minutes costs 10 to 24 us and 28 to 36 us, because it adds a page to the
transaction.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import msgspec

from asyncrunner.domain.item import Status
from asyncrunner.domain.outcome import Cancelled, Completed, Failed, Outcome, Retrying, Settlement
from asyncrunner.sqlite import sql

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RING: Final = 1000
"""The number of newest turns of a batch that the table ``turns`` keeps for rates and durations."""

HISTORY_SECONDS: Final = 14 * 86400
"""The age at which a minute of the history is deleted."""

_MAX_DURATIONS: Final = 100
"""The number of durations stored per turn and outcome. Computing all of a thousand took a tenth of the turn."""

_MAX_DELETED: Final = 100  # minutes that one turn deletes; a turn that deletes any adds one, so the old ones get fewer

_KINDS: Final[dict[type, str]] = {
    Completed: Status.COMPLETED.value,
    Failed: Status.FAILED.value,
    Cancelled: Status.CANCELLED.value,
    Retrying: "retried",
}


class TurnNumbers(NamedTuple):
    """The numbers of one batch in a turn. ``seconds``: the sum of the durations. ``durations``: a sample, as JSON."""

    batch_id: int
    completed: int
    failed: int
    retried: int
    seconds: float
    durations: str


def numbers_of(stored: Mapping[type[Outcome], Sequence[Settlement]]) -> Sequence[TurnNumbers]:
    """Return the numbers of the *stored* outcomes, by batch.

    The history has no cancellations: an operator cancels most items while no worker holds them. Put-offs and releases are
    no retries: they cost no attempt.
    """
    numbers: list[TurnNumbers] = []
    batches: dict[int, dict[str, Sequence[Settlement]]] = defaultdict(dict)
    for kind, group in stored.items():
        if kind in _KINDS:
            for batch_id, part in by_batch(group).items():
                batches[batch_id][_KINDS[kind]] = part
    for batch_id, parts in batches.items():
        counts = {"completed": 0, "failed": 0, "retried": 0}
        durations: dict[str, list[int]] = {}
        seconds = 0.0
        for name, part in parts.items():
            durations[name] = sample = _sample_durations(part)
            if name in counts:
                counts[name] = len(part)
                seconds += _seconds(part, sample)
        completed, failed, retried = counts.values()
        numbers.append(TurnNumbers(batch_id, completed, failed, retried, seconds, msgspec.json.encode(durations).decode()))
    return numbers


def record_turn(connection: sqlite3.Connection, numbers: Sequence[TurnNumbers], now: float, moment: str) -> None:
    """Record the *numbers* of a turn; *moment* is the text of *now*."""
    minute = int(now // 60) * 60
    for batch_id, completed, failed, retried, seconds, durations in numbers:
        row = (completed, failed, retried, seconds, batch_id, minute)
        number: int = (connection.execute(sql.reports.ADD_TURN, row).fetchone() or _begin_minute(connection, row))[0]
        ring = number % RING
        connection.execute(sql.reports.RECORD_TURN, (batch_id, ring, number, moment, completed, failed, retried, durations))


def _begin_minute(connection: sqlite3.Connection, row: tuple[int, int, int, float, int, int]) -> tuple[int]:
    """Begin another minute of a batch with the turn of *row*, a row of ADD_TURN, and return that statement's row."""
    *_, batch_id, minute = row
    connection.execute(sql.reports.MOVE_MINUTE, (batch_id,))
    connection.execute(sql.reports.DELETE_OLD_MINUTES, (minute - HISTORY_SECONDS, _MAX_DELETED))
    connection.execute(sql.reports.BEGIN_MINUTE, (minute, batch_id))
    added: tuple[int] = connection.execute(sql.reports.ADD_TURN, row).fetchone()
    return added


def by_batch(group: Sequence[Settlement]) -> dict[int, Sequence[Settlement]]:
    """Return the settlements of *group* by the id of their batch."""
    ids = {settlement.claim.batch_id for settlement in group}
    if len(ids) == 1:
        return dict.fromkeys(ids, group)
    return {batch_id: [settlement for settlement in group if settlement.claim.batch_id == batch_id] for batch_id in ids}


def _sample_durations(group: Sequence[Settlement]) -> list[int]:
    """Return durations of attempts in microseconds: of all attempts if they are few, otherwise of an evenly spaced sample.

    A duration is 0 if the clock was set back during the attempt.
    """
    sample = group[:: -(-len(group) // _MAX_DURATIONS)]
    return [int(max(0.0, each.finished_at - each.started_at) * 1e6) for each in sample]


def _seconds(group: Sequence[Settlement], sample: Sequence[int]) -> float:
    """Return the sum of the durations of all attempts, without those whose worker was lost: when those ended is unknown.

    If *sample* is as long as *group*, it has their microseconds.
    """
    if type(group[0].outcome) is not Completed:
        group = [each for each in group if not cast("Failed | Retrying", each.outcome).crashed]
    elif len(sample) == len(group):
        return sum(sample) / 1e6
    return sum([max(0.0, each.finished_at - each.started_at) for each in group])
