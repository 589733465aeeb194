"""Submit items and wait for their results; used by Runner and Client."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from asyncrunner.errors import ConfigurationError, ItemCancelled, ItemFailed, ItemNotFound, StoreClosed
from asyncrunner.item import TERMINAL, Status
from asyncrunner.store import done_row
from asyncrunner.transient import Persistence

if TYPE_CHECKING:
    from asyncrunner.clock import Clock
    from asyncrunner.codec import Codec
    from asyncrunner.events import Settled
    from asyncrunner.item import Entry, OnChange
    from asyncrunner.store import Added, ItemRow, Store

__all__ = ["Desk", "Handle", "checked_priority", "due_at"]

log = logging.getLogger("asyncrunner")

R = TypeVar("R")

_POLL_SECONDS: Final = 1.0  # waiters read the file at least this often, in case no change was reported
_MAX_PRIORITY: Final = 2**31


def due_at(delay: float | None, run_at: datetime | None, clock: Clock) -> float | None:
    """Return when an item may run, in seconds since the epoch; None means immediately.

    *delay* is in seconds. Raises ConfigurationError if both are given, for a delay that is negative or not finite, and for a
    *run_at* that is not a datetime or has no time zone.
    """
    if delay is not None and run_at is not None:
        raise ConfigurationError("give delay= or run_at=, not both")
    if run_at is not None:
        if not isinstance(run_at, datetime):
            raise ConfigurationError(f"run_at={run_at!r}: give a datetime with a time zone, or delay= in seconds")
        if run_at.tzinfo is None or run_at.utcoffset() is None:
            raise ConfigurationError(f"run_at={run_at!r} has no time zone; use datetime.now(UTC) or a datetime with a tzinfo")
        return run_at.timestamp()
    if delay is None:
        return None
    if not isinstance(delay, int | float) or isinstance(delay, bool) or not 0 <= delay < float("inf"):
        raise ConfigurationError(f"delay={delay!r}: give seconds, 0 or more")
    return clock.now() + delay if delay else None


def checked_priority(priority: int) -> int:
    """Return *priority*. Raises ConfigurationError unless it is a whole number within +-2,147,483,647."""
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) >= _MAX_PRIORITY:
        raise ConfigurationError(
            f"priority={priority!r}: give a whole number within +-2,147,483,647; higher runs first, the default is 0"
        )
    return priority


class Handle(Generic[R]):
    """A reference to a submitted item, to await, inspect or cancel it.

    Handles with the same batch and key are equal. ``handler.handle(key)`` returns one for an item submitted earlier.
    """

    __slots__ = ("_batch_id", "_desk", "_results", "batch", "key")

    def __init__(self, desk: Desk, batch: str, batch_id: int, key: str, results: Codec[R]) -> None:
        self.batch = batch
        self.key = key
        self._desk = desk
        self._batch_id = batch_id
        self._results = results

    def __repr__(self) -> str:
        return f"<Handle of {self.key!r} in {self.batch!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and (self.batch, self.key) == (other.batch, other.key)

    def __hash__(self) -> int:
        return hash((self.batch, self.key))

    async def status(self) -> Status:
        """Return the item's current status. Raises ItemNotFound if its row was deleted, StoreClosed."""
        return (await self._desk.row(self.batch, self._batch_id, self.key)).status

    async def result(self, timeout: float | None = None) -> R:  # noqa: ASYNC109 - as of every future's result()
        """Wait until the item is done, in this or another process, and return its handler's result.

        ``timeout``: seconds to wait, after which TimeoutError is raised; None waits without limit, 0 only returns the result
        of an item that is already done. Neither a timeout nor cancelling the caller affects the item. If the process that
        runs the item crashes, the wait continues until another worker has settled the item.

        Raises ItemFailed with the stored error; ItemCancelled; ItemNotFound if there is no such item when the call begins;
        StoreClosed if the runner or client is stopped during the wait; ConfigurationError in a handler when the item could
        never start because waiting handlers hold every slot that could run it.
        """
        if timeout is not None and not (isinstance(timeout, int | float) and 0 <= timeout < float("inf")):
            raise ConfigurationError(f"timeout={timeout!r}: give seconds, 0 or more, or None to wait without limit")
        try:
            row = await self._desk.done(self.batch, self._batch_id, self.key, timeout)
        except TimeoutError:
            message = f"item {self.key!r} of {self.batch!r} is not done after {timeout:g} s; it is not cancelled"
            raise TimeoutError(message) from None
        if row.status is Status.FAILED:
            error = row.error or "(no error is stored)"
            raise ItemFailed(
                f"item {self.key!r} of {self.batch!r} failed in attempt {row.attempts}: {error}",
                batch=self.batch, key=self.key, error=error, attempts=row.attempts,
            )  # fmt: skip
        if row.status is Status.CANCELLED:
            raise ItemCancelled(f"item {self.key!r} of {self.batch!r} was cancelled", batch=self.batch, key=self.key)
        return self._results.decode_result("null" if row.result is None else row.result)

    async def cancel(self) -> bool:
        """Cancel the item, pending or running, and return True; return False if it is already done or does not exist.

        A running handler is cancelled within a second, in any process, and its outcome is discarded. The cancellation is
        stored when this returns.
        """
        return await self._desk.cancel(self._batch_id, [self.key]) > 0


class Desk:
    """Submitter and result waiter of a store: adds items and waits for their results, produced by any process."""

    def __init__(self, store: Store, clock: Clock, closed_reason: Callable[[], str]) -> None:
        self.clock = clock
        self._store = store
        self._persist = Persistence(clock)
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

    def open(self, persist: Persistence) -> None:
        """Accept calls from now on, in the running event loop. *persist* retries store calls. The store must be open."""
        self._persist = persist
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

    async def add(self, batch_id: int, entries: Sequence[Entry], *, on_change: OnChange) -> Added:
        """Store entries in one transaction, all or none. Raises KeyConflict, StoreClosed."""
        self.check_open()
        adding = self._persist(lambda: self._store.add(batch_id, entries, on_change=on_change, now=self.clock.now()))
        self.on_adding(batch_id)
        added = await adding
        self.on_added(batch_id, added)
        return added

    async def row(self, batch: str, batch_id: int, key: str) -> ItemRow:
        """Return the item's current row. Raises ItemNotFound, StoreClosed."""
        self.check_open()
        rows = await self._persist(lambda: self._store.items(batch_id, [key]))
        if not rows:
            raise ItemNotFound(f"there is no item {key!r} in {batch!r}; was it purged, or submitted to another file?")
        return rows[0]

    async def cancel(self, batch_id: int, keys: Sequence[str]) -> int:
        """Cancel the items that are not done and return how many there were. Raises StoreClosed."""
        self.check_open()
        cancelled = await self._persist(lambda: self._store.cancel(batch_id, keys, now=self.clock.now()))
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
        mark: int | None = None
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
            for row in await self._persist(lambda: self._store.items(batch_id, keys)):  # noqa: B023 - awaited here
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
