"""The AdminStore protocol, implemented on one SQLite file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from asyncrunner.domain.clock import Clock
from asyncrunner.domain.item import NewItem
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.admin import changes, plan, queries
from asyncrunner.sqlite.admin.inspection import SQLiteInspectionStore
from asyncrunner.sqlite.claims.recovery import recover_items
from asyncrunner.sqlite.file.connection import Connection
from asyncrunner.sqlite.file.creation import check_place
from asyncrunner.sqlite.file.opening import connect_writer
from asyncrunner.sqlite.large_results import delete_orphaned_pieces
from asyncrunner.sqlite.locks.bell import NEW_ITEMS, Ringer
from asyncrunner.store.admin_protocol import UNSET, Change, ItemSet, Unset
from asyncrunner.store.retrying import RETRY_SECONDS
from asyncrunner.store.snapshot import (
    KnownItem,
)
from asyncrunner.store.workers import Stop

if TYPE_CHECKING:
    from asyncrunner.domain.outcome import ErrorInfo

T = TypeVar("T")


class SQLiteAdminStore(SQLiteInspectionStore):
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
        super().__init__(location, clock, retry_seconds=retry_seconds)
        self._writer: Connection | None = None

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        await super().close()
        if writer is not None:
            await writer.close()

    async def _write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        writer = await self._open_writer()
        return await self._retry(lambda: writer.write(operation, rings=bool))

    async def _open_writer(self) -> Connection:
        self._opened()
        if self._writer is None:
            check_place(Path(self._location))
            writer = Connection(self._location, lambda: connect_writer(self._database, "full"), self._database)
            await self._retry(writer.open)
            writer.ring = partial(Ringer(self._database).ring, NEW_ITEMS)
            self._writer = writer
        return self._writer

    # --- reading -----------------------------------------------------------------------------------------------------

    async def pulses(self) -> Mapping[str, str]:
        return await self._write(lambda writer: queries.pulses(writer, self._database))

    async def match_input(
        self, batch_id: int, entries: Sequence[NewItem], *, version: str | None = None
    ) -> Mapping[str, KnownItem]:
        return await self._read(lambda reader: plan.match_input(reader, batch_id, entries, version))

    async def count_other_version(self, batch_id: int, version: str) -> int:
        now = self._clock.now()
        return await self._read(lambda reader: plan.count_other_version(reader, batch_id, version, now))

    async def count_reopenable(self, batch_id: int, *, max_attempts: int) -> int:
        return await self._read(lambda reader: plan.count_reopenable(reader, batch_id, max_attempts))

    # --- changing ----------------------------------------------------------------------------------------------------

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
