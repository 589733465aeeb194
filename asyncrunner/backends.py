"""Open the store, the operators' store or the maintenance of a location; only this module names a database.

A location is text: the path of a SQLite file, ``:memory:``, or the URL of a PostgreSQL server. Each function imports what it
opens, so that a command that only reads, such as ``asyncrunner status``, does not import the code that runs items.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Coroutine, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from asyncrunner.domain.clock import Clock, SystemClock
from asyncrunner.errors import ConfigurationError

if TYPE_CHECKING:
    import aiosqlite

    from asyncrunner.domain.options import Durability
    from asyncrunner.store.admin_protocol import AdminStore, InputKeys, InspectionStore
    from asyncrunner.store.copying.contract import CopySource, CopyTarget
    from asyncrunner.store.maintenance import FileMaintenance
    from asyncrunner.store.protocols import Store, TransactionalInsert


class DjangoConnection(Protocol):
    """The part of Django's connection wrapper that ``submit_in`` uses."""

    vendor: str
    in_atomic_block: bool

    def ensure_connection(self) -> Any: ...


class SyncConnection(Protocol):
    """A connection of psycopg, and a Connection or Session of SQLAlchemy, as far as their types tell."""

    def commit(self) -> None: ...

    def rollback(self) -> None: ...


class AwaitedConnection(Protocol):
    """A connection of psycopg, and a connection or session of SQLAlchemy, whose calls are awaited."""

    def commit(self) -> Coroutine[Any, Any, None]: ...

    def rollback(self) -> Coroutine[Any, Any, None]: ...


class AsyncpgConnection(Protocol):
    """A connection of asyncpg, also one of its pool."""

    def is_in_transaction(self) -> bool: ...

    def is_closed(self) -> bool: ...


Connection: TypeAlias = sqlite3.Connection | DjangoConnection | SyncConnection
"""The type of a caller's connection for ``submit_in``, which adds items in the connection's transaction."""

AsyncConnection: TypeAlias = "aiosqlite.Connection | AwaitedConnection | AsyncpgConnection"
"""The same as ``Connection``, for a caller that awaits the connection's calls."""

MEMORY: Final = ":memory:"
"""The location of a store in memory, which is lost when it is closed."""

_SERVER_SCHEMES: Final = ("postgresql://", "postgres://")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LIKE_SERVER: Final = re.compile(
    r"""[\s'"]*(?:postgres\w*|pg|psql|pgsql)(?:\+\w+)?(?::|/{2}|\\) # a scheme, with a mistake in it or behind it
    |[^/]+@[^/]+:\d+(?:/|$) | [\w.-]+:\d{4,5}(?:/|$) # user@host:5432/database, host:5432/database
    |.*[?&](?:schema|direct|sslmode|target_session_attrs)= # parameters of a URL
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_SERVER_EXAMPLE: Final = "postgresql://user@host:5432/database"


def open_engine(location: str, durability: Durability = "full", clock: Clock | None = None) -> Store:
    """Return the store at *location* for a worker or a client; its ``open()`` opens it.

    *clock* gives the store's times; the machine's clock by default. Raises ConfigurationError, and StoreError for an unusable
    path.
    """
    if is_server(location):
        from asyncrunner.postgres.store import PostgresStore

        return PostgresStore(location, durability=durability, clock=clock)
    from asyncrunner.sqlite.store import SQLiteStore

    return SQLiteStore(checked_location(location), durability=durability, clock=clock)


def open_transactional_insert(location: str, clock: Clock | None = None) -> TransactionalInsert:
    """Return an object that adds items to the store at *location* in a caller's transaction. Raises ConfigurationError.

    *clock*: see ``open_engine``.
    """
    if location.startswith(_SERVER_SCHEMES):
        # The caller's driver runs the statements, so asyncpg need not be installed.
        from asyncrunner.postgres.transactional import PostgresTransactionalInsert

        return PostgresTransactionalInsert(location, clock or SystemClock())
    from asyncrunner.sqlite.transactional import SQLiteTransactionalInsert

    return SQLiteTransactionalInsert(checked_location(location), clock or SystemClock())


def open_inspection(location: str, clock: Clock | None = None, *, retry_seconds: float = 30.0) -> InspectionStore:
    """Return the store at *location* for an operator who only reads; its ``open()`` opens it.

    *retry_seconds*: as in ``open_admin``. Raises ConfigurationError, StoreError.
    """
    if is_server(location):
        from asyncrunner.postgres.admin.inspection import PostgresInspectionStore

        return PostgresInspectionStore(location, clock, retry_seconds=retry_seconds)
    from asyncrunner.sqlite.admin.inspection import SQLiteInspectionStore

    return SQLiteInspectionStore(checked_location(location), clock, retry_seconds=retry_seconds)


def open_admin(location: str, clock: Clock | None = None, *, retry_seconds: float = 30.0) -> AdminStore:
    """Return the store at *location* for an operator; its ``open()`` opens it. Raises ConfigurationError, StoreError.

    *retry_seconds*: seconds for which a call is repeated while the store is locked, full or unreadable.
    """
    if is_server(location):
        from asyncrunner.postgres.admin.store import PostgresAdminStore

        return PostgresAdminStore(location, clock, retry_seconds=retry_seconds)
    from asyncrunner.sqlite.admin.store import SQLiteAdminStore

    return SQLiteAdminStore(checked_location(location), clock, retry_seconds=retry_seconds)


def open_copy_source(location: str, clock: Clock | None = None) -> CopySource:
    """Return the store at *location* as the source of a copy; its ``open()`` opens it. Raises ConfigurationError, StoreError."""
    if is_server(location):
        from asyncrunner.postgres.maintenance.copying import PostgresCopySource

        return PostgresCopySource(location, clock)
    from asyncrunner.sqlite.maintenance.copying import SQLiteCopySource

    return SQLiteCopySource(checked_location(location), clock)


def open_copy_target(location: str, clock: Clock | None = None) -> CopyTarget:
    """Return the store at *location* as the target of a copy; its ``open()`` creates it if necessary.

    Raises ConfigurationError, StoreError.
    """
    if location == MEMORY:
        raise ConfigurationError("a store in memory is lost when the copy ends; give the path of a file, or the URL of a server")
    if is_server(location):
        from asyncrunner.postgres.maintenance.copying import PostgresCopyTarget

        return PostgresCopyTarget(location, clock)
    from asyncrunner.sqlite.maintenance.copying import SQLiteCopyTarget

    return SQLiteCopyTarget(checked_location(location), clock)


def open_maintenance(location: str, clock: Clock | None = None) -> FileMaintenance:
    """Return an object that maintains the store at *location*. Raises ConfigurationError, StoreError."""
    if is_server(location):
        from asyncrunner.postgres.maintenance.maintenance import PostgresMaintenance

        return PostgresMaintenance(location, clock)
    from asyncrunner.sqlite.maintenance.maintenance import SQLiteMaintenance

    return SQLiteMaintenance(checked_location(location), clock)


def creation_script(location: str, *, workers: Sequence[str] = (), readers: Sequence[str] = ()) -> str:
    """Return the SQL with which the owner of the database at *location* creates the store and grants rights; see ``schema``.

    Raises ConfigurationError.
    """
    if not is_server(location):
        raise ConfigurationError("a SQLite file needs no script; give the URL of a PostgreSQL server with --db")
    from asyncrunner.postgres.connection.address import parse_address
    from asyncrunner.postgres.connection.schema import creation_text

    return creation_text(parse_address(location), workers=workers, readers=readers)


def can_create(location: str) -> bool:
    """Return whether ``open_engine(location).open()`` can create a store at *location*, where none exists."""
    return location == MEMORY or is_server(location) or Path(location).parent.is_dir()


def exists(location: str) -> bool:
    """Return whether there is a store at *location*, so that ``open_engine(location).open()`` does not create one.

    For a server it connects, which takes some milliseconds. It also returns True if it cannot: ``open()`` raises the error.
    """
    if location == MEMORY:
        return True
    if is_server(location):
        from asyncrunner.postgres.connection.probe import schema_exists

        return schema_exists(location)
    return Path(location).exists()


def full_location(location: str) -> str:
    """Return *location* as an absolute path, which does not depend on the current folder; the URL of a server as it is."""
    return location if location == MEMORY or is_server(location) else str(Path(location).absolute())


def shown_location(location: str) -> str:
    """Return *location* for messages and reports: the URL of a server without its password."""
    if not is_server(location):
        return location
    from asyncrunner.postgres.connection.address import shown

    return shown(location)


def local_path(location: str) -> Path:
    """Return the path beside which a run keeps its own files: that of the file, or a name in the current folder."""
    if not is_server(location):
        return Path(location)
    from asyncrunner.postgres.connection.address import parse_address

    return Path(parse_address(location).schema)


def similar_locations(location: str) -> Sequence[str]:
    """Return the names of the files in the folder of *location* that have its suffix, to suggest them for a mistyped name."""
    if is_server(location):
        return ()
    from asyncrunner.sqlite.file.opening import similar_files

    return similar_files(Path(location))


def input_keys() -> InputKeys:
    """Return an empty record of the keys of a dry run's input, on the disk of this machine."""
    from asyncrunner.sqlite.admin.plan import SeenKeys

    return SeenKeys()


def is_server(location: str) -> bool:
    """Return whether *location* is the URL of a PostgreSQL server. Raises ConfigurationError if its driver is not installed."""
    if not location.startswith(_SERVER_SCHEMES):
        return False
    if find_spec("asyncpg") is None:
        raise ConfigurationError('a PostgreSQL server needs the driver asyncpg: pip install "asyncrunner[postgres]"')
    return True


def checked_location(location: str) -> str:
    """Return *location*. Raises ConfigurationError for a URL, which would otherwise become a file's path."""
    if is_server(location):
        raise ConfigurationError(
            "this works on a SQLite file only, and the location is a PostgreSQL server; give the path of a file"
        )
    if _LIKE_SERVER.match(location) is not None:  # not shown, because it may have a password
        raise ConfigurationError(
            f"the location looks like the URL of a PostgreSQL server, which begins with postgresql:// (lower case, a colon "
            f"and two slashes, no driver); write {_SERVER_EXAMPLE}, or ./ in front of the path of a file"
        )
    scheme = _SCHEME.match(location)
    if scheme is not None:
        raise ConfigurationError(
            f"items are stored in a SQLite file or on a PostgreSQL server, not in {scheme[0]}...; give the path of a file, or "
            f"{_SERVER_EXAMPLE}"
        )
    return location
