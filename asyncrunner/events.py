"""What happened, told after it was committed. The engine publishes; whoever wants to know subscribes.

An observer runs in the loop between two turns, so it should be short; one that raises is logged and goes on
being called, the engine never notices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

from asyncrunner.item import Settled

__all__ = ["Accepted", "Event", "Events", "Recovered", "Settled", "Started"]

log = logging.getLogger("asyncrunner")


class Accepted(NamedTuple):
    """``added`` new items of a batch are in the file; ``existing`` were there before."""

    batch_id: int
    added: int
    existing: int


class Started(NamedTuple):
    """The handler of an item begins."""

    batch_id: int
    id: str
    attempt: int


class Recovered(NamedTuple):
    """The items of a lost worker went back to pending, or failed with no attempt left."""

    worker_id: str
    items: int
    reason: str


Event: TypeAlias = Accepted | Started | Settled | Recovered
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

    def wanted(self, kind: type[Any]) -> bool:
        """Whether anybody listens, so that nothing is built for nobody."""
        return bool(self._observers.get(kind))

    def publish(self, event: Event) -> None:
        """Tell everybody who asked for that type."""
        for observer in tuple(self._observers.get(type(event), ())):
            try:
                observer(event)
            except Exception:
                log.exception("an observer of %s failed", type(event).__name__)
