"""Submit and cancel items; used by Runner and Client."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from asyncrunner.store.copying.incomplete import check_complete
from asyncrunner.submission.result_waiter import ResultWaiter
from asyncrunner.submission.store_access import OpenStore, StoreAccess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import NewItem, OnKnownKey
    from asyncrunner.store.batches import Added
    from asyncrunner.store.turn import ClaimRequest
    from asyncrunner.submission.store_access import LocalWorker

SurroundSubmit: TypeAlias = "Callable[[str, Sequence[NewItem]], AbstractContextManager[Sequence[NewItem]]]"


class ItemSubmitter:
    """A submitter of items: adds them to the store of a runner or a client, and cancels them.

    ``results`` waits for items. ``surround``: a function that returns a context manager around the submit of items to a
    batch; its value are the items to submit. None: no such function.
    """

    def __init__(self, clock: Clock, closed_reason: Callable[[], str]) -> None:
        self.access = StoreAccess(clock, closed_reason)
        self.results = ResultWaiter(self.access)
        self.surround: SurroundSubmit | None = None

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
        if self.surround is None:
            return await self._add(batch_id, entries, on_change)
        batches = self.access.get().batch_ids
        with self.surround(next((name for name, each in batches.items() if each == batch_id), ""), entries) as surrounded:
            return await self._add(batch_id, surrounded, on_change)

    async def _add(self, batch_id: int, entries: Sequence[NewItem], on_change: OnKnownKey) -> Added:
        opened = self.access.get()
        worker = opened.worker
        if worker is None:
            return await opened.store.add(batch_id, entries, on_change=on_change)
        request = worker.begin_add(batch_id)
        adding = asyncio.ensure_future(opened.store.add(batch_id, entries, on_change=on_change, request=request))
        # The worker gets the claims also if the caller is cancelled.
        adding.add_done_callback(partial(_end_add, worker, batch_id, request))
        return await asyncio.shield(adding)

    def surrounded(self, batch: str, entries: Sequence[NewItem]) -> AbstractContextManager[Sequence[NewItem]]:
        """Return the context manager around a submit that does not use ``add()``; its value are the items to submit."""
        return nullcontext(entries) if self.surround is None else self.surround(batch, entries)

    async def cancel(self, batch: str, batch_id: int, keys: Sequence[str]) -> int:
        """Cancel those items of *keys* that are not done; return their number.

        Raises StoreClosed, and ConfigurationError if the copy of the batch is not complete, which would then not succeed.
        """
        opened = self.access.get()
        await check_complete(opened.store, [batch])
        cancelled = await opened.store.cancel(batch_id, keys)
        if cancelled:
            await self.results.look_for_done()
            if opened.worker is not None:
                await opened.worker.look_for_cancelled()
        return cancelled


def _end_add(worker: LocalWorker, batch_id: int, request: ClaimRequest | None, adding: asyncio.Future[Added]) -> None:
    failed = adding.cancelled() or adding.exception() is not None
    worker.end_add(batch_id, request, None if failed else adding.result())
