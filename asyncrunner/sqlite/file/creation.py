"""Create the database file: complete or not at all, private, never through a dangerous link.

A new file is created under a temporary name in the same folder. When the file is complete, it is linked to its own name. So a
kill leaves no incomplete database, several processes may create the file at the same time, and the mode is 0600 from the start.
"""

from __future__ import annotations

import glob
import logging
import os
import sqlite3
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from asyncrunner.errors import StoreError, StoreNotFound
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.file.filesystem import file_system, is_network
from asyncrunner.sqlite.file.identity import second_name
from asyncrunner.sqlite.file.wal import wal_of, wal_size
from asyncrunner.sqlite.sql.schema import migrate
from asyncrunner.text.atomic_file import create_draft, remove_draft

log = logging.getLogger("asyncrunner")

_MIN_SQLITE_VERSION: Final = (3, 37, 0)


def check_place(path: Path) -> None:
    """Raise StoreError if *path* is on a network file system, or is a symbolic link in a world-writable folder."""
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


def check_names(path: Path) -> None:
    """Raise StoreError if the database has a second name, a hard link.

    Each name has a separate write-ahead log and separate locks, so programs that use different names destroy the file.
    """
    names = path.stat().st_nlink
    if names > 1 and names - 1 > len(_drafts(path)):
        names = path.stat().st_nlink  # the program that creates the file may have deleted its draft meanwhile
        if names - 1 <= len(_drafts(path)):
            return
        replaced = second_name(path)
        if replaced is not None:
            raise StoreError(
                f"a restore of {path} was interrupted; run `asyncrunner restore` again, or delete {replaced.name} to use the "
                "file as it is"
            )
        raise StoreError(
            f"{path} has a second name, a hard link, and programs that use different names do not see each other's locks and "
            f"commits. Find the other name with `find -samefile {path.name}` and delete it, or replace it with a copy"
        )


def _drafts(path: Path) -> list[Path]:
    """Return the drafts of the database that are the same file: no program opens them, and a kill may leave one."""
    drafts: list[Path] = []
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*.new"):
        with suppress(FileNotFoundError):
            if draft.samefile(path):
                drafts.append(draft)
    return drafts


def create_if_missing(path: Path) -> None:
    """Create an empty store at *path* unless the path exists.

    Raises StoreNotFound if the folder does not exist, and StoreError if the file cannot be created, if SQLite is too old, or
    if the ``-wal`` file of a deleted database still exists. A kill leaves at most a temporary file ``.NAME.*.new``.
    """
    if sqlite3.sqlite_version_info < _MIN_SQLITE_VERSION:
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old; asyncrunner needs 3.37 or newer")
    if path.exists():
        return
    if wal_size(path) > 0:
        wal = wal_of(path).name
        raise StoreError(
            f"{path} is missing, but {wal} exists. {wal} has the newest commits of the missing database, and "
            f"SQLite would apply them to a new database. Put {path.name} back, or delete {wal} if its commits may be lost"
        )
    if not path.parent.is_dir():
        raise StoreNotFound(f"there is no folder {path.parent} for {path.name}; create it or give another path")
    try:
        draft = create_draft(path)
        try:
            _write_empty_store(draft)
            os.link(draft, path)
            log.info("created the file %s", path)
        finally:
            remove_draft(draft)
    except FileExistsError:
        pass  # another process created the file first
    except PermissionError as error:
        raise StoreError(f"{path} cannot be created ({error.strerror}); check the permissions of {path.parent}") from error
    except (OSError, sqlite3.OperationalError) as error:
        raise StoreError(f"{path} cannot be created ({error}); check the disk, or give another path") from error


def _write_empty_store(draft: Path) -> None:
    connection = sqlite3.connect(draft, isolation_level=None)
    try:
        # A kill leaves a draft that no program opens, so one sync at the end is enough.
        connection.execute(sql.connection.NO_SYNC)
        connection.execute(sql.connection.ROLLBACK_IN_MEMORY)
        connection.execute(sql.schema.SET_APPLICATION_ID)
        connection.execute(sql.connection.BEGIN_WRITE)
        migrate(connection, 0)
        connection.execute(sql.connection.COMMIT)
        connection.execute(sql.connection.USE_WAL)
    finally:
        connection.close()
    with draft.open("r+b") as file:
        os.fsync(file.fileno())
