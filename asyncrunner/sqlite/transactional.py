"""Insert items in the caller's transaction, on the caller's connection."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiosqlite
import msgspec

from asyncrunner.errors import ConfigurationError, NotAStore, StoreUnavailable
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.file.errors import translated
from asyncrunner.sqlite.insert import Insertion
from asyncrunner.sqlite.locks.bell import announce
from asyncrunner.sqlite.sql.schema import MIGRATIONS, verify
from asyncrunner.text.timestamps import to_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncrunner.domain.clock import Clock
    from asyncrunner.domain.item import NewItem, OnKnownKey
    from asyncrunner.store.batches import Added, BatchOptions


def insert_inside(
    connection: sqlite3.Connection,
    db: str | os.PathLike[str],
    batch: str,
    handler: str,
    options: BatchOptions,
    entries: Sequence[NewItem],
    on_change: OnKnownKey,
    now: float,
) -> tuple[int, Added]:
    """Insert *entries* in the caller's transaction, create the batch if it is new; return the batch's id and what was added.

    The items exist once the caller commits; after a crash before that, none of them exists. If no transaction is open,
    the function begins one, which the caller must end. The function also turns off the connection's automatic WAL
    checkpoints. Raises KeyConflict, ConfigurationError for a connection on another file or in autocommit mode, NotAStore,
    SchemaTooNew, and StoreUnavailable if another program holds the write lock or the disk is full. After an exception, the
    changes of this function are undone and the caller's changes stay, unless SQLite rolled the transaction back.
    """
    with _rows_by_position(connection), _advise_caller(db), translated(os.fspath(db)):
        _check_connection(connection, Path(db))
        _ensure_transaction(connection)
        connection.execute(sql.connection.NO_AUTOMATIC_CHECKPOINT)
        with _submission(connection):
            batch_id = _find_or_create(connection, batch, handler, options, now)
            added = Insertion(batch_id, entries, on_change, now)(connection)
    announce(Path(db).resolve())  # the workers cannot notice the caller's commit before they read the file
    return batch_id, added


@contextmanager
def _rows_by_position(connection: sqlite3.Connection) -> Generator[None, None, None]:
    """Read rows as tuples and text as str, as asyncrunner's statements need; restore the caller's factories afterwards."""
    factories = connection.row_factory, connection.text_factory
    connection.row_factory, connection.text_factory = None, str
    try:
        yield
    finally:
        connection.row_factory, connection.text_factory = factories


@contextmanager
def _submission(connection: sqlite3.Connection) -> Generator[None, None, None]:
    """Undo the changes of the block if it raises, and keep the caller's earlier changes."""
    connection.execute(sql.connection.BEGIN_SUBMISSION)
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute(sql.connection.UNDO_SUBMISSION)
            connection.execute(sql.connection.KEEP_SUBMISSION)
        raise
    connection.execute(sql.connection.KEEP_SUBMISSION)


def _find_or_create(connection: sqlite3.Connection, batch: str, handler: str, options: BatchOptions, now: float) -> int:
    """Return the id of the batch, which is created if it is new. An existing batch keeps its options."""
    row = connection.execute(sql.batches.BATCH_ID, (batch,)).fetchone()
    if row is None:
        values = (batch, handler, msgspec.json.encode(options).decode(), to_text(now))
        row = connection.execute(sql.batches.UPSERT_BATCH, values).fetchone()
    batch_id: int = row[0]
    return batch_id


@contextmanager
def _advise_caller(db: str | os.PathLike[str]) -> Generator[None, None, None]:
    """Add the next step to a StoreUnavailable: only the caller can roll back and retry the transaction."""
    try:
        yield
    except StoreUnavailable as error:
        if getattr(error.__cause__, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT:
            reason = "another connection has written since your transaction began with a read; roll back, and use BEGIN IMMEDIATE"
        else:
            reason = str(error.__cause__ or error)
            reason = f"another program holds the write lock, or the disk is full ({reason}); roll back and try again"
        raise StoreUnavailable(f"{os.fspath(db)}: {reason}. Nothing was stored") from error


def _check_connection(connection: sqlite3.Connection, db: Path) -> None:
    main = next((path for _, name, path in connection.execute(sql.connection.DATABASES) if name == "main"), "")
    if not main or not db.exists() or not Path(main).samefile(db):
        raise ConfigurationError(
            f"the connection is open on {main or 'a database in memory'}, but the items are in {db}; a transaction covers one "
            "file: open the connection on that file, and keep your own tables there"
        )
    if verify(connection, str(db)) < len(MIGRATIONS):
        raise NotAStore(f"{db} has an older schema; upgrade it by starting a runner or a client on it once")


def _ensure_transaction(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        return
    if connection.isolation_level is None or getattr(connection, "autocommit", None) is True:
        raise ConfigurationError(
            "submit_in() needs an open transaction, but this connection commits each statement automatically; "
            'execute("BEGIN IMMEDIATE") first, or use submit()'
        )
    # Begin a transaction, as sqlite3 does before a first change; the caller commits it. IMMEDIATE takes the write lock now:
    # a later attempt to take the lock, after a read, can fail.
    connection.execute(sql.connection.BEGIN_WRITE)


def _connection_of_django(wrapper: Any) -> sqlite3.Connection:
    """Return the sqlite3 connection of Django's connection wrapper, ``django.db.connection``.

    Raises ConfigurationError for another database, and outside of ``transaction.atomic()``; Django's
    TransactionManagementError if an earlier error has doomed the transaction.
    """
    if wrapper.vendor != "sqlite":
        raise ConfigurationError(
            f"the Django connection {wrapper.alias!r} is open on {wrapper.vendor}, but the items are in a SQLite file; add "
            "that file to DATABASES and give its connection, as in connections['jobs']"
        )
    if not wrapper.in_atomic_block:
        raise ConfigurationError(
            "submit_in() needs an open transaction, but Django commits each statement automatically here; call it inside "
            "`with transaction.atomic():`, or use submit()"
        )
    wrapper.ensure_connection()
    wrapper.validate_no_broken_transaction()
    raw: sqlite3.Connection = wrapper.connection
    return raw


class SQLiteTransactionalInsert:
    """The insertion of items in a caller's transaction, on a sqlite3, aiosqlite or Django connection to the file *location*."""

    def __init__(self, location: str, clock: Clock) -> None:
        self._location = location
        self._clock = clock

    def insert_in(
        self,
        connection: object,
        batch: str,
        handler: str,
        options: BatchOptions,
        entries: Sequence[NewItem],
        *,
        on_change: OnKnownKey,
    ) -> tuple[int, Added] | Awaitable[tuple[int, Added]]:
        """Add items, see ``TransactionalInsert.insert_in``. For an aiosqlite connection the result is an awaitable."""
        now = self._clock.now()

        def insert(raw: sqlite3.Connection) -> tuple[int, Added]:
            return insert_inside(raw, self._location, batch, handler, options, entries, on_change, now)

        if isinstance(connection, sqlite3.Connection):
            return insert(connection)
        if hasattr(connection, "ensure_connection"):
            return insert(_connection_of_django(connection))
        if not isinstance(connection, aiosqlite.Connection):
            raise ConfigurationError(
                f"submit_in() takes a sqlite3, aiosqlite or Django connection, not {type(connection).__name__}"
            )
        return connection._execute(insert, connection._conn)  # type: ignore[no-untyped-call]  # noqa: SLF001  # pyright: ignore
