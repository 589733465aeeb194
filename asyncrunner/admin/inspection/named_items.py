"""Find the items that an operator names by their ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asyncrunner.admin.arguments import keys_of
from asyncrunner.admin.inspection.item_details import no_such_item
from asyncrunner.errors import ItemNotFound
from asyncrunner.store.admin_protocol import InspectionStore, ItemSet, Selection
from asyncrunner.store.snapshot import BatchRow


async def select_ids(store: InspectionStore, row: BatchRow, ids: Iterable[str]) -> ItemSet:
    """Return the items of a batch with the given ids.

    Raises ItemNotFound if one does not exist, ConfigurationError for no ids.
    """
    items = await store.select(row.batch_id, Selection(keys=keys_of(ids)))
    if items.missing:
        raise await item_not_found(store, row, items.missing)
    return items


async def item_not_found(store: InspectionStore, row: BatchRow, missing: Sequence[str]) -> ItemNotFound:
    """Return the error for the ids that are *missing* in a batch; it suggests similar ids and other batches."""
    similar = await store.similar_keys(row.batch_id, missing[0])
    return no_such_item(row.name, missing, similar, await store.batches_with(missing[0]))
