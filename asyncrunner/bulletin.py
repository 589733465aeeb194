"""What is told of a turn's settlements once they are in the file: to the counters, the observers and the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from asyncrunner.events import Events
from asyncrunner.events import Settled as SettledEvent
from asyncrunner.item import Completed
from asyncrunner.logs import fields, item_log, tell_outcome

if TYPE_CHECKING:
    from asyncrunner.item import Claim, Outcome, Settled
    from asyncrunner.lane import Lane

__all__ = ["Bulletin"]

log = logging.getLogger("asyncrunner")


class Bulletin:
    """Tells of what *lanes*, by their batch, have settled. ``tells_attempts``: the log wants to hear of every attempt."""

    def __init__(self, events: Events, lanes: Mapping[int, Lane]) -> None:
        self._events = events
        self._lanes = lanes
        self._observers = events.observers_of(SettledEvent)
        self.tells_attempts = item_log.isEnabledFor(logging.DEBUG)

    def publish(self, settled: Sequence[Settled], lost: Sequence[Claim]) -> None:
        """A turn has settled those, but for the *lost* claims. Asks once a turn what the log wants to hear."""
        self.tells_attempts = item_log.isEnabledFor(logging.DEBUG)
        kept = self._without_lost(settled, lost) if lost else settled
        kinds = {(done.claim.batch_id, type(done.outcome)) for done in kept}
        for batch_id, kind in kinds:
            of_kind = len(kept) if len(kinds) == 1 else _count(kept, batch_id, kind)
            self._lanes[batch_id].tally[kind] += of_kind
        announce = bool(self._observers)
        if not announce and not self.tells_attempts and all(kind is Completed for _, kind in kinds):
            return
        for done in kept:
            name = self._lanes[done.claim.batch_id].name
            if announce:
                self._events.publish(SettledEvent.of(name, done))
            if self.tells_attempts or type(done.outcome) is not Completed:
                tell_outcome(name, done)

    def _without_lost(self, settled: Sequence[Settled], lost: Sequence[Claim]) -> Sequence[Settled]:
        gone = {(claim.seq, claim.number) for claim in lost}
        kept: list[Settled] = []
        for done in settled:
            claim = done.claim
            if (claim.seq, claim.number) in gone:
                name = self._lanes[claim.batch_id].name
                log.warning("item %r: its claim was lost, its outcome is dropped", claim.id, extra=fields(name, claim))
            else:
                kept.append(done)
        return kept


def _count(settled: Sequence[Settled], batch_id: int, kind: type[Outcome]) -> int:
    return sum(done.claim.batch_id == batch_id and type(done.outcome) is kind for done in settled)
