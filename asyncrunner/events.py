"""The events that the engine publishes after the change that they describe is committed.

Programs subscribe with ``Runner.on``, see ``observers.py``. A callback that subscribes here runs in the event loop, so
it must be short. An exception of a callback is logged; the callback stays subscribed, and the engine continues.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from asyncrunner.domain.item import Claim, Status
from asyncrunner.domain.outcome import Cancelled, Completed, Failed, Outcome, PutOff, Released, Retrying

if TYPE_CHECKING:
    from asyncrunner.domain.outcome import Settlement

__all__ = ["Accepted", "Event", "Events", "Recovered", "Settled", "Started", "Stopped"]
log = logging.getLogger("asyncrunner")


class Accepted(NamedTuple):
    """``added`` new items of ``batch`` are in the file; ``existing`` items were in the file before."""

    batch: str
    added: int
    existing: int


class Started(NamedTuple):
    """The handler of an item starts. ``id`` is the item's key; ``attempt`` counts from 1."""

    batch: str
    id: str
    attempt: int


class Settled(NamedTuple):
    """An attempt ended, and its outcome is in the file. Times are seconds since the epoch."""

    batch: str
    claim: Claim
    outcome: Outcome
    started_at: float
    finished_at: float

    @classmethod
    def of(cls, batch: str, settlement: Settlement) -> Settled:
        return cls(batch, settlement.claim, settlement.outcome, settlement.started_at, settlement.finished_at)

    @property
    def id(self) -> str:
        """The item's key."""
        return self.claim.id

    @property
    def attempt(self) -> int:
        return self.claim.attempt

    @property
    def status(self) -> Status:
        """The item's new state; ``pending`` if it will be retried, was put off or was released."""
        return _STATUS[type(self.outcome)]

    @property
    def error(self) -> str | None:
        """The type and message of the error, or None if the attempt neither failed nor was put off."""
        return str(self.outcome.error) if isinstance(self.outcome, Retrying | PutOff | Failed) else None

    @property
    def seconds(self) -> float:
        """The seconds that the handler ran; 0 if the wall clock was set back meanwhile."""
        return max(0.0, self.finished_at - self.started_at)


_STATUS: dict[type, Status] = {
    Completed: Status.COMPLETED,
    Failed: Status.FAILED,
    Cancelled: Status.CANCELLED,
    Retrying: Status.PENDING,
    PutOff: Status.PENDING,
    Released: Status.PENDING,
}


class Recovered(NamedTuple):
    """The ``items`` items of a lost worker are pending again, or failed because no attempt is left."""

    worker_id: str
    items: int
    reason: str


class Stopped(NamedTuple):
    """A guardrail of this worker (``max_failures`` or ``deadline``) stopped a batch; unfinished items stay pending."""

    batch: str
    reason: str


Event: TypeAlias = Accepted | Started | Settled | Recovered | Stopped
E = TypeVar("E")


class Events:
    """A registry of observers in this process: it calls the observers of an event's type."""

    def __init__(self) -> None:
        self._observers: dict[type[Any], list[Callable[[Any], object]]] = {}

    def on(self, kind: type[E], observer: Callable[[E], object]) -> Callable[[], None]:
        """Call *observer* with every event of type *kind*; return a function that unsubscribes the observer."""
        observers = self._observers.setdefault(kind, [])
        observers.append(observer)
        active = True

        def unsubscribe() -> None:
            nonlocal active
            if active:
                active = False
                observers.remove(observer)

        return unsubscribe

    def observers_of(self, kind: type[Any]) -> Sequence[Callable[[Any], object]]:
        """Return the live list of observers of *kind*; while the list is empty, the caller need not create events."""
        return self._observers.setdefault(kind, [])

    def publish(self, event: Event) -> None:
        """Call every observer of the event's type; log an exception of an observer and continue with the next one."""
        for observer in tuple(self._observers.get(type(event), ())):
            try:
                observer(event)
            except Exception:
                log.exception("an observer of %s failed; it stays subscribed", type(event).__name__)
