"""The liveness lock of each worker: a free lock proves that the worker is dead.

The kernel drops a lock when its holder dies and keeps it while the holder is stopped or busy, so the store does not compare
process ids. Only the worker's own file proves a death: the file has the number of its inode as its text, so a copy is
recognized, for example in a folder that was restored while workers lived.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from asyncrunner.sqlite.locks.lock_file import LockFile, create_folder, locks_folder

_WORKER_ID: Final = re.compile(r"(?!next\Z|turn\Z)[A-Za-z0-9_-]{1,64}")
_MAX_REPLACED: Final = 100  # replaced lock files that a worker keeps open


def lock_path(database: Path, worker_id: str) -> Path | None:
    """Return the path of the worker's lock file; None for an id that is not a safe file name: any program can write ids."""
    return locks_folder(database) / worker_id if _WORKER_ID.fullmatch(worker_id) else None


class LivenessLock:
    """The lock that a worker holds from joining to leaving, on a file named by its id.

    The file is created under another name, locked, and then moved to its path, so at its path it is never free while the
    worker lives: a process that tests it cannot find it free, and cannot hold the lock while the worker takes it.
    Raises StoreError if the folder of lock files cannot be used, ValueError if the id is not a safe file name.
    """

    def __init__(self, database: Path, worker_id: str) -> None:
        path = lock_path(database, worker_id)
        if path is None:
            raise ValueError(f"{worker_id!r} is not a valid worker id; use letters, digits, - and _, at most 64")
        self._database = database
        self._path = path
        self._new_path = path.with_name(path.name + ".new")  # not a worker id, so no process tests this file
        self._file: LockFile | None = None
        # The replaced files stay open, so that the system gives their inodes to no copy of them: such a copy would prove a death.
        self._replaced: deque[LockFile] = deque()
        self.restore()

    def restore(self) -> bool:
        """Lock a new file unless the locked file is at its path; return whether a new file was locked.

        If the new file cannot be locked now, the worker has no lock file, which proves nothing, until the next call.
        """
        if self._file is not None and self._file.is_at(self._path):
            return False
        create_folder(self._database)
        try:
            file = LockFile(self._new_path, create=True)
        except OSError:
            if self._file is None:
                raise
            return False  # for example, the process has too many files open
        try:
            if not file.lock():
                file.close()
                return False
            with suppress(OSError):  # without a signature, for example on a full disk, a free lock proves nothing
                file.sign()
            self._new_path.replace(self._path)
        except BaseException:
            file.close()
            raise
        old, self._file = self._file, file
        if old is not None:
            self._replaced.append(old)
            if len(self._replaced) > _MAX_REPLACED:
                self._replaced.popleft().close()
        return True

    def release(self) -> None:
        """Delete the lock file and drop the lock, after the worker has left and holds no items."""
        self._path.unlink(missing_ok=True)
        self._new_path.unlink(missing_ok=True)
        self.drop()

    def drop(self) -> None:
        """Drop the lock but keep its file. The free lock proves to other workers that this worker has ended without
        leaving, so they recover its items."""
        if self._file is not None:
            self._file.close()
        while self._replaced:
            self._replaced.pop().close()


EVIDENCE: Final[Mapping[bool | None, str]] = {
    True: "its lock is held",
    False: "its lock is free: the process is dead",
    None: "it has no lock file",
}
"""What each value of ``is_held`` proves, as a clause about the worker."""


def is_held(database: Path, worker_id: str) -> bool | None:
    """Return whether the worker's lock is held: True if it is alive, False if it is dead.

    None if the worker has no lock file, a copy of one, or one that cannot be opened: then neither is proven.
    """
    path = lock_path(database, worker_id)
    if path is None:
        return None
    try:
        file = LockFile(path, create=False)
    except OSError:
        return None
    try:
        if not file.lock():
            return True
        return False if file.is_signed() else None
    finally:
        file.close()


def forget(database: Path, worker_id: str) -> None:
    """Delete a dead worker's lock file."""
    path = lock_path(database, worker_id)
    if path is not None:
        path.unlink(missing_ok=True)


def names(database: Path) -> list[str]:
    """Return the ids of the workers, dead or alive, that have a lock file, in sorted order."""
    try:
        file_names = [path.name for path in locks_folder(database).iterdir()]
    except FileNotFoundError:
        return []
    return sorted(name for name in file_names if _WORKER_ID.fullmatch(name))
