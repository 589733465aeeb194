"""Recover the items of lost workers for an operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from asyncrunner.errors import ConfigurationError, WorkerLost
from asyncrunner.serialization.error_info import describe
from asyncrunner.store.admin_protocol import AdminStore
from asyncrunner.store.liveness import ORPHANED, UNPROVEN_SECONDS, silent, worker_lost
from asyncrunner.store.snapshot import BatchRow, WorkerRow
from asyncrunner.text.suggestions import did_you_mean

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock


class _Loss(NamedTuple):
    worker: WorkerRow
    evidence: str
    pulse: str | None = None  # recover the worker only if this is still its last heartbeat


async def recover_workers(
    store: AdminStore, clock: Clock, named: frozenset[str], batch: BatchRow | None = None
) -> dict[str, int]:
    """Recover the *named* workers, or all dead workers and orphaned items. Returns the number of items by worker id.

    Orphaned items are counted under ``""``. With a *batch*, only workers that hold items of it and its own orphaned
    items are recovered. A worker is always recovered as a whole, across batches, because a loss can fail an item only if
    the worker held no other item. Each worker is recovered in one transaction; after a crash or a cancellation,
    recovered workers stay recovered. Raises ConfigurationError if a named worker is unknown or holds no item of *batch*.
    """
    workers = {worker.worker_id: worker for worker in await store.workers()}
    losses = _named(workers, named) if named else [*_dead(workers), *await _silent(store, clock, workers)]
    if batch is not None:
        holders = {worker.worker_id for worker in await store.workers(batch.batch_id)}
        if named - holders:
            raise ConfigurationError(f"worker {min(named - holders)} holds no item of {batch.name!r}")
        losses = [each for each in losses if each.worker.worker_id in holders]
    recovered: dict[str, int] = {}
    for worker, evidence, pulse in losses:
        error = describe(worker_lost(worker.worker_id, worker.pid, worker.host, evidence))
        recovered[worker.worker_id] = await store.recover(worker.worker_id, error, pulse=pulse)
    batch_id = None if batch is None else batch.batch_id
    if not named and await store.has_orphans(batch_id):
        recovered[""] = await store.recover(None, describe(WorkerLost(ORPHANED)), batch_id=batch_id)
    return recovered


def _named(workers: Mapping[str, WorkerRow], named: frozenset[str]) -> Sequence[_Loss]:
    unknown = named - workers.keys()
    if unknown:
        missing = min(unknown)
        raise ConfigurationError(f"there is no worker {missing!r}; {did_you_mean(missing, workers)}")
    return [_Loss(worker, "an operator declared it lost") for worker_id, worker in workers.items() if worker_id in named]


def _dead(workers: Mapping[str, WorkerRow]) -> Sequence[_Loss]:
    return [_Loss(worker, worker.evidence, worker.pulse) for worker in workers.values() if worker.alive is False]


async def _silent(store: AdminStore, clock: Clock, workers: Mapping[str, WorkerRow]) -> Sequence[_Loss]:
    """Return the workers without a lock file whose heartbeat does not change for 5 seconds.

    Waits 5 seconds, or not at all if every worker has a lock file.
    """
    if all(worker.alive is not None for worker in workers.values()):
        return []
    pulses = await silent(store.pulses, clock)
    return [
        _Loss(workers[worker_id], f"{workers[worker_id].evidence} and no heartbeat for {UNPROVEN_SECONDS:g} s", pulse)
        for worker_id, pulse in pulses.items()
        if worker_id in workers
    ]
