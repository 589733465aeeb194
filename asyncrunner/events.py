"""What happened, told after it was committed. The engine publishes; whoever wants to know subscribes.

``Runner.on`` is the public way in, see observers.py. What subscribes here runs in the loop between two turns, so it must be
short; one that raises is logged and goes on being called, the engine never notices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from asyncrunner.item import Cancelled, Claim, Completed, Failed, Outcome, Released, Retrying, Status

if TYPE_CHECKING:
    from asyncrunner.item import Settled as Settlement

__all__ = ["Accepted", "Event", "Events", "Recovered", "Settled", "Started", "Stopped"]

log = logging.getLogger("asyncrunner")


class Accepted(NamedTuple):
    """``added`` new items of ``batch`` are in the file; ``existing`` were there before."""

    batch: str
    added: int
    existing: int


class Started(NamedTuple):
    """The handler of an item begins."""

    batch: str
    id: str
    attempt: int


class Settled(NamedTuple):
    """An attempt ended and its outcome is in the file. Times are seconds since the epoch."""

    batch: str
    claim: Claim
    outcome: Outcome
    started_at: float
    finished_at: float

    @classmethod
    def of(cls, batch: str, settlement: Settlement) -> Settled:
        return cls(batch, *settlement)

    @property
    def id(self) -> str:
        """The item's key."""
        return self.claim.id

    @property
    def attempt(self) -> int:
        return self.claim.attempt

    @property
    def status(self) -> Status:
        """What the item is now; ``pending`` if it will be tried again or was given back."""
        return _STATUS[type(self.outcome)]

    @property
    def error(self) -> str | None:
        """Type and message of what failed."""
        return str(self.outcome.error) if isinstance(self.outcome, Retrying | Failed) else None

    @property
    def seconds(self) -> float:
        """How long the handler ran."""
        return max(0.0, self.finished_at - self.started_at)


_STATUS: dict[type, Status] = {
    Completed: Status.COMPLETED,
    Failed: Status.FAILED,
    Cancelled: Status.CANCELLED,
    Retrying: Status.PENDING,
    Released: Status.PENDING,
}


class Recovered(NamedTuple):
    """The items of a lost worker went back to pending, or failed with no attempt left."""

    worker_id: str
    items: int
    reason: str


class Stopped(NamedTuple):
    """A guardrail of this worker (``max_failures``, ``deadline``) stopped a batch; the rest of it stays pending."""

    batch: str
    reason: str


Event: TypeAlias = Accepted | Started | Settled | Recovered | Stopped
E = TypeVar("E")


class Events:
    """In-process fan-out, by the type of the event."""

    def __init__(self) -> None:
        self._observers: dict[type[Any], list[Callable[[Any], object]]] = {}

    def on(self, kind: type[E], observer: Callable[[E], object]) -> Callable[[], None]:
        """Call *observer* with every event of that type; returns what unsubscribes it."""
        observers = self._observers.setdefault(kind, [])
        observers.append(observer)
        active = True

        def stop() -> None:
            nonlocal active
            if active:
                active = False
                observers.remove(observer)

        return stop

    def observers_of(self, kind: type[Any]) -> Sequence[Callable[[Any], object]]:
        """Who listens, now and later: empty while nobody does, so that nothing is built for nobody."""
        return self._observers.setdefault(kind, [])

    def publish(self, event: Event) -> None:
        """Tell everybody who asked for that type."""
        for observer in tuple(self._observers.get(type(event), ())):
            try:
                observer(event)
            except Exception:
                log.exception("an observer of %s failed", type(event).__name__)
