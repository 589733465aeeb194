"""Read a store without its writer: each call uses a separate connection, in a worker thread."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import weakref
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import anyio.to_thread

from asyncrunner.sqlite import queries, sql
from asyncrunner.sqlite.file.errors import translated
from asyncrunner.sqlite.file.opening import connect_reader
from asyncrunner.store.batches import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import Counts
    from asyncrunner.store.items import Cursor, FailureGroup, ItemRow, OpenItems, Page

T = TypeVar("T")


class SQLiteReader:
    """The ReadStore of a file or of a copy in memory. A worker thread calls *connect* for the connection of each call."""

    def __init__(self, location: str, connect: Callable[[], AbstractContextManager[sqlite3.Connection]], clock: Clock) -> None:
        self._location = location
        self._connect = connect
        self._clock = clock

    @classmethod
    def of_file(cls, path: Path, location: str, clock: Clock) -> SQLiteReader:
        """Return a reader that opens the file for each call, and keeps no file open between calls."""
        return cls(location, lambda: closing(connect_reader(path)), clock)

    @classmethod
    def of_copy(cls, copy: sqlite3.Connection, location: str, clock: Clock) -> SQLiteReader:
        """Return a reader of *copy*, a database in memory, which is closed when the reader is garbage-collected."""
        lock = threading.Lock()

        @contextmanager
        def connect() -> Generator[sqlite3.Connection, None, None]:
            with lock:
                yield copy

        reader = cls(location, connect, clock)
        weakref.finalize(reader, copy.close)
        return reader

    async def _read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with translated(self._location), self._connect() as connection:
                return operation(connection)

        return await anyio.to_thread.run_sync(run)

    async def find_batch(self, name: str) -> Batch | None:
        return await self._read(lambda connection: queries.find_batch(connection, name))

    async def incomplete_copies(self, names: Sequence[str]) -> Mapping[str, str]:
        return await self._read(lambda connection: queries.incomplete_copies(connection, names))

    async def batch_names(self) -> Sequence[str]:
        return await self._read(queries.batch_names)

    async def counts(self, batch_id: int) -> Counts:
        now = self._clock.now()
        return await self._read(lambda connection: queries.counts(connection, batch_id, now))

    async def recent_rate(self, batch_id: int) -> float | None:
        return await self._read(lambda connection: queries.recent_rate(connection, batch_id))

    async def items(self, batch_id: int, keys: Sequence[str]) -> Sequence[ItemRow]:
        return await self._read(
            lambda connection: queries.items_by_id(connection, batch_id, keys, statement=sql.items.WHOLE_ITEMS_BY_ID)
        )

    async def items_by_seq(self, batch_id: int, seqs: Sequence[int]) -> Sequence[ItemRow]:
        return await self._read(
            lambda connection: queries.items_by_seq(connection, batch_id, seqs, statement=sql.items.WHOLE_ITEMS_BY_SEQ)
        )

    async def item_page(self, batch_id: int, cursor: Cursor | None, limit: int) -> Page[ItemRow]:
        return await self._read(
            lambda connection: queries.item_page(connection, batch_id, cursor, limit, statement=sql.items.WHOLE_ROWS)
        )

    async def open_items(self, batch_id: int, *, on_snapshot: Callable[[], object] | None = None) -> OpenItems:
        call_soon = asyncio.get_running_loop().call_soon_threadsafe

        def notify() -> None:
            if on_snapshot is not None:
                with suppress(RuntimeError):  # the loop is closed
                    call_soon(on_snapshot)

        return await self._read(lambda connection: queries.open_items(connection, batch_id, on_snapshot=notify))

    async def failure_causes(self, batch_id: int, limit: int, *, seqs: Sequence[int] | None = None) -> Sequence[FailureGroup]:
        return await self._read(lambda connection: queries.failure_causes(connection, batch_id, limit, seqs))


def copied(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Copy the whole database into memory, and return a connection to the copy that any thread may use."""
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.backup(copy)
    return copy
