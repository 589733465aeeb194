"""Adding items in a transaction of the user's own, on a connection of the user's own."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from asyncrunner.clock import to_text
from asyncrunner.errors import ConfigurationError, NotAStore, StoreUnavailable
from asyncrunner.sqlite import statements as sql
from asyncrunner.sqlite.adding import adding
from asyncrunner.sqlite.connection import translated
from asyncrunner.sqlite.schema import MIGRATIONS, verify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncrunner.item import Entry, OnChange
    from asyncrunner.store import BatchOptions

__all__ = ["add_inside"]


def add_inside(
    connection: sqlite3.Connection, db: str | os.PathLike[str], batch: str, handler: str, options: BatchOptions,
    entries: Sequence[Entry], on_change: OnChange, now: float,
) -> int:  # fmt: skip
    """Add *entries* within the caller's transaction and return the batch's id; the batch is made if it is new.

    Whatever is raised, the transaction is as it was before.
    """
    factories = connection.row_factory, connection.text_factory
    connection.row_factory, connection.text_factory = None, str  # our statements count columns
    try:
        with _explained(db), translated(os.fspath(db)):
            _check(connection, Path(db))
            _be_in_transaction(connection)
            connection.execute("PRAGMA wal_autocheckpoint = 0")  # only the runner checkpoints, see connection.py
            connection.execute("SAVEPOINT asyncrunner_submit")
            try:
                found = connection.execute(sql.BATCH_ID, (batch,)).fetchone()
                if found is None:
                    row = (batch, handler, msgspec.json.encode(options).decode(), to_text(now))
                    found = connection.execute(sql.UPSERT_BATCH, row).fetchone()
                batch_id: int = found[0]
                adding(batch_id, entries, on_change, now)(connection)
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK TO asyncrunner_submit")
                    connection.execute("RELEASE asyncrunner_submit")
                raise
            connection.execute("RELEASE asyncrunner_submit")
    finally:
        connection.row_factory, connection.text_factory = factories
    return batch_id


@contextmanager
def _explained(db: str | os.PathLike[str]) -> Generator[None, None, None]:
    """The runner's own writes are tried again; the caller's transaction is the caller's."""
    try:
        yield
    except StoreUnavailable as error:
        if getattr(error.__cause__, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT:
            said = "somebody has written since your transaction began with a read; roll back, and begin it with BEGIN IMMEDIATE"
        else:
            said = str(error.__cause__ or error)
            said = f"another program holds the write lock, or the disk is full ({said}); roll back and try again"
        raise StoreUnavailable(f"{os.fspath(db)}: {said}. Nothing was stored") from error


def _check(connection: sqlite3.Connection, db: Path) -> None:
    main = next((path for _, name, path in connection.execute("PRAGMA database_list") if name == "main"), "")
    if not main or not db.exists() or not Path(main).samefile(db):
        raise ConfigurationError(
            f"the connection is open on {main or 'a database in memory'}, the items are in {db}; a transaction is one file's: "
            "open the connection on that file, and keep your own tables there"
        )
    if verify(connection, str(db)) < len(MIGRATIONS):
        raise NotAStore(f"{db} has an older schema; start a runner or a client on it once to upgrade it")


def _be_in_transaction(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        return
    if connection.isolation_level is None or getattr(connection, "autocommit", None) is True:
        raise ConfigurationError(
            "submit_in() needs a transaction of yours, and this connection commits each statement by itself; "
            'execute("BEGIN IMMEDIATE") first, or use submit()'
        )
    # As sqlite3 does before the first change: the caller commits it. At once, for a lock that is taken later may fail.
    connection.execute("BEGIN IMMEDIATE")
