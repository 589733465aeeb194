"""Recover items on an operator's request: of dead workers, of workers given by id, and orphaned items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from asyncrunner.errors import ConfigurationError, WorkerLost
from asyncrunner.serialization.error_info import describe
from asyncrunner.sqlite import recovery
from asyncrunner.sqlite.admin import queries as admin_queries
from asyncrunner.sqlite.file import liveness_lock
from asyncrunner.store.liveness import UNPROVEN_SECONDS, silent, unproven_text
from asyncrunner.text.escaping import counted
from asyncrunner.text.suggestions import did_you_mean

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from asyncrunner.sqlite.admin.store import OperatedFile
    from asyncrunner.sqlite.queries import BatchRow, WorkerRow
    from asyncrunner.store.read_models import WorkerStatus


class _Lost(NamedTuple):
    worker: WorkerRow
    reason: str
    pulse: str | None = None  # recover the worker only if this is still its last heartbeat


async def recover(file: OperatedFile, clock: Clock, named: frozenset[str], batch: BatchRow | None = None) -> dict[str, int]:
    """Recover the *named* workers, or all dead workers and orphaned items. Returns the number of items by worker id.

    Orphaned items are counted under ``""``. With a *batch*, only workers that hold items of it are recovered. A worker is always
    recovered as a whole, across batches: how many items it held decides whether one is suspected of killing it. Each worker is
    recovered in one transaction; after a crash or a cancellation, recovered workers stay recovered. Raises ConfigurationError if
    a named worker is unknown or holds no item of *batch*.
    """
    workers = await file.read(admin_queries.known_workers)
    if named:
        unknown = named - {worker.worker_id for worker in workers}
        if unknown:
            missing = min(unknown)
            hint = did_you_mean(missing, [each.worker_id for each in workers])
            raise ConfigurationError(f"there is no worker {missing!r}; {hint}")
        lost = [_Lost(worker, "an operator declared it lost") for worker in workers if worker.worker_id in named]
    else:
        lost = [*_dead_workers(file, workers), *await _silent_workers(file, clock)]
    if batch is not None:
        holders = await file.read(partial(admin_queries.holdings, batch_id=batch.batch_id))
        if named - holders.keys():
            raise ConfigurationError(f"worker {min(named - holders.keys())} holds no item of {batch.name!r}")
        lost = [each for each in lost if each.worker.worker_id in holders]
    recovered: dict[str, int] = {}
    for worker, reason, pulse in lost:
        error = describe(WorkerLost(f"worker {worker.worker_id} (pid {worker.pid} on {worker.host}) was lost: {reason}"))
        recovered[worker.worker_id] = await file.write(
            partial(recovery.lose_worker, worker_id=worker.worker_id, error=error, now=clock.now(), pulse=pulse)
        )
        if liveness_lock.is_held(file.path, worker.worker_id) is False:
            liveness_lock.forget(file.path, worker.worker_id)
    if not named and await file.read(partial(admin_queries.has_orphans, batch_id=None if batch is None else batch.batch_id)):
        error = describe(WorkerLost("its worker is not known to the file; it runs again"))
        recovered[""] = await file.write(partial(recovery.adopt_orphans, error=error, now=clock.now()))
    return recovered


def _dead_workers(file: OperatedFile, workers: Sequence[WorkerRow]) -> Iterator[_Lost]:
    for worker in workers:
        if liveness_lock.is_held(file.path, worker.worker_id) is False:
            yield _Lost(worker, "its lock is free: the process is dead")


async def _silent_workers(file: OperatedFile, clock: Clock) -> Sequence[_Lost]:
    """Return the workers without a lock file whose heartbeat does not change for 5 seconds; waits only if there are any."""

    def without_lock_file(workers: Sequence[WorkerRow]) -> Mapping[str, WorkerRow]:
        return {each.worker_id: each for each in workers if liveness_lock.is_held(file.path, each.worker_id) is None}

    async def read_pulses() -> Mapping[str, str]:
        # Read under the write lock: while another program holds it, heartbeats wait, and their absence proves nothing.
        registered = await file.write(admin_queries.known_workers)
        return {worker_id: worker.last_heartbeat for worker_id, worker in without_lock_file(registered).items()}

    workers = without_lock_file(await file.read(admin_queries.known_workers))
    if not workers:
        return []
    reason = f"it has no lock file and no heartbeat for {UNPROVEN_SECONDS:g} s"
    pulses = await silent(read_pulses, clock)
    return [_Lost(workers[worker_id], reason, pulse) for worker_id, pulse in pulses.items() if worker_id in workers]


def why_in_use(workers: Sequence[WorkerStatus]) -> str | None:
    """Return why the file may be in use: a worker is alive, or cannot be proven dead. None if all workers are dead."""
    living = sum(worker.alive is True for worker in workers)
    if living:
        return f"{counted(living, 'live worker')}: the file cannot be rewritten while workers run; stop them first"
    return unproven_text(sum(worker.alive is None for worker in workers))
