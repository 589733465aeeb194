"""Making and opening the database file.

A new file appears under its name only when it is complete: it is made beside it and linked into place, so a kill
leaves nothing half made, several processes may open at once, and the mode is 0600 from the first moment.
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
"""``full``: every commit survives power loss. ``normal``: survives kill -9; power loss may take the last commits."""

_BUSY_SECONDS: Final = 0.25  # while SQLite waits the connection's thread is blocked; longer waits are Python's
_CACHED_STATEMENTS: Final = 256  # blocks.py has ten sizes of each
_OLDEST_SQLITE: Final = (3, 37, 0)


class _TrackedConnection(sqlite3.Connection):
    """Knows its file, so that a forked child can tell what its parent had open."""

    identity: tuple[int, int] | None = None

    def close(self) -> None:
        super().close()
        self.identity = None


_connections: weakref.WeakSet[_TrackedConnection] = weakref.WeakSet()
_inherited: set[tuple[int, int]] = set()


def _connect(path: Path, mode: str, *, timeout: float, check_same_thread: bool = True) -> sqlite3.Connection:
    """Raises StoreError for a file that was open when this process was forked off.

    SQLite keeps its locks in the process's memory. A child has that memory but not the locks, also for connections of its own:
    it would believe that it holds them, and what it commits could be overwritten.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise StoreError(f"{path} cannot be opened ({error.strerror}); was it deleted or moved?") from error
    identity = (found.st_dev, found.st_ino)
    if identity in _inherited:
        raise StoreError(
            f"{path} was open in the process that this one was forked from, and SQLite cannot be used on a file across a fork. "
            'Open it only after forking, as in each worker of a server, or start processes with the "spawn" method'
        )
    connection = sqlite3.connect(
        _uri(path, mode), uri=True, isolation_level=None, timeout=timeout, check_same_thread=check_same_thread,
        cached_statements=_CACHED_STATEMENTS, factory=_TrackedConnection,
    )  # fmt: skip
    connection.identity = identity
    connection.text_factory = _text
    _connections.add(connection)
    return connection


# Bytes that are no UTF-8, which somebody wrote by hand, are one row's trouble: JSON refuses them, nothing else stumbles.
_text: Final = partial(str, encoding="utf-8", errors="surrogateescape")

_kept: list[_TrackedConnection] = []


def _remember_inherited() -> None:
    open_ones = [connection for connection in list(_connections) if connection.identity is not None]
    _kept.extend(open_ones)  # a child must not even close them
    _inherited.update(connection.identity for connection in open_ones if connection.identity is not None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_inherited)


def located(path: str | os.PathLike[str]) -> Path:
    """The file that *path* means in the end. Raises StoreError for what cannot be one."""
    try:
        found = Path(path).resolve()
        found.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a link to itself, a NUL
        raise StoreError(f"{os.fspath(path)!r} is no path that can be used ({error}); give another one") from error
    return found


def connect_memory() -> sqlite3.Connection:
    """A private store that ends with its connection."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    migrate(connection, 0)
    return connection


def check_place(path: Path) -> None:
    """Raises StoreError if *path* is nowhere to keep a store: on a network, or a link that anybody could have made."""
    kind = file_system(path.parent)
    if is_network(kind):
        raise StoreError(
            f"{path} is on a network file system ({kind}), where SQLite's locks and write-ahead log do not hold and a database "
            "may be damaged; give a path on a disk of this machine, and copy the file when nothing runs"
        )
    if path.is_symlink() and path.parent.stat().st_mode & stat.S_IWOTH:
        raise StoreError(
            f"{path} is a symbolic link in a folder that everybody may write to, so anybody could have made it point anywhere; "
            "give the path of the file itself, or keep it in a folder of your own"
        )


def create_if_missing(path: Path) -> None:
    """Make an empty store at *path* unless something is there. Raises StoreError, saying what to do."""
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old; asyncrunner needs 3.37 or newer")
    if path.exists():
        return
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size > 0:
        raise StoreError(
            f"{path} is not there, but {wal.name} is, which holds the newest commits of a database of that name and would be "
            f"written into a new one. Put {path.name} back, or delete {wal.name} if what it holds may be lost"
        )
    if not path.parent.is_dir():
        raise StoreNotFound(f"there is no folder {path.parent} to put {path.name} in; create it or give another path")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("BEGIN IMMEDIATE")
            migrate(connection, 0)
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was first: its file is as good
    except PermissionError as error:
        raise StoreError(f"{path} cannot be created ({error.strerror}); check the permissions of {path.parent}") from error
    except (OSError, sqlite3.OperationalError) as error:
        raise StoreError(f"{path} cannot be created ({error}); check the disk, or give another path") from error
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            with suppress(OSError):
                draft.with_name(draft.name + suffix).unlink(missing_ok=True)


def connect_writer(path: Path, durability: Durability) -> sqlite3.Connection:
    """Open an existing store for writing and bring its schema up to date.

    Raises NotAStore or SchemaTooNew, and the file is as it was.
    """
    _refuse_odd_files(path)
    _refuse_lost_index(path)
    connection = _connect(path, "rw", timeout=_BUSY_SECONDS, check_same_thread=False)  # see Connection.open()
    try:
        version = verify(connection, str(path))
        _configure(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
        connection.execute("PRAGMA cache_size = -16000")
        if version < len(MIGRATIONS):
            _upgrade(connection, str(path))
        # Fails here, with a reason, on a file that may be read but not written.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("ROLLBACK")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open an existing store only for reading; works while others write, and on a read-only file.

    Raises StoreNotFound without creating anything, NotAStore, SchemaTooNew.
    """
    found = located(path)  # SQLite's own files are beside what a link points to
    if not found.exists():
        raise StoreNotFound(f"there is no database at {path.absolute()}; give the path of an existing one")
    path = found
    _refuse_odd_files(path)
    try:
        connection = _verified_reader(path, "ro")
    except sqlite3.OperationalError as error:
        # In a folder that may not be written, SQLite cannot make the shared memory file that WAL needs. Without
        # a WAL the file is complete and may be read as it stands.
        wal = path.with_name(path.name + "-wal")
        if wal.exists() and wal.stat().st_size > 0:
            raise StoreUnavailable(f"{path} cannot be opened for reading: {error}") from error
        try:
            connection = _verified_reader(path, "ro&immutable=1")
        except sqlite3.OperationalError as again:
            raise StoreError(f"{path} cannot be read ({again}); check its owner and permissions") from again
    return connection


def connect_watcher(path: Path) -> sqlite3.Connection:
    """Open a store that is open already, only to see that something changed in it. Never waits for a lock."""
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
                f"{path} has the older schema {version}; start a run or a worker on it with this asyncrunner once to upgrade it"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _configure(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # only the writer checkpoints, see connection.py
    connection.execute("PRAGMA temp_store = MEMORY")


def _upgrade(connection: sqlite3.Connection, location: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        migrate(connection, verify(connection, location))  # asked again: another process may have been first
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _refuse_odd_files(path: Path) -> None:
    if path.is_dir():
        raise NotAStore(f"{path} is a folder; give the path of a file in it, as in {path / 'asyncrunner.db'}")
    if path.exists() and not path.is_file():
        raise NotAStore(f"{path} is no file but a pipe, a socket or a device; give the path of a file")
    if path.exists() and path.stat().st_size == 0:
        raise NotAStore(f"{path} is an empty file, not a database; delete it or give another path")


def _refuse_lost_index(path: Path) -> None:
    """SQLite's locks are on the -shm file: who opens a new one knows nothing of those who use the old one."""
    if path.with_name(path.name + "-shm").exists():
        return
    alive = [name for name in locks.names(path) if locks.is_held(path, name)]
    if alive:
        raise StoreError(
            f"{path}-shm was deleted while another process uses the file (worker {alive[0]}), and without it the two could not "
            "see each other. Stop every program that uses the file, then run again"
        )


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}"
