"""The FileMaintenance protocol, implemented on one SQLite file. Each method opens the connections that it needs."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

from asyncrunner.domain.clock import Clock, SystemClock
from asyncrunner.sqlite import queries, sql
from asyncrunner.sqlite.file.creation import check_place
from asyncrunner.sqlite.file.errors import translated
from asyncrunner.sqlite.file.opening import connect_reader, located
from asyncrunner.sqlite.maintenance import backup, checks, repairs, restore
from asyncrunner.store.maintenance import CheckResult, Restored
from asyncrunner.store.retrying import retry_for
from asyncrunner.text.suggestions import no_such_batch

T = TypeVar("T")


class SQLiteMaintenance:
    """The maintenance of one SQLite file, also while workers use it."""

    def __init__(self, location: str | os.PathLike[str], clock: Clock | None = None) -> None:
        """Prepare the maintenance of the file at *location*, which is not opened yet. Raises StoreError for an unusable path."""
        self._location = os.fspath(location)
        self._database = located(location)
        self._clock: Clock = clock or SystemClock()

    async def backup(self, target: str | os.PathLike[str], *, batch_id: int | None = None) -> int:
        stopped = threading.Event()
        try:
            return await anyio.to_thread.run_sync(
                partial(backup.back_up, only=batch_id),
                self._database,
                Path(target),
                lambda: not stopped.is_set(),
                self._clock.now(),
                abandon_on_cancel=True,
            )
        except asyncio.CancelledError:
            stopped.set()
            raise

    async def restore(self, backup: str | os.PathLike[str]) -> Restored:
        check_place(Path(self._location))
        stopped = threading.Event()
        call = partial(restore.restore, Path(backup), self._database, lambda: not stopped.is_set(), self._clock.now())
        try:
            return await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
        except asyncio.CancelledError:
            stopped.set()
            raise

    def check_vacuum(self) -> None:
        """Do nothing: every file can be rewritten."""

    async def vacuum(self) -> int:
        check_place(Path(self._location))
        await retry_for(lambda: anyio.to_thread.run_sync(backup.vacuum, self._database), self._clock)
        return self._database.stat().st_size

    async def free_bytes(self) -> int:
        return await retry_for(lambda: anyio.to_thread.run_sync(self._read, _free_bytes), self._clock)

    async def check(self, *, full: bool, batch: str | None = None) -> Sequence[CheckResult]:
        def examine(connection: sqlite3.Connection) -> Sequence[CheckResult]:
            if batch is not None:
                with suppress(sqlite3.DatabaseError):  # the findings describe a damaged file better than this exception does
                    names = [row.name for row in queries.batches(connection)]
                    if batch not in names:
                        raise no_such_batch(self._location, batch, names)
            return checks.examine(connection, self._database, full=full, clock=self._clock, batch=batch)

        return await anyio.to_thread.run_sync(self._read, examine)

    async def repair(self, *, contents: bool, batch: str | None = None) -> Sequence[str]:
        now = self._clock.now()

        def run() -> Sequence[str]:
            if not contents:
                return list(repairs.make_private(self._database))
            return list(repairs.repair(self._database, now=now, batch=batch))

        return await anyio.to_thread.run_sync(run)

    def _read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        connection = connect_reader(Path(self._location))
        try:
            with translated(self._location):
                return operation(connection)
        finally:
            connection.close()


def _free_bytes(connection: sqlite3.Connection) -> int:
    pages: int = connection.execute(sql.connection.FREE_PAGES).fetchone()[0]
    size: int = connection.execute(sql.connection.PAGE_SIZE).fetchone()[0]
    return pages * size
