"""Detect a write-ahead log that belongs to another state of its database, before SQLite applies it.

A backup that is copied over the database, beside the log of the replaced file, is such a case: SQLite would write pages of the
log into the backup, and both states would be lost. SQLite stores nothing that ties a log to its database. Two facts reveal
such a log:

- SQLite creates a log only for a database whose header names the journal mode WAL. A backup of asyncrunner has another mode.
- After the last write to the log, only a WAL checkpoint writes to the database. So a database that is newer than its log has
  pages of the log. A WAL checkpoint that was killed has written the pages in ascending order.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from asyncrunner.errors import StoreError
from asyncrunner.sqlite.file.identity import id_of
from asyncrunner.sqlite.file.wal import wal_of

_WAL_HEADER: Final = struct.Struct(">III4x8s8x")  # magic, version, page size, salts
_FRAME_HEADER: Final = struct.Struct(">II8s8x")  # page, size of the database after a commit or 0, salts
_MAGIC: Final = (0x377F0682, 0x377F0683)
_MODE_BYTES: Final = slice(18, 20)  # of the database's header
_WAL_MODE: Final = b"\x02\x02"

_opening = threading.Lock()


def opening() -> threading.Lock:
    """Return the lock that a thread holds while it opens the database with SQLite, or reads its files without SQLite."""
    return _opening


def _renew_lock() -> None:
    global _opening
    _opening = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def check_wal_belongs(database: Path) -> None:
    """Raise StoreError if the write-ahead log belongs to another state of the database.

    The function reads the files without SQLite. It does nothing if this process has the database open, because closing a
    second descriptor of the file would drop SQLite's locks.
    """
    if not wal_belongs(database):
        wal = wal_of(database).name
        raise StoreError(
            f"{wal} belongs to another state of {database}: the database was replaced, for example by a backup, but not the log. "
            f"SQLite would mix both states. Restore a backup with `asyncrunner restore`. Or delete {wal} to use the database as "
            f"it is. If both files were copied together, run `touch {wal}` first"
        )


def wal_belongs(database: Path) -> bool:
    """Return whether the write-ahead log, if there is one, may belong to the database."""
    with _opening:
        return _wal_belongs(database, wal_of(database))


def _wal_belongs(database: Path, wal: Path) -> bool:
    try:
        log, file = wal.stat(), database.stat()
    except FileNotFoundError:
        return True
    if log.st_size <= _WAL_HEADER.size or file.st_size == 0 or is_open_here(file):
        return True
    with database.open("rb") as pages, wal.open("rb") as frames:
        if pages.read(_MODE_BYTES.stop)[_MODE_BYTES] != _WAL_MODE:
            return False
        if file.st_mtime_ns <= log.st_mtime_ns or _has_pages_of_log(pages, frames):
            return True
    # If another process uses the files, they may have changed between two reads: only unchanged files prove anything.
    return _has_changed(database, file) or _has_changed(wal, log)


def _has_pages_of_log(pages: BinaryIO, frames: BinaryIO) -> bool:
    """Return whether a WAL checkpoint of this log may have written to the database last."""
    magic, _, page_size, salts = _WAL_HEADER.unpack(frames.read(_WAL_HEADER.size))
    if magic not in _MAGIC or page_size not in (1 << bits for bits in range(9, 17)):
        return True  # SQLite ignores such a log
    # A WAL checkpoint writes the lowest page first. It may leave out the newest frames, because a reader needs an older state.
    is_empty = True
    lowest: int | None = None
    for number, position in _committed(frames, page_size, salts):
        is_empty = False
        if lowest is None or number <= lowest:
            lowest = number
            frames.seek(position)
            pages.seek((number - 1) * page_size)
            if frames.read(page_size) == pages.read(page_size):
                return True
    return is_empty


def _committed(frames: BinaryIO, page_size: int, salts: bytes) -> Iterator[tuple[int, int]]:
    """Yield the page number and the position of each frame, up to the last commit."""
    transaction: list[tuple[int, int]] = []
    position = _WAL_HEADER.size
    while True:
        frames.seek(position)
        header = frames.read(_FRAME_HEADER.size)
        if len(header) < _FRAME_HEADER.size:
            return
        number, size_after_commit, frame_salts = _FRAME_HEADER.unpack(header)
        if frame_salts != salts:
            return  # the frame is of an earlier use of the log
        transaction.append((number, position + _FRAME_HEADER.size))
        if size_after_commit:
            yield from transaction
            transaction.clear()
        position += _FRAME_HEADER.size + page_size


def is_open_here(file: os.stat_result) -> bool:
    """Return whether this process has the file open, in asyncrunner or elsewhere."""
    try:
        descriptors = [int(entry.name) for entry in Path("/dev/fd").iterdir()]
    except FileNotFoundError:
        return os.name == "posix"  # elsewhere, a lock ends with its own descriptor
    for descriptor in descriptors:
        try:
            if id_of(os.fstat(descriptor)) == id_of(file):
                return True
        except OSError:
            continue  # the descriptor of the list itself
    return False


def _has_changed(path: Path, before: os.stat_result) -> bool:
    try:
        now = path.stat()
    except OSError:
        return True
    return (id_of(now), now.st_size, now.st_mtime_ns) != (id_of(before), before.st_size, before.st_mtime_ns)
