"""Open the files of OS locks, in a folder beside the database.

The kernel drops a lock when its holder dies and keeps it while the holder is stopped or busy. The locks are not on the
database's own files, because opening and closing one of those files would drop SQLite's locks.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from pathlib import Path
from typing import Final

from asyncrunner.errors import StoreError
from asyncrunner.sqlite.file.identity import FileId, id_of


def locks_folder(database: Path) -> Path:
    """Return the folder of a database's lock files; it may not exist."""
    return database.with_name(database.name + "-locks")


def create_folder(database: Path) -> Path:
    """Create the folder of a database's lock files unless it exists, and return its path.

    Raises StoreError if the folder cannot be used, or if another user may have created it.
    """
    folder = locks_folder(database)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.parent.stat().st_mode & stat.S_IWOTH:
            _reject_folder_of_other_user(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    except OSError as error:
        raise StoreError(
            f"{folder}, the folder of the lock files, cannot be used ({error.strerror}); it and the database must belong to "
            "the user who runs asyncrunner"
        ) from error
    return folder


def _reject_folder_of_other_user(folder: Path) -> None:
    """Raise StoreError if *folder*, in a folder that every user may write to, is a link or belongs to another user.

    The other user could replace the lock files of living workers, so that their items would be recovered.
    """
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0)):
        raise StoreError(
            f"{folder}, the folder of the lock files, is a symbolic link or belongs to another user, and every user may write to "
            f"{folder.parent}. Delete that link or folder, or keep the database in a folder of your own"
        )


_open_files: Final[weakref.WeakSet[LockFile]] = weakref.WeakSet()


class LockFile:
    """An open lock file. A forked child closes its copy immediately, because the lock belongs to the parent."""

    def __init__(self, path: Path, *, create: bool) -> None:
        flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        self.descriptor = os.open(path, flags | (os.O_CREAT if create else 0), 0o600)
        self._id = id_of(os.fstat(self.descriptor))
        _open_files.add(self)

    def is_at(self, path: Path) -> bool:
        """Return whether this file is open and still at *path*; False if it was closed, deleted or replaced."""
        try:
            return self._is_open() and id_of(path.stat()) == self._id
        except OSError:
            return False

    def lock(self) -> bool:
        """Lock the file without waiting; return False if another process, or another descriptor of this one, has the lock."""
        from filelock import lock_descriptor  # a file without workers needs no lock, and is read faster without this import

        return lock_descriptor(self.descriptor, blocking=False)

    def sign(self) -> None:
        """Write the number of the file's inode into it, so that a copy of the file proves nothing. Raises OSError."""
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        os.write(self.descriptor, _signature(self._id))

    def is_signed(self) -> bool:
        """Return whether this file was signed; False for a copy of a signed file."""
        try:
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            return os.read(self.descriptor, 64) == _signature(self._id)
        except OSError:
            return False

    def close(self) -> None:
        """Close the file and so drop its lock. A second call does nothing."""
        if self.descriptor >= 0:
            if self._is_open():
                os.close(self.descriptor)
            self.descriptor = -1

    def _is_open(self) -> bool:
        # A program that closes every descriptor, as a daemon does when it starts, also closes this one, and may open another
        # file with the same number.
        try:
            return id_of(os.fstat(self.descriptor)) == self._id
        except OSError:
            return False


def _signature(file_id: FileId) -> bytes:
    # Not the device: its number may change when the machine restarts. On one file system the number of the inode is enough,
    # because the file of a living worker keeps its inode, so no copy of the file gets the same one.
    return f"inode {file_id[1]}\n".encode()


def _close_inherited() -> None:
    for file in list(_open_files):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
