"""Write the heartbeat of a worker, which proves that its event loop runs. Items have no heartbeats."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from asyncrunner.errors import StoreUnavailable
from asyncrunner.store.retrying import every, retry_while_unavailable
from asyncrunner.store.workers import Stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncrunner.domain.clock import Clock
    from asyncrunner.store.protocols import EngineStore
    from asyncrunner.store.retrying import Outage
    from asyncrunner.store.workers import Beat, Vitals
    from asyncrunner.worker.worker import Worker

log = logging.getLogger("asyncrunner")

_MAX_RETRY_WAIT_SECONDS: Final = 0.5
"""The longest wait before an attempt to write a heartbeat. After an outage all workers send heartbeats within this time; with a
longer wait the watchdog of the first of them would declare the others hung."""

_CLAIMING_SHARE: Final = 0.5  # of stale_after: a worker whose newest heartbeat is older claims no items


class Heartbeat:
    """The heartbeat of one worker, written every *interval* seconds.

    If none was written for half of *stale_after*, the worker claims no items until the next one is written. *on_stop*
    is called when another process requests a stop of the worker. *store* must raise StoreUnavailable rather than retry
    its calls: the heartbeat retries them until the deadline of *outage*.
    """

    def __init__(
        self,
        worker: Worker,
        store: EngineStore,
        vitals: Callable[[], Vitals],
        *,
        interval: float,
        stale_after: float,
        clock: Clock,
        outage: Outage,
        on_stop: Callable[[Stop], object],
        origin: float | None = None,
    ) -> None:
        """Take *origin*, the monotonic time from which the pauses of all duties are counted."""
        self._worker = worker
        self._vitals = vitals
        self._store = store
        self._interval = interval
        self._max_silence = stale_after * _CLAIMING_SHARE
        self._clock = clock
        self._outage = outage
        self._on_stop = on_stop
        self._origin = origin
        self._stop = Stop.NO
        self._written_at = clock.monotonic()

    @property
    def written_at(self) -> float:
        """The monotonic time at which the newest heartbeat was written."""
        return self._written_at

    async def run(self) -> None:
        """Write heartbeats until cancelled. Raises StoreReplaced."""
        await every(self._interval, self._beat_until_written, clock=self._clock, origin=self._origin)

    async def _beat_until_written(self) -> None:
        await retry_while_unavailable(self.beat, self._outage, max_wait=_MAX_RETRY_WAIT_SECONDS)

    async def beat(self) -> None:
        """Write one heartbeat and apply its result. Raises StoreUnavailable if the heartbeat could not be written."""
        try:
            beat = await self._store.beat(self._worker.id, self._vitals())
        except StoreUnavailable:
            self._stop_claiming_if_silent()
            raise
        self._written_at = self._clock.monotonic()
        self._apply(beat)

    def _stop_claiming_if_silent(self) -> None:
        if self._worker.may_claim and self._clock.monotonic() - self._written_at > self._max_silence:
            log.warning(
                "no heartbeat was written for %.0f s: the worker claims no items until the next one is written",
                self._max_silence,
            )
            self._worker.may_claim = False

    def _apply(self, beat: Beat) -> None:
        worker = self._worker
        if beat.set_back:
            log.warning(
                "the clock was set back by %.0f s: %d due times were moved earlier by this time", beat.set_back, beat.moved
            )
            worker.wake()
        if beat.stop > self._stop:  # on_stop is called once for each request
            self._stop = beat.stop
            self._on_stop(beat.stop)
        if beat.outcast:
            worker.cast_out()
        if not worker.may_claim:
            worker.may_claim = True
            worker.wake()
