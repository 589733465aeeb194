"""Items that an earlier run left unfinished."""

from __future__ import annotations

import os
from collections.abc import Iterable

from asyncrunner.backends import open_engine
from asyncrunner.domain.item import NewItem
from asyncrunner.store.batches import BatchOptions


async def leave_pending(db: str | os.PathLike[str], numbers: Iterable[int], *, batch: str = "b", handler: str = "m:h") -> None:
    """Add *numbers* to the batch as pending items, as a run does that is killed before it runs them."""
    store = open_engine(os.fspath(db))
    await store.open()
    try:
        opened = await store.open_batch(batch, handler, BatchOptions())
        await store.add(opened.batch_id, [NewItem(str(number), str(number)) for number in numbers], on_change="error")
    finally:
        await store.close()
