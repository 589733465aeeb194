"""The watchdog: gives the items of dead and hung workers back.

Dead is whose lock is free; that is noticed within one tick. Hung is whose heartbeat has not changed for
``stale_after`` on this watchdog's own monotonic clock; times that are stored are never compared, so a clock
that jumps, a laptop that sleeps or a stopped process harms nobody.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from asyncrunner.duty import every
from asyncrunner.errors import WorkerLost
from asyncrunner.events import Events, Recovered
from asyncrunner.failure import describe
from asyncrunner.silence import UNPROVEN_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncrunner.clock import Clock
    from asyncrunner.store import Peer, Store
    from asyncrunner.transient import Persistence

__all__ = ["Watchdog"]

log = logging.getLogger("asyncrunner")

_LONGEST_GAP: Final = 4  # ticks: after a longer pause of our own, the others get a fresh start too
_LONGEST_SILENCE: Final = 2.5  # seconds between two beats of our own; after a longer one, the same
_LOOKS_TO_ORPHANS: Final = 12  # who edits rows by hand may leave items that nobody holds: a few seconds are soon enough


class Watchdog:
    """Looks at every other worker each *interval* seconds."""

    def __init__(
        self, worker_id: str, store: Store, *, interval: float, stale_after: float, clock: Clock, events: Events,
        persist: Persistence, on_recovery: Callable[[], object], written_at: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        """*written_at*: when our own newest beat was written, on the monotonic clock."""
        self._worker_id = worker_id
        self._store = store
        self._interval = interval
        self._stale_after = stale_after
        self._clock = clock
        self._events = events
        self._persist = persist
        self._on_recovery = on_recovery
        self._pulses: dict[str, tuple[str, float]] = {}  # worker -> its pulse, and since when we have seen that one
        self._looked_at = clock.monotonic()
        self._looks = 0
        self._written_at = clock.monotonic if written_at is None else written_at
        self._was_written_at = self._written_at()

    async def run(self) -> None:
        """Watch until cancelled."""
        await every(self._interval, lambda: self._persist(self._watch), clock=self._clock)

    async def _watch(self) -> None:
        await self.look()
        self._looks += 1
        if self._looks % _LOOKS_TO_ORPHANS == 0:
            adopted = await self.adopt_orphans()
            if adopted:
                log.warning("recovered %d items that no known worker held; were rows changed by hand?", adopted)
                self._on_recovery()

    async def look(self) -> int:
        """Recover what dead and stale workers hold; returns how many items. Raises StoreUnavailable."""
        peers = await self._store.peers(self._worker_id)
        now = self._clock.monotonic()
        if now - self._looked_at > _LONGEST_GAP * self._interval:
            self._pulses.clear()  # we were stopped ourselves: their silence may be ours
        self._looked_at = now
        written_at = self._written_at()
        if written_at - self._was_written_at > _LONGEST_SILENCE:
            self._pulses.clear()  # nobody could write, as under another program's lock: their silence was not theirs
        self._was_written_at = written_at
        known = {peer.worker_id for peer in peers}
        self._pulses = {worker_id: seen for worker_id, seen in self._pulses.items() if worker_id in known}
        recovered = 0
        for peer in peers:
            evidence = self._evidence(peer, now)
            if evidence is not None:
                # The lock of the dead is proof; of the silent it is asked again whether they are still silent.
                recovered += await self._recover(peer, evidence, None if peer.alive is False else peer.pulse)
        return recovered

    async def adopt_orphans(self) -> int:
        """Recover items whose holder is no worker of the store at all. Raises StoreUnavailable."""
        lost = WorkerLost("its worker is not known to the file; it runs again")
        return await self._store.recover_orphans(describe(lost), now=self._clock.now())

    def _evidence(self, peer: Peer, now: float) -> str | None:
        if peer.alive is False:
            return "its lock is free: the process is dead"
        pulse, since = self._pulses.get(peer.worker_id, ("", now))
        if pulse != peer.pulse:
            self._pulses[peer.worker_id] = (peer.pulse, now)
            return None
        silence = min(now, self._written_at()) - since  # no longer than our own beats prove that beats can be written
        if peer.alive is None and silence >= min(UNPROVEN_SECONDS, self._stale_after):
            return f"it has no lock file and no heartbeat for {silence:.1f} s"
        if silence >= self._stale_after:
            return f"its heartbeat stands still for {silence:.0f} s though its process lives: its loop hangs"
        return None

    async def _recover(self, peer: Peer, evidence: str, pulse: str | None) -> int:
        error = WorkerLost(f"worker {peer.worker_id} (pid {peer.pid} on {peer.host}) was lost: {evidence}")
        items = await self._store.recover(peer.worker_id, describe(error), now=self._clock.now(), pulse=pulse)
        log.warning("recovered %d items: %s", items, error)
        self._events.publish(Recovered(peer.worker_id, items, evidence))
        if items:
            self._on_recovery()
        return items
