"""Prevent a forked child from opening a database file that its parent had open.

SQLite keeps its list of locks in the process's memory. A forked child inherits the list but not the locks, so even a new
connection of the child would act as if the child held the locks, and other processes could overwrite the child's commits.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Final

from asyncrunner.errors import StoreError
from asyncrunner.sqlite.file.identity import FileId
from asyncrunner.sqlite.sql.bulk import SteppedConnection


class TrackedConnection(SteppedConnection):
    """A connection with the id of its file, so that a forked child can refuse the files that its parent had open."""

    file_id: FileId | None = None

    def close(self) -> None:
        super().close()
        self.file_id = None


_open_connections: Final[weakref.WeakSet[TrackedConnection]] = weakref.WeakSet()

_inherited_files: Final[set[FileId]] = set()

_inherited_connections: Final[list[TrackedConnection]] = []


def track(connection: TrackedConnection, file_id: FileId) -> None:
    """Record that this process has the file open until *connection* is closed."""
    connection.file_id = file_id
    _open_connections.add(connection)


def check_not_inherited(path: Path, file_id: FileId) -> None:
    """Raise StoreError if the file at *path* was open when this process was forked."""
    if file_id in _inherited_files:
        raise StoreError(
            f"{path} was open in the process that this one was forked from, and SQLite cannot use a file across a fork. "
            'Open it after forking, as in each worker of a server, or start processes with the "spawn" method'
        )


def _remember_inherited() -> None:
    for connection in list(_open_connections):
        if connection.file_id is not None:
            _inherited_connections.append(connection)  # the reference prevents that the child closes the connection
            _inherited_files.add(connection.file_id)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_inherited)
