"""Wait until other processes change the file: with a bell, and by reading the file regularly."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from asyncrunner.domain.outcome import Released, Settlement
from asyncrunner.errors import StoreError, StoreUnavailable
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.file.errors import translated
from asyncrunner.sqlite.file.opening import connect_watcher
from asyncrunner.sqlite.locks.bell import NEW_ITEMS, SOON, Bell, Ringer, open_bell
from asyncrunner.store.items import Mark
from asyncrunner.store.turn import Turn
from asyncrunner.text.timestamps import to_text

T = TypeVar("T")
_POLL_SECONDS: Final = 0.05  # between two reads of PRAGMA data_version; costs 0.6 % of a core, and only while a caller waits
_FIRST_POLL_SECONDS: Final = 0.002  # the same at the beginning of a wait, because most results that a caller waits for come soon
_POLL_GROWTH: Final = 1.5  # each pause of a wait, as a multiple of the one before
_SLOW_POLL_SECONDS: Final = 2.0  # the same with a bell; a runner's reads notice a change earlier, see ChangeWatch.read()
_BUSY_SECONDS: Final = 10.0  # after a change without a ring, the quicker poll lasts so long
_RING_GAP_SECONDS: Final = 0.005  # between two answers to rings, because each one is followed by a turn

_States = frozenset[tuple[int, int, int]]
"""By batch: whether an item is due, and whether one is unfinished."""


class ChangeWatch:
    """The watch of one store object on its file; *database* is None for a store in memory.

    *check_open* raises StoreClosed. *now* returns the time of the store's clock. The thread of the event loop reads on a
    separate connection, which takes 20 us: a call on the writer's thread takes 300 us. This connection holds no transaction and
    never waits for a lock; a read that fails is repeated.
    """

    def __init__(self, database: Path | None, location: str, *, check_open: Callable[[], None], now: Callable[[], float]) -> None:
        self._database = database
        self._location = location
        self._check_open = check_open
        self._now = now
        self._watcher: sqlite3.Connection | None = None
        self._bell: Bell | None = None
        self._ringer = None if database is None else Ringer(database)
        self._poll_seconds = _FIRST_POLL_SECONDS
        self._states: _States = frozenset()
        self._had_outcomes = False  # whether a turn has stored outcomes since the last end of a batch
        self._poll_quickly_until = 0.0  # monotonic
        self._answered_at = 0.0  # when a ring was answered last, monotonic
        self._seen: int | None = None  # the newest PRAGMA data_version of wait_for_items()
        self._waiting: asyncio.Future[None] | None = None  # in wait_for_items()
        self._rows: dict[str, tuple[int, Sequence[object], Sequence[Any]]] = {}  # by statement: what read() returned last

    def open_bell(self, worker_id: str) -> None:
        """Let other processes ring at the worker from now on."""
        if self._bell is None and self._database is not None:
            self._bell = open_bell(self._database, worker_id)

    def restore_bell(self) -> None:
        """Let other processes ring again after the files beside the lock files were deleted."""
        if self._bell is not None:
            with suppress(OSError, StoreError):
                self._bell.restore()

    def close_bell(self) -> None:
        """End the bell: the worker needs no items any more."""
        bell, self._bell = self._bell, None
        if bell is not None:
            bell.close()

    def ring(self) -> None:
        """Ring at the other processes: the file has items that a worker may claim. Any thread may call this."""
        if self._ringer is not None:
            bell = self._bell
            self._ringer.ring(NEW_ITEMS, own="" if bell is None else bell.name)

    def rings_after(self, settlements: Sequence[Settlement], turn: Turn) -> bool:
        """Return whether other workers must know of a turn: it released items, or the last unfinished item has ended.

        A turn without outcomes after the end concerns no other worker; otherwise idle workers would wake one another for ever.
        """
        self._had_outcomes = self._had_outcomes or bool(settlements)
        has_end = self._had_outcomes and any(not state.unfinished for state in turn.batches.values())
        self._had_outcomes = self._had_outcomes and not has_end
        return has_end or any(type(each.outcome) is Released for each in settlements)

    def close(self, *, is_of_this_process: bool) -> None:
        """Close the connection and the sockets."""
        watcher, self._watcher = self._watcher, None
        self._rows.clear()  # another connection counts its versions anew
        if watcher is not None and is_of_this_process:
            watcher.close()
        if is_of_this_process:
            self.close_bell()

    async def wait_for_change(self, mark: Mark | None) -> Mark:
        """Wait for any commit of another connection; see ``EngineStore.wait_for_change``."""
        if mark is None:
            self._poll_seconds = _FIRST_POLL_SECONDS
        while True:
            version = self._data_version()
            if version is not None and version != mark:
                return Mark(version)
            await asyncio.sleep(self._poll_seconds)  # asyncio.sleep costs half as much as anyio.sleep
            self._poll_seconds = min(_POLL_GROWTH * self._poll_seconds, _POLL_SECONDS)

    async def wait_for_items(self, batch_ids: Sequence[int], mark: Mark | None) -> Mark:
        """Wait until a worker may have to claim items; see ``EngineStore.wait_for_items``."""
        while True:
            messages = b"" if self._bell is None else self._bell.take()
            if SOON in messages:
                self._poll_quickly_until = time.monotonic() + _BUSY_SECONDS
            version = self._seen = self._data_version()
            if version is not None and (mark is None or NEW_ITEMS in messages):
                self._answered_at = time.monotonic()
                self._states = self._read_states(batch_ids)
                return Mark(version)
            if version is not None and version != mark:
                states = self._read_states(batch_ids)
                mark = Mark(version)
                has_due = any(due for _, due, _ in states)
                if has_due or states != self._states:
                    self._states = states
                    if has_due:
                        self._poll_quickly_until = time.monotonic() + _BUSY_SECONDS
                    return mark
            await self._wait()

    async def _wait(self) -> None:
        """Wait for a ring, at most until the next read."""
        if self._bell is None:
            await asyncio.sleep(_POLL_SECONDS)
            return
        is_quick = time.monotonic() < self._poll_quickly_until
        loop = asyncio.get_running_loop()
        self._waiting = rung = loop.create_future()
        descriptor = self._bell.fileno()
        loop.add_reader(descriptor, _resolve, rung)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS if is_quick else _SLOW_POLL_SECONDS):
                    await rung
        finally:
            loop.remove_reader(descriptor)
            self._waiting = None
        gap = self._answered_at + _RING_GAP_SECONDS - time.monotonic()
        if rung.done() and gap > 0:
            await asyncio.sleep(gap)

    def read(self, statement: str, arguments: Sequence[object]) -> Sequence[Any] | None:
        """Return the rows of a quick read of small tables, or None while the file is unavailable or if it is in memory.

        Idle workers repeat such reads: in the thread of the event loop a read takes a tenth of the CPU time, and the rows of an
        unchanged file are read once. A read also ends a ``wait_for_items`` if the file has changed, because the process is
        awake for it. The statement must not depend on the time.
        """
        if self._database is None:
            return None
        version = self._data_version()
        waiting = self._waiting
        if waiting is not None and version != self._seen and waiting.get_loop() is asyncio.get_running_loop():
            _resolve(waiting)  # a future of a closed loop stays as it is
        known = self._rows.get(statement)
        if known is not None and version is not None and known[:2] == (version, arguments):
            return known[2]
        rows = self._read(lambda watcher: watcher.execute(statement, arguments).fetchall())
        if version is not None and rows is not None:
            self._rows[statement] = (version, arguments, rows)
        return rows

    def _data_version(self) -> int | None:
        if self._database is None:
            return 0
        row = self._read(lambda watcher: watcher.execute(sql.connection.DATA_VERSION).fetchone())
        return None if row is None else int(row[0])

    def _read_states(self, batch_ids: Sequence[int]) -> _States:
        arguments = (msgspec.json.encode(batch_ids).decode(), to_text(self._now()))
        return frozenset(self.read(sql.claims.OPEN_STATES, arguments) or ())

    def _read(self, read: Callable[[sqlite3.Connection], T]) -> T | None:
        """Return what *read* returns, or None while the file is unavailable."""
        self._check_open()
        if self._watcher is None:
            assert self._database is not None
            self._watcher = connect_watcher(self._database)
        try:
            with translated(self._location):
                return read(self._watcher)
        except StoreUnavailable:
            return None


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
