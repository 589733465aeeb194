"""Notice that the database file was deleted or replaced."""

from __future__ import annotations

from typing import NamedTuple


class FileIdentity(NamedTuple):
    """Device and inode of the database file, its -wal and its -shm; None for a file that does not exist."""

    database: tuple[int, int] | None
    wal: tuple[int, int] | None
    shm: tuple[int, int] | None
