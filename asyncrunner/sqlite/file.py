"""Create and open the database file.

A new file appears under its name only when it is complete: it is created under a temporary name in the same folder and then
linked to its name. So a kill leaves no incomplete database, several processes may create the file at the same time, and
the mode is 0600 from the start.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.parse import quote

from asyncrunner.errors import NotAStore, SchemaTooNew, StoreError, StoreNotFound, StoreUnavailable
from asyncrunner.sqlite import locks
from asyncrunner.sqlite.mounts import file_system, is_network
from asyncrunner.sqlite.schema import APPLICATION_ID, MIGRATIONS, migrate, verify

__all__ = [
    "Durability",
    "check_place",
    "connect_memory",
    "connect_reader",
    "connect_watcher",
    "connect_writer",
    "create_if_missing",
    "located",
]

Durability: TypeAlias = Literal["full", "normal"]
"""``full``: every commit survives power loss. ``normal``: commits survive kill -9; power loss may lose the last ones."""

_BUSY_TIMEOUT: Final = 0.25  # seconds; SQLite blocks the connection's thread while it waits, so longer waits are done in Python
_MAX_CACHED_STATEMENTS: Final = 256  # blocks.py has ten sizes of each statement
_MIN_SQLITE_VERSION: Final = (3, 37, 0)


class _TrackedConnection(sqlite3.Connection):
    """A connection that knows its file, so that a forked child can reject the files that its parent had open."""

    identity: tuple[int, int] | None = None

    def close(self) -> None:
        super().close()
        self.identity = None


_connections: weakref.WeakSet[_TrackedConnection] = weakref.WeakSet()
_inherited_files: set[tuple[int, int]] = set()


def _connect(path: Path, mode: str, *, timeout: float, check_same_thread: bool = True) -> sqlite3.Connection:
    """Open *path* in *mode*, and wait up to *timeout* seconds for SQLite's locks.

    Raises StoreError for a file that is missing, and for a file that was open when this process was forked. SQLite keeps its
    list of locks in the process's memory. A forked child inherits that memory but not the locks, so even a new connection of
    the child would act as if it held them, and other processes could overwrite its commits.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise StoreError(f"{path} cannot be opened ({error.strerror}); was it deleted or moved?") from error
    identity = (status.st_dev, status.st_ino)
    if identity in _inherited_files:
        raise StoreError(
            f"{path} was open in the process that this one was forked from, and SQLite cannot use a file across a fork. "
            'Open it after forking, as in each worker of a server, or start processes with the "spawn" method'
        )
    connection = sqlite3.connect(
        _uri(path, mode), uri=True, isolation_level=None, timeout=timeout, check_same_thread=check_same_thread,
        cached_statements=_MAX_CACHED_STATEMENTS, factory=_TrackedConnection,
    )  # fmt: skip
    connection.identity = identity
    connection.text_factory = _decode_text
    _connections.add(connection)
    return connection


# A row with bytes that are not UTF-8 (written by another program) fails alone, when its JSON is decoded; other rows are read.
_decode_text: Final = partial(str, encoding="utf-8", errors="surrogateescape")

_inherited_connections: list[_TrackedConnection] = []


def _remember_inherited() -> None:
    open_connections = [connection for connection in list(_connections) if connection.identity is not None]
    _inherited_connections.extend(open_connections)  # keep them referenced: a child must not close them either
    _inherited_files.update(connection.identity for connection in open_connections if connection.identity is not None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_inherited)


def located(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of the file, with symbolic links resolved. Raises StoreError for an unusable path."""
    try:
        resolved = Path(path).resolve()
        resolved.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a link to itself, a NUL
        raise StoreError(f"{os.fspath(path)!r} is not a usable path ({error}); give another one") from error
    return resolved


def connect_memory() -> sqlite3.Connection:
    """Create a private store in memory, which is lost when its connection is closed."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    migrate(connection, 0)
    return connection


def check_place(path: Path) -> None:
    """Raise StoreError if *path* is on a network file system, or is a symbolic link in a folder that every user may write to."""
    kind = file_system(path.parent)
    if is_network(kind):
        raise StoreError(
            f"{path} is on a network file system ({kind}), where SQLite's locks and write-ahead log do not work and a database "
            "may be damaged; give a path on a disk of this machine, and copy the file while no program uses it"
        )
    if path.is_symlink() and path.parent.stat().st_mode & stat.S_IWOTH:
        raise StoreError(
            f"{path} is a symbolic link in a folder that every user may write to, so another user may have created it; "
            "give the path of the file itself, or keep the file in a folder of your own"
        )


def create_if_missing(path: Path) -> None:
    """Create an empty store at *path* unless the path exists.

    Raises StoreNotFound if there is no folder for it, and StoreError if the file cannot be created, if SQLite is too old, or if
    the ``-wal`` file of a deleted database is still there. A kill leaves at most a temporary file ``.NAME.*.new``.
    """
    if sqlite3.sqlite_version_info < _MIN_SQLITE_VERSION:
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old; asyncrunner needs 3.37 or newer")
    if path.exists():
        return
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size > 0:
        raise StoreError(
            f"{path} is missing, but {wal.name} exists. That file holds the newest commits of a database of that name, and "
            f"SQLite would apply them to a new one. Put {path.name} back, or delete {wal.name} if its commits may be lost"
        )
    if not path.parent.is_dir():
        raise StoreNotFound(f"there is no folder {path.parent} for {path.name}; create it or give another path")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection = sqlite3.connect(temporary, isolation_level=None)
        try:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("BEGIN IMMEDIATE")
            migrate(connection, 0)
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()
        os.link(temporary, path)
    except FileExistsError:
        pass  # another process created the file first
    except PermissionError as error:
        raise StoreError(f"{path} cannot be created ({error.strerror}); check the permissions of {path.parent}") from error
    except (OSError, sqlite3.OperationalError) as error:
        raise StoreError(f"{path} cannot be created ({error}); check the disk, or give another path") from error
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            with suppress(OSError):
                temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)


def connect_writer(path: Path, durability: Durability) -> sqlite3.Connection:
    """Open an existing store for writing and upgrade its schema, in one transaction.

    Raises NotAStore or SchemaTooNew and leaves the file unchanged. Raises StoreError if the file is missing, was open before a
    fork, or lost its ``-shm`` file while another process uses it.
    """
    _reject_unusable_files(path)
    _reject_lost_shm(path)
    connection = _connect(path, "rw", timeout=_BUSY_TIMEOUT, check_same_thread=False)  # see Connection.open()
    try:
        version = verify(connection, str(path))
        _configure(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
        connection.execute("PRAGMA cache_size = -16000")
        if version < len(MIGRATIONS):
            _upgrade(connection, str(path))
        # On a read-only file this write fails here, with a clear error, instead of later.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("ROLLBACK")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open an existing store for reading only, also while others write to it, and also if the file is read-only.

    Raises StoreNotFound (and creates no file), NotAStore, SchemaTooNew (also for an older schema), StoreError, and
    StoreUnavailable.
    """
    resolved = located(path)  # SQLite's own files are beside the link's target
    if not resolved.exists():
        raise StoreNotFound(f"there is no database at {path.absolute()}; give the path of an existing one")
    path = resolved
    _reject_unusable_files(path)
    try:
        connection = _verified_reader(path, "ro")
    except sqlite3.OperationalError as error:
        # In a read-only folder SQLite cannot create the shared memory file that WAL mode needs. If there is no WAL, the
        # database file is complete and can be read as it is.
        wal = path.with_name(path.name + "-wal")
        if wal.exists() and wal.stat().st_size > 0:
            raise StoreUnavailable(f"{path} cannot be opened for reading: {error}") from error
        try:
            connection = _verified_reader(path, "ro&immutable=1")
        except sqlite3.OperationalError as immutable_error:
            raise StoreError(f"{path} cannot be read ({immutable_error}); check its owner and permissions") from immutable_error
    return connection


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
        connection.execute("PRAGMA query_only = ON")
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
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # only the writer runs WAL checkpoints, see connection.py
    connection.execute("PRAGMA temp_store = MEMORY")


def _upgrade(connection: sqlite3.Connection, location: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        migrate(connection, verify(connection, location))  # checked again: another process may have upgraded the file first
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
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

    SQLite's locks are on that file. A process that creates a new one does not see the locks that others hold on the old one.
    """
    if path.with_name(path.name + "-shm").exists():
        return
    alive = [name for name in locks.names(path) if locks.is_held(path, name)]
    if alive:
        raise StoreError(
            f"{path}-shm was deleted while another process uses the database (worker {alive[0]}), and without it two processes "
            "do not see each other's locks. Stop every program that uses the database, then run again"
        )


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}"
