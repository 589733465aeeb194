"""Read the items of an export page by page, each page in a short transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import TYPE_CHECKING, Final

from asyncrunner.admin.read_models import Progress

if TYPE_CHECKING:
    from asyncrunner.admin.opened_file import OnProgress
    from asyncrunner.domain.item import Status
    from asyncrunner.store.admin_protocol import InspectionStore, ItemSet
    from asyncrunner.store.snapshot import BatchRow, ItemRecord

_PAGE: Final = 1000  # items


async def all_pages(
    store: InspectionStore, row: BatchRow, statuses: Collection[Status] | None, on_progress: OnProgress | None
) -> AsyncIterator[Sequence[ItemRecord]]:
    """Yield the items of a batch, or those in *statuses*, in input order."""
    total = done = 0
    if on_progress is not None:
        counts = (await store.snapshot([row.batch_id])).batches[0].counts
        total = counts.total if statuses is None else sum(getattr(counts, status.value) for status in statuses)
    cursor = None
    while True:
        page = await store.export_page(row.batch_id, statuses, cursor)
        if page.rows:
            yield page.rows
            done += len(page.rows)
            if on_progress is not None:  # items may be added meanwhile
                on_progress(Progress(done, max(done, total)))
        cursor = page.next
        if cursor is None:
            return


async def selected_pages(
    store: InspectionStore, row: BatchRow, items: ItemSet, on_progress: OnProgress | None
) -> AsyncIterator[Sequence[ItemRecord]]:
    """Yield the items of the set, in its order, without those that were deleted or left the selected states."""
    total = len(items.numbers)
    for first in range(0, total, _PAGE):
        page = await store.export_selected(row.batch_id, items.part(first, _PAGE))
        if page:
            yield page
        if on_progress is not None:
            on_progress(Progress(min(first + _PAGE, total), total))
