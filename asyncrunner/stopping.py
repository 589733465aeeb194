"""Stopping workers from outside, by any process that can write the file.

The wish is put into the workers' rows and comes back to them with their next beat, within a second. No signal is sent: a
process id means nothing in another container, and may be somebody else's by now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncrunner.silence import UNPROVEN_SECONDS
from asyncrunner.store import Peer, Stop

if TYPE_CHECKING:
    from asyncrunner.clock import Clock
    from asyncrunner.store import Store
    from asyncrunner.transient import Persistence

__all__ = ["Stopping", "chosen", "stop_workers"]

_LOOK_SECONDS: Final = 0.1


class Stopping(NamedTuple):
    """Which workers were asked to stop, which of those have not ended, and which run handlers as well and were left alone.

    ``unproven``: were asked, have no lock file and have not beaten since; nobody knows whether they live.
    """

    asked: Sequence[Peer]
    running: Sequence[Peer]
    left: Sequence[Peer]
    unproven: Sequence[Peer] = ()


def chosen(peers: Sequence[Peer], batch: str | None) -> tuple[Sequence[Peer], Sequence[Peer]]:
    """Those of the living *peers* that a stop is for, and those that it leaves alone though they work on the same items.

    A run is stopped by its batch. A worker of several batches would take the others down with it, so it is stopped only where no
    batch is named. A runner inside a service is never stopped from here: the service would go on without it.
    """
    alive = [peer for peer in peers if peer.alive is not False and (batch is None or batch in peer.batches)]
    asked = [peer for peer in alive if _is_asked(peer, batch)]
    return asked, [peer for peer in alive if peer not in asked]


def _is_asked(peer: Peer, batch: str | None) -> bool:
    if peer.role == "run":
        return True
    return peer.role == "work" and (batch is None or len(peer.batches) == 1)


async def stop_workers(
    store: Store, clock: Clock, persist: Persistence, batch: str | None, how: Stop, *, timeout: float,  # noqa: ASYNC109
) -> Stopping:  # fmt: skip
    """Ask the workers of *batch*, or of the whole file, to stop, and wait until they have ended, at most *timeout* seconds.

    What they do not finish is given back with the attempt refunded. Those that have died meanwhile have ended, too.
    """
    asked, left = chosen(await persist(lambda: store.peers("")), batch)
    await persist(lambda: store.ask_to_stop([peer.worker_id for peer in asked], how))
    give_up_at = clock.monotonic() + timeout
    watch_until = clock.monotonic() + UNPROVEN_SECONDS
    first = {peer.worker_id: peer.pulse for peer in asked}
    running, unproven = asked, [peer for peer in asked if peer.alive is None]
    while running and clock.monotonic() < give_up_at:
        if clock.monotonic() >= watch_until and len(unproven) == len(running):
            break
        await clock.sleep(_LOOK_SECONDS)
        running = [peer for peer in await persist(lambda: store.peers("")) if peer.alive is not False and peer.worker_id in first]
        unproven = [peer for peer in running if peer.alive is None and peer.pulse == first[peer.worker_id]]
    ids = {peer.worker_id for peer in unproven}
    return Stopping(
        [peer for peer in asked if peer.worker_id not in ids],
        [peer for peer in running if peer.worker_id not in ids],
        left,
        unproven,
    )
