"""Items and failures as the store reads them."""

from __future__ import annotations

from typing import NamedTuple

from asyncrunner.domain.item import Claim, Status
from asyncrunner.domain.outcome import Cancelled, Completed, Failed, Outcome


class Purged(NamedTuple):
    """One step of a purge: how many items were due, and how many it removed (another process removed the others).

    ``reached``: the last ``seq`` that the step examined; ``newest``: the newest ``seq`` in the store.
    """

    due: int
    removed: int
    reached: int
    newest: int


class ItemRow(NamedTuple):
    """The stored state of an item, for reports. Times are seconds since the epoch."""

    seq: int
    id: str
    status: Status
    attempts: int
    payload: str
    result: str | None
    error: str | None
    started_at: float | None
    completed_at: float | None


def done_row(claim: Claim, outcome: Outcome, started_at: float, finished_at: float) -> ItemRow | None:
    """Return the row of an item after *outcome* is settled, or None if the item is not finished."""
    result: str | None = None
    error: str | None = None
    match outcome:
        case Completed(result):
            status = Status.COMPLETED
        case Failed(info):
            status, error = Status.FAILED, str(info)
        case Cancelled():
            status = Status.CANCELLED
        case _:
            return None
    return ItemRow(claim.seq, claim.id, status, claim.attempt, claim.payload, result, error, started_at, finished_at)


class FailureGroup(NamedTuple):
    """Failed items with one cause: their number, and the key of one as an example."""

    error: str
    items: int
    example: str
