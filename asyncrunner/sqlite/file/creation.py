"""Create the database file: whole or not at all, private, never through a dangerous link."""

from __future__ import annotations

import os
import secrets
import sqlite3
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from asyncrunner.errors import StoreError, StoreNotFound
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.file.filesystem import file_system, is_network
from asyncrunner.sqlite.sql.schema import migrate

_MIN_SQLITE_VERSION: Final = (3, 37, 0)


def check_place(path: Path) -> None:
    """Raise StoreError if *path* is on a network file system, or is a symbolic link in a folder that every user may write to."""
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


def create_if_missing(path: Path) -> None:
    """Create an empty store at *path* unless the path exists.

    Raises StoreNotFound if there is no folder for it, and StoreError if the file cannot be created, if SQLite is too old, or if
    the ``-wal`` file of a deleted database is still there. A kill leaves at most a temporary file ``.NAME.*.new``.
    """
    if sqlite3.sqlite_version_info < _MIN_SQLITE_VERSION:
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old; asyncrunner needs 3.37 or newer")
    if path.exists():
        return
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size > 0:
        raise StoreError(
            f"{path} is missing, but {wal.name} exists. That file holds the newest commits of a database of that name, and "
            f"SQLite would apply them to a new one. Put {path.name} back, or delete {wal.name} if its commits may be lost"
        )
    if not path.parent.is_dir():
        raise StoreNotFound(f"there is no folder {path.parent} for {path.name}; create it or give another path")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection = sqlite3.connect(temporary, isolation_level=None)
        try:
            connection.execute(sql.schema.SET_APPLICATION_ID)
            connection.execute(sql.connection.BEGIN_WRITE)
            migrate(connection, 0)
            connection.execute(sql.connection.COMMIT)
            connection.execute(sql.connection.USE_WAL)
        finally:
            connection.close()
        os.link(temporary, path)
    except FileExistsError:
        pass  # another process created the file first
    except PermissionError as error:
        raise StoreError(f"{path} cannot be created ({error.strerror}); check the permissions of {path.parent}") from error
    except (OSError, sqlite3.OperationalError) as error:
        raise StoreError(f"{path} cannot be created ({error}); check the disk, or give another path") from error
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            with suppress(OSError):
                temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
