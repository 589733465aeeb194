"""Stop workers from any process that can write the file.

The request is stored in the workers' rows; each worker reads it with its next heartbeat, within a second. No signal is sent: a
process id is meaningless in another container, and may belong to another process by now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from asyncrunner.store.liveness import UNPROVEN_SECONDS
from asyncrunner.store.workers import Peer, Stop

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from asyncrunner.store.retrying import Persistence


_POLL_SECONDS: Final = 0.1


class _StoppableStore(Protocol):
    async def peers(self, worker_id: str) -> Sequence[Peer]: ...
    async def ask_to_stop(self, worker_ids: Sequence[str], how: Stop) -> int: ...


class Stopping(NamedTuple):
    """The outcome of a stop request.

    ``asked``: the workers that got the request, without unproven ones. ``running``: asked workers that have not ended.
    ``left``: live workers that run the same items and were not asked. ``unproven``: workers that were asked, have no lock file
    and have not changed their heartbeat since, so that they cannot be proven alive or dead.
    """

    asked: Sequence[Peer]
    running: Sequence[Peer]
    left: Sequence[Peer]
    unproven: Sequence[Peer] = ()


def chosen(peers: Sequence[Peer], batch: str | None) -> tuple[Sequence[Peer], Sequence[Peer]]:
    """Split the *peers* that run *batch*, or any batch, and are not dead into those to stop and those to leave running.

    A run is stopped if it runs *batch*. ``asyncrunner work`` with several batches is stopped only if *batch* is None, because
    its other batches would stop too. A runner inside a service is never stopped, because the service would continue without it.
    """
    alive = [peer for peer in peers if peer.alive is not False and (batch is None or batch in peer.batches)]
    asked = [peer for peer in alive if _can_stop(peer, batch)]
    return asked, [peer for peer in alive if peer not in asked]


def _can_stop(peer: Peer, batch: str | None) -> bool:
    if peer.role == "run":
        return True
    return peer.role == "work" and (batch is None or len(peer.batches) == 1)


async def stop_workers(
    store: _StoppableStore, clock: Clock, persist: Persistence, batch: str | None, how: Stop, *, timeout: float,  # noqa: ASYNC109
) -> Stopping:  # fmt: skip
    """Request a stop of the workers of *batch*, or of the whole file, and wait up to *timeout* seconds until they have ended.

    Unfinished items are released with the attempt refunded. Workers that die meanwhile count as ended. Workers without a lock
    file are waited for at most 5 seconds once only they remain. A cancellation stops the waiting, not the request.
    """
    asked, left = chosen(await persist(lambda: store.peers("")), batch)
    await persist(lambda: store.ask_to_stop([peer.worker_id for peer in asked], how))
    deadline = clock.monotonic() + timeout
    unproven_deadline = clock.monotonic() + UNPROVEN_SECONDS
    first_pulses = {peer.worker_id: peer.pulse for peer in asked}
    running, unproven = asked, [peer for peer in asked if peer.alive is None]
    while running and clock.monotonic() < deadline:
        if clock.monotonic() >= unproven_deadline and len(unproven) == len(running):
            break
        await clock.sleep(_POLL_SECONDS)
        peers = await persist(lambda: store.peers(""))
        running = [peer for peer in peers if peer.alive is not False and peer.worker_id in first_pulses]
        unproven = [peer for peer in running if peer.alive is None and peer.pulse == first_pulses[peer.worker_id]]
    unproven_ids = {peer.worker_id for peer in unproven}
    return Stopping(
        [peer for peer in asked if peer.worker_id not in unproven_ids],
        [peer for peer in running if peer.worker_id not in unproven_ids],
        left,
        unproven,
    )
