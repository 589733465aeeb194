"""The AdminStore protocol, implemented on one SQLite file."""

from __future__ import annotations

import os
import sqlite3
import threading
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import anyio
import anyio.to_thread
import msgspec

from asyncrunner.domain.clock import Clock, SystemClock
from asyncrunner.domain.item import NewItem, Status
from asyncrunner.errors import StoreClosed
from asyncrunner.sqlite import queries as store_queries
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.admin import changes, items, plan, queries
from asyncrunner.sqlite.claims.recovery import recover_items
from asyncrunner.sqlite.file.connection import Connection
from asyncrunner.sqlite.file.creation import check_place
from asyncrunner.sqlite.file.errors import translated
from asyncrunner.sqlite.file.opening import connect_reader, connect_writer, located
from asyncrunner.sqlite.large_results import delete_orphaned_pieces
from asyncrunner.store.admin_protocol import MAX_TEXT_BYTES, UNSET, Change, Filter, ItemSet, Matches, Selection, Unset
from asyncrunner.store.items import Cursor, Numbers, Page
from asyncrunner.store.retrying import retry_while_unavailable
from asyncrunner.store.snapshot import (
    BatchRow,
    CausePage,
    HistoryRow,
    ItemRecord,
    ItemSummary,
    KnownItem,
    PendingRow,
    Snapshot,
    StoredItem,
    StuckRow,
    WorkerRow,
)
from asyncrunner.store.workers import Stop

if TYPE_CHECKING:
    from asyncrunner.domain.outcome import ErrorInfo

T = TypeVar("T")
RETRY_SECONDS: Final = 30.0
"""Seconds for which a call is repeated while the file is unavailable, before StoreUnavailable is raised."""

_INTERRUPT_INTERVAL_SECONDS: Final = 0.01


async def retry_for(call: Callable[[], Awaitable[T]], clock: Clock, seconds: float = RETRY_SECONDS) -> T:
    """Repeat *call* while the file is unavailable, and return its value. Raises StoreUnavailable after *seconds*."""
    deadline = clock.monotonic() + seconds
    return await retry_while_unavailable(call, clock, lambda: deadline)


class SQLiteAdminStore:
    """An operator's view of a store in one SQLite file, with or without running workers. It never creates a database.

    Reads use a read-only connection. The first change opens a second connection, whose transactions are queued fairly with
    the transactions of the workers.
    """

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
        self._reader_limiter: anyio.CapacityLimiter | None = None
        self._reading = threading.Lock()
        self._writer: Connection | None = None

    @property
    def location(self) -> str:
        return self._location

    async def open(self) -> None:
        self._reader_limiter = anyio.CapacityLimiter(1)
        self._reader = await anyio.to_thread.run_sync(connect_reader, Path(self._location))

    async def close(self) -> None:
        reader, self._reader = self._reader, None
        writer, self._writer = self._writer, None
        if reader is not None:
            self._close_reader(reader)
        if writer is not None:
            await writer.close()

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
        reader = self._open_reader()

        def run() -> T:
            with self._reading, translated(self._location):
                return operation(reader)

        return await self._retry(lambda: anyio.to_thread.run_sync(run, limiter=self._reader_limiter))

    async def _write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        writer = await self._open_writer()
        return await self._retry(lambda: writer.write(operation))

    def _open_reader(self) -> sqlite3.Connection:
        if self._reader is None:
            raise StoreClosed(f"{self._location} is not open; call open() first")
        return self._reader

    async def _open_writer(self) -> Connection:
        self._open_reader()
        if self._writer is None:
            check_place(Path(self._location))
            writer = Connection(self._location, lambda: connect_writer(self._database, "full"), self._database)
            await self._retry(writer.open)
            self._writer = writer
        return self._writer

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

    async def pulses(self) -> Mapping[str, str]:
        return await self._write(lambda writer: queries.pulses(writer, self._database))

    async def find(self, batch_id: int, criteria: Filter, *, after: str | None, limit: int) -> Sequence[ItemSummary] | None:
        return await self._read(lambda reader: items.find(reader, batch_id, criteria, after=after, limit=limit))

    async def search(self, batch_id: int, criteria: Filter, text: str, *, after: str | None, limit: int) -> Matches | None:
        return await self._read(lambda reader: items.search(reader, batch_id, criteria, text, after=after, limit=limit))

    async def item(self, batch_id: int, key: str, *, max_bytes: int = MAX_TEXT_BYTES) -> StoredItem | None:
        return await self._read(lambda reader: items.item(reader, batch_id, key, max_bytes))

    async def similar_keys(self, batch_id: int, key: str) -> Sequence[str]:
        return await self._read(lambda reader: items.similar_keys(reader, batch_id, key))

    async def stuck(self, batch_ids: Sequence[int], *, longer_than: float, limit: int) -> Sequence[StuckRow]:
        before = self._clock.now() - longer_than
        return await self._read(lambda reader: queries.stuck(reader, batch_ids, before, limit))

    async def oldest_pending(self, batch_id: int) -> PendingRow | None:
        return await self._read(lambda reader: queries.oldest_pending(reader, batch_id))

    async def failure_causes(self, batch_id: int, limit: int) -> CausePage:
        return await self._read(lambda reader: queries.failure_causes(reader, batch_id, limit))

    async def history(self, batch_id: int, *, since: int, until: int, step: int) -> Sequence[HistoryRow]:
        return await self._read(lambda reader: store_queries.history(reader, batch_id, since, until, step))

    async def export_page(self, batch_id: int, statuses: Collection[Status] | None, cursor: Cursor | None) -> Page[ItemRecord]:
        return await self._read(lambda reader: items.export_page(reader, batch_id, statuses, cursor))

    async def export_selected(self, batch_id: int, selected: ItemSet) -> Sequence[ItemRecord]:
        return await self._read(lambda reader: items.export_selected(reader, batch_id, selected))

    async def ids_of(self, selected: ItemSet) -> Sequence[str]:
        return await self._read(lambda reader: items.ids_of(reader, selected))

    async def match_input(
        self, batch_id: int, entries: Sequence[NewItem], *, version: str | None = None
    ) -> Mapping[str, KnownItem]:
        return await self._read(lambda reader: plan.match_input(reader, batch_id, entries, version))

    async def count_other_version(self, batch_id: int, version: str) -> int:
        now = self._clock.now()
        return await self._read(lambda reader: plan.count_other_version(reader, batch_id, version, now))

    async def count_reopenable(self, batch_id: int, *, max_attempts: int) -> int:
        return await self._read(lambda reader: plan.count_reopenable(reader, batch_id, max_attempts))

    async def has_orphans(self, batch_id: int | None = None) -> bool:
        return await self._read(lambda reader: queries.has_orphans(reader, batch_id))

    # --- changing ----------------------------------------------------------------------------------------------------

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

    async def change(self, items: ItemSet, change: Change) -> int:
        now = self._clock.now()
        changed = await self._write(lambda writer: changes.change(writer, items, change, now))
        if change is Change.PURGE:
            await delete_orphaned_pieces(await self._open_writer())
        return changed

    async def set_controls(self, batch_id: int, *, paused: bool | None = None, concurrency: int | Unset | None = UNSET) -> bool:
        now = self._clock.now()
        return await self._write(lambda writer: changes.set_controls(writer, batch_id, paused, concurrency, now))

    async def request_stop(self, worker_ids: Sequence[str], how: Stop) -> int:
        if not worker_ids:
            return 0
        row = (int(how), msgspec.json.encode(worker_ids).decode())
        return await self._write(lambda writer: writer.execute(sql.workers.REQUEST_STOP, row).rowcount)

    async def recover(
        self, worker_id: str | None, error: ErrorInfo, *, pulse: str | None = None, batch_id: int | None = None
    ) -> int:
        writer = await self._open_writer()
        now = self._clock.now()
        return await self._retry(lambda: recover_items(writer, self._database, worker_id, error, now, pulse, batch_id))
