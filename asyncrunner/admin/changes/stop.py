"""Stop workers from any process that can write the file.

The request is stored in the workers' rows; each worker reads it with its next heartbeat, within a second. No signal is
sent: a process id is meaningless in another container, and may belong to another process by now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncrunner.store.liveness import UNPROVEN_SECONDS
from asyncrunner.store.snapshot import WorkerRow
from asyncrunner.store.workers import Stop

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from asyncrunner.store.admin_protocol import AdminStore

_POLL_SECONDS: Final = 0.1


class Stopping(NamedTuple):
    """The outcome of a stop request.

    ``asked``: the workers that got the request, without the unproven ones. ``running``: those of ``asked`` that have
    not ended. ``left``: workers that run the same batches, are not dead and got no request. ``unproven``: workers that
    got the request, have no lock file and have not changed their heartbeat since then, so that they cannot be proven
    alive or dead.
    """

    asked: Sequence[WorkerRow]
    running: Sequence[WorkerRow]
    left: Sequence[WorkerRow]
    unproven: Sequence[WorkerRow] = ()


def workers_to_stop(workers: Sequence[WorkerRow], batch: str | None) -> tuple[Sequence[WorkerRow], Sequence[WorkerRow]]:
    """Return the workers to stop and the workers to leave running; neither has dead workers or workers without *batch*.

    If *batch* is None, all batches count. A run is stopped if it runs *batch*. ``asyncrunner work`` with several
    batches is stopped only if *batch* is None, because its other batches would stop too. A runner inside a service is
    never stopped, because the service would continue without it.
    """
    alive = [worker for worker in workers if worker.alive is not False and (batch is None or batch in worker.batches)]
    to_stop = [worker for worker in alive if _can_stop(worker, batch)]
    return to_stop, [worker for worker in alive if worker not in to_stop]


def _can_stop(worker: WorkerRow, batch: str | None) -> bool:
    if worker.role == "run":
        return True
    return worker.role == "work" and (batch is None or len(worker.batches) == 1)


async def stop_workers(
    store: AdminStore,
    clock: Clock,
    batch: str | None,
    how: Stop,
    *,
    timeout: float,  # noqa: ASYNC109
) -> Stopping:
    """Request a stop of the workers of *batch*, or of the file, and wait up to *timeout* seconds until they have ended.

    Unfinished items are released with the attempt refunded. Workers that die meanwhile count as ended. When only
    workers without a lock file remain, and none of them has changed its heartbeat, the wait ends 5 seconds after the
    request. A cancellation stops the waiting, not the request.
    """
    requested, left = workers_to_stop(await store.workers(), batch)
    await store.request_stop([worker.worker_id for worker in requested], how)
    deadline = clock.monotonic() + timeout
    unproven_deadline = clock.monotonic() + UNPROVEN_SECONDS
    first_pulses = {worker.worker_id: worker.pulse for worker in requested}
    running, unproven = requested, [worker for worker in requested if worker.alive is None]
    while running and clock.monotonic() < deadline:
        if clock.monotonic() >= unproven_deadline and len(unproven) == len(running):
            break
        await clock.sleep(_POLL_SECONDS)
        workers = await store.workers()
        running = [worker for worker in workers if worker.alive is not False and worker.worker_id in first_pulses]
        unproven = [worker for worker in running if worker.alive is None and worker.pulse == first_pulses[worker.worker_id]]
    unproven_ids = {worker.worker_id for worker in unproven}
    return Stopping(
        [worker for worker in requested if worker.worker_id not in unproven_ids],
        [worker for worker in running if worker.worker_id not in unproven_ids],
        left,
        unproven,
    )
