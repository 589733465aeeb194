"""Read a source into the store: read, encode, and add items in chunks, reading the next chunk while one is added."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sized
from typing import Any, Final, TypeAlias, cast

import anyio
import anyio.lowlevel

from asyncrunner.codec import Codec, default_key, given_key, shown
from asyncrunner.errors import ConfigurationError, InvalidKey, ItemError
from asyncrunner.item import Entry
from asyncrunner.store import Added

__all__ = ["Encoder", "Ingest", "Items"]

log = logging.getLogger("asyncrunner")

Items: TypeAlias = "Iterable[Any] | AsyncIterable[Any]"

CHUNK: Final = 1000
CHUNK_BYTES: Final = 8 * 1024 * 1024
"""Characters of payload at which a chunk ends, so that large payloads do not make memory grow."""
READ_AHEAD: Final = 10_000
"""How many items of a source of unknown length may be stored ahead of those that are done."""

_MAX_READ_SECONDS: Final = 0.005  # how long a synchronous source is read before other tasks get to run


class Encoder:
    """Converts items to entries. ``key``: a function of the item, the name of one of its fields, or None for the default."""

    def __init__(self, codec: Codec[Any], key: Callable[[Any], str | int] | str | None) -> None:
        self._codec = codec
        self._key = _field_getter(key) if isinstance(key, str) else key

    def entry(self, item: object, *, key: object = None, priority: int = 0, due_at: float | None = None) -> Entry:
        """Return the item as an entry. Raises ItemNotStorable or InvalidKey, which name the item."""
        payload = self._codec.encode_item(item)
        if key is None and self._key is not None:
            key = self._key(item)
            if key is None:
                raise InvalidKey(f"the key of item {shown(item)} is None; give a str or an int")
        return Entry(default_key(item, payload) if key is None else given_key(key, item), payload, priority, due_at)


class Ingest:
    """A source reader: reads one source once and adds its items to the store.

    ``new``, ``existing``, ``changed`` and ``undone`` are sums of what each *add* returned. *may_read* gets ``new`` and returns
    whether more may be read from a source of unknown length; ``progressed()`` makes the reader check it again. Neither limits
    a source with a length, which only waits for its chunks to be added.
    """

    def __init__(
        self,
        items: Items,
        encoder: Encoder,
        add: Callable[[list[Entry]], Awaitable[Added]],
        *,
        may_read: Callable[[int], bool],
    ) -> None:
        if isinstance(items, str | bytes) or not isinstance(items, Iterable | AsyncIterable):
            raise ConfigurationError(
                f"items is {type(items).__name__}; give a list, a generator, an async generator or another iterable of items"
            )
        self._items = items
        self._encoder = encoder
        self._add = add
        self._may_read = may_read
        self._sized = isinstance(items, Sized)
        self._buffer: list[Entry] = []
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

    async def run(self) -> None:
        """Read to the end. Raises what *add* raises, and an exception of the source after the items before it are stored."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read)
                await self._store()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # only _store() raises
        if self._error is not None:
            raise self._error

    def progressed(self) -> None:
        """Report that items were done, so that there may be room to read more."""
        self._drained.set()

    async def _read(self) -> None:
        try:
            if isinstance(self._items, AsyncIterable):
                await self._read_async(self._items)
            else:
                await self._read_sync(self._items)
        except Exception as error:  # noqa: BLE001 - run() raises it, once the items before it are stored
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
        return len(self._buffer) >= CHUNK or self._buffer_size >= CHUNK_BYTES or not (self._sized or self._may_read(self.new))

    async def _wait_for_room(self) -> None:
        while self._is_full():
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


def _field_getter(name: str) -> Callable[[Any], Any]:
    def get(item: Any) -> Any:
        try:
            return cast("dict[str, Any]", item)[name] if isinstance(item, dict) else getattr(item, name)
        except (KeyError, AttributeError) as error:
            raise InvalidKey(f"item {shown(cast('object', item))} has no field {name!r}, which key= names") from error

    return get
