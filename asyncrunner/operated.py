"""A file that is operated on: read by a connection of its own and, once something is to be changed, written as workers write."""

from __future__ import annotations

import os
import sqlite3
from array import array
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import anyio
import anyio.to_thread

from asyncrunner.asking import checked_ids, checked_text, meant, variants
from asyncrunner.errors import BatchNotFound, ConfigurationError, ItemNotFound, StoreClosed
from asyncrunner.item import Status
from asyncrunner.sqlite import looking, reading
from asyncrunner.sqlite.connection import Connection, translated
from asyncrunner.sqlite.file import check_place, connect_reader, connect_writer, located
from asyncrunner.text import safe_text
from asyncrunner.transient import Persistence

if TYPE_CHECKING:
    from asyncrunner.clock import Clock

__all__ = ["CHUNK", "OperatedFile", "no_such_error", "of_name", "retriable"]

T = TypeVar("T")

CHUNK: Final = 2000
"""Items a transaction: some hundredths of a second, after which the workers' turns come."""

_PATIENCE_SECONDS: Final = 30.0  # for a file that another program holds


class OperatedFile:
    """What ``Control`` asks of a file, and the batches and items that it names. Never creates one."""

    def __init__(self, db: str | os.PathLike[str], clock: Clock, progress: Callable[[int], object] | None = None) -> None:
        """*progress* is called after each chunk, with the number of items that are changed by then."""
        self.location = os.fspath(db)
        self._given = Path(db)
        self.path = located(db)
        self._clock = clock
        self.progress = progress or _nobody_looks
        self._reader: sqlite3.Connection | None = None
        self._writer: Connection | None = None
        self._one_at_a_time: anyio.CapacityLimiter | None = None

    async def open(self) -> None:
        """Open it for reading. Raises StoreNotFound, NotAStore, SchemaTooNew, StoreError."""
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self._reader = await anyio.to_thread.run_sync(connect_reader, self._given)

    async def close(self) -> None:
        """Close it. Closing twice is fine."""
        reader, self._reader = self._reader, None
        writer, self._writer = self._writer, None
        if reader is not None:
            reader.close()
        if writer is not None:
            await writer.close()

    def check_open(self) -> None:
        """Raises StoreClosed unless it is open."""
        self._opened()

    def _opened(self) -> sqlite3.Connection:
        if self._reader is None:
            raise StoreClosed(f"{self.location} is not open; use `async with control:` or `await control.open()` first")
        return self._reader

    async def persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's value, however often the file is unavailable, for half a minute; then StoreUnavailable is raised."""
        persist = Persistence(self._clock)
        persist.give_up_at = self._clock.monotonic() + _PATIENCE_SECONDS
        return await persist(call)

    async def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """What *operation* finds, on a connection that can only read."""
        reader = self._opened()

        def run() -> T:
            with translated(self.location):
                return operation(reader)

        return await self.persist(lambda: anyio.to_thread.run_sync(run, limiter=self._one_at_a_time))

    async def write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run *operation* in a transaction, in turn with the workers' own. Raises StoreUnavailable after half a minute."""
        self._opened()
        if self._writer is None:
            check_place(self._given)
            writer = Connection(self.location, lambda: connect_writer(self.path, "full"), self.path)
            await self.persist(writer.open)
            self._writer = writer
        opened = self._writer
        return await self.persist(lambda: opened.write(operation))

    async def in_chunks(self, seqs: array[int], change: Callable[..., int]) -> int:
        """Have *change*, which takes a connection and ``seqs``, do a chunk a transaction; returns the sum of what it returns."""
        changed = 0
        for first in range(0, len(seqs), CHUNK):
            changed += await self.write(partial(change, seqs=list(seqs[first : first + CHUNK])))
            self.progress(changed)
        return changed

    async def rows(self, batch: str | None) -> Sequence[reading.BatchRow]:
        """All batches, or that one. Raises BatchNotFound."""
        if batch is not None:
            checked_text("batch", batch)
        return of_name(await self.read(reading.batches), batch, self.location)

    async def row(self, batch: str | None) -> reading.BatchRow:
        """That batch, or the only one. Raises BatchNotFound, ConfigurationError."""
        rows = await self.rows(batch)
        if not rows:
            raise BatchNotFound(f"{self.location} has no batches yet; a run or a runner makes them")
        if len(rows) > 1:
            names = ", ".join(repr(row.name) for row in rows)
            raise ConfigurationError(f"{self.location} has {len(rows)} batches, say which: {names}")
        return rows[0]

    async def found(self, row: reading.BatchRow, ids: Iterable[str]) -> Sequence[looking.Found]:
        """The items of those ids. Raises ItemNotFound if one is not there."""
        wanted = checked_ids("ids", ids)
        if not wanted:
            raise ConfigurationError("no ids were given")
        found = await self.read(lambda reader: looking.find(reader, row.batch_id, wanted))
        known = {each.id for each in found}
        missing = [each for each in wanted if each not in known]
        if missing:
            raise await self.no_item(row, missing)
        return found

    async def no_item(self, row: reading.BatchRow, missing: Sequence[str]) -> ItemNotFound:
        """What to raise for ids that are not there, with the one that was meant."""
        key = missing[0]
        near, others = await self.read(
            lambda reader: (looking.near_ids(reader, row.batch_id, key), looking.batches_with(reader, key))
        )
        likely = near[0] if near and near[0] in variants(key) else None
        hint = f"did you mean {safe_text(likely, limit=80)!r}?" if likely else meant(key, near)
        hint = f"it is in the batch {others[0]!r}" if others else hint
        more = f" (and {len(missing) - 1} more are not there)" if len(missing) > 1 else ""
        return ItemNotFound(f"there is no item {safe_text(key, limit=80)!r} in {row.name!r}{more}; {hint}")


def of_name(rows: Sequence[reading.BatchRow], batch: str | None, location: str) -> Sequence[reading.BatchRow]:
    """All batches of a file, or that one. Raises BatchNotFound, with the one that was meant."""
    if batch is None:
        return rows
    found = [row for row in rows if row.name == batch]
    if not found:
        raise BatchNotFound(f"{location} has no batch {batch!r}; {meant(batch, [row.name for row in rows])}")
    return found


def no_such_error(batch: str, error: str, status: Status | None) -> ItemNotFound:
    """What to raise where no error is like the one that was asked for."""
    kind = "" if status is None else f"{status.value} "
    return ItemNotFound(f"no {kind}item of {batch!r} has {error!r} in its error; `asyncrunner failures` shows what there is")


def retriable(found: Sequence[looking.Found]) -> array[int]:
    """What ``retry`` is to look at. Raises ConfigurationError if one of the items is not to be retried."""
    refused = [each.status.value for each in found if each.status in (Status.PROCESSING, Status.COMPLETED)]
    if refused:
        counted = " and ".join(f"{refused.count(status)} {status}" for status in sorted(set(refused)))
        raise ConfigurationError(
            f"of {len(found)} items {counted} cannot be retried: only failed and cancelled ones can. Nothing was changed"
        )
    return array("q", (each.seq for each in found))


def _nobody_looks(_: int) -> None:
    pass
