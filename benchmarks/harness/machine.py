"""Describe the machine and the versions of a measurement."""

from __future__ import annotations

import datetime as dt
import os
import platform
import sqlite3
from importlib.metadata import version

__all__ = ["describe_machine"]


def describe_machine() -> str:
    """Return one line with date, versions, operating system and number of cores."""
    today = dt.datetime.now(dt.UTC).date()
    return (
        f"{today}: asyncrunner {version('asyncrunner')}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"aiosqlite {version('aiosqlite')}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )
