"""Recover the items of dead and hung workers.

A worker is dead when its liveness lock is free; the watchdog detects this within one tick. A worker is hung when its
heartbeat has not changed for ``stale_after`` seconds on the watchdog's own monotonic clock. A worker without a lock
file is presumed dead when its heartbeat has not changed for 5 seconds, or for ``stale_after`` if that is shorter. The
watchdog never compares stored times, and does not count a pause of its own process. So no live worker loses its items
because a clock jumps or a laptop sleeps.

The cost of a check grows with the number of workers, and each worker checks. So with more than 50 other workers each
checks less often, and all of them together as often as 50 do. The first that finds a free lock which proves nothing yet
checks again soon.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Final

from asyncrunner.errors import WorkerLost
from asyncrunner.events import Events, Recovered
from asyncrunner.serialization.error_info import describe
from asyncrunner.store.liveness import ORPHANED, UNPROVEN_SECONDS, worker_lost
from asyncrunner.store.retrying import every
from asyncrunner.text.escaping import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from asyncrunner.domain.clock import Clock
    from asyncrunner.store.protocols import EngineStore
    from asyncrunner.store.workers import Peer

log = logging.getLogger("asyncrunner")

_MANY_PEERS: Final = 50  # other workers; with more of them, each checks less often
_MAX_GAP_TICKS: Final = 4  # after a longer pause of this process, the silence of every worker is counted anew
_MAX_BEAT_GAP_SECONDS: Final = 2.5  # after a longer gap between two heartbeats of this worker, too
_ORPHAN_TICKS: Final = 12  # between two searches for orphaned items; edits by hand cause these, so 5 s are soon enough


class Watchdog:
    """A watchdog of the other workers, which it checks every *interval* seconds, or less often if there are many.

    *on_recovery* is called when items were recovered. ``has_peers``: whether the last check found another worker.
    """

    def __init__(
        self,
        worker_id: str,
        store: EngineStore,
        *,
        interval: float,
        stale_after: float,
        clock: Clock,
        events: Events,
        on_recovery: Callable[[], object],
        written_at: Callable[[], float] | None = None,
        origin: float | None = None,
    ) -> None:
        """Take *written_at*, which returns the monotonic time of this worker's newest heartbeat.

        *origin*: the monotonic time from which the pauses of all duties are counted.
        """
        self._worker_id = worker_id
        self._store = store
        self._interval = interval
        self._pause = interval  # until the next check
        self._stale_after = stale_after
        self._clock = clock
        self._origin = origin
        self._events = events
        self._on_recovery = on_recovery
        self.has_peers = False
        self._pulses: dict[str, tuple[str, float]] = {}  # worker id -> its pulse, unchanged since a monotonic time
        self._checked_at = clock.monotonic()
        self._ticks = 0
        self._due_at = 0.0  # of the next check, monotonic
        self._written_at = clock.monotonic if written_at is None else written_at
        self._previous_written_at = self._written_at()

    async def run(self) -> None:
        """Check the other workers until cancelled."""
        await every(self._interval, self._watch, clock=self._clock, origin=self._origin)

    async def _watch(self) -> None:
        if self._clock.monotonic() < self._due_at:
            return
        await self.look()
        self._due_at = self._clock.monotonic() + self._pause - self._interval / 2
        self._ticks += 1
        if self._ticks % _ORPHAN_TICKS == 0:
            orphans = await self.adopt_orphans()
            if orphans:
                log.warning("recovered %s that no known worker held; were rows changed by hand?", counted(orphans, "item"))
                self._on_recovery()

    async def look(self) -> int:
        """Recover the items of dead and hung workers; return their number. Raises StoreUnavailable."""
        peers = await self._store.peers(self._worker_id)
        now = self._clock.monotonic()
        self._forget_pulses(now, registered={peer.worker_id for peer in peers})
        self._pause = self._pause_for(peers)
        self.has_peers = bool(peers)
        recovered = 0
        for peer in peers:
            evidence = self._evidence(peer, now)
            if evidence is not None:
                # The store checks again that the pulse is unchanged: a worker that has sent a heartbeat since then is alive.
                recovered += await self._recover(peer, evidence, peer.pulse)
        return recovered

    def _pause_for(self, peers: Sequence[Peer]) -> float:
        """Return the seconds until the next check; among many workers a random time, so that not all check together."""
        if len(peers) <= _MANY_PEERS or any(peer.alive is None for peer in peers):
            return self._interval
        pause = self._interval * len(peers) / _MANY_PEERS * random.uniform(0.5, 1.5)  # noqa: S311
        return max(self._interval, min(pause, self._stale_after / 4))  # the silence of a hung worker must stay measurable

    def _forget_pulses(self, now: float, registered: Collection[str]) -> None:
        """Forget the pulses of workers that are not *registered*, and every pulse after a gap in which silence proves nothing."""
        if now - self._checked_at > self._pause + (_MAX_GAP_TICKS - 1) * self._interval:
            self._pulses.clear()  # this process was stopped, so the silence may be its own
        self._checked_at = now
        written_at = self._written_at()
        if written_at - self._previous_written_at > self._pause - self._interval + _MAX_BEAT_GAP_SECONDS:
            self._pulses.clear()  # no process could write, for example under another program's lock
        self._previous_written_at = written_at
        self._pulses = {worker_id: pulse for worker_id, pulse in self._pulses.items() if worker_id in registered}

    async def adopt_orphans(self) -> int:
        """Recover items whose worker is not registered in the store; return their number. Raises StoreUnavailable."""
        return await self._store.recover(None, describe(WorkerLost(ORPHANED)))

    def _evidence(self, peer: Peer, now: float) -> str | None:
        if peer.alive is False:
            return peer.evidence
        pulse, since = self._pulses.get(peer.worker_id, ("", now))
        if pulse != peer.pulse:
            self._pulses[peer.worker_id] = (peer.pulse, now)
            return None
        # The silence counts only up to this worker's newest heartbeat, which proves that heartbeats can be written.
        silence = min(now, self._written_at()) - since
        if peer.alive is None and silence >= min(UNPROVEN_SECONDS, self._stale_after):
            return f"{peer.evidence} and no heartbeat for {silence:.1f} s"
        if silence >= self._stale_after:
            return f"its heartbeat has not changed for {silence:.0f} s although its process lives: its event loop hangs"
        return None

    async def _recover(self, peer: Peer, evidence: str, pulse: str) -> int:
        error = worker_lost(peer.worker_id, peer.pid, peer.host, evidence)
        items = await self._store.recover(peer.worker_id, describe(error), pulse=pulse)
        log.warning("recovered %s: %s", counted(items, "item"), error)
        self._events.publish(Recovered(peer.worker_id, items, evidence))
        if items:
            self._on_recovery()
        return items
