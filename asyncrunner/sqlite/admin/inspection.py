"""The InspectionStore protocol, implemented on one SQLite file, without the code that writes: ``status`` starts faster."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from asyncrunner.domain.clock import Clock, SystemClock
from asyncrunner.domain.item import Status
from asyncrunner.errors import StoreClosed
from asyncrunner.sqlite import queries as store_queries
from asyncrunner.sqlite.admin import changes, items, queries
from asyncrunner.sqlite.file.errors import translated
from asyncrunner.sqlite.file.opening import connect_reader, located
from asyncrunner.store.admin_protocol import MAX_TEXT_BYTES, Filter, ItemSet, Matches, Selection
from asyncrunner.store.items import Cursor, Numbers, Page
from asyncrunner.store.retrying import RETRY_SECONDS, retry_for
from asyncrunner.store.snapshot import (
    BatchRow,
    CausePage,
    HistoryRow,
    ItemRecord,
    ItemSummary,
    PendingRow,
    Snapshot,
    StoredItem,
    StuckRow,
    WorkerRow,
)

T = TypeVar("T")
_INTERRUPT_INTERVAL_SECONDS: Final = 0.01


def _run_in(thread: ThreadPoolExecutor, call: Callable[[], T]) -> asyncio.Future[T]:
    return asyncio.get_running_loop().run_in_executor(thread, call)


def _close_result(opening: Future[sqlite3.Connection]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class SQLiteInspectionStore:
    """A view of a store in one SQLite file that only reads, with or without running workers. It never creates a database."""

    def __init__(
        self, location: str | os.PathLike[str], clock: Clock | None = None, *, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        """Prepare an operator's view of the file at *location*; ``open()`` opens it. Raises StoreError for an unusable path.

        *retry_seconds*: seconds for which a call is repeated while the file is unavailable.
        """
        self._location = os.fspath(location)
        self._database = located(location)
        self._clock: Clock = clock or SystemClock()
        self._retry_seconds = retry_seconds
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None

    @property
    def location(self) -> str:
        return self._location

    async def open(self) -> None:
        thread = ThreadPoolExecutor(1, thread_name_prefix="asyncrunner-reader")
        opening = thread.submit(connect_reader, Path(self._location))
        try:
            self._reader = await asyncio.wrap_future(opening)
        except BaseException:
            opening.add_done_callback(_close_result)  # after a cancellation the thread still opens the file
            thread.shutdown(wait=False)
            raise
        self._thread = thread

    async def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            self._close_reader(reader)
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    def _close_reader(self, reader: sqlite3.Connection) -> None:
        # A read whose caller was cancelled still runs in its thread. Closing the connection during the read would crash the
        # interpreter, so the read is interrupted until it has ended.
        while not self._reading.acquire(timeout=_INTERRUPT_INTERVAL_SECONDS):
            reader.interrupt()
        try:
            reader.close()
        finally:
            self._reading.release()

    async def _read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        def run(reader: sqlite3.Connection) -> T:
            with self._reading, translated(self._location):
                self._opened()  # it may have been closed since the call
                return operation(reader)

        async def attempt() -> T:
            reader, thread = self._opened()
            return await _run_in(thread, lambda: run(reader))

        return await self._retry(attempt)

    def _opened(self) -> tuple[sqlite3.Connection, ThreadPoolExecutor]:
        if self._reader is None or self._thread is None:
            raise StoreClosed(f"{self._location} is not open; call open() first")
        return self._reader, self._thread

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        return await retry_for(call, self._clock, self._retry_seconds)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def now(self) -> float:
        return self._clock.now()

    async def batches(self) -> Sequence[BatchRow]:
        return await self._read(store_queries.batches)

    async def batches_with(self, key: str) -> Sequence[str]:
        return await self._read(lambda reader: items.batches_with(reader, key))

    async def snapshot(self, batch_ids: Sequence[int] | None, *, stuck_after: float | None = None) -> Snapshot:
        now = self._clock.now()
        return await self._read(
            lambda reader: queries.snapshot(reader, self._database, batch_ids, stuck_after=stuck_after, now=now)
        )

    async def workers(self, batch_id: int | None = None) -> Sequence[WorkerRow]:
        return await self._read(lambda reader: queries.workers(reader, self._database, batch_id))

    async def find(self, batch_id: int, criteria: Filter, *, after: str | None, limit: int) -> Sequence[ItemSummary] | None:
        return await self._read(lambda reader: items.find(reader, batch_id, criteria, after=after, limit=limit))

    async def search(self, batch_id: int, criteria: Filter, text: str, *, after: str | None, limit: int) -> Matches | None:
        return await self._read(lambda reader: items.search(reader, batch_id, criteria, text, after=after, limit=limit))

    async def item(self, batch_id: int, key: str, *, max_bytes: int = MAX_TEXT_BYTES) -> StoredItem | None:
        return await self._read(lambda reader: items.item(reader, batch_id, key, max_bytes))

    async def similar_keys(self, batch_id: int, key: str) -> Sequence[str]:
        return await self._read(lambda reader: items.similar_keys(reader, batch_id, key))

    async def keys_with(self, batch_ids: Sequence[int], prefix: str, limit: int) -> Sequence[str]:
        return await self._read(lambda reader: items.keys_with(reader, batch_ids, prefix, limit))

    async def stuck(self, batch_ids: Sequence[int], *, longer_than: float, limit: int) -> Sequence[StuckRow]:
        before = self._clock.now() - longer_than
        return await self._read(lambda reader: queries.stuck(reader, batch_ids, before, limit))

    async def oldest_pending(self, batch_id: int) -> PendingRow | None:
        return await self._read(lambda reader: queries.oldest_pending(reader, batch_id))

    async def failure_causes(self, batch_id: int, limit: int) -> CausePage:
        return await self._read(lambda reader: queries.failure_causes(reader, batch_id, limit))

    async def cause_minutes(
        self, batch_id: int, fingerprints: Sequence[str], *, since: float, limit: int
    ) -> Mapping[str, Mapping[str, int]]:
        return await self._read(lambda reader: queries.cause_minutes(reader, batch_id, fingerprints, since, limit))

    async def history(self, batch_id: int, *, since: int, until: int, step: int) -> Sequence[HistoryRow]:
        return await self._read(lambda reader: store_queries.history(reader, batch_id, since, until, step))

    async def export_page(self, batch_id: int, statuses: Collection[Status] | None, cursor: Cursor | None) -> Page[ItemRecord]:
        return await self._read(lambda reader: items.export_page(reader, batch_id, statuses, cursor))

    async def export_selected(self, batch_id: int, selected: ItemSet) -> Sequence[ItemRecord]:
        return await self._read(lambda reader: items.export_selected(reader, batch_id, selected))

    async def ids_of(self, selected: ItemSet) -> Sequence[str]:
        return await self._read(lambda reader: items.ids_of(reader, selected))

    async def has_orphans(self, batch_id: int | None = None) -> bool:
        return await self._read(lambda reader: queries.has_orphans(reader, batch_id))

    async def select(self, batch_id: int, selection: Selection, *, in_input_order: bool = False) -> ItemSet:
        if selection.keys is not None:
            return await self._read(lambda reader: changes.select_keys(reader, batch_id, selection))
        is_pending = set(selection.statuses) == {Status.PENDING}
        if Status.COMPLETED in selection.statuses or (selection.before is not None and not is_pending):
            return await self._select_windows(batch_id, selection)
        selected = await self._read(lambda reader: changes.select_open(reader, batch_id, selection))
        if selection.before is not None:
            selected = await self._with_age(selected, selection.before)
        if in_input_order:  # the set of numbers takes a bit for each item, a sorted list up to 40 bytes
            return selected._replace(numbers=array("q", Numbers.of(selected.numbers)))
        return selected

    async def _with_age(self, selected: ItemSet, before: float) -> ItemSet:
        numbers = array("q")
        for first in range(0, len(selected.numbers), changes.WINDOW):
            part = selected.part(first, changes.WINDOW)

            def read(reader: sqlite3.Connection, part: ItemSet = part) -> Sequence[int]:
                return changes.pending_before(reader, part, before)

            numbers.extend(await self._read(read))
        return selected._replace(numbers=numbers, counts={Status.PENDING.value: len(numbers)} if numbers else {})

    async def _select_windows(self, batch_id: int, selection: Selection) -> ItemSet:
        numbers = array("q")
        counts: Counter[str] = Counter()
        after = store_queries.BEFORE_EVERY_SEQ
        while True:  # several short reads: one long read would prevent WAL checkpoints

            def read(reader: sqlite3.Connection, after: float = after) -> Sequence[tuple[int, str]]:
                return changes.selected_after(reader, batch_id, selection, after)

            window = await self._read(read)
            if not window:
                return ItemSet(selection, numbers, dict(counts))
            numbers.extend(seq for seq, _ in window)
            counts.update(status for _, status in window)
            after = window[-1][0]
