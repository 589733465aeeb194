"""Read a source into the store: encode the items and add them in chunks, reading the next chunk while one is added."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import anyio.lowlevel

from asyncrunner.batch.source.background_iterator import BackgroundIterator
from asyncrunner.batch.source.given import GivenItems
from asyncrunner.domain.item import NewItem
from asyncrunner.errors import ConfigurationError, ItemError, SourceCancelled
from asyncrunner.store.batches import Added
from asyncrunner.store.items import Numbers
from asyncrunner.submission.encoder import Encoder
from asyncrunner.text.escaping import counted

if TYPE_CHECKING:
    from asyncrunner.worker.batch_queue import BatchQueue

log = logging.getLogger("asyncrunner")
T = TypeVar("T")
Items: TypeAlias = "Iterable[Any] | AsyncIterable[Any]"
CHUNK: Final = 4000
"""Number of items at which a chunk ends. A large chunk writes fewer pages for an item: random keys are near one another."""

_FIRST_CHUNK: Final = 250  # of a source; each further chunk is twice as large up to CHUNK, so that the first handlers start soon
_SHARED_CHUNK: Final = 1000  # with other workers, which wait for the write lock meanwhile

CHUNK_BYTES: Final = 8 * 1024 * 1024
"""Number of payload characters at which a chunk ends, so that large payloads do not fill the memory."""

READ_AHEAD: Final = 10_000
"""Number of new items that may be stored and not done before a source of unknown length is read no further."""

_ITEMS_PER_YIELD: Final = 64  # which take some tenths of a millisecond
_MAX_READ_SECONDS: Final = 0.005  # a synchronous source is read for this long; then other tasks run
_MAX_STEP_SECONDS: Final = 0.1  # a synchronous source whose step takes this long is read in a thread from then on
_MAX_CLOSE_SECONDS: Final = 5.0  # for a source that is left early to run its `finally` blocks


class ItemSource(ABC, AsyncIterable[T]):
    """A source that knows where its items come from, for example the lines of a file."""

    @abstractmethod
    def refuse(self, error: ItemError) -> None:
        """Raise *error* for the newest item, with the place that it came from. Return to skip the item."""


class SourceReader:
    """A source reader: reads one source once and adds its items to the store.

    ``new``, ``existing`` and ``changed`` are the sums of the numbers that *add* returned. ``given``: the items of the source,
    by their numbers. ``undone``: the items that were completed and run again, because the source gave another payload.
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
        remedy = _rows_of(items)
        if remedy is not None:
            raise ConfigurationError(
                f"items is {type(items).__name__}, of which a loop takes only the names or the columns; give items{remedy}"
            )
        self._items = items
        self._encoder = encoder
        self._add = add
        self._queue: BatchQueue | None = None  # of a source of unknown length
        self._worker_queue: BatchQueue | None = None
        self._buffer: list[NewItem] = []
        self._filled = anyio.Event()
        self._drained = anyio.Event()
        self._exhausted = False
        self._error: BaseException | None = None
        self._position = 0
        self._buffer_size = 0  # characters of payload in the buffer
        self._chunk = _FIRST_CHUNK  # the largest number of items of the next chunk
        self.expected = len(items) if isinstance(items, Sized) else None
        self.new = 0
        self.existing = 0
        self.changed = 0
        self.undone = Numbers()
        self.given = GivenItems()

    async def run(self, queue: BatchQueue | None = None) -> None:
        """Read the source to its end, and close a generator, also if this call is cancelled or raises.

        While 10,000 new items of a source of unknown length are stored and not done in *queue*, the reader waits for
        turns of the worker. It also waits as long as ``queue.room_for_source`` says. Raises the exceptions of *add*, and an
        exception of the source after the items before it are stored. A source that ends by CancelledError or GeneratorExit,
        although this call is not cancelled, raises SourceCancelled.
        """
        self._queue = queue if self.expected is None else None
        self._worker_queue = queue
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read)
                await self._store()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # only _store() raises, so there is one exception
        finally:
            if queue is not None:
                queue.is_fed = False
        if self._error is not None:
            raise self._error

    async def _read(self) -> None:
        try:
            if isinstance(self._items, AsyncIterable):
                await self._read_async(aiter(self._items))
            else:
                await self._read_sync(iter(self._items))
        except Exception as error:  # noqa: BLE001 - run() raises it after the items before it are stored
            self._error = error
        except (asyncio.CancelledError, GeneratorExit) as error:
            # If run() is cancelled, it raises CancelledError itself, and this error is not used.
            self._error = self._cancelled("the source of the items", error)
        self._exhausted = True
        self._filled.set()

    def _cancelled(self, culprit: str, error: BaseException) -> SourceCancelled:
        cancelled = SourceCancelled(
            f"{culprit} raised {type(error).__name__} after {counted(self._position, 'item')}, although the run was not "
            "cancelled; the rest of the input was not read. Correct the source (does it await a cancelled task?) and run again"
        )
        cancelled.__cause__ = error
        return cancelled

    async def _read_async(self, iterator: AsyncIterator[Any]) -> None:
        try:
            async for item in iterator:
                if self._is_full():
                    await self._wait_for_room()
                self._append(item)
        except GeneratorExit:
            raise  # of the source, which has ended; or this coroutine is closed and must not await
        except BaseException:
            await _close_async(iterator)
            raise

    async def _read_sync(self, iterator: Iterator[Any]) -> None:
        try:
            blocked = await self._read_in_loop(iterator)
        except BaseException:
            _close(iterator)
            raise
        if blocked is not None:
            log.info("the source of the items blocked the event loop for %.1f s; it is read in a thread from now on", blocked)
            await self._read_in_thread(iterator)

    async def _read_in_loop(self, iterator: Iterator[Any]) -> float | None:
        """Read *iterator* to its end and return None, or up to a step that blocks the loop; return its seconds."""
        before = time.monotonic()
        yield_at = before + _MAX_READ_SECONDS
        for item in iterator:
            blocked = time.monotonic() - before
            if self._is_full():
                await self._wait_for_room()
            self._append(item)
            if self._position % _ITEMS_PER_YIELD == 0 and self._worker_queue is not None:
                self._worker_queue.let_threads_in()
            if blocked >= _MAX_STEP_SECONDS and not _is_bound_to_thread(iterator):
                return blocked
            before = time.monotonic()
            if before >= yield_at:
                await anyio.lowlevel.checkpoint()
                before = time.monotonic()
                yield_at = before + _MAX_READ_SECONDS
        return None

    async def _read_in_thread(self, iterator: Iterator[Any]) -> None:
        reader = BackgroundIterator(iterator)
        try:
            while items := await reader.take():
                for item in items:
                    if self._is_full():
                        await self._wait_for_room()
                    self._append(item)
        except Exception as error:
            error.add_note("asyncrunner read the source in a thread, because a step of it had blocked the event loop.")
            raise
        finally:
            if not await reader.aclose(_MAX_CLOSE_SECONDS):
                log.warning("the source of the items did not end within %g s and was abandoned", _MAX_CLOSE_SECONDS)

    def _is_full(self) -> bool:
        is_chunk = len(self._buffer) >= self._chunk or self._buffer_size >= CHUNK_BYTES
        return is_chunk or (self._queue is not None and self._is_ahead())

    def _is_ahead(self) -> bool:
        queue = self._queue
        return queue is not None and self.new - queue.done >= READ_AHEAD and not queue.answer.exhausted

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
        except (asyncio.CancelledError, GeneratorExit) as error:
            raise self._cancelled("the key function", error) from error
        except ItemError as error:
            if isinstance(self._items, ItemSource):
                self._items.refuse(error)
                return
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
            room = await self._wait_for_worker()
            chunk, self._buffer = self._buffer[:room], self._buffer[room:]
            self._buffer_size = sum([len(entry.payload) for entry in self._buffer])
            self._filled = anyio.Event()
            if self._buffer:
                self._filled.set()
            self._drained.set()
            if chunk:
                self._chunk = min(2 * self._chunk, CHUNK)
                added = await self._add(chunk)
                self.new += added.new
                self.existing += added.existing
                self.changed += added.changed
                for seq in added.undone:
                    self.undone.add(seq)
                self.given.add(added.seqs)
            if self._exhausted and not self._buffer:
                return
            if self._exhausted:
                self._filled.set()

    async def _wait_for_worker(self) -> int:
        """Wait until the worker has room for items, and return how many to add."""
        queue = self._worker_queue
        while queue is not None and (room := queue.room_for_source) is not None:
            if room:
                queue.is_fed = True
                return room
            await queue.wait_for_turn()
        if queue is None:
            return self._chunk
        queue.is_fed = False
        return self._chunk if queue.has_to_itself() else min(self._chunk, _SHARED_CHUNK)


def _rows_of(items: object) -> str | None:
    """Return how to get the rows of a dict or a data frame, of which a loop takes the keys or the columns; else None."""
    if isinstance(items, Mapping):
        return ".items(), or items.keys() if the values do not matter"
    if hasattr(items, "iterrows"):
        return '.to_dict("records")'  # pandas
    return ".to_dicts()" if hasattr(items, "iter_rows") else None  # polars


def _close(iterator: Iterator[Any]) -> None:
    """Close a generator that is not read to its end. Other iterators, such as open files, belong to the caller."""
    if inspect.isgenerator(iterator):
        try:
            iterator.close()
        except (Exception, asyncio.CancelledError):
            log.exception("the source of the items raised an exception when it was closed")


async def _close_async(iterator: AsyncIterator[Any]) -> None:
    """Close an async generator that is not read to its end; give it up to 5 s, also in a task that is cancelled."""
    if inspect.isasyncgen(iterator):
        try:
            with anyio.move_on_after(_MAX_CLOSE_SECONDS, shield=True):
                await iterator.aclose()
        except (Exception, asyncio.CancelledError):
            log.exception("the source of the items raised an exception when it was closed")


def _is_bound_to_thread(iterator: Iterator[Any]) -> bool:
    """Return whether *iterator*, or a generator's local variable, is of sqlite3: its objects work in one thread only."""
    frame = iterator.gi_frame if inspect.isgenerator(iterator) else None
    values = [iterator, *(() if frame is None else frame.f_locals.values())]
    return any(type(value).__module__ == "sqlite3" for value in values)
