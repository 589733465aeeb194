"""From the source into the store: read, encode, and add in chunks while the next chunk is being read."""

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
READ_AHEAD: Final = 10_000
"""How many items of a source of unknown length are stored ahead of the ones that are done."""

_LOOP_SECONDS: Final = 0.005  # how long a source that never waits may be read before the loop goes round


class Encoder:
    """Items to entries. ``key``: a function of the item, the name of a field of it, or None for the default."""

    def __init__(self, codec: Codec[Any], key: Callable[[Any], str | int] | str | None) -> None:
        self._codec = codec
        self._key = _field_getter(key) if isinstance(key, str) else key

    def entry(self, item: object, *, key: object = None, priority: int = 0, due_at: float | None = None) -> Entry:
        """Raises ItemNotStorable or InvalidKey, naming the item."""
        payload = self._codec.encode_item(item)
        if key is None and self._key is not None:
            key = self._key(item)
            if key is None:
                raise InvalidKey(f"the key of item {shown(item)} is None; give a str or an int")
        return Entry(default_key(item, payload) if key is None else given_key(key, item), payload, priority, due_at)


class Ingest:
    """One reading of one source. ``new`` and ``existing`` count what the store said of it.

    ``may_read`` tells whether more may be read of a source of unknown length; ``progressed`` is set when that may
    have changed.
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
                f"items is {type(items).__name__}; give a list, a generator, an async generator or any iterable of items"
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
        self.expected = len(items) if isinstance(items, Sized) else None
        self.new = 0
        self.existing = 0
        self.changed = 0
        self.undone = 0

    async def run(self) -> None:
        """Read to the end. An error of the source is raised after what was read before it is stored."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read)
                await self._store()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # only _store() raises
        if self._error is not None:
            raise self._error

    def progressed(self) -> None:
        """Items were done: there may be room to read on."""
        self._drained.set()

    async def _read(self) -> None:
        try:
            if isinstance(self._items, AsyncIterable):
                await self._read_async(self._items)
            else:
                await self._read_sync(self._items)
        except Exception as error:  # noqa: BLE001 - raised by run(), once what came before it is stored
            self._error = error
        self._exhausted = True
        self._filled.set()

    async def _read_async(self, items: AsyncIterable[Any]) -> None:
        async for item in items:
            if self._is_full():
                await self._wait_for_room()
            self._take(item)

    async def _read_sync(self, items: Iterable[Any]) -> None:
        go_round_at = time.monotonic() + _LOOP_SECONDS
        for item in items:
            if self._is_full():
                await self._wait_for_room()
            self._take(item)
            if time.monotonic() >= go_round_at:
                await anyio.lowlevel.checkpoint()
                go_round_at = time.monotonic() + _LOOP_SECONDS

    def _is_full(self) -> bool:
        return len(self._buffer) >= CHUNK or not (self._sized or self._may_read(self.new))

    async def _wait_for_room(self) -> None:
        while self._is_full():
            self._drained = anyio.Event()
            await self._drained.wait()

    def _take(self, item: object) -> None:
        try:
            self._buffer.append(self._encoder.entry(item))
        except ItemError as error:
            error.position = self._position
            error.args = (f"item {self._position} of the input: {error.args[0]}", *error.args[1:])
            raise
        self._position += 1
        if len(self._buffer) == 1:
            self._filled.set()

    async def _store(self) -> None:
        while True:
            await self._filled.wait()
            chunk, self._buffer = self._buffer, []
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
            raise InvalidKey(f"item {shown(cast('object', item))} has no field {name!r} to take its key from") from error

    return get
