"""Refuse the file to a forked child: it inherits the table of SQLite's locks but not the locks."""

from __future__ import annotations

import sqlite3
import weakref


class TrackedConnection(sqlite3.Connection):
    """A connection that knows its file, so that a forked child can reject the files that its parent had open."""

    identity: tuple[int, int] | None = None

    def close(self) -> None:
        super().close()
        self.identity = None


tracked_connections: weakref.WeakSet[TrackedConnection] = weakref.WeakSet()

inherited_files: set[tuple[int, int]] = set()

_inherited_connections: list[TrackedConnection] = []


def remember_inherited() -> None:
    open_connections = [connection for connection in list(tracked_connections) if connection.identity is not None]
    _inherited_connections.extend(open_connections)  # keep them referenced: a child must not close them either
    inherited_files.update(connection.identity for connection in open_connections if connection.identity is not None)
