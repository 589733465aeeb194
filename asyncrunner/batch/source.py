"""Read a source into the store: encode the items and add them in chunks, reading the next chunk while one is added."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sized
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import anyio.lowlevel

from asyncrunner.domain.item import NewItem
from asyncrunner.errors import ConfigurationError, ItemError
from asyncrunner.store.batches import Added
from asyncrunner.submission.encoder import Encoder

if TYPE_CHECKING:
    from asyncrunner.worker.batch_queue import BatchQueue

log = logging.getLogger("asyncrunner")
Items: TypeAlias = "Iterable[Any] | AsyncIterable[Any]"
CHUNK: Final = 1000

CHUNK_BYTES: Final = 8 * 1024 * 1024
"""Number of payload characters at which a chunk ends, so that large payloads do not fill the memory."""

READ_AHEAD: Final = 10_000
"""Number of new items that may be stored and not done before a source of unknown length is read no further."""

_MAX_READ_SECONDS: Final = 0.005  # a synchronous source is read for this long; then other tasks run


class SourceReader:
    """A source reader: reads one source once and adds its items to the store.

    ``new``, ``existing``, ``changed`` and ``undone`` are the sums of the numbers that *add* returned.
    """

    def __init__(
        self,
        items: Items,
        encoder: Encoder,
        add: Callable[[list[NewItem]], Awaitable[Added]],
    ) -> None:
        if isinstance(items, str | bytes) or not isinstance(items, Iterable | AsyncIterable):
            raise ConfigurationError(
                f"items is {type(items).__name__}; give a list, a generator, an async generator or another iterable of items"
            )
        self._items = items
        self._encoder = encoder
        self._add = add
        self._queue: BatchQueue | None = None
        self._buffer: list[NewItem] = []
        self._filled = anyio.Event()
        self._drained = anyio.Event()
        self._exhausted = False
        self._error: BaseException | None = None
        self._position = 0
        self._buffer_size = 0  # characters of payload in the buffer
        self.expected = len(items) if isinstance(items, Sized) else None
        self.new = 0
        self.existing = 0
        self.changed = 0
        self.undone = 0

    async def run(self, queue: BatchQueue | None = None) -> None:
        """Read the source to its end.

        While 10,000 new items of a source of unknown length are stored and not done in *queue*, the reader waits for
        turns of the worker. For a source with a length it only waits until chunks are added. Raises the exceptions of
        *add*, and an exception of the source after the items before it are stored.
        """
        self._queue = queue if self.expected is None else None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read)
                await self._store()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # only _store() raises, so there is one exception
        if self._error is not None:
            raise self._error

    async def _read(self) -> None:
        try:
            if isinstance(self._items, AsyncIterable):
                await self._read_async(self._items)
            else:
                await self._read_sync(self._items)
        except Exception as error:  # noqa: BLE001 - run() raises it after the items before it are stored
            self._error = error
        self._exhausted = True
        self._filled.set()

    async def _read_async(self, items: AsyncIterable[Any]) -> None:
        async for item in items:
            if self._is_full():
                await self._wait_for_room()
            self._append(item)

    async def _read_sync(self, items: Iterable[Any]) -> None:
        yield_at = time.monotonic() + _MAX_READ_SECONDS
        for item in items:
            if self._is_full():
                await self._wait_for_room()
            self._append(item)
            if time.monotonic() >= yield_at:
                await anyio.lowlevel.checkpoint()
                yield_at = time.monotonic() + _MAX_READ_SECONDS

    def _is_full(self) -> bool:
        return len(self._buffer) >= CHUNK or self._buffer_size >= CHUNK_BYTES or (self._queue is not None and self._is_ahead())

    def _is_ahead(self) -> bool:
        queue = self._queue
        return queue is not None and self.new - queue.done >= READ_AHEAD and not queue.exhausted

    async def _wait_for_room(self) -> None:
        while self._is_full():
            if self._queue is not None and self._is_ahead():
                await self._queue.wait_for_turn()
            else:
                self._drained = anyio.Event()
                await self._drained.wait()

    def _append(self, item: object) -> None:
        try:
            entry = self._encoder.entry(item)
        except ItemError as error:
            error.position = self._position
            error.args = (f"item {self._position} of the input: {error.args[0]}", *error.args[1:])
            raise
        self._buffer.append(entry)
        self._buffer_size += len(entry.payload)
        self._position += 1
        if len(self._buffer) == 1:
            self._filled.set()

    async def _store(self) -> None:
        while True:
            await self._filled.wait()
            chunk, self._buffer = self._buffer, []
            self._buffer_size = 0
            self._filled = anyio.Event()
            self._drained.set()
            if chunk:
                added = await self._add(chunk)
                self.new += added.new
                self.existing += added.existing
                self.changed += added.changed
                self.undone += added.undone
            if self._exhausted and not self._buffer:
                return
            if self._exhausted:
                self._filled.set()
