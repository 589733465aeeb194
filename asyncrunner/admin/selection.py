"""Select the items that an operator names, and change them in short transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from asyncrunner.admin.arguments import keys_of
from asyncrunner.admin.item_details import no_such_item
from asyncrunner.admin.read_models import Changed
from asyncrunner.errors import ItemNotFound
from asyncrunner.store.admin_protocol import AdminStore, Change, ItemSet, Selection
from asyncrunner.store.snapshot import BatchRow

_CHUNK: Final = 2000  # items per transaction: it takes some hundredths of a second, and workers commit in between


async def select_ids(store: AdminStore, row: BatchRow, ids: Iterable[str]) -> ItemSet:
    """Return the items of a batch with the given ids.

    Raises ItemNotFound if one does not exist, ConfigurationError for no ids.
    """
    items = await store.select(row.batch_id, Selection(keys=keys_of(ids)))
    if items.missing:
        raise await item_not_found(store, row, items.missing)
    return items


async def item_not_found(store: AdminStore, row: BatchRow, missing: Sequence[str]) -> ItemNotFound:
    """Return the error for the ids that are *missing* in a batch; it suggests similar ids and other batches."""
    similar = await store.similar_keys(row.batch_id, missing[0])
    return no_such_item(row.name, missing, similar, await store.batches_with(missing[0]))


async def change_items(
    store: AdminStore, row: BatchRow, items: ItemSet, change: Change, progress: Callable[[int], object] | None
) -> Changed:
    """Change the items; *progress* is called after each transaction with the number of items changed so far."""
    changed = 0
    for part in items.parts(_CHUNK):
        changed += await store.change(part, change)
        if progress is not None:
            progress(changed)
    return Changed(row.name, changed, len(items.numbers) - changed)
