"""Describe the machine and the versions of a measurement."""

from __future__ import annotations

import datetime as dt
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from importlib.metadata import version
from typing import Final

__all__ = ["describe_machine", "fsync_milliseconds"]

_SYNCS: Final = 50


def describe_machine() -> str:
    """Return one line with date, versions, operating system, number of cores and the time of an fsync."""
    today = dt.datetime.now(dt.UTC).date()
    return (
        f"{today}: asyncrunner {version('asyncrunner')}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"aiosqlite {version('aiosqlite')}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"fsync {fsync_milliseconds():.2f} ms"
    )


def fsync_milliseconds() -> float:
    """Return the median of the milliseconds of an fsync after 4 kB are appended to a file in the folder of the measurements."""
    times: list[float] = []
    with tempfile.TemporaryFile() as file:
        for _ in range(_SYNCS):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)
