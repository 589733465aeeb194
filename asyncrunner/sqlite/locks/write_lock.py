"""Lock the database for one writing process at a time, in a fair order: SQLite's own lock is not fair."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filelock import lock_descriptor, unlock_descriptor

from asyncrunner.errors import StoreUnavailable
from asyncrunner.sqlite.locks.lock_file import LockFile, create_folder, locks_folder

if TYPE_CHECKING:
    from collections.abc import Generator

WRITE_LOCK_TIMEOUT: Final = 0.25
"""Seconds to wait for the write lock before StoreUnavailable is raised; the wait blocks the connection's thread."""

_POLL_SECONDS: Final = 0.0003


class FairWriteLock:
    """A fair write lock between processes: a process that has just written queues behind the waiting one.

    SQLite's busy handler sleeps longer after each try, so a process that writes often starves the others. With this lock, a
    waiting process holds the lock ``next`` while it waits for the lock ``turn``, and the last writer needs ``next`` before it
    can write again.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._open()

    def _open(self) -> None:
        folder = create_folder(self._database)
        self._next_file = LockFile(folder / "next", create=True)
        try:
            self._turn_file = LockFile(folder / "turn", create=True)
        except BaseException:
            self._next_file.close()
            raise

    def restore(self) -> None:
        """Open the lock files again if they were deleted or replaced, so that all processes lock the same files.

        The caller must not hold the write lock.
        """
        folder = locks_folder(self._database)
        if not (self._next_file.is_at(folder / "next") and self._turn_file.is_at(folder / "turn")):
            self.close()
            self._open()

    @contextmanager
    def pass_through(self) -> Generator[None, None, None]:
        """Hold the write lock for one transaction. Raises StoreUnavailable after a wait of ``WRITE_LOCK_TIMEOUT`` seconds."""
        deadline = time.monotonic() + WRITE_LOCK_TIMEOUT
        self._acquire(self._next_file, deadline)
        try:
            self._acquire(self._turn_file, deadline)
        finally:
            unlock_descriptor(self._next_file.descriptor)
        try:
            yield
        finally:
            unlock_descriptor(self._turn_file.descriptor)

    def close(self) -> None:
        """Close the lock files, but keep them on the disk for other processes."""
        self._next_file.close()
        self._turn_file.close()

    def _acquire(self, file: LockFile, deadline: float) -> None:
        while not lock_descriptor(file.descriptor, blocking=False):
            if time.monotonic() >= deadline:
                raise StoreUnavailable(
                    f"{self._database}: the write lock was not free within {WRITE_LOCK_TIMEOUT:g} s; another process is writing, "
                    "or was stopped during a write; asyncrunner retries"
                )
            time.sleep(_POLL_SECONDS)
