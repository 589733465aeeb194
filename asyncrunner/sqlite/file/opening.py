"""Open an existing database file: to write, to read, or to detect changes; refuse the file of another program."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from asyncrunner.errors import NotAStore, SchemaTooNew, StoreError, StoreNotFound, StoreUnavailable
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.file import fork_guard
from asyncrunner.sqlite.file.creation import check_names
from asyncrunner.sqlite.file.identity import FileId, id_of, shm_of
from asyncrunner.sqlite.file.wal import wal_size
from asyncrunner.sqlite.file.wal_owner import check_wal_belongs, opening
from asyncrunner.sqlite.locks import liveness_lock
from asyncrunner.sqlite.sql.bulk import SteppedConnection
from asyncrunner.sqlite.sql.schema import MIGRATIONS, migrate, set_version, verify
from asyncrunner.text.suggestions import closest

if TYPE_CHECKING:
    from asyncrunner.domain.options import Durability

_BUSY_TIMEOUT: Final = 0.25  # seconds; SQLite blocks the connection's thread while it waits, so Python does longer waits
_MAX_CACHED_STATEMENTS: Final = 256  # bulk.py prepares each statement in ten sizes


def _connect(path: Path, mode: str, *, timeout: float, check_same_thread: bool = True) -> sqlite3.Connection:
    """Open *path* in *mode*, and wait up to *timeout* seconds for SQLite's locks.

    Raises StoreError for a file that is missing, and for a file that was open when this process was forked.
    """
    file_id = _id_at(path)
    fork_guard.check_not_inherited(path, file_id)
    with opening():
        connection = sqlite3.connect(
            _uri(path, mode),
            uri=True,
            isolation_level=None,
            timeout=timeout,
            check_same_thread=check_same_thread,
            cached_statements=_MAX_CACHED_STATEMENTS,
            factory=fork_guard.TrackedConnection,
        )
    fork_guard.track(connection, file_id)
    connection.text_factory = _decode_text
    return connection


def _id_at(path: Path) -> FileId:
    try:
        return id_of(path.stat())
    except OSError as error:
        raise StoreError(f"{path} cannot be opened ({error.strerror}); was it deleted or moved?") from error


# Another program may write bytes that are not UTF-8. Only that row fails, when its JSON is decoded; other rows are read.
_decode_text: Final = partial(str, encoding="utf-8", errors="surrogateescape")


def located(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of the file, with symbolic links resolved. Raises StoreError for an unusable path."""
    try:
        resolved = Path(path).resolve()
        resolved.exists()
    except (OSError, RuntimeError, ValueError) as error:  # the path is too long, is a link to itself, or has a NUL
        raise StoreError(f"{os.fspath(path)!r} is not a usable path ({error}); give another one") from error
    return resolved


def connect_memory() -> sqlite3.Connection:
    """Create a private store in memory, which is lost when its connection is closed."""
    connection = sqlite3.connect(":memory:", isolation_level=None, factory=SteppedConnection)
    connection.execute(sql.schema.SET_APPLICATION_ID)
    migrate(connection, 0)
    return connection


def connect_writer(path: Path, durability: Durability) -> sqlite3.Connection:
    """Open an existing store for writing and upgrade its schema, in one transaction.

    Raises NotAStore or SchemaTooNew, and then the file is unchanged. Raises StoreError if the file is missing, was open before
    a fork, lost its ``-shm`` file while another process uses the file, or has the ``-wal`` file of another state.
    """
    _reject_unusable_files(path)
    _reject_lost_shm(path)
    check_wal_belongs(path)
    check_names(path)
    file_id = _id_at(path)
    connection = _connect(path, "rw", timeout=_BUSY_TIMEOUT, check_same_thread=False)  # see Connection.open()
    try:
        version = verify(connection, str(path))
        _configure(connection)
        connection.execute(sql.connection.USE_WAL)
        connection.execute(sql.connection.SYNC_EACH_COMMIT if durability == "full" else sql.connection.SYNC_EACH_CHECKPOINT)
        connection.execute(sql.connection.CACHE_16_MB)
        if version < len(MIGRATIONS):
            _upgrade(connection, str(path))
        # Test a write and undo it: a read-only file then fails here, with a clear error, not later.
        connection.execute(sql.connection.BEGIN_WRITE)
        set_version(connection, len(MIGRATIONS))
        connection.execute(sql.connection.ROLLBACK)
        # From here on SQLite holds its lock on the file. A restore may have replaced the file before that.
        if file_id != id_of(path.stat()):
            raise StoreUnavailable(f"{path} was replaced while it was opened; asyncrunner retries")
    except BaseException:
        connection.close()
        raise
    return connection


def similar_files(path: Path) -> Sequence[str]:
    """Return the names of the files in the folder of *path* that have its suffix, to suggest them for a mistyped name."""
    try:
        return sorted(each.name for each in path.parent.iterdir() if each.suffix == (path.suffix or ".db") and each.is_file())
    except OSError:
        return ()


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open an existing store for reading only, even while other connections write to it or if the file is read-only.

    Raises StoreNotFound (and creates no file), NotAStore, SchemaTooNew (also for an older schema), StoreError, and
    StoreUnavailable.
    """
    resolved = located(path)  # SQLite keeps its -wal and -shm files beside the target of a link
    if not resolved.exists():
        similar = closest(path.name, similar_files(path))
        hint = "" if similar is None else f"; did you mean {path.with_name(similar)}?"
        raise StoreNotFound(f"there is no database at {path.absolute()}{hint or '; give the path of an existing one'}")
    path = resolved
    _reject_unusable_files(path)
    check_wal_belongs(path)
    try:
        connection = _verified_reader(path, "ro")
    except sqlite3.OperationalError as error:
        # In a read-only folder SQLite cannot create the -shm file that WAL mode needs. If there is no WAL, the database file is
        # complete, and a connection can read it without the -shm file.
        if wal_size(path) > 0:
            raise StoreUnavailable(f"{path} cannot be opened for reading: {error}") from error
        try:
            connection = _verified_reader(path, "ro&immutable=1")
        except sqlite3.OperationalError as immutable_error:
            raise StoreError(f"{path} cannot be read ({immutable_error}); check its owner and permissions") from immutable_error
    return connection


def reject_foreign(path: Path) -> None:
    """Raise NotAStore or SchemaTooNew for a file that this version cannot write, before a lock file is created beside it."""
    _reject_unusable_files(path)
    with suppress(sqlite3.OperationalError), closing(_connect(path, "ro", timeout=0.0)) as connection:
        verify(connection, str(path))


def connect_watcher(path: Path) -> sqlite3.Connection:
    """Open a second connection to an open store, only to detect changes. It never waits for a lock."""
    connection = _connect(path, "ro", timeout=0.0)
    _configure(connection)
    return connection


def _verified_reader(path: Path, mode: str) -> sqlite3.Connection:
    connection = _connect(path, mode, timeout=2.0, check_same_thread=False)
    try:
        version = verify(connection, str(path))
        _configure(connection)
        connection.execute(sql.connection.READ_ONLY)
        if version < len(MIGRATIONS):
            raise SchemaTooNew(
                f"{path} has the older schema {version}; start a run or a worker on it once with this version of asyncrunner to "
                "upgrade it"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _configure(connection: sqlite3.Connection) -> None:
    connection.execute(sql.connection.DISTRUST_SCHEMA)
    connection.execute(sql.connection.NO_AUTOMATIC_CHECKPOINT)
    connection.execute(sql.connection.SORT_IN_MEMORY)


def _upgrade(connection: sqlite3.Connection, location: str) -> None:
    connection.execute(sql.connection.BEGIN_WRITE)
    try:
        migrate(connection, verify(connection, location))  # verify again: another process may have upgraded the file
        connection.execute(sql.connection.COMMIT)
    except BaseException:
        if connection.in_transaction:
            connection.execute(sql.connection.ROLLBACK)
        raise


def _reject_unusable_files(path: Path) -> None:
    if path.is_dir():
        raise NotAStore(f"{path} is a folder; give the path of a file in it, for example {path / 'asyncrunner.db'}")
    if path.exists() and not path.is_file():
        raise NotAStore(f"{path} is a pipe, a socket or a device, not a file; give the path of a file")
    if path.exists() and path.stat().st_size == 0:
        raise NotAStore(f"{path} is an empty file, not a database; delete it or give another path")


def _reject_lost_shm(path: Path) -> None:
    """Raise StoreError if the -shm file was deleted while a worker is alive.

    SQLite's locks are on the -shm file. A process that creates a new file does not see the locks on the deleted file.
    """
    if shm_of(path).exists():
        return
    alive = [name for name in liveness_lock.names(path) if liveness_lock.is_held(path, name)]
    if alive:
        raise StoreError(
            f"{path}-shm was deleted while another process uses the database (worker {alive[0]}). Without that file, processes "
            "do not see each other's locks. Stop every program that uses the database, then run again"
        )


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}"
