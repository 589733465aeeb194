"""Change items for an operator: select those that are named, change them in short transactions, recover those of lost workers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from asyncrunner.admin.inspection.item_details import check_retriable, no_such_error
from asyncrunner.admin.inspection.named_items import select_ids
from asyncrunner.admin.opened_file import Reporter
from asyncrunner.admin.read_models import Changed, Progress
from asyncrunner.domain.item import Status
from asyncrunner.store.admin_protocol import AdminStore, Change, ItemSet, Selection
from asyncrunner.store.batches import LargeChange
from asyncrunner.store.snapshot import BatchRow
from asyncrunner.text.validation import checked_pattern

_CHUNK: Final = 2000  # items per transaction: it takes some hundredths of a second, and workers commit in between
_RERUN_CHUNK: Final = 64  # the first transaction of a rerun


async def retry(
    store: AdminStore, row: BatchRow, ids: Iterable[str] | None, statuses: Collection[Status], error: str | None,
    report: Reporter,
) -> Changed:  # fmt: skip
    """Retry the items that the arguments select; see ``Control.retry``."""
    items = await _select_done(store, row, ids, statuses, error)
    if ids is not None:
        check_retriable(items)
    return await change_items(store, row, items, Change.RETRY, report)


async def rerun(
    store: AdminStore, row: BatchRow, ids: Iterable[str] | None, statuses: Collection[Status], error: str | None,
    report: Reporter, *, dry_run: bool,
) -> Changed:  # fmt: skip
    """Run the items that the arguments select once more, or only count them; see ``Control.rerun``."""
    items = await _select_done(store, row, ids, statuses, error)
    if dry_run:
        pending = items.counts.get(Status.PENDING, 0)
        return Changed(row.name, len(items.numbers) - pending, pending)
    return await change_items(store, row, items, Change.RERUN, report)


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


async def change_items(store: AdminStore, row: BatchRow, items: ItemSet, change: Change, report: Reporter) -> Changed:
    """Change the items; *report* is called after each transaction."""
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
        report(changed, Progress(done, len(items.numbers)))
    return Changed(row.name, changed, len(items.numbers) - changed)
