"""The stored state as a test sees it: rows, counts, and changes by hand, for each kind of store.

A test that is not about the file asks these functions and opens no file, so that it can also run on another kind of store, which is
one more entry in ``kinds.py``. Their statements are SQL that every kind understands: no PRAGMA, no functions of SQLite. A
test that is about the file has the mark ``sqlite_file``.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import AbstractContextManager
from typing import Any

from tests.support.kinds import Connection, Location, kind_of


def changing(db: Location, *, read_only: bool = False) -> AbstractContextManager[Connection]:
    """Connect as another program does; the changes are committed at the end of the ``with`` block."""
    location = os.fspath(db)
    return kind_of(location).connect(location, read_only)


def exists(db: Location) -> bool:
    """Return whether there is a store."""
    location = os.fspath(db)
    return kind_of(location).exists(location)


def execute(db: Location, statement: str, *parameters: Any) -> None:
    """Change the stored state by hand, in a separate transaction."""
    with changing(db) as connection:
        connection.execute(statement, parameters)


def rows_of(db: Location, query: str, *, read_only: bool = False) -> list[Any]:
    """Return the rows of *query*, read by another connection. With *read_only*, closing it writes nothing, as to end a WAL."""
    with changing(db, read_only=read_only) as connection:
        rows: list[Any] = connection.execute(query).fetchall()
        return rows


def counts(db: Location) -> Counter[str]:
    """Return the number of items with each status; a status without items counts 0."""
    return Counter(dict(rows_of(db, "SELECT status, count(*) FROM items GROUP BY status")))


def totals(db: Location) -> list[tuple[str, int]]:
    """Return the stored number of items of each batch, by name; no statement counts the items."""
    return rows_of(db, kind_of(os.fspath(db)).totals)


def snapshot(db: Location) -> list[object]:
    """Return every row of the items, batches, failures and workers."""
    return [rows_of(db, f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in ("items", "batches", "failures", "workers")]
