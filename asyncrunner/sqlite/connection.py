"""One aiosqlite connection and the only writer on it.

Operations are functions of the raw connection. Those that pile up while a commit runs share the next
transaction: a group. A group is one call on the connection's thread, so a cancelled caller cannot leave a
transaction open: it only stops waiting. If an operation of a group raises, the group is rolled back
and each is run again alone, so that everyone learns its own fate and a bad one fails nobody else.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sqlite3
import time
from collections import deque
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import aiosqlite

from asyncrunner.errors import StoreClosed, StoreError, StoreUnavailable
from asyncrunner.sqlite.locks import Turnstile
from asyncrunner.sqlite.schema import DAMAGED

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Connection", "translated"]

log = logging.getLogger("asyncrunner")

T = TypeVar("T")

CHECKPOINT_BYTES: Final = 32 * 1024 * 1024
"""A WAL larger than this is written back into the database after a commit."""

_ASK_AGAIN_SECONDS: Final = 5.0

_TRANSIENT: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_INTERRUPT,
    }
)


class _Job(Generic[T]):
    """An operation, and its fate once a group has run it."""

    __slots__ = ("checkpoint_bytes", "error", "operation", "value")

    def __init__(self, operation: Callable[[sqlite3.Connection], T], checkpoint_bytes: int) -> None:
        self.operation = operation
        self.checkpoint_bytes = checkpoint_bytes
        self.value: T | None = None
        self.error: BaseException | None = StoreClosed("the store was closed before the operation ran")


class Connection:
    """Writes in groups, reads between them; everything on aiosqlite's thread."""

    def __init__(self, location: str, connect: Callable[[], sqlite3.Connection], database: Path | None) -> None:
        self.location = location
        self._connect = connect
        self._database = database
        self._wal = None if database is None else database.with_name(database.name + "-wal")
        self._turnstile: Turnstile | None = None
        self._raw: sqlite3.Connection | None = None
        self._connection: aiosqlite.Connection | None = None
        self._jobs: deque[_Job[Any]] = deque()
        self._ask_at_size = 0  # of the WAL, and from when on, whatever its size
        self._ask_at = 0.0
        self._report_at = 2 * CHECKPOINT_BYTES
        self._process = os.getpid()
        self._restores_turnstile = False
        self._is_broken = False  # the disk failed while the log was written back

    async def open(self) -> None:
        """Connect. Raises what *connect* raises."""
        connection = aiosqlite.Connection(self._open_here, iter_chunk_size=64)
        # A loop that was closed under us (a second Ctrl-C under a server) cannot close the connection any more;
        # a daemon thread then does not keep the interpreter from exiting. What was committed is safe.
        thread = connection._thread  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        thread.daemon = True
        try:
            await connection
        except BaseException:
            thread.join(1.0)  # it is on its way out, and would speak to a loop that may be closed soon
            if not thread.is_alive():
                self._close_here()  # aiosqlite does not know what was opened for a caller that had gone
            raise
        self._connection = connection
        self._process = os.getpid()

    def _open_here(self) -> sqlite3.Connection:
        if self._database is not None:
            self._turnstile = Turnstile(self._database)
        try:
            with self._turn(), translated(self.location):
                raw = self._raw = self._connect()
        except BaseException:
            self._close_turnstile()
            raise
        return raw

    async def close(self) -> None:
        """Run what is queued, then close. The last connection of all writes the WAL back."""
        connection, self._connection = self._connection, None
        if connection is None or not self.is_of_this_process:
            return
        try:
            # Under the turn: SQLite checkpoints when the last connection closes, which must be nobody's race.
            await self._on_thread(connection, self._close_here)
        finally:
            if self._is_broken:
                connection._connection = None  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - so that it is not closed
                connection.stop()  # pyright: ignore[reportUnknownMemberType]
            else:
                await connection.close()
            connection._thread.join(1.0)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - it has nothing left to do

    def _close_here(self) -> None:
        if self._raw is None:
            return
        try:
            with self._turn():
                if not self._is_broken:
                    self._checkpoint()
                    self._raw.close()
        except StoreUnavailable:
            pass  # somebody else is writing, so this is not the last connection: nothing to write back
        finally:
            if self._is_broken:
                # Closing would write the log back once more. After a failed fsync that may "succeed" and throw away the only
                # copy of what the disk did not take, so this connection is never closed: the next process reads the log.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._raw))
            self._raw = None
            self._close_turnstile()

    def _close_turnstile(self) -> None:
        if self._turnstile is not None:
            self._turnstile.close()
            self._turnstile = None

    def restore_locks(self) -> None:
        """Have the thread look, before it writes again, whether the files of its turns are still there."""
        self._restores_turnstile = True

    async def write(self, operation: Callable[[sqlite3.Connection], T], *, checkpoint_bytes: int | None = None) -> T:
        """Run *operation* in a transaction and return its value once that is committed.

        It may be run twice (see the module), so it must depend on nothing but the connection. Raises what it raised,
        or StoreUnavailable, and then nothing of it happened. A cancelled caller does not undo it. A log
        that is larger than *checkpoint_bytes* by then is written back.
        """
        job = _Job(operation, checkpoint_bytes or CHECKPOINT_BYTES)
        connection = self._open_connection()
        self._jobs.append(job)
        await self._on_thread(connection, self._commit_group)
        if job.error is not None:
            raise job.error
        return job.value  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    async def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run *operation* between two groups, without a transaction of ours."""
        connection = self._open_connection()

        def run() -> T:
            assert self._raw is not None
            with translated(self.location):
                return operation(self._raw)

        return await self._on_thread(connection, run)

    async def _on_thread(self, connection: aiosqlite.Connection, call: Callable[[], T]) -> T:
        # aiosqlite's own methods run one statement each; a whole transaction is one hop this way.
        value: T = await connection._execute(call)  # type: ignore[no-untyped-call]  # noqa: SLF001  # pyright: ignore
        return value

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child."""
        return os.getpid() == self._process

    def check_open(self) -> None:
        """Raises StoreClosed unless it is open here."""
        self._open_connection()

    def _open_connection(self) -> aiosqlite.Connection:
        if not self.is_of_this_process:
            raise StoreClosed(
                f"{self.location} was opened by the process that this one was forked from; open it only after forking, or start "
                'processes with the "spawn" method'
            )
        if self._connection is None:
            raise StoreClosed(f"{self.location} is not open")
        return self._connection

    def _commit_group(self) -> None:
        group: list[_Job[Any]] = []
        while self._jobs:
            group.append(self._jobs.popleft())
        if not group:
            return  # an earlier group took the caller's operation along
        self._commit(group)
        try:
            self._checkpoint_if_large(min(job.checkpoint_bytes for job in group))
        except StoreError as error:
            for job in group:
                job.error = job.error or error  # what it wrote is in the log, but nobody shall go on

    def _commit(self, group: list[_Job[Any]]) -> None:
        try:
            with self._turn(), translated(self.location):
                self._run_in_transaction(group)
        except BaseException as error:  # noqa: BLE001 - it belongs to the callers, not to aiosqlite's thread
            if len(group) > 1 and (not isinstance(error, StoreError) or isinstance(error.__cause__, sqlite3.IntegrityError)):
                for job in group:
                    self._commit([job])
                return
            for job in group:
                job.error = error
        else:
            for job in group:
                job.error = None

    def _run_in_transaction(self, group: list[_Job[Any]]) -> None:
        raw = self._raw
        assert raw is not None
        raw.execute("BEGIN IMMEDIATE")
        try:
            for job in group:
                job.value = job.operation(raw)
            raw.execute("COMMIT")
        except BaseException:
            # FULL, IOERR and NOMEM have ended the transaction already, silently.
            if raw.in_transaction:
                raw.execute("ROLLBACK")
            raise

    def _turn(self) -> Any:
        if self._restores_turnstile and self._turnstile is not None:
            self._restores_turnstile = False
            self._turnstile.restore()
        return nullcontext() if self._turnstile is None else self._turnstile.pass_through()

    def _checkpoint_if_large(self, limit: int) -> None:
        if self._wal is None:
            return
        try:
            size = self._wal.stat().st_size
        except OSError:
            return
        if size < limit:
            self._report_at = 2 * CHECKPOINT_BYTES
            return
        if size < max(self._ask_at_size, CHECKPOINT_BYTES) and time.monotonic() < self._ask_at:
            return
        try:
            with self._turn():
                done = self._checkpoint()
        except StoreUnavailable:
            return  # after the next commit, then
        # A reader keeps the WAL from being emptied: ask again when it has grown by half, or in a while, not at every commit.
        self._ask_at_size = 0 if done else size + size // 2
        self._ask_at = 0.0 if done else time.monotonic() + _ASK_AGAIN_SECONDS
        if not done and size >= self._report_at:
            self._report_at = 2 * size
            log.warning(
                "the write-ahead log of %s has grown to %d MB because another program has been reading for long; end its "
                "transaction or close its cursor",
                self.location,
                size // 1_000_000,
            )

    def _checkpoint(self) -> bool:
        if self._raw is None or self._wal is None:
            return True
        try:
            with translated(self.location):
                busy = self._raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except StoreUnavailable:
            return False
        except StoreError:
            self._is_broken = True
            raise
        return not busy


class translated:  # noqa: N801 - used as a statement
    """Turn SQLite's errors into ours, with what to do next."""

    __slots__ = ("location",)

    def __init__(self, location: str) -> None:
        self.location = location

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, sqlite3.DatabaseError):
            return
        if isinstance(error, sqlite3.IntegrityError):  # a value that no row of ours can hold, or a trigger of somebody's
            raise StoreError(f"{self.location}: {_REFUSED} ({error})") from error
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return
        primary = code & 0xFF
        if primary in _TRANSIENT:
            raise StoreUnavailable(f"{self.location}: {_PASSING.get(primary, str(error))}; it is tried again") from error
        if primary in _LASTING:
            raise StoreError(f"{self.location} {_LASTING[primary]} ({error})") from error


_REFUSED: Final = (
    "the database refuses a change, so a row or the schema is not as asyncrunner makes it; `asyncrunner doctor` says what differs"
)

_PASSING: Final = {
    sqlite3.SQLITE_BUSY: "another program holds the write lock",
    sqlite3.SQLITE_FULL: "the disk is full, free some space",
}

# Not tried again: after a failed fsync nobody knows what the disk holds of the file.
_LASTING: Final = {
    sqlite3.SQLITE_READONLY: "cannot be written; check its owner and permissions",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; check that it and its folder may be read and written",
    sqlite3.SQLITE_IOERR: "cannot be read or written; check the disk",
    sqlite3.SQLITE_ERROR: "is not as asyncrunner makes it; `asyncrunner doctor` says what differs",
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
}
