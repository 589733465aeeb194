"""Group writes into shared transactions of one aiosqlite connection.

An operation is a function of the raw connection. Operations that arrive while a commit runs form a group and share
the next transaction. A group is one call on the connection's thread, so a cancelled caller cannot leave a transaction
open: the caller only stops waiting. If an operation of a group raises, or the group does not fit on the disk, the group
is rolled back and each operation runs again alone, so that each caller gets its own result or error. If the file is locked,
damaged or unreadable, the operations do not run again, and every caller of the group gets that error.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sqlite3
from collections import deque
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import aiosqlite
import anyio.to_thread

from asyncrunner.errors import StoreClosed, StoreError, StoreUnavailable
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.file import wal
from asyncrunner.sqlite.file.errors import translated
from asyncrunner.sqlite.file.opening import reject_foreign
from asyncrunner.sqlite.locks.lock_file import locks_folder
from asyncrunner.sqlite.locks.write_lock import FairWriteLock
from asyncrunner.sqlite.sql.bulk import SteppedConnection, long_step

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

T = TypeVar("T")

_FILE_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
    }
)
"""Errors that every operation of the group would meet, so the group does not run again."""

_COMMIT_CODES: Final = frozenset({sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM})
"""Errors of a COMMIT that one operation may have caused: a deferred constraint, or too much data for one transaction."""

_FULL_SYNC: Final = 2  # the value of PRAGMA synchronous for FULL

_MAX_CALL_SECONDS: Final = 5.0  # for a call that a closed event loop has begun to end


class _Job(Generic[T]):
    """A queued operation, and after a group has run the operation, its value or its error."""

    __slots__ = ("checkpoint_bytes", "error", "is_lasting", "operation", "rings", "value")

    def __init__(
        self,
        operation: Callable[[sqlite3.Connection], T],
        checkpoint_bytes: int,
        rings: Callable[[T], object] | None,
        *,
        is_lasting: bool,
    ) -> None:
        self.operation = operation
        self.rings = rings
        self.checkpoint_bytes = checkpoint_bytes
        self.is_lasting = is_lasting
        self.value: T | None = None
        self.error: BaseException | None = StoreClosed("the store was closed before the operation ran")


class Connection:
    """A connection that writes in groups and reads between groups, always on aiosqlite's thread."""

    def __init__(self, location: str, connect: Callable[[], sqlite3.Connection], database: Path | None) -> None:
        self.location = location
        self._connect = connect
        self._database = database
        self._wal = wal.WalCheckpoints(location, database)
        self._write_lock: FairWriteLock | None = None
        self._raw: sqlite3.Connection | None = None
        self._connection: aiosqlite.Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the loop that the connection's thread calls with results
        self._jobs: deque[_Job[Any]] = deque()
        self._process = os.getpid()
        self._must_restore_lock = False
        self._is_in_operation = False
        self._syncs_commits = True  # whether each commit waits for the disk
        self.ring: Callable[[], object] = bool  # called in the connection's thread; see write()

    async def open(self) -> None:
        """Open the connection. Raises the exceptions of the *connect* function.

        A connection whose event loop was closed is closed first; it can be used only after it is opened again.
        """
        await self._close_after_loop()
        connection = aiosqlite.Connection(self._open_on_thread, iter_chunk_size=64)
        # If the event loop is closed early (after a second Ctrl-C under a server), the connection cannot be closed. A daemon
        # thread then does not prevent the exit of the interpreter. Committed data is safe.
        thread = connection._thread  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        thread.daemon = True
        thread.start()
        try:
            connection._connection = await self._on_thread(connection, self._open_on_thread)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        except BaseException:
            connection.stop()  # pyright: ignore[reportUnknownMemberType]
            thread.join(1.0)
            if not thread.is_alive():
                self._close_on_thread()  # the caller was cancelled, so the connection may be open
            raise
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()

    def _open_on_thread(self) -> sqlite3.Connection:
        if self._database is not None:
            if not locks_folder(self._database).exists():
                with translated(self.location):
                    reject_foreign(self._database)
            self._write_lock = FairWriteLock(self._database)
        try:
            with self._write_locked(), translated(self.location):
                raw = self._raw = self._connect()
                self._syncs_commits = raw.execute(sql.connection.SYNC_LEVEL).fetchone()[0] >= _FULL_SYNC
        except BaseException:
            self._close_write_lock()
            raise
        return raw

    async def close(self) -> None:
        """Run the queued calls, then close the connection and its lock files.

        If no other process is writing, a WAL checkpoint runs before the close. Raises StoreError if the disk fails during
        that WAL checkpoint; the file then stays open until the process ends, so that the WAL stays for the next process.
        Does nothing in a forked child. Cancelling the caller does not stop the close.
        """
        await self._close_after_loop()
        connection, self._connection = self._connection, None
        if connection is None or not self.is_of_this_process:
            return
        try:
            # The write lock is held: closing the last connection runs a WAL checkpoint, which must not race with a writer.
            await self._on_thread(connection, self._close_on_thread)
        finally:
            await self._on_thread(connection, lambda: None)  # the close has ended, also if the caller was cancelled
            connection._connection = None  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - it is closed, or must stay open
            connection.stop()  # pyright: ignore[reportUnknownMemberType]
            connection._thread.join(1.0)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - the thread has nothing left to do

    async def _close_after_loop(self) -> None:
        """Close the connection if its event loop was closed; otherwise do nothing.

        The connection's thread may still run a call of that loop.
        """
        connection = self._connection
        if connection is None or not self.is_of_this_process or self._loop is None or not self._loop.is_closed():
            return
        self._connection = None
        connection._connection = None  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - so that aiosqlite does not close it
        connection.stop()  # pyright: ignore[reportUnknownMemberType]
        thread = connection._thread  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        await anyio.to_thread.run_sync(thread.join, _MAX_CALL_SECONDS)
        if not thread.is_alive():
            self._close_on_thread()

    def _close_on_thread(self) -> None:
        if self._raw is None:
            return
        try:
            with self._write_locked():
                if not self._wal.is_broken:
                    self._wal.run(self._raw)
                    self._raw.close()
                    self._raw = None
        except StoreUnavailable:
            pass  # another process is writing, so this connection is not the last, and the WAL may stay
        finally:
            if self._raw is None:
                pass  # it was closed with the write lock
            elif self._wal.is_broken:
                # Closing would run another WAL checkpoint. After a failed fsync that WAL checkpoint may "succeed" and delete
                # the only copy of data that the disk did not store. So this connection is never closed, and the next process
                # reads the WAL.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._raw))
            else:
                self._raw.close()
            self._raw = None
            self._close_write_lock()

    def _close_write_lock(self) -> None:
        if self._write_lock is not None:
            self._write_lock.close()
            self._write_lock = None

    def restore_locks(self) -> None:
        """Request that the next write opens the files of the write lock again if they were deleted or replaced."""
        self._must_restore_lock = True

    async def write(
        self,
        operation: Callable[[sqlite3.Connection], T],
        *,
        checkpoint_bytes: int | None = None,
        rings: Callable[[T], object] | None = None,
        is_lasting: bool = True,
    ) -> T:
        """Run *operation* in a transaction, commit it and return the operation's value.

        The operation may run twice (see the module), so it must depend only on the connection. Raises the operation's error,
        or StoreUnavailable, and then nothing was stored. Also raises StoreError if a WAL checkpoint after the commit fails;
        then the operation is committed. Cancelling the caller does not undo the operation. If the WAL has at least
        *checkpoint_bytes* after the commit (default ``wal.CHECKPOINT_BYTES``), a WAL checkpoint follows. *rings*: a function
        of the operation's value that returns whether other workers may now claim items; then ``ring()`` is called after the
        commit. Without *is_lasting*, a power cut may undo the operation, as if the durability were "normal".
        """
        job = _Job(operation, checkpoint_bytes or wal.CHECKPOINT_BYTES, rings, is_lasting=is_lasting)
        connection = self._open_connection()
        self._jobs.append(job)
        await self._on_thread(connection, self._commit_group)
        if job.error is not None:
            raise job.error
        return job.value  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    async def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run *operation* between two groups, outside any transaction of this class, and return its value.

        Raises the operation's error, StoreUnavailable, StoreError or StoreClosed.
        """
        connection = self._open_connection()

        def run() -> T:
            assert self._raw is not None
            with translated(self.location):
                return operation(self._raw)

        return await self._on_thread(connection, run)

    async def _on_thread(self, connection: aiosqlite.Connection, call: Callable[[], T]) -> T:
        # aiosqlite's public methods run one statement each; this runs a whole transaction in one call to the thread.
        # Its private _execute() does that too, but if the event loop is closed meanwhile (by a second Ctrl-C), the thread
        # ends with a traceback on stderr.
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        connection._tx.put_nowait((None, partial(_run_for, future, call)))  # noqa: SLF001  # pyright: ignore
        return await future

    @property
    def busy_until(self) -> float:
        """The monotonic time before which the connection's thread hardly needs the interpreter."""
        return self._raw.busy_until if isinstance(self._raw, SteppedConnection) else 0.0

    @property
    def is_of_this_process(self) -> bool:
        """Whether this process opened the connection; False in a forked child."""
        return os.getpid() == self._process

    def check_open(self) -> None:
        """Raise StoreClosed unless the connection is open in this process."""
        self._open_connection()

    def _open_connection(self) -> aiosqlite.Connection:
        if not self.is_of_this_process:
            raise StoreClosed(
                f"{self.location} was opened by the process that this one was forked from; open it after forking, or start "
                'processes with the "spawn" method'
            )
        if self._connection is None:
            raise StoreClosed(f"{self.location} is not open")
        if self._loop is not None and self._loop.is_closed():
            raise StoreClosed(f"the event loop that used {self.location} was closed; open the store again")
        return self._connection

    def _commit_group(self) -> None:
        group: list[_Job[Any]] = []
        while self._jobs:
            group.append(self._jobs.popleft())
        if not group:
            return  # an earlier group ran the caller's operation
        self._commit(group)
        if any(job.rings is not None and job.error is None and job.rings(job.value) for job in group):
            self.ring()
        try:
            self._checkpoint_if_due(min(job.checkpoint_bytes for job in group))
        except StoreError as error:
            for job in group:
                job.error = job.error or error  # the WAL has the commit, but the caller must stop using the file

    def _commit(self, group: list[_Job[Any]]) -> None:
        try:
            with self._write_locked(), translated(self.location), self._sync_for(group):
                self._run_in_transaction(group)
        except BaseException as error:  # noqa: BLE001 - the callers raise it, not aiosqlite's thread
            in_operation, self._is_in_operation = self._is_in_operation, False
            if len(group) > 1 and _is_of_one_operation(error, in_operation=in_operation):
                for job in group:
                    self._commit([job])
                return
            for job in group:
                job.error = error
        else:
            for job in group:
                job.error = None

    @contextmanager
    def _sync_for(self, group: list[_Job[Any]]) -> Generator[None, None, None]:
        """Do not wait for the disk in the commit of a group in which no operation must outlast a power cut.

        The next commit that waits for the disk also stores this one, because both are in the same WAL.
        """
        raw = self._raw
        if raw is None or not self._syncs_commits or any(job.is_lasting for job in group):
            yield
            return
        raw.execute(sql.connection.SYNC_EACH_CHECKPOINT)
        try:
            yield
        finally:
            raw.execute(sql.connection.SYNC_EACH_COMMIT)

    def _run_in_transaction(self, group: list[_Job[Any]]) -> None:
        raw = self._raw
        assert raw is not None
        raw.execute(sql.connection.BEGIN_WRITE)
        try:
            self._is_in_operation = True
            for job in group:
                job.value = job.operation(raw)
            self._is_in_operation = False
            long_step(raw, sql.connection.COMMIT)
        except BaseException:
            # After FULL, IOERR and NOMEM SQLite has already rolled the transaction back.
            if raw.in_transaction:
                raw.execute(sql.connection.ROLLBACK)
            raise

    def _write_locked(self) -> Any:
        if self._must_restore_lock and self._write_lock is not None:
            self._write_lock.restore()
            self._must_restore_lock = False  # only now: after a failure the next write tries again
        return nullcontext() if self._write_lock is None else self._write_lock.pass_through()

    def _checkpoint_if_due(self, limit: int) -> None:
        if self._raw is None or not self._wal.is_due(limit):
            return
        try:
            with self._write_locked():
                self._wal.run_due(self._raw)
        except StoreUnavailable:
            pass  # another process is writing; the next commit tries again


def _run_for(future: asyncio.Future[T], call: Callable[[], T]) -> None:
    """Run *call* on the connection's thread for the event loop that waits for *future*; the loop may be closed meanwhile."""
    try:
        value = call()
    except BaseException as error:  # noqa: BLE001 - the caller raises it
        _resolve_in_loop(future, partial(future.set_exception, error))
    else:
        _resolve_in_loop(future, partial(future.set_result, value))


def _resolve_in_loop(future: asyncio.Future[Any], resolve: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed, so no caller waits
        future.get_loop().call_soon_threadsafe(_resolve, future, resolve)


def _resolve(future: asyncio.Future[Any], resolve: Callable[[], None]) -> None:
    if not future.done():  # the caller was cancelled
        resolve()


def _is_of_one_operation(error: BaseException, *, in_operation: bool) -> bool:
    """Return whether one operation of a group may have caused *error*, so that the others may succeed without it."""
    cause = error.__cause__ if isinstance(error, StoreError) else error
    code: int | None = getattr(cause, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    return primary not in _FILE_CODES if in_operation else primary in _COMMIT_CODES
