"""Change items for an operator: select those that are named, change them in short transactions, recover those of lost workers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncrunner.admin.arguments import keys_of
from asyncrunner.admin.item_details import check_retriable, no_such_error, no_such_item
from asyncrunner.admin.read_models import Changed
from asyncrunner.domain.item import Status
from asyncrunner.errors import ConfigurationError, ItemNotFound, WorkerLost
from asyncrunner.serialization.error_info import describe
from asyncrunner.store.admin_protocol import AdminStore, Change, ItemSet, Selection
from asyncrunner.store.batches import LargeChange
from asyncrunner.store.liveness import ORPHANED, UNPROVEN_SECONDS, silent, worker_lost
from asyncrunner.store.snapshot import BatchRow, WorkerRow
from asyncrunner.text.suggestions import did_you_mean
from asyncrunner.text.validation import checked_pattern

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock

_CHUNK: Final = 2000  # items per transaction: it takes some hundredths of a second, and workers commit in between
_RERUN_CHUNK: Final = 64  # the first transaction of a rerun


async def select_ids(store: AdminStore, row: BatchRow, ids: Iterable[str]) -> ItemSet:
    """Return the items of a batch with the given ids.

    Raises ItemNotFound if one does not exist, ConfigurationError for no ids.
    """
    items = await store.select(row.batch_id, Selection(keys=keys_of(ids)))
    if items.missing:
        raise await item_not_found(store, row, items.missing)
    return items


async def retry(
    store: AdminStore, row: BatchRow, ids: Iterable[str] | None, statuses: Collection[Status], error: str | None,
    progress: Callable[[int], object] | None,
) -> Changed:  # fmt: skip
    """Retry the items that the arguments select; see ``Control.retry``."""
    items = await _select_done(store, row, ids, statuses, error)
    if ids is not None:
        check_retriable(items)
    return await change_items(store, row, items, Change.RETRY, progress)


async def rerun(
    store: AdminStore, row: BatchRow, ids: Iterable[str] | None, statuses: Collection[Status], error: str | None,
    progress: Callable[[int], object] | None, *, dry_run: bool,
) -> Changed:  # fmt: skip
    """Run the items that the arguments select once more, or only count them; see ``Control.rerun``."""
    items = await _select_done(store, row, ids, statuses, error)
    if dry_run:
        pending = items.counts.get(Status.PENDING, 0)
        return Changed(row.name, len(items.numbers) - pending, pending)
    return await change_items(store, row, items, Change.RERUN, progress)


async def _select_done(
    store: AdminStore, row: BatchRow, ids: Iterable[str] | None, statuses: Collection[Status], error: str | None
) -> ItemSet:
    """Return the items with the given ids, or else the items in *statuses*; with *error*, the items that failed with it.

    Raises ItemNotFound if an id does not exist or no item has such an error, ConfigurationError for an invalid argument.
    """
    if ids is not None:
        return await select_ids(store, row, ids)
    pattern = None if error is None else checked_pattern("error", error)
    selection = Selection(statuses if pattern is None else (Status.FAILED,), error=pattern)
    items = await store.select(row.batch_id, selection)
    if pattern is not None and not items.numbers:
        raise no_such_error(row.name, pattern, Status.FAILED)
    return items


async def item_not_found(store: AdminStore, row: BatchRow, missing: Sequence[str]) -> ItemNotFound:
    """Return the error for the ids that are *missing* in a batch; it suggests similar ids and other batches."""
    similar = await store.similar_keys(row.batch_id, missing[0])
    return no_such_item(row.name, missing, similar, await store.batches_with(missing[0]))


async def change_items(
    store: AdminStore, row: BatchRow, items: ItemSet, change: Change, progress: Callable[[int], object] | None
) -> Changed:
    """Change the items; *progress* is called after each transaction with the number of items changed so far."""
    changed = done = 0
    large = LargeChange(_RERUN_CHUNK if change is Change.RERUN else _CHUNK)
    while done < len(items.numbers):
        part = items.part(done, large.step)
        if change is Change.RERUN:  # it rewrites rows with large results
            with large.measured():
                changed += await store.change(part, change)
        else:
            changed += await store.change(part, change)
        done += len(part.numbers)
        if progress is not None:
            progress(changed)
    return Changed(row.name, changed, len(items.numbers) - changed)


# --- recovery ----------------------------------------------------------------------------------------------------------


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
