"""The life of an item as plain values: states, legal moves, claims and counts. No I/O, no clock.

``pending -> processing -> completed | failed | cancelled``; the comment on each move names the cause of the move. In
addition, ``on_change="rerun"`` makes an item pending from every state when its key is added with another payload, and
``if_exists="rerun"`` also when its key is submitted with the same payload. An item that a worker holds becomes pending when
its attempt ends, however that attempt ends; a cancellation withdraws the request. An operator's rerun does the same with the
payload that the item has, and so does another ``version`` of the handler to the items that are completed or running.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from asyncrunner.text.plain_form import PlainStruct

if TYPE_CHECKING:
    from collections.abc import Mapping

OnChange: TypeAlias = Literal["error", "keep", "rerun"]
"""The action for an added item whose key exists with another payload."""

IfExists: TypeAlias = Literal["keep", "error", "rerun"]
"""The action for a submitted item whose key exists, with the same payload or another one."""

OnKnownKey: TypeAlias = Literal[OnChange, "refuse", "run again"]
"""The action of a store for an added item whose key exists: ``OnChange`` acts only on another payload,
the others on every payload.
"""


class Status(StrEnum):
    """The state of an item, as stored in ``items.status``."""

    PENDING = "pending"  # waits for a worker, or for its due_at
    PROCESSING = "processing"  # held by the worker in worker_id, under the claim number in claim
    COMPLETED = "completed"  # result is stored; not run again
    FAILED = "failed"  # a permanent error, or no attempt left: the dead letter
    CANCELLED = "cancelled"  # cancelled by an operator or by a program that submits items


class Suspicion(IntEnum):
    """How an item runs after workers were lost while it ran, as stored in ``items.suspect``."""

    NONE = 0  # it runs like every other item: at most one worker was lost while it ran
    SUSPECT = 1  # a worker runs one suspect at a time, beside its other items
    ISOLATED = 2  # it was the only suspect when a worker was lost: it runs alone


def suspicion_of(number: int) -> Suspicion:
    """Return the suspicion that is stored as *number*; a person may have written any number."""
    return Suspicion(min(max(number, Suspicion.NONE), Suspicion.ISOLATED))


MAX_ISOLATION_SECONDS: Final = 30.0
"""How long other suspects wait for a suspect, and how long other items wait for an isolated one."""

TERMINAL: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})

MOVES: Final[Mapping[Status, frozenset[Status]]] = MappingProxyType(
    {
        Status.PENDING: frozenset(
            {
                Status.PROCESSING,  # a turn claims it
                Status.CANCELLED,  # an operator or a submitting program cancels it
            }
        ),
        Status.PROCESSING: frozenset(
            {
                Status.COMPLETED,  # its worker settles it
                Status.FAILED,  # its worker settles it, or recovery settles it when no attempt is left
                Status.PENDING,  # a retry, a put-off, a release or a recovery; the end of the attempt if a rerun was requested
                Status.CANCELLED,  # an operator or a submitting program cancels it
            }
        ),
        Status.COMPLETED: frozenset({Status.PENDING}),  # another payload or version, if_exists="rerun", an operator's rerun
        Status.FAILED: frozenset({Status.PENDING}),  # an operator's retry, retry_failed or a higher max_attempts
        Status.CANCELLED: frozenset({Status.PENDING}),  # an operator's retry
    }
)


# A struct without gc costs the garbage collector nothing. The collector looks at every NamedTuple several times: with the tens of
# thousands that a quick batch has in hand, that took a tenth of the run's time.
class NewItem(msgspec.Struct, frozen=True, gc=False):
    """An item to add to the store: its key, its payload as JSON text, and when it may run.

    ``traceparent``: the trace context of the submit, as W3C text; None without OpenTelemetry. All items of one call have
    the same one.
    """

    id: str
    payload: str
    priority: int = 0
    due_at: float | None = None  # seconds since the epoch; None: immediately
    traceparent: str | None = None


class Claim(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A claim: an item that a worker holds for one attempt.

    ``number`` grows with every claim of the item and never repeats: it is the fencing token by which the store rejects
    the writes of an earlier claim. ``attempt`` counts from 1; ``crashes`` counts the workers that were lost while they
    held the item. ``put_off_at``: the time (seconds since the epoch) of the first put-off since the item's last failure, or
    None. ``traceparent``: the trace context of the item's submit, or None. ``suspicion``: whether the item may have killed
    its workers.
    """

    seq: int
    batch_id: int
    id: str
    payload: str
    number: int
    attempt: int
    crashes: int
    checkpoint: str | None = None  # JSON that an earlier attempt saved
    put_off_at: float | None = None
    traceparent: str | None = None
    suspicion: Suspicion = Suspicion.NONE


class Counts(PlainStruct, frozen=True):
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
