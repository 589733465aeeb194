"""The open store of a runner or a client, as the calls of its user use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from asyncrunner.errors import ConfigurationError, StoreClosed

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from asyncrunner.events import Settled
    from asyncrunner.store.batches import Added
    from asyncrunner.store.protocols import Store


class LocalWorker(Protocol):
    """The worker of this process, as far as the submission of items and the wait for results involve it."""

    def begin_add(self, batch_id: int) -> None:
        """Note that an add to the batch was passed to the store and is not committed yet."""
        ...

    def end_add(self, batch_id: int, added: Added) -> None:
        """Note that an add to the batch is committed."""
        ...

    async def look_for_cancelled(self) -> None:
        """Cancel the handlers whose items were cancelled in the store."""
        ...

    def waiting(self, batch: str, key: str) -> AbstractContextManager[object]:
        """Return a context manager around a wait for an item. Entering it raises ConfigurationError for a wait without end."""
        ...

    def on_settled(self, observe: Callable[[Settled], object]) -> Callable[[], None]:
        """Call *observe* with each item that this process settles; return the function that ends this."""
        ...


class OpenStore(NamedTuple):
    """An open store that retries its calls, its batches by name, and the worker of this process, if there is one."""

    store: Store
    batch_ids: MutableMapping[str, int]
    worker: LocalWorker | None


class StoreAccess:
    """Gives the calls of a user the open store, and refuses calls while it is closed or from another event loop."""

    def __init__(self, clock: Clock, closed_reason: Callable[[], str]) -> None:
        self.clock = clock
        self._closed_reason = closed_reason
        self._opened: OpenStore | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self, opened: OpenStore) -> None:
        """Accept calls from now on, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._opened = opened

    def close(self) -> StoreClosed:
        """Refuse calls from now on; return the error for calls in progress."""
        self._opened = None
        return StoreClosed(f"{self._closed_reason()}; submitted items stay in the file")

    def get(self) -> OpenStore:
        """Return the open store. Raises StoreClosed; ConfigurationError in another event loop than it was opened in."""
        if self._opened is None:
            raise StoreClosed(self._closed_reason())
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                "this event loop is not that of the runner or client; from a thread call "
                "asyncio.run_coroutine_threadsafe(handler.submit(item), loop).result(), or use a BlockingClient"
            )
        return self._opened

    def use_clock(self, clock: Clock) -> None:
        """Replace the clock, which tells when a delayed item is due; for tests, while the store is closed."""
        self.clock = clock
