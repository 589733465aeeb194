"""What tests of real processes share: a folder, its database, and the processes started there."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Folder"]


class Folder:
    """A folder with a database in it. ``end()`` stops what was started."""

    def __init__(self, path: Path, db: str) -> None:
        self.path = path
        self.db = path / db
        self.processes: list[subprocess.Popen[str]] = []

    def query(self, query: str) -> list[Any]:
        """Ask the database, which is there."""
        connection = sqlite3.connect(f"file:{self.db}?mode=ro", uri=True)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for it, at most 30 s; then the test fails."""
        give_up_at = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < give_up_at, "what the test waits for did not happen"
            time.sleep(0.005)

    def end(self) -> None:
        """Stop every process; gently at first, so that its coverage is kept."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
