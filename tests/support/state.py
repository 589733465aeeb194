"""The stored state as a test sees it: rows, counts, and changes by hand, for each kind of store.

A test that is not about the file asks these functions and opens no file, so that it can also run on another kind of store: that
kind is one more line in ``KINDS``. Their statements are SQL that every kind understands: no PRAGMA, no functions of SQLite. A
test that is about the file has the mark ``sqlite_file``.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

Location = str | os.PathLike[str]


class Connection(Protocol):
    """The methods of a connection that tests use; ``?`` stands for a parameter."""

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> Any: ...

    def executemany(self, statement: str, parameters: Sequence[Sequence[Any]], /) -> Any: ...


@contextmanager
def _sqlite(location: str, read_only: bool) -> Iterator[sqlite3.Connection]:
    # Never rwc, the default: a file that does not exist is an error, not a new file.
    mode = "ro" if read_only else "rw"
    connection = sqlite3.connect(f"{Path(location).absolute().as_uri()}?mode={mode}", uri=True, timeout=10)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


KINDS: Final[dict[str, Callable[[str, bool], AbstractContextManager[Connection]]]] = {"sqlite": _sqlite}


def changing(db: Location, *, read_only: bool = False) -> AbstractContextManager[Connection]:
    """Connect as another program does; the changes are committed at the end of the ``with`` block."""
    location = os.fspath(db)
    scheme, separator, _ = location.partition("://")
    return KINDS[scheme if separator else "sqlite"](location, read_only)


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


def snapshot(db: Location) -> list[object]:
    """Return every row of the items, batches, failures and workers."""
    return [rows_of(db, f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in ("items", "batches", "failures", "workers")]
