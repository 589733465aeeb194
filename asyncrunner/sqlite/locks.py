"""OS locks on files beside the database: whose turn it is to write, and who is alive.

The kernel drops a lock at the moment its holder dies and keeps it while the holder is stopped or busy, so a free
lock proves a death and no process id is ever compared. The lock files are not the database's: opening and
closing one of those would drop SQLite's own locks.
"""

from __future__ import annotations

import errno
import os
import re
import time
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filelock import lock_descriptor, unlock_descriptor

from asyncrunner.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["LivenessLock", "Turnstile", "forget", "is_held", "locks_folder", "names"]

PATIENCE: Final = 0.25
"""Seconds to wait for the write lock before the caller shall back off; the connection's thread waits along."""

_POLL: Final = 0.0003

_inherited: weakref.WeakSet[_Descriptor] = weakref.WeakSet()


def locks_folder(database: Path) -> Path:
    """Where the lock files of a database are."""
    return database.with_name(database.name + "-locks")


def _made_folder(database: Path) -> Path:
    folder = locks_folder(database)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    except OSError as error:
        raise StoreError(
            f"{folder}, where the lock files are, cannot be used ({error.strerror}); it and the database must belong to "
            "the user who runs this"
        ) from error
    return folder


_NAME: Final = re.compile(r"(?!next\Z|turn\Z)[A-Za-z0-9_-]{1,64}")


def _lock_file(database: Path, worker_id: str) -> Path | None:
    """Where that worker's lock is; None for an id that names no file there: rows are data, and may come from anybody."""
    return locks_folder(database) / worker_id if _NAME.fullmatch(worker_id) else None


class _Descriptor:
    """An open lock file. A forked child lets go of it at once: the lock is the parent's."""

    def __init__(self, path: Path, *, create: bool) -> None:
        flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        self.number = os.open(path, flags | (os.O_CREAT if create else 0), 0o600)
        _inherited.add(self)

    def is_at(self, path: Path) -> bool:
        """Whether *path* is still this file."""
        try:
            there, here = path.stat(), os.fstat(self.number)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def close(self) -> None:
        if self.number >= 0:
            number, self.number = self.number, -1
            os.close(number)


def _close_inherited() -> None:
    for descriptor in list(_inherited):
        descriptor.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


class LivenessLock:
    """Held from joining to leaving; one file a worker."""

    def __init__(self, database: Path, worker_id: str) -> None:
        path = _lock_file(database, worker_id)
        if path is None:
            raise ValueError(f"a worker cannot be called {worker_id!r}")
        self._database = database
        self._path = path
        self._descriptor = self._take()

    def _take(self) -> _Descriptor:
        _made_folder(self._database)
        descriptor = _Descriptor(self._path, create=True)
        lock_descriptor(descriptor.number, blocking=False)  # held only by who looks whether it is, and only for a moment
        return descriptor

    def restore(self) -> bool:
        """Take the lock anew if its file is gone or another one is in its place; whether that was so."""
        if self._descriptor.is_at(self._path):
            return False
        gone, self._descriptor = self._descriptor, self._take()
        gone.close()
        return True

    def release(self) -> None:
        """Drop the lock and its file: the worker has left and holds nothing."""
        self._path.unlink(missing_ok=True)
        self._descriptor.close()

    def drop(self) -> None:
        """Drop the lock alone; the free lock tells the others that the worker is gone and what it held is theirs."""
        self._descriptor.close()


def is_held(database: Path, worker_id: str) -> bool | None:
    """Whether that worker's lock is held; None if it has no lock file, or one that cannot be opened: that proves nothing."""
    path = _lock_file(database, worker_id)
    if path is None:
        return None
    try:
        descriptor = _Descriptor(path, create=False)
    except OSError:
        return None
    try:
        return not lock_descriptor(descriptor.number, blocking=False)
    finally:
        descriptor.close()


def forget(database: Path, worker_id: str) -> None:
    """Remove a dead worker's lock file."""
    path = _lock_file(database, worker_id)
    if path is not None:
        path.unlink(missing_ok=True)


def names(database: Path) -> list[str]:
    """The workers that have a lock file, dead or alive."""
    try:
        found = [each.name for each in locks_folder(database).iterdir()]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if _NAME.fullmatch(name))


class Turnstile:
    """Processes that write take turns: whoever has just written waits behind whoever is waiting.

    SQLite's busy handler sleeps ever longer, so a busy process starves the others. Here the one who waits for
    ``turn`` holds ``next`` meanwhile, which the last writer needs to come again.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._open()

    def _open(self) -> None:
        folder = _made_folder(self._database)
        self._next = _Descriptor(folder / "next", create=True)
        try:
            self._turn = _Descriptor(folder / "turn", create=True)
        except BaseException:
            self._next.close()
            raise

    def restore(self) -> None:
        """Open the files anew if they are gone or others are in their place, so that all mean the same ones. Not in a turn."""
        folder = locks_folder(self._database)
        if not (self._next.is_at(folder / "next") and self._turn.is_at(folder / "turn")):
            self.close()
            self._open()

    @contextmanager
    def pass_through(self) -> Generator[None, None, None]:
        """Hold the turn for one transaction. Raises StoreUnavailable after ``PATIENCE`` seconds of waiting."""
        deadline = time.monotonic() + PATIENCE
        self._acquire(self._next, deadline)
        try:
            self._acquire(self._turn, deadline)
        finally:
            unlock_descriptor(self._next.number)
        try:
            yield
        finally:
            unlock_descriptor(self._turn.number)

    def close(self) -> None:
        """Let go of the files; they stay, for others use them."""
        self._next.close()
        self._turn.close()

    def _acquire(self, descriptor: _Descriptor, deadline: float) -> None:
        while not lock_descriptor(descriptor.number, blocking=False):
            if time.monotonic() >= deadline:
                raise StoreUnavailable(
                    f"{self._database}: another process has been writing for a while, or was stopped in the middle of it; it is "
                    "tried again"
                )
            time.sleep(_POLL)
