"""OS locks on files beside the database: the fair write lock and the liveness lock of each worker.

The kernel drops a lock when its holder dies and keeps it while the holder is stopped or busy. So a free lock proves that
the worker is dead, and no process ids are compared. The locks are not on the database's own files, because opening and closing
one of these would drop SQLite's locks.
"""

from __future__ import annotations

import errno
import os
import re
import weakref
from pathlib import Path
from typing import Final

from filelock import lock_descriptor

from asyncrunner.errors import StoreError

WRITE_LOCK_TIMEOUT: Final = 0.25
"""Seconds to wait for the write lock before StoreUnavailable is raised; the wait blocks the connection's thread."""

_open_descriptors: weakref.WeakSet[LockDescriptor] = weakref.WeakSet()


def locks_folder(database: Path) -> Path:
    """Return the folder of a database's lock files; it may not exist."""
    return database.with_name(database.name + "-locks")


def create_folder(database: Path) -> Path:
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


_WORKER_ID: Final = re.compile(r"(?!next\Z|turn\Z)[A-Za-z0-9_-]{1,64}")


def _lock_path(database: Path, worker_id: str) -> Path | None:
    """Return the path of the worker's lock file; None for an id that is not a safe file name, as any program can write rows."""
    return locks_folder(database) / worker_id if _WORKER_ID.fullmatch(worker_id) else None


class LockDescriptor:
    """An open lock file. A forked child closes its copy immediately, because the lock belongs to the parent."""

    def __init__(self, path: Path, *, create: bool) -> None:
        flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        self.number = os.open(path, flags | (os.O_CREAT if create else 0), 0o600)
        _open_descriptors.add(self)

    def is_at(self, path: Path) -> bool:
        """Return whether *path* still names this file; False if the file was deleted or replaced."""
        try:
            at_path, opened = path.stat(), os.fstat(self.number)
        except OSError:
            return False
        return (at_path.st_dev, at_path.st_ino) == (opened.st_dev, opened.st_ino)

    def close(self) -> None:
        if self.number >= 0:
            number, self.number = self.number, -1
            os.close(number)


def _close_inherited() -> None:
    for descriptor in list(_open_descriptors):
        descriptor.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


class LivenessLock:
    """The lock that a worker holds from joining to leaving, on a file named by its id.

    Raises StoreError if the folder of lock files cannot be used, ValueError if the id is not a safe file name.
    """

    def __init__(self, database: Path, worker_id: str) -> None:
        path = _lock_path(database, worker_id)
        if path is None:
            raise ValueError(f"{worker_id!r} is not a valid worker id; use letters, digits, - and _, at most 64")
        self._database = database
        self._path = path
        self._descriptor = self._take()

    def _take(self) -> LockDescriptor:
        create_folder(self._database)
        descriptor = LockDescriptor(self._path, create=True)
        lock_descriptor(descriptor.number, blocking=False)  # only a process that tests the lock can hold it, for a moment
        return descriptor

    def restore(self) -> bool:
        """Lock a new file if the lock file was deleted or replaced; return whether that happened."""
        if self._descriptor.is_at(self._path):
            return False
        old, self._descriptor = self._descriptor, self._take()
        old.close()
        return True

    def release(self) -> None:
        """Delete the lock file and drop the lock, after the worker has left and holds no items."""
        self._path.unlink(missing_ok=True)
        self._descriptor.close()

    def drop(self) -> None:
        """Drop the lock but keep its file: the free lock shows other workers that this one is gone, so they recover its items."""
        self._descriptor.close()


def is_held(database: Path, worker_id: str) -> bool | None:
    """Return whether the worker's lock is held: True if it is alive, False if it is dead.

    None if the worker has no lock file, or one that cannot be opened, because that proves neither.
    """
    path = _lock_path(database, worker_id)
    if path is None:
        return None
    try:
        descriptor = LockDescriptor(path, create=False)
    except OSError:
        return None
    try:
        return not lock_descriptor(descriptor.number, blocking=False)
    finally:
        descriptor.close()


def forget(database: Path, worker_id: str) -> None:
    """Delete a dead worker's lock file."""
    path = _lock_path(database, worker_id)
    if path is not None:
        path.unlink(missing_ok=True)


def names(database: Path) -> list[str]:
    """Return the ids of the workers that have a lock file, dead or alive, in order."""
    try:
        file_names = [file.name for file in locks_folder(database).iterdir()]
    except FileNotFoundError:
        return []
    return sorted(name for name in file_names if _WORKER_ID.fullmatch(name))
