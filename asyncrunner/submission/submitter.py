"""Submit items and wait for their results; used by Runner and Client."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final

from asyncrunner.domain.item import TERMINAL
from asyncrunner.errors import ConfigurationError, ItemNotFound, StoreClosed
from asyncrunner.store.items import done_row

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import NewItem, OnChange
    from asyncrunner.events import Settled
    from asyncrunner.store.batches import Added
    from asyncrunner.store.items import ItemRow, Mark
    from asyncrunner.store.protocols import Store


log = logging.getLogger("asyncrunner")

_POLL_SECONDS: Final = 1.0  # waiters read the file at least this often, in case no change was reported


class Desk:
    """Submitter and result waiter of a store: adds items and waits for their results, produced by any process."""

    def __init__(self, clock: Clock, closed_reason: Callable[[], str]) -> None:
        self.clock = clock
        self._store: Store  # set by open()
        self._closed_reason = closed_reason
        self._is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[int, dict[str, list[asyncio.Future[ItemRow]]]] = defaultdict(dict)
        self._watching: asyncio.Task[None] | None = None
        self.on_adding: Callable[[int], object] = _ignore  # called with the batch id once an add was passed to the store
        self.on_added: Callable[[int, Added], object] = _ignore
        self.on_cancelled: Callable[[], Awaitable[object]] | None = None
        self.waiting: Callable[[str, str], AbstractContextManager[object]] = _no_context  # entered around a wait: batch, key
        self.listen: Callable[[], Callable[[], None]] | None = None  # subscribes told(); returns the unsubscribe function

    def open(self, store: Store) -> None:
        """Accept calls from now on, in the running event loop. *store* must be open, and retry its calls."""
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._is_open = True

    async def close(self) -> None:
        """Reject further calls and raise StoreClosed in every waiting one. Call it before the store is closed."""
        self._is_open = False
        self._fail_waiters(StoreClosed(f"{self._closed_reason()}; submitted items stay in the file"))
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None

    def check_open(self) -> None:
        """Raise StoreClosed unless the store is open, ConfigurationError in another event loop than it was opened in."""
        if not self._is_open:
            raise StoreClosed(self._closed_reason())
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                "this event loop is not that of the runner or client; from a thread call "
                "asyncio.run_coroutine_threadsafe(handler.submit(item), loop).result(), or use a BlockingClient"
            )

    async def add(self, batch_id: int, entries: Sequence[NewItem], *, on_change: OnChange) -> Added:
        """Store entries in one transaction, all or none. Raises KeyConflict, StoreClosed."""
        self.check_open()
        adding = self._store.add(batch_id, entries, on_change=on_change)
        self.on_adding(batch_id)
        added = await adding
        self.on_added(batch_id, added)
        return added

    async def row(self, batch: str, batch_id: int, key: str) -> ItemRow:
        """Return the item's current row. Raises ItemNotFound, StoreClosed."""
        self.check_open()
        rows = await self._store.items(batch_id, [key])
        if not rows:
            raise ItemNotFound(f"there is no item {key!r} in {batch!r}; was it purged, or submitted to another file?")
        return rows[0]

    async def cancel(self, batch_id: int, keys: Sequence[str]) -> int:
        """Cancel the items that are not done and return how many there were. Raises StoreClosed."""
        self.check_open()
        cancelled = await self._store.cancel(batch_id, keys)
        if cancelled:
            await self._poll()
            if self.on_cancelled is not None:
                await self.on_cancelled()
        return cancelled

    async def done(self, batch: str, batch_id: int, key: str, timeout: float | None) -> ItemRow:  # noqa: ASYNC109
        """Wait until the item is done and return its row. Raises what ``Handle.result`` raises for a wait."""
        self.check_open()
        future: asyncio.Future[ItemRow] = asyncio.get_running_loop().create_future()
        self._waiting[batch_id].setdefault(key, []).append(future)
        try:
            row = await self.row(batch, batch_id, key)
            if row.status in TERMINAL:
                return row
            with self.waiting(batch, key):
                if self._watching is None or self._watching.done():
                    self._watching = asyncio.create_task(self._watch(), name="asyncrunner desk")
                async with asyncio.timeout(timeout):
                    return await future
        finally:
            future.cancel()
            self._remove_waiter(batch_id, key, future)

    def told(self, settled: Settled) -> None:
        """Resolve the waiters of an item that this process settled."""
        if settled.id in self._waiting.get(settled.claim.batch_id, ()):
            row = done_row(settled.claim, settled.outcome, settled.started_at, settled.finished_at)
            if row is not None:
                self._resolve(settled.claim.batch_id, row)

    async def _watch(self) -> None:
        mark: Mark | None = None
        unsubscribe = _ignore if self.listen is None else self.listen()
        try:
            while self._waiting:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        mark = await self._store.wait_for_change(mark)
                await self._poll()
        except Exception as error:  # noqa: BLE001 - raised to every waiter
            self._fail_waiters(error)
        finally:
            unsubscribe()

    async def _poll(self) -> None:
        for batch_id, waiting in list(self._waiting.items()):
            keys = [key for key, futures in waiting.items() if not all(future.done() for future in futures)]
            for row in await self._store.items(batch_id, keys):
                if row.status in TERMINAL:
                    self._resolve(batch_id, row)

    def _resolve(self, batch_id: int, row: ItemRow) -> None:
        for future in self._waiting.get(batch_id, {}).get(row.id, ()):
            if not future.done():
                future.set_result(row)

    def _remove_waiter(self, batch_id: int, key: str, future: asyncio.Future[ItemRow]) -> None:
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
                        future.exception()  # marks it as retrieved: the waiter may have been cancelled


def _ignore(*_: Any) -> None:
    pass


def _no_context(*_: Any) -> AbstractContextManager[object]:
    return nullcontext()
