"""Items and failures as a store returns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, NewType, TypeVar

from asyncrunner.domain.item import Claim, Status
from asyncrunner.domain.outcome import Cancelled, Completed, Failed, Outcome

R = TypeVar("R")

Cursor = NewType("Cursor", str)
"""A position in a walk over items. Only the store that returned the cursor knows its meaning."""

Mark = NewType("Mark", int)
"""A mark of the store's state; ``wait_for_change()`` waits for a change after it. Only the store knows its meaning."""


class Page(NamedTuple, Generic[R]):
    """A page of *rows*. ``next``: the cursor of the next page; None on the last page."""

    rows: Sequence[R]
    next: Cursor | None


class PurgeStep(NamedTuple):
    """A step of a purge: how many items were due, and how many the step removed (another process removed the others).

    ``next``: the cursor of the next step; None at the end of the walk.
    """

    due: int
    removed: int
    next: Cursor | None


class ItemRow(NamedTuple):
    """The stored state of an item, for reports. Times are seconds since the epoch.

    ``seq`` is the item's number, unique within the store; use the number only to recognize an item that was already
    read.
    """

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
    """A group of failed items with one cause: the number of items, and the key of one item as an example."""

    error: str
    items: int
    example: str
