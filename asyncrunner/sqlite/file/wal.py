"""Decide when a WAL checkpoint is due, and run it: copy the write-ahead log into the database."""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path
from typing import Final

from asyncrunner.errors import StoreError, StoreUnavailable
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.file.errors import translated

log = logging.getLogger("asyncrunner")

CHECKPOINT_BYTES: Final = 32 * 1024 * 1024
"""Size of the WAL, in bytes, from which a WAL checkpoint follows a commit."""

_RETRY_SECONDS: Final = 5.0


def wal_of(database: Path) -> Path:
    """Return the path of the database's write-ahead log; it may not exist."""
    return database.with_name(database.name + "-wal")


def wal_size(database: Path) -> int:
    """Return the size of the database's write-ahead log in bytes; 0 if there is none."""
    wal = wal_of(database)
    return wal.stat().st_size if wal.exists() else 0


class WalCheckpoints:
    """The WAL checkpoints of one writer. A store in memory has no WAL, so none is ever due.

    ``is_broken``: the disk failed during a WAL checkpoint, so it is unknown which pages of the database the disk has stored.
    The WAL must then stay for the next process.
    """

    def __init__(self, location: str, database: Path | None) -> None:
        self._location = location
        self._path = None if database is None else wal_of(database)
        self._size = 0  # of the WAL in bytes, at the last call of is_due()
        # A WAL checkpoint after an incomplete one waits until the WAL has this size in bytes, or until this monotonic time.
        self._retry_size = 0
        self._retry_at = 0.0
        self._warn_at_size = 2 * CHECKPOINT_BYTES
        self.is_broken = False

    def is_due(self, limit: int) -> bool:
        """Return whether the WAL has at least *limit* bytes, and no reader has prevented a WAL checkpoint a moment ago."""
        if self._path is None:
            return False
        try:
            self._size = self._path.stat().st_size
        except OSError:
            return False
        if self._size < limit:
            self._warn_at_size = 2 * CHECKPOINT_BYTES
            return False
        return self._size >= max(self._retry_size, CHECKPOINT_BYTES) or time.monotonic() >= self._retry_at

    def run_due(self, connection: sqlite3.Connection) -> None:
        """Run the WAL checkpoint that is due. If a reader prevents it, schedule the next one, and warn about a large WAL.

        Raises StoreError if the disk fails.
        """
        completed = self.run(connection)
        # If a reader prevents the truncation of the WAL, try again when the WAL has grown by half or after some seconds, not at
        # every commit.
        self._retry_size = 0 if completed else self._size + self._size // 2
        self._retry_at = 0.0 if completed else time.monotonic() + _RETRY_SECONDS
        if not completed and self._size >= self._warn_at_size:
            self._warn_at_size = 2 * self._size
            log.warning(
                "the write-ahead log of %s has grown to %d MB because another program keeps a read transaction open; end that "
                "transaction or close its cursor",
                self._location,
                self._size // 1_000_000,
            )

    def run(self, connection: sqlite3.Connection) -> bool:
        """Copy the WAL into the database and truncate the WAL; return False if a reader, a writer or a full disk prevents it.

        The caller holds the write lock: two WAL checkpoints at the same time may lose a commit in some versions of SQLite.
        Raises StoreError if the disk fails; then ``is_broken`` is true.
        """
        if self._path is None:
            return True
        try:
            with translated(self._location):
                busy = connection.execute(sql.connection.WAL_CHECKPOINT).fetchone()[0]
        except StoreUnavailable:
            return False
        except StoreError:
            self.is_broken = True
            raise
        return not busy
