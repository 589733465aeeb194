"""What a person asks with ``recover``: the items of workers that are dead, or are given up by name, go back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from asyncrunner.asking import meant
from asyncrunner.errors import ConfigurationError, WorkerLost
from asyncrunner.failure import describe
from asyncrunner.silence import UNPROVEN_SECONDS, silent, unproven_text
from asyncrunner.sqlite import locks, looking, operating
from asyncrunner.text import counted

if TYPE_CHECKING:
    from asyncrunner.clock import Clock
    from asyncrunner.operated import OperatedFile
    from asyncrunner.sqlite.reading import BatchRow, WorkerRow
    from asyncrunner.views import WorkerStatus

__all__ = ["recover", "why_in_use"]


class _Lost(NamedTuple):
    worker: WorkerRow
    why: str
    pulse: str | None = None  # only if it is still that one


async def recover(file: OperatedFile, clock: Clock, named: frozenset[str], batch: BatchRow | None = None) -> dict[str, int]:
    """Recover the *named* workers, or those that are dead and what nobody holds; worker -> items.

    With a *batch*, only those that hold items of it. A worker is recovered as a whole: with how many others an item was in
    hand is the evidence by which it is judged.
    """
    workers = await file.read(looking.known_workers)
    if named:
        unknown = named - {worker.worker_id for worker in workers}
        if unknown:
            missing = min(unknown)
            raise ConfigurationError(f"there is no worker {missing!r}; {meant(missing, [each.worker_id for each in workers])}")
        lost = [_Lost(worker, "a person declared it lost") for worker in workers if worker.worker_id in named]
    else:
        lost = [*_dead(file, workers), *await _silent(file, clock)]
    if batch is not None:
        holders = await file.read(partial(looking.holdings, batch_id=batch.batch_id))
        if named - holders.keys():
            raise ConfigurationError(f"worker {min(named - holders.keys())} holds no item of {batch.name!r}")
        lost = [each for each in lost if each.worker.worker_id in holders]
    recovered: dict[str, int] = {}
    for worker, why, pulse in lost:
        error = describe(WorkerLost(f"worker {worker.worker_id} (pid {worker.pid} on {worker.host}) was lost: {why}"))
        recovered[worker.worker_id] = await file.write(
            partial(operating.lose_worker, worker_id=worker.worker_id, error=error, now=clock.now(), pulse=pulse)
        )
        if locks.is_held(file.path, worker.worker_id) is False:
            locks.forget(file.path, worker.worker_id)
    if not named and await file.read(partial(looking.has_orphans, batch_id=None if batch is None else batch.batch_id)):
        error = describe(WorkerLost("its worker is not known to the file; it runs again"))
        recovered[""] = await file.write(partial(operating.adopt_orphans, error=error, now=clock.now()))
    return recovered


def _dead(file: OperatedFile, workers: Sequence[WorkerRow]) -> Iterator[_Lost]:
    for worker in workers:
        if locks.is_held(file.path, worker.worker_id) is False:
            yield _Lost(worker, "its lock is free: the process is dead")


async def _silent(file: OperatedFile, clock: Clock) -> Sequence[_Lost]:
    """Those without a lock file whose heartbeat stands still; watched only if there is one."""

    def unproven(workers: Sequence[WorkerRow]) -> Mapping[str, WorkerRow]:
        return {each.worker_id: each for each in workers if locks.is_held(file.path, each.worker_id) is None}

    async def look() -> Mapping[str, str]:
        found = await file.write(looking.known_workers)  # in turn with the beats: who cannot write is not silent
        return {worker_id: worker.last_heartbeat for worker_id, worker in unproven(found).items()}

    workers = unproven(await file.read(looking.known_workers))
    if not workers:
        return []
    why = f"it has no lock file and no heartbeat for {UNPROVEN_SECONDS:g} s"
    pulses = await silent(look, clock)
    return [_Lost(workers[worker_id], why, pulse) for worker_id, pulse in pulses.items() if worker_id in workers]


def why_in_use(workers: Sequence[WorkerStatus]) -> str | None:
    """Why the file cannot be taken for unused: somebody works on it, or that is not known. None if nobody does."""
    living = sum(worker.alive is True for worker in workers)
    if living:
        return f"{counted(living, 'live worker')}: nobody can work while the file is written anew; stop them first"
    return unproven_text(sum(worker.alive is None for worker in workers))
