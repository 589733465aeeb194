"""Read the status of a file from a thread, for exporters of metrics, which are no coroutines."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Final

from asyncrunner.admin.control import Control
from asyncrunner.admin.read_models import FileStatus

_MAX_AGE_SECONDS: Final = 1.0  # the instruments of one export share one read


def read_status(db: str | os.PathLike[str]) -> FileStatus:
    """Return what ``Control(db).status()`` returns. The call blocks, and may be made while an event loop runs.

    Raises AsyncRunnerError, for example StoreNotFound.
    """

    async def read() -> FileStatus:
        async with Control(db) as control:
            return await control.status()

    with ThreadPoolExecutor(1, "asyncrunner-metrics") as thread:  # this thread may have a running loop
        return thread.submit(asyncio.run, read()).result()


class LiveStatus:
    """The status of a file, read again when it is older than a second. Any thread may call it."""

    def __init__(self, db: str | os.PathLike[str], read: Callable[[str | os.PathLike[str]], FileStatus] = read_status) -> None:
        self._db = db
        self._read = read
        self._lock = threading.Lock()
        self._status: FileStatus | None = None
        self._read_at = 0.0

    def __call__(self) -> FileStatus:
        with self._lock:
            if self._status is None or monotonic() - self._read_at >= _MAX_AGE_SECONDS:
                self._status = self._read(self._db)
                self._read_at = monotonic()
            return self._status
