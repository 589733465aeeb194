"""Give the calls of a runner's or a client's user access to the open store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, Protocol

from asyncrunner.backends import MEMORY, full_location, shown_location
from asyncrunner.errors import ConfigurationError, StoreClosed
from asyncrunner.execution.attempt import current_execution

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from asyncrunner.events import Settled
    from asyncrunner.store.batches import Added
    from asyncrunner.store.protocols import Store
    from asyncrunner.store.turn import ClaimRequest


class LocalWorker(Protocol):
    """The methods of this process's worker that submitting items and waiting for results use."""

    def begin_add(self, batch_id: int) -> ClaimRequest | None:
        """Notify the worker that an add to the batch begins; return its request to claim the new items, if it has one."""
        ...

    def end_add(self, batch_id: int, request: ClaimRequest | None, added: Added | None) -> None:
        """Notify the worker that an add to the batch has ended; *added* is None if it failed or was cancelled."""
        ...

    async def look_for_cancelled(self) -> None:
        """Cancel the handlers whose items were cancelled in the store."""
        ...

    def waiting(self, batch: str, key: str, *, is_running: bool) -> AbstractContextManager[object]:
        """Return a context manager for a wait for an item; *is_running*: according to the store, a worker runs the item.

        It raises ConfigurationError for a wait that could never end.
        """
        ...

    def on_settled(self, observe: Callable[[Settled], object]) -> Callable[[], None]:
        """Call *observe* with each Settled event of this worker; return the function that unsubscribes *observe*."""
        ...


class EnclosingWorker(NamedTuple):
    """The worker whose handler makes the current call, and the *location* of the worker's store.

    ``batch``: the batch of the handler that started this worker, for example with ``run_batch``; None if no handler did.
    ``outer``: the worker of that handler.
    """

    location: str
    worker: LocalWorker
    batch: str | None
    outer: EnclosingWorker | None

    def has_store_at(self, location: str) -> bool:
        """Return whether the worker's store is at *location*; False for memory, because each store in memory is another one."""
        return location != MEMORY and shown_location(full_location(location)) == self.location


enclosing_worker: ContextVar[EnclosingWorker | None] = ContextVar("asyncrunner_enclosing_worker", default=None)


def is_within_batch(location: str, batch: str) -> bool:
    """Return whether the caller is in a handler of *batch*, in the store at *location*, or in a run that one started."""
    execution = current_execution.get(None)
    current, worker = None if execution is None else execution.batch, enclosing_worker.get()
    while worker is not None and current is not None:
        if current == batch and worker.has_store_at(location):
            return True
        current, worker = worker.batch, worker.outer
    return False


class OpenStore(NamedTuple):
    """An open store that retries its calls, its clock, the ids of batches by name, and this process's worker or None."""

    store: Store
    clock: Clock
    batch_ids: MutableMapping[str, int]
    worker: LocalWorker | None


class StoreAccess:
    """The access of a user's calls to the open store.

    It rejects calls while the store is closed, and calls from another event loop.
    """

    def __init__(self, clock: Clock, closed_reason: Callable[[], str]) -> None:
        self._clock = clock
        self._closed_reason = closed_reason
        self._opened: OpenStore | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def clock(self) -> Clock:
        """The clock from which due times are computed: of the open store, otherwise of the closed runner or client."""
        return self._clock if self._opened is None else self._opened.clock

    def open(self, opened: OpenStore) -> None:
        """Accept calls from now on, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._opened = opened

    def close(self) -> StoreClosed:
        """Reject calls from now on; return the exception for calls in progress."""
        self._opened = None
        return StoreClosed(f"{self._closed_reason()}; submitted items stay stored")

    def get(self) -> OpenStore:
        """Return the open store. Raises StoreClosed; ConfigurationError if another event loop opened the store."""
        if self._opened is None:
            raise StoreClosed(self._closed_reason())
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                "this event loop is not that of the runner or client; from a thread call "
                "asyncio.run_coroutine_threadsafe(handler.submit(item), loop).result(), or use a BlockingClient"
            )
        return self._opened
