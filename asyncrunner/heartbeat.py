"""The beat: one a worker, never one an item. It proves that the worker's loop turns."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from asyncrunner.duty import every
from asyncrunner.errors import StoreUnavailable
from asyncrunner.store import Stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncrunner.clock import Clock
    from asyncrunner.store import Store, Vitals
    from asyncrunner.transient import Persistence
    from asyncrunner.worker import Worker

__all__ = ["Heartbeat"]

log = logging.getLogger("asyncrunner")

_CLOCK_SLACK: Final = 5.0  # seconds by which beats of several processes may be written out of order
_SAFE_SHARE: Final = 0.5  # of stale_after: a worker that could not beat for that long stops claiming


class Heartbeat:
    """Beats every *interval* seconds and lets the worker claim only while its beats are written.

    ``on_stop`` is called when somebody outside has asked the worker to stop.
    """

    def __init__(
        self, worker: Worker, store: Store, vitals: Callable[[], Vitals], *, interval: float, stale_after: float, clock: Clock,
        persist: Persistence, on_stop: Callable[[Stop], object],
    ) -> None:  # fmt: skip
        self._worker = worker
        self._vitals = vitals
        self._store = store
        self._interval = interval
        self._silence_allowed = stale_after * _SAFE_SHARE
        self._clock = clock
        self._persist = persist
        self._on_stop = on_stop
        self._stop = Stop.NO
        self._last = clock.monotonic()

    @property
    def written_at(self) -> float:
        """When the newest beat was written, on the monotonic clock."""
        return self._last

    async def run(self) -> None:
        """Beat until cancelled. Raises StoreReplaced."""
        await every(self._interval, lambda: self._persist(self.beat), clock=self._clock)

    async def beat(self) -> None:
        """Beat once. Raises StoreUnavailable if it could not be written."""
        worker = self._worker
        try:
            began = self._clock.now()
            beat = await self._store.beat(worker.id, self._vitals(), now=began)
        except StoreUnavailable:
            if worker.may_claim and self._clock.monotonic() - self._last > self._silence_allowed:
                log.warning("no heartbeat could be written for %.0f s: no more items are claimed", self._silence_allowed)
                worker.may_claim = False
            raise
        self._last = self._clock.monotonic()
        if beat.ahead > _CLOCK_SLACK:
            await self._follow_clock(began + beat.ahead)
        if beat.stop > self._stop:  # once each
            self._stop = beat.stop
            self._on_stop(beat.stop)
        if beat.outcast:
            worker.cast_out()
        if not worker.may_claim:
            worker.may_claim = True
            worker.wake()

    async def _follow_clock(self, newest: float) -> None:
        """Somebody has beaten at *newest*: if that is still to come, the clock was set back, and retries would come late."""
        now = self._clock.now()  # asked again: the time of a beat that waited for the file is old
        if newest - now <= _CLOCK_SLACK:
            return
        moved = await self._store.set_back(newest - now, now=now)
        log.warning("the clock was set back by %.0f s: %d retries were moved along with it", newest - now, moved)
        self._worker.wake()
