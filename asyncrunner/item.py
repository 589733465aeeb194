"""An item's life as plain values: states, legal moves, claims and outcomes. No I/O, no clock.

``pending -> processing -> completed | failed | cancelled``; who moves an item stands beside each move.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MOVES",
    "TERMINAL",
    "Cancelled",
    "Claim",
    "Completed",
    "Counts",
    "Entry",
    "ErrorInfo",
    "Failed",
    "OnChange",
    "Outcome",
    "Released",
    "Retrying",
    "Settled",
    "Status",
]

OnChange: TypeAlias = Literal["error", "keep", "rerun"]
"""What to do with an item whose key exists with another payload."""


class Status(StrEnum):
    """The state of an item, as stored in ``items.status``."""

    PENDING = "pending"  # waits for a worker, or for its due_at
    PROCESSING = "processing"  # held by the worker in worker_id, under the claim number in claim
    COMPLETED = "completed"  # result is stored; not run again
    FAILED = "failed"  # out of attempts, or a permanent error: the dead letter
    CANCELLED = "cancelled"  # a person asked


TERMINAL: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})

MOVES: Final[Mapping[Status, frozenset[Status]]] = MappingProxyType(
    {
        Status.PENDING: frozenset(
            {
                Status.PROCESSING,  # a turn claims it
                Status.CANCELLED,  # a person
            }
        ),
        Status.PROCESSING: frozenset(
            {
                Status.COMPLETED,  # its worker settles
                Status.FAILED,  # its worker settles, or recovery does with no attempt left
                Status.PENDING,  # retry, release, recovery; or a person
                Status.CANCELLED,  # a person
            }
        ),
        Status.COMPLETED: frozenset({Status.PENDING}),  # a person: on_change="rerun"
        Status.FAILED: frozenset({Status.PENDING}),  # a person: retry, or more attempts
        Status.CANCELLED: frozenset({Status.PENDING}),  # a person
    }
)


class Entry(NamedTuple):
    """An item on its way into the store: its key, its payload as JSON text, and when it may run."""

    id: str
    payload: str
    priority: int = 0
    due_at: float | None = None  # seconds since the epoch; None: at once


class Claim(NamedTuple):
    """An item held by a worker for one attempt.

    ``number`` grows with every claim of the item and never repeats: it is the fence. ``attempt`` counts from 1.
    """

    seq: int
    batch_id: int
    id: str
    payload: str
    number: int
    attempt: int
    crashes: int
    checkpoint: str | None = None  # JSON that an earlier attempt saved


class ErrorInfo(msgspec.Struct, frozen=True):
    """What is kept of an error: its type's name, its message, the frames without locals, and a grouping mark."""

    type: str
    message: str
    traceback: str = ""
    fingerprint: str = ""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


LARGE_RESULT: Final = 2_000_000
"""Characters. A longer result is encoded and kept in steps, so that it holds the others up for less long."""

RESULT_PIECE: Final = 1_000_000
"""Characters of a piece."""


class Completed(msgspec.Struct, frozen=True):
    """The handler returned; ``result`` is its JSON text. ``kept``: the store has it already, in pieces."""

    result: str
    kept: bool = False


class Retrying(msgspec.Struct, frozen=True):
    """A transient error with attempts left: pending again, not before ``delay`` seconds after the settlement."""

    error: ErrorInfo
    delay: float
    pause: float | None = None  # let the whole batch rest for that many seconds
    crashed: bool = False
    suspect: bool = False  # the crashes may be its own doing: the next attempt is made with nothing beside it
    refunded: bool = False  # the last attempt is given back, because a neighbour may have been guilty
    asked: bool = False  # the handler raised Retry: nothing is wrong with it


class Failed(msgspec.Struct, frozen=True):
    """The dead letter: a permanent error, or no attempt left."""

    error: ErrorInfo
    permanent: bool
    crashed: bool = False


class Released(msgspec.Struct, frozen=True):
    """Given back unfinished, the attempt refunded: shutdown is not failure."""


class Cancelled(msgspec.Struct, frozen=True):
    """A person cancelled the item while it ran."""


Outcome: TypeAlias = Completed | Retrying | Failed | Released | Cancelled


class Settled(NamedTuple):
    """An outcome to make durable, or made durable, with the wall times of the handler's start and end."""

    claim: Claim
    outcome: Outcome
    started_at: float
    finished_at: float

    @property
    def seconds(self) -> float:
        """How long the handler ran, never negative whatever the wall clock did."""
        return max(0.0, self.finished_at - self.started_at)


class Counts(msgspec.Struct, frozen=True):
    """How many items of a batch are in each state. ``waiting`` are the pending ones with a time still to come."""

    pending: int = 0
    waiting: int = 0
    processing: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        return self.pending + self.processing + self.completed + self.failed + self.cancelled

    @property
    def unfinished(self) -> int:
        return self.pending + self.processing
