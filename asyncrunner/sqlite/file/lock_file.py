"""Open the files of OS locks, in a folder beside the database.

The kernel drops a lock when its holder dies and keeps it while the holder is stopped or busy. The locks are not on the
database's own files, because opening and closing one of those files would drop SQLite's locks.
"""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path
from typing import Final

from asyncrunner.errors import StoreError
from asyncrunner.sqlite.file.identity import id_of


def locks_folder(database: Path) -> Path:
    """Return the folder of a database's lock files; it may not exist."""
    return database.with_name(database.name + "-locks")


def create_folder(database: Path) -> Path:
    """Create the folder of a database's lock files unless it exists, and return its path. Raises StoreError."""
    folder = locks_folder(database)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    except OSError as error:
        raise StoreError(
            f"{folder}, the folder of the lock files, cannot be used ({error.strerror}); it and the database must belong to "
            "the user who runs asyncrunner"
        ) from error
    return folder


_open_files: Final[weakref.WeakSet[LockFile]] = weakref.WeakSet()


class LockFile:
    """An open lock file. A forked child closes its copy immediately, because the lock belongs to the parent."""

    def __init__(self, path: Path, *, create: bool) -> None:
        flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        self.descriptor = os.open(path, flags | (os.O_CREAT if create else 0), 0o600)
        _open_files.add(self)

    def is_at(self, path: Path) -> bool:
        """Return whether this file is still at *path*; False if the file was deleted or replaced."""
        try:
            return id_of(path.stat()) == id_of(os.fstat(self.descriptor))
        except OSError:
            return False

    def close(self) -> None:
        """Close the file and so drop its lock. A second call does nothing."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)


def _close_inherited() -> None:
    for file in list(_open_files):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
