"""Translate the errors of sqlite3 into the errors of asyncrunner."""

from __future__ import annotations

import sqlite3
from typing import Final

from asyncrunner.errors import StoreError, StoreUnavailable
from asyncrunner.sqlite.sql.schema import DAMAGED

_TEMPORARY_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_INTERRUPT,
    }
)


class translated:  # noqa: N801 - used as a statement
    """A context manager that replaces SQLite's errors with StoreUnavailable or StoreError, and names the next step.

    It raises StoreUnavailable for temporary errors (locked, disk full, out of memory) and StoreError for lasting errors.
    It does not change other errors.
    """

    __slots__ = ("location",)

    def __init__(self, location: str) -> None:
        self.location = location

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, sqlite3.DatabaseError):
            return
        if isinstance(error, sqlite3.IntegrityError):  # a constraint of the schema, or a trigger that a user created
            raise StoreError(f"{self.location}: {_CONSTRAINT_MESSAGE} ({error})") from error
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return
        primary = code & 0xFF
        if primary in _TEMPORARY_CODES:
            cause = _TEMPORARY_MESSAGES.get(primary, str(error))
            raise StoreUnavailable(f"{self.location}: {cause}; asyncrunner retries") from error
        if primary in _LASTING_MESSAGES:
            raise StoreError(f"{self.location} {_LASTING_MESSAGES[primary]} ({error})") from error


_CONSTRAINT_MESSAGE: Final = (
    "the database rejected a change, so a row or the schema is not as asyncrunner made it; run `asyncrunner doctor` to find the "
    "difference"
)

_TEMPORARY_MESSAGES: Final = {
    sqlite3.SQLITE_BUSY: "another program holds the write lock",
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
}

# These errors are not retried: after a failed fsync it is unknown which writes the disk has stored.
_LASTING_MESSAGES: Final = {
    sqlite3.SQLITE_READONLY: "cannot be written; check its owner and permissions",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; check that you may read and write the file and its folder",
    sqlite3.SQLITE_IOERR: "cannot be read or written; check the disk",
    sqlite3.SQLITE_ERROR: "does not have asyncrunner's schema; run `asyncrunner doctor` to find the difference",
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
}
