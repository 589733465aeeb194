"""A file under ``Control``: a read-only connection, and a writer connection that is opened for the first change."""

from __future__ import annotations

import os
import sqlite3
from array import array
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import anyio.to_thread

from asyncrunner.domain.item import Status
from asyncrunner.errors import BatchNotFound, ConfigurationError, ItemNotFound, StoreClosed
from asyncrunner.sqlite import queries
from asyncrunner.sqlite.admin import queries as admin_queries
from asyncrunner.sqlite.file.connection import Connection
from asyncrunner.sqlite.file.creation import check_place
from asyncrunner.sqlite.file.errors import translated
from asyncrunner.sqlite.file.opening import connect_reader, connect_writer, located
from asyncrunner.store.retrying import Persistence
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.suggestions import did_you_mean, no_such_batch, variants
from asyncrunner.text.validation import checked_ids, checked_text

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock


T = TypeVar("T")

CHUNK: Final = 2000
"""Items changed per transaction, which takes some hundredths of a second; workers commit between two transactions."""

_LOCKED_TIMEOUT: Final = 30.0  # seconds to retry while another program locks the file


class OperatedFile:
    """Runs ``Control``'s reads and writes on a file, and finds its batches and items. Never creates a file."""

    def __init__(self, db: str | os.PathLike[str], clock: Clock, progress: Callable[[int], object] | None = None) -> None:
        """*progress* is called after each transaction of ``in_chunks()``, with the number of items changed so far."""
        self.location = os.fspath(db)
        self._given = Path(db)
        self.path = located(db)
        self._clock = clock
        self.progress = progress or _ignore_progress
        self._reader: sqlite3.Connection | None = None
        self._writer: Connection | None = None
        self._reader_limiter: anyio.CapacityLimiter | None = None

    async def open(self) -> None:
        """Open the file for reading. Raises StoreNotFound, NotAStore, SchemaTooNew, StoreError."""
        self._reader_limiter = anyio.CapacityLimiter(1)
        self._reader = await anyio.to_thread.run_sync(connect_reader, self._given)

    async def close(self) -> None:
        """Close the file. A second call does nothing."""
        reader, self._reader = self._reader, None
        writer, self._writer = self._writer, None
        if reader is not None:
            reader.close()
        if writer is not None:
            await writer.close()

    def check_open(self) -> None:
        """Raise StoreClosed if the file is not open."""
        self._checked_reader()

    def _checked_reader(self) -> sqlite3.Connection:
        if self._reader is None:
            raise StoreClosed(f"{self.location} is not open; use `async with control:` or `await control.open()` first")
        return self._reader

    async def persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the value of *call*; retry it while the file is unavailable, and raise StoreUnavailable after 30 seconds."""
        retrying = Persistence(self._clock)
        retrying.give_up_at = self._clock.monotonic() + _LOCKED_TIMEOUT
        return await retrying(call)

    async def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Call *operation* with a read-only connection. Raises StoreClosed, StoreUnavailable after 30 seconds, StoreError."""
        reader = self._checked_reader()

        def run() -> T:
            with translated(self.location):
                return operation(reader)

        return await self.persist(lambda: anyio.to_thread.run_sync(run, limiter=self._reader_limiter))

    async def write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run *operation* in a write transaction, queued fairly with the workers' transactions, and return its value.

        Raises StoreClosed, StoreError, and StoreUnavailable if the file stays locked for 30 seconds; then nothing was changed.
        """
        self._checked_reader()
        if self._writer is None:
            check_place(self._given)
            writer = Connection(self.location, lambda: connect_writer(self.path, "full"), self.path)
            await self.persist(writer.open)
            self._writer = writer
        open_writer = self._writer
        return await self.persist(lambda: open_writer.write(operation))

    async def in_chunks(self, seqs: array[int], change: Callable[..., int]) -> int:
        """Call ``change(connection, seqs=...)`` for 2,000 items per transaction and return the sum of its values.

        After a crash, a cancellation or an error, the committed transactions remain.
        """
        changed = 0
        for first in range(0, len(seqs), CHUNK):
            changed += await self.write(partial(change, seqs=list(seqs[first : first + CHUNK])))
            self.progress(changed)
        return changed

    async def rows(self, batch: str | None) -> Sequence[queries.BatchRow]:
        """Return all batches, or only *batch*. Raises BatchNotFound."""
        if batch is not None:
            checked_text("batch", batch)
        return of_name(await self.read(queries.batches), batch, self.location)

    async def row(self, batch: str | None) -> queries.BatchRow:
        """Return *batch*, or the file's only batch. Raises BatchNotFound, and ConfigurationError if it has several batches."""
        rows = await self.rows(batch)
        if not rows:
            raise BatchNotFound(f"{self.location} has no batches yet; a run or a runner creates them")
        if len(rows) > 1:
            names = ", ".join(repr(row.name) for row in rows)
            raise ConfigurationError(f"{self.location} has {len(rows)} batches; give one of {names}")
        return rows[0]

    async def found(self, row: queries.BatchRow, ids: Iterable[str]) -> Sequence[admin_queries.Found]:
        """Return the items with the given ids. Raises ItemNotFound if one does not exist, ConfigurationError for no ids."""
        item_ids = checked_ids("ids", ids)
        if not item_ids:
            raise ConfigurationError("no ids were given")
        items = await self.read(lambda reader: admin_queries.find(reader, row.batch_id, item_ids))
        existing = {item.id for item in items}
        missing = [item_id for item_id in item_ids if item_id not in existing]
        if missing:
            raise await self.no_item(row, missing)
        return items

    async def no_item(self, row: queries.BatchRow, missing: Sequence[str]) -> ItemNotFound:
        """Return the error for *missing* ids; its message suggests similar ids, or the batch that has the first one."""
        key = missing[0]
        near_ids, other_batches = await self.read(
            lambda reader: (admin_queries.near_ids(reader, row.batch_id, key), admin_queries.batches_with(reader, key))
        )
        likely = near_ids[0] if near_ids and near_ids[0] in variants(key) else None
        hint = f"did you mean {safe_text(likely, limit=80)!r}?" if likely else did_you_mean(key, near_ids)
        hint = f"it is in the batch {other_batches[0]!r}" if other_batches else hint
        more = f" (and {len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        return ItemNotFound(f"there is no item {safe_text(key, limit=80)!r} in {row.name!r}{more}; {hint}")


def of_name(rows: Sequence[queries.BatchRow], batch: str | None, location: str) -> Sequence[queries.BatchRow]:
    """Return all of *rows*, or only the one named *batch*. Raises BatchNotFound; its message suggests a similar name."""
    if batch is None:
        return rows
    matching = [row for row in rows if row.name == batch]
    if not matching:
        raise no_such_batch(location, batch, [row.name for row in rows])
    return matching


def no_such_error(batch: str, error: str, status: Status | None) -> ItemNotFound:
    """Return the error for an error pattern or fingerprint that no item matches."""
    kind = "" if status is None else f"{status.value} "
    return ItemNotFound(f"no {kind}item of {batch!r} has {error!r} in its error; `asyncrunner failures` lists the causes")


def retriable(found: Sequence[admin_queries.Found]) -> array[int]:
    """Return the ``seq`` numbers of *found*. Raises ConfigurationError if one of the items is processing or completed."""
    refused = [each.status.value for each in found if each.status in (Status.PROCESSING, Status.COMPLETED)]
    if refused:
        counted = " and ".join(f"{refused.count(status)} {status}" for status in sorted(set(refused)))
        raise ConfigurationError(
            f"of {len(found)} items {counted} cannot be retried; only failed and cancelled items can. Nothing was changed"
        )
    return array("q", (each.seq for each in found))


def _ignore_progress(_: int) -> None:
    pass
