"""Detect that the database file, its ``-wal`` or its ``-shm`` was deleted or replaced."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Final, NamedTuple

from asyncrunner.errors import StoreError, StoreReplaced
from asyncrunner.sqlite.file.wal import wal_of

FileId = tuple[int, int]
"""The device and the inode of a file: while the file exists, no other file has the same pair."""

REPLACED: Final = ".replaced-"
"""The text after the database's name in the second name of a file that a restore replaced."""


def id_of(status: os.stat_result) -> FileId:
    """Return the id of the file with that status."""
    return (status.st_dev, status.st_ino)


def second_name(database: Path) -> Path | None:
    """Return the second name of the database that a killed restore left; None if there is none."""
    for path in sorted(database.parent.glob(f"{glob.escape(database.name + REPLACED)}*")):
        if path.samefile(database):
            return path
    return None


def shm_of(database: Path) -> Path:
    """Return the path of the database's shared memory, which holds SQLite's locks; it may not exist."""
    return database.with_name(database.name + "-shm")


class _Ids(NamedTuple):
    """The ids of the database's files; None for a file that does not exist."""

    database: FileId | None
    wal: FileId | None
    shm: FileId | None


class FileIdentity:
    """The identity of an open store's files, which must not change while the store is open. A store in memory has none."""

    def __init__(self, database: Path | None, location: str) -> None:
        self._database = database
        self._location = location
        self._opened: _Ids | None = None

    def remember(self) -> None:
        """Record the files that exist now, after the store was opened. Raises StoreError if they cannot be read."""
        self._opened = self._current()

    def check(self) -> None:
        """Raise StoreReplaced if a file was deleted or replaced after ``remember()``, StoreError if the check fails."""
        current = self._current()
        if current == self._opened or current is None or self._opened is None:
            return
        if current.database == self._opened.database:
            name, content = ("-shm", "SQLite's locks") if current.wal == self._opened.wal else ("-wal", "the newest commits")
            raise StoreReplaced(
                f"{self._location}{name}, which holds {content}, was deleted or replaced while this process used it; further "
                "outcomes cannot be stored. Stop every program that uses the file, then run again"
            )
        raise StoreReplaced(
            f"{self._location} was deleted, moved or replaced while this process used it; further outcomes cannot be "
            "stored. Restore the file if you can, then run again"
        )

    def _current(self) -> _Ids | None:
        if self._database is None:
            return None
        return _Ids(*(self._id_at(path) for path in (self._database, wal_of(self._database), shm_of(self._database))))

    def _id_at(self, path: Path) -> FileId | None:
        try:
            return id_of(path.stat())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(
                f"{self._location}: cannot check whether the file was replaced ({error}); check the disk and its permissions"
            ) from error
