"""The store of a simulated process: the real methods, statements and groups, on a database in memory that all processes share.

Two parts are replaced. aiosqlite's thread is an actor of the loop: it runs its calls one after the other, each after a random delay, and
answers after another random delay. The lock files are a table. Faults occur where SQLite has them: a transaction cannot begin (busy),
a commit fails (the disk is full or broken), a commit succeeds and reports a failure, or the process dies right before or after a commit.
``Disk`` chooses them at random.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asyncrunner.sqlite import sql
from asyncrunner.sqlite.change_watch import ChangeWatch
from asyncrunner.sqlite.file.identity import FileIdentity
from asyncrunner.sqlite.file.wal import WalCheckpoints
from asyncrunner.sqlite.locks.liveness_lock import EVIDENCE
from asyncrunner.sqlite.sql.schema import APPLICATION_ID, migrate
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.items import Mark
from tests.simulation.loop import ACTOR

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from tests.simulation.process import Process

__all__ = ["Disk", "FairWriteLock", "Killed", "Locks", "Raw", "SimulatedStore", "Thread", "on_thread"]

_KEYS: Final = "SELECT json_group_array(id) FROM items WHERE seq IN (SELECT value FROM json_each(?))"

_ITEMS_CHANGE: Final = ("INSERT INTO items", "UPDATE items", "UPDATE batches SET total", "DELETE FROM items")


class Killed(BaseException):
    """Raised in the thread of a killed process, so that its next operation does not happen."""


class Disk:
    """The file and its faults. ``broken`` and ``kill_at_commit`` are attributes of a process."""

    def __init__(self, rng: random.Random, number: int, *, busy: float, latency: float) -> None:
        self.uri = f"file:/simulation-{number}?vfs=memdb"
        self._rng = rng
        self._busy = busy
        self.latency = latency
        self.locked = False
        self.full = False
        self.faults = 0
        self.on_commit: Callable[[Process, Raw], None] = lambda process, raw: None
        self.on_break: Callable[[Process], None] = lambda process: None
        self.on_death: Callable[[Process], None] = lambda process: None
        self.held: dict[str, bool] = {}  # worker id -> whether its liveness lock is held
        self.notes: dict[str, list[int]] = {}  # worker id -> the seqs in its slot journal
        self.auditor = self.connect()
        self.auditor.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        migrate(self.auditor, 0)

    def connect(self, process: Process | None = None) -> Raw:
        """Return a connection of *process*, or one without faults."""
        raw = sqlite3.connect(self.uri, uri=True, isolation_level=None, factory=Raw)
        raw.disk, raw.process = self, process
        if process is not None:
            process.raw = raw
        return raw

    def calm(self) -> None:
        """Inject no more faults."""
        self._busy = 0.0
        self.locked = self.full = False

    def idle(self, process: Process) -> bool:
        """Return whether *process* has no transaction open."""
        try:
            return process.raw is None or not process.raw.in_transaction
        except sqlite3.ProgrammingError:  # it is closed
            return True

    def takes(self) -> float:
        """Return the random seconds that an operation takes."""
        return self._rng.random() * self.latency

    def begin(self, process: Process) -> None:
        """Raise the fault that prevents a transaction or a read, if any."""
        if process.loop.is_dead:
            raise Killed
        if process.is_broken:
            raise _error(sqlite3.SQLITE_IOERR, "disk I/O error")
        if self.locked or (self._busy and self._rng.random() < self._busy):
            self.faults += 1
            raise _error(sqlite3.SQLITE_BUSY, "database is locked")

    def commit(self, process: Process, raw: Raw) -> None:
        kill, process.kill_at_commit = (
            (process.kill_at_commit, "") if raw.is_of_items and raw.has_changed_something else ("", process.kill_at_commit)
        )
        if self.full:
            self.faults += 1
            raw.really("ROLLBACK")  # SQLite does the same, without an error
            raise _error(sqlite3.SQLITE_FULL, "database or disk is full")
        breaks, process.breaks = process.breaks, False
        if breaks:
            process.is_broken = True
            self.on_break(process)
        if kill == "before" or (breaks and self._rng.random() < 0.5):
            raw.really("ROLLBACK")
        else:
            raw.really("COMMIT")
            self.on_commit(process, raw)
        if kill:
            self.on_death(process)
            raise Killed
        if breaks:
            raise _error(sqlite3.SQLITE_IOERR, "disk I/O error")


def _error(code: int, message: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


class Raw(sqlite3.Connection):
    """A connection with the faults of the disk.

    ``is_of_items``: the transaction may have changed items; ``is_set_back``: it set times back after a jump of the clock.
    """

    disk: Disk
    process: Process | None = None
    is_of_items = False
    is_set_back = False
    beats: tuple[str, ...] = ()
    cancels: tuple[str, ...] = ()
    _changes_before = 0

    @property
    def has_changed_something(self) -> bool:
        """Return whether the newest transaction changed a row."""
        return self.total_changes > self._changes_before

    def really(self, statement: str) -> None:
        super().execute(statement)

    def execute(self, statement: str, values: Any = (), /) -> sqlite3.Cursor:
        process = self.process
        if process is None:
            return super().execute(statement, values)
        if statement == "BEGIN IMMEDIATE":
            self.disk.begin(process)
            self.is_of_items, self.is_set_back, self.beats, self.cancels = False, False, (), ()
            self._changes_before = self.total_changes
        elif statement == "COMMIT":
            self.disk.commit(process, self)
            return self.cursor()
        elif not self.in_transaction:
            if statement.startswith(("SELECT", "\nSELECT")):
                self.disk.begin(process)
        elif statement is sql.workers.BEAT:
            self.beats += (values[-1],)
        elif statement is sql.workers.INSERT_WORKER:
            self.beats += (values[0],)
        elif any(change in statement for change in _ITEMS_CHANGE):
            self.is_of_items = True
            self.is_set_back |= statement is sql.workers.SET_BACK_RETRIES
            if statement is sql.items.CANCEL:
                self.cancels += super().execute(_KEYS, (values["seqs"],)).fetchone()
        return super().execute(statement, values)


class Thread:
    """A replacement of aiosqlite's connection and thread. It runs calls in order, even when the caller no longer waits."""

    daemon = True

    def __init__(self, connector: Callable[[], sqlite3.Connection], iter_chunk_size: int = 64) -> None:
        del iter_chunk_size
        del connector
        self._connection: sqlite3.Connection | None = None
        self._thread = self
        self._process: Process = ACTOR.get().owner
        self._loop = asyncio.get_running_loop()
        self._context = self._process.thread.context()
        self._calls: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._is_busy = False
        self.is_open = False

    def start(self) -> None:
        self.is_open = True

    def stop(self) -> None:
        self.is_open = False

    def join(self, timeout: float) -> None:
        pass

    def is_alive(self) -> bool:
        return self.is_open or self._is_busy or bool(self._calls)

    async def call(self, call: Callable[[], Any]) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._calls.append((call, future))
        if not self._is_busy:
            self._go_on()
        return await future

    def _go_on(self) -> None:
        self._is_busy = True
        self._loop.call_later(self._process.disk.takes(), self._run_next, context=self._context)

    def _run_next(self) -> None:
        call, future = self._calls.popleft()
        value, error = None, None
        try:
            value = call()
        except Killed:
            return
        except BaseException as raised:
            error = raised
        if self._process.thread.is_dead:
            return
        if not self._process.disk.idle(self._process):
            self._process.world.ledger.wrong(15, f"{self._process} left a transaction open")
        self._loop.call_later(self._process.disk.takes(), self._answer, future, value, error, context=self._context)

    def _answer(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        self._is_busy = False
        if self._calls:
            self._go_on()
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)


async def on_thread(_: object, thread: Thread, call: Callable[[], Any]) -> Any:
    """Replace ``Connection._on_thread()``, which uses a queue of aiosqlite's connection."""
    return await thread.call(call)


class FairWriteLock:
    """A write lock that never waits: a transaction is one step of the simulation."""

    def __init__(self, database: Path) -> None:
        pass

    @contextmanager
    def pass_through(self) -> Iterator[None]:
        yield

    def restore(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Lock:
    def __init__(self, held: dict[str, bool], worker_id: str) -> None:
        self._held = held
        self._worker_id = worker_id
        held[worker_id] = True

    def restore(self) -> bool:
        return False  # no lock file is deleted in the simulation

    def release(self) -> None:
        self._held.pop(self._worker_id, None)

    def drop(self) -> None:
        if self._worker_id in self._held:
            self._held[self._worker_id] = False


class Locks:
    """A replacement of the module ``liveness_lock``."""

    EVIDENCE = EVIDENCE

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def LivenessLock(self, database: Path, worker_id: str) -> _Lock:
        return _Lock(self._disk.held, worker_id)

    def is_held(self, database: Path, worker_id: str) -> bool | None:
        return self._disk.held.get(worker_id)

    def forget(self, database: Path, worker_id: str) -> None:
        self._disk.held.pop(worker_id, None)


class Journals:
    """A replacement of the module ``slot_journal``: the kernel keeps the notes of a process that was killed."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def SlotJournal(self, database: Path, worker_id: str) -> _Journal:
        return _Journal(self._disk, worker_id)

    def running(self, database: Path, worker_id: str) -> frozenset[int] | None:
        notes = self._disk.notes.get(worker_id)
        return None if notes is None else frozenset(notes)

    def forget(self, database: Path, worker_id: str) -> None:
        self._disk.notes.pop(worker_id, None)


class _Journal:
    def __init__(self, disk: Disk, worker_id: str) -> None:
        self._disk = disk
        self._worker_id = worker_id

    def notes(self, slots: int) -> list[int]:
        notes = self._disk.notes.setdefault(self._worker_id, [])
        notes += [0] * (slots - len(notes))
        return notes

    def delete(self) -> None:
        self._disk.notes.pop(self._worker_id, None)

    def drop(self) -> None:
        pass


class SimulatedStore(SQLiteStore):
    """The store of a process, from its start to its end."""

    def __init__(self, process: Process, clock: Clock) -> None:
        super().__init__("/simulated/jobs.db", clock=clock)
        self._process = process
        self._connection._wal = WalCheckpoints(self.location, None)  # there is no file to check
        self._identity = FileIdentity(None, self.location)  # nor one that could be replaced
        self._watch = ChangeWatch(None, self.location, check_open=self._connection.check_open, now=clock.now)

    async def open(self) -> None:
        await self._connection.open()

    def _connect(self) -> sqlite3.Connection:
        self._process.disk.begin(self._process)
        return self._process.disk.connect(self._process)

    async def wait_for_change(self, mark: Mark | None) -> Mark:
        """Wait without polling: a commit wakes the waiting processes."""
        return Mark(await self._process.wait_for_commit(mark))

    async def wait_for_items(self, batch_ids: Sequence[int], mark: Mark | None) -> Mark:
        return await self.wait_for_change(mark)
