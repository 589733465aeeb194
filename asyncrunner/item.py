"""The life of an item as plain values: states, legal moves, claims and outcomes. No I/O, no clock.

``pending -> processing -> completed | failed | cancelled``; a comment beside each move names its cause.
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
"""The action for an item whose key exists with another payload."""


class Status(StrEnum):
    """The state of an item, as stored in ``items.status``."""

    PENDING = "pending"  # waits for a worker, or for its due_at
    PROCESSING = "processing"  # held by the worker in worker_id, under the claim number in claim
    COMPLETED = "completed"  # result is stored; not run again
    FAILED = "failed"  # a permanent error, or no attempt left: the dead letter
    CANCELLED = "cancelled"  # by an operator


TERMINAL: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})

MOVES: Final[Mapping[Status, frozenset[Status]]] = MappingProxyType(
    {
        Status.PENDING: frozenset(
            {
                Status.PROCESSING,  # a turn claims it
                Status.CANCELLED,  # an operator
            }
        ),
        Status.PROCESSING: frozenset(
            {
                Status.COMPLETED,  # its worker settles it
                Status.FAILED,  # its worker settles it, or recovery does when no attempt is left
                Status.PENDING,  # retry, release or recovery; or an operator
                Status.CANCELLED,  # an operator
            }
        ),
        Status.COMPLETED: frozenset({Status.PENDING}),  # on_change="rerun" with another payload
        Status.FAILED: frozenset({Status.PENDING}),  # an operator's retry, retry_failed or a higher max_attempts
        Status.CANCELLED: frozenset({Status.PENDING}),  # an operator's retry
    }
)


class Entry(NamedTuple):
    """An item to add to the store: its key, its payload as JSON text, and when it may run."""

    id: str
    payload: str
    priority: int = 0
    due_at: float | None = None  # seconds since the epoch; None: immediately


class Claim(NamedTuple):
    """An item held by a worker for one attempt.

    ``number`` grows with every claim of the item and never repeats: it is the fencing token that rejects the writes of an
    earlier claim. ``attempt`` counts from 1; ``crashes`` counts the workers that were lost while they held the item.
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
    """The stored form of an error: the name of its type, its message, its frames without locals, and its fingerprint."""

    type: str
    message: str
    traceback: str = ""
    fingerprint: str = ""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


LARGE_RESULT: Final = 2_000_000
"""Characters of JSON. A longer result is encoded and stored in steps, so that it blocks the event loop for less time."""

RESULT_PIECE: Final = 1_000_000
"""Characters in one piece of a large result."""


class Completed(msgspec.Struct, frozen=True):
    """The handler returned; ``result`` is its JSON text. ``kept``: the store already has the result, in pieces."""

    result: str
    kept: bool = False


class Retrying(msgspec.Struct, frozen=True):
    """A transient error with attempts left: the item is pending and due ``delay`` seconds after it is settled."""

    error: ErrorInfo
    delay: float
    pause: float | None = None  # seconds for which the whole batch pauses
    crashed: bool = False
    suspect: bool = False  # suspected of killing its worker: the next attempt runs alone
    refunded: bool = False  # the attempt does not count, because another item may have caused the crash
    asked: bool = False  # the handler raised Retry: the failure limit does not count it


class Failed(msgspec.Struct, frozen=True):
    """A permanent error, or no attempt left: the item is a dead letter."""

    error: ErrorInfo
    permanent: bool
    crashed: bool = False


class Released(msgspec.Struct, frozen=True):
    """The item was released unfinished and its attempt is refunded, because a shutdown is not a failure."""


class Cancelled(msgspec.Struct, frozen=True):
    """An operator cancelled the item while it ran."""


Outcome: TypeAlias = Completed | Retrying | Failed | Released | Cancelled


class Settled(NamedTuple):
    """A claim and its outcome, before or after the commit, with the wall times of the handler's start and end."""

    claim: Claim
    outcome: Outcome
    started_at: float
    finished_at: float

    @property
    def seconds(self) -> float:
        """Seconds that the handler ran; 0 if the wall clock was set back meanwhile."""
        return max(0.0, self.finished_at - self.started_at)


class Counts(msgspec.Struct, frozen=True):
    """The number of items of a batch in each state. ``waiting`` counts the pending items that are not due yet."""

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
