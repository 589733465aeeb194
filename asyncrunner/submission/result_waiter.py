"""Wait until items are done, in this or another process."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Final

from asyncrunner.domain.item import TERMINAL, Status
from asyncrunner.errors import ItemNotFound
from asyncrunner.store.items import done_row
from asyncrunner.submission.store_access import enclosing_worker

if TYPE_CHECKING:
    from asyncrunner.events import Settled
    from asyncrunner.store.items import ItemRow, Mark
    from asyncrunner.submission.store_access import LocalWorker, OpenStore, StoreAccess

log = logging.getLogger("asyncrunner")

_POLL_SECONDS: Final = 1.0  # the waiter reads the store at least this often, in case no change was reported

_MIN_READ_SECONDS: Final = 1.0  # for the first read, so that also a timeout of 0 returns the result of an item that is done


class ResultWaiter:
    """A waiter for items to be done.

    The worker of this process reports the items that it settles; a change of the store reports those of other
    processes.
    """

    def __init__(self, access: StoreAccess) -> None:
        self._access = access
        self._waiting: dict[int, dict[str, list[asyncio.Future[ItemRow | None]]]] = defaultdict(dict)
        self._watching: asyncio.Task[None] | None = None

    async def close(self, error: Exception) -> None:
        """Raise *error* in every waiting call. The caller closes the store only afterwards."""
        self._fail_waiters(error)
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None

    def forget(self) -> None:
        """Forget the waiting calls of an event loop that was closed."""
        self._waiting.clear()
        self._watching = None

    async def row(self, batch: str, batch_id: int, key: str) -> ItemRow:
        """Return the item's current row. Raises ItemNotFound, StoreClosed."""
        opened = self._access.get()
        rows = await opened.store.items(batch_id, [key])
        if not rows:
            raise ItemNotFound(f"there is no item {key!r} in {batch!r}; was it purged, or submitted to another location (db=)?")
        return rows[0]

    async def done(self, batch: str, batch_id: int, key: str, timeout: float | None) -> ItemRow:  # noqa: ASYNC109
        """Wait until the item is done and return its row.

        The first read of the store may take 1 second of its own if *timeout* is shorter. Raises ItemNotFound, also if the
        item is deleted during the wait, StoreClosed, TimeoutError, and ConfigurationError for a wait that could never end.
        """
        opened = self._access.get()
        loop = asyncio.get_running_loop()
        began = loop.time()
        future: asyncio.Future[ItemRow | None] = loop.create_future()
        self._waiting[batch_id].setdefault(key, []).append(future)
        try:
            async with asyncio.timeout(None if timeout is None else max(timeout, _MIN_READ_SECONDS)):
                row = await self.row(batch, batch_id, key)
            if row.status in TERMINAL:
                return row
            worker = opened.worker or _worker_of_caller(opened)
            is_running = row.status is Status.PROCESSING
            waiting: AbstractContextManager[object] = (
                nullcontext() if worker is None else worker.waiting(batch, key, is_running=is_running)
            )
            with waiting:
                if self._watching is None or self._watching.done():
                    self._watching = asyncio.create_task(self._watch(opened), name="asyncrunner result waiter")
                async with asyncio.timeout_at(None if timeout is None else began + timeout):
                    done = await future
            if done is None:
                raise ItemNotFound(
                    f"item {key!r} of {batch!r} was deleted during the wait for its result, by a purge, by a retention or by hand"
                )
            return done
        finally:
            future.cancel()
            self._remove_waiter(batch_id, key, future)

    async def look_for_done(self) -> None:
        """Read the items for which calls wait, and resolve the calls whose item is done or deleted."""
        await self._read(self._access.get())

    def _settle(self, settled: Settled) -> None:
        """Resolve the calls that wait for the settled item."""
        if settled.id in self._waiting.get(settled.claim.batch_id, ()):
            row = done_row(settled.claim, settled.outcome, settled.started_at, settled.finished_at)
            if row is not None:
                self._resolve(settled.claim.batch_id, row.id, row)

    async def _watch(self, opened: OpenStore) -> None:
        mark: Mark | None = None
        unsubscribe = None if opened.worker is None else opened.worker.on_settled(self._settle)
        try:
            while self._waiting:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        mark = await opened.store.wait_for_change(mark)
                await self._read(opened)
        except Exception as error:  # noqa: BLE001 - raised in every waiting call
            self._fail_waiters(error)
        finally:
            if unsubscribe is not None:
                unsubscribe()

    async def _read(self, opened: OpenStore) -> None:
        for batch_id, waiting in list(self._waiting.items()):
            keys = [key for key, futures in waiting.items() if not all(future.done() for future in futures)]
            deleted = set(keys)
            for row in await opened.store.items(batch_id, keys):
                deleted.discard(row.id)
                if row.status in TERMINAL:
                    self._resolve(batch_id, row.id, row)
            for key in deleted:
                self._resolve(batch_id, key, None)

    def _resolve(self, batch_id: int, key: str, row: ItemRow | None) -> None:
        for future in self._waiting.get(batch_id, {}).get(key, ()):
            if not future.done():
                future.set_result(row)

    def _remove_waiter(self, batch_id: int, key: str, future: asyncio.Future[ItemRow | None]) -> None:
        waiting = self._waiting.get(batch_id, {})
        futures = waiting.get(key, [])
        if future in futures:
            futures.remove(future)
        if not futures:
            waiting.pop(key, None)
        if not waiting:
            self._waiting.pop(batch_id, None)

    def _fail_waiters(self, error: Exception) -> None:
        for waiting in list(self._waiting.values()):
            for futures in list(waiting.values()):
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                        future.exception()  # marks the exception as retrieved: the waiting call may be cancelled


def _worker_of_caller(opened: OpenStore) -> LocalWorker | None:
    """Return the worker whose handler waits through a Client of the same store, or None."""
    enclosing = enclosing_worker.get()
    return enclosing.worker if enclosing is not None and enclosing.has_store_at(opened.store.location) else None
