"""Submit and cancel items; used by Runner and Client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncrunner.submission.result_waiter import ResultWaiter
from asyncrunner.submission.store_access import OpenStore, StoreAccess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import NewItem, OnKnownKey
    from asyncrunner.store.batches import Added


class ItemSubmitter:
    """A submitter of items: adds them to the store of a runner or a client, and cancels them.

    ``results`` waits for items.
    """

    def __init__(self, clock: Clock, closed_reason: Callable[[], str]) -> None:
        self.access = StoreAccess(clock, closed_reason)
        self.results = ResultWaiter(self.access)

    def open(self, opened: OpenStore) -> None:
        """Accept calls from now on, in the running event loop."""
        self.access.open(opened)

    async def close(self) -> None:
        """Reject further calls and raise StoreClosed in every waiting call.

        The caller closes the store only afterwards.
        """
        await self.results.close(self.access.close())

    def batch_id(self, batch: str) -> int:
        """Return the id of the batch of a handler. Raises StoreClosed if the runner is not started."""
        return self.access.get().batch_ids[batch]

    async def add(self, batch_id: int, entries: Sequence[NewItem], *, on_change: OnKnownKey) -> Added:
        """Store *entries* in one transaction, all or none. Raises KeyConflict, StoreClosed."""
        opened = self.access.get()
        worker = opened.worker
        adding = opened.store.add(batch_id, entries, on_change=on_change)
        if worker is None:
            return await adding
        worker.begin_add(batch_id)
        added = await adding
        worker.end_add(batch_id, added)
        return added

    async def cancel(self, batch_id: int, keys: Sequence[str]) -> int:
        """Cancel those items of *keys* that are not done; return their number. Raises StoreClosed."""
        opened = self.access.get()
        cancelled = await opened.store.cancel(batch_id, keys)
        if cancelled:
            await self.results.look_for_done()
            if opened.worker is not None:
                await opened.worker.look_for_cancelled()
        return cancelled
