"""Detect a write-ahead log that belongs to another state of its database, before SQLite applies it.

A backup that is copied over the database, beside the log of the replaced file, is such a case: SQLite would write pages of the
log into the backup, and both states would be lost. SQLite stores nothing that ties a log to its database. Three facts reveal
such a log:

- SQLite creates a log only for a database whose header names the journal mode WAL. A backup of asyncrunner has another mode.
- After the last write to the log, only a WAL checkpoint writes to the database. So a database that is newer than its log has
  pages of the log. A WAL checkpoint that was killed has written the pages in ascending order.
- A commit stores the page count of the database in the log. A page that the database file is too short for is in the log:
  SQLite writes each new page to the log first, and a WAL checkpoint writes all pages before SQLite starts the log anew. So a
  page that is in neither file was in a newer database file.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from array import array
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
_LOCK_BYTE: Final = 0x40000000  # SQLite never writes the page that has this byte

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
            f"it is. If both files were copied together, run `touch {wal}` first. If that does not help, pages are missing in "
            f"{database}, and only another copy has them"
        )


def wal_belongs(database: Path) -> bool:
    """Return whether the write-ahead log, if there is one, may belong to the database. Raises StoreError if it cannot be read."""
    try:
        with _opening:
            return _wal_belongs(database, wal_of(database))
    except FileNotFoundError:
        return True  # another process has deleted the log while it closed the file
    except OSError as error:
        place = error.filename or database
        raise StoreError(f"{place} cannot be read ({error.strerror}); check its owner and permissions") from error


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
        belongs = not _lacks_pages(pages, frames)
        if belongs and (file.st_mtime_ns <= log.st_mtime_ns or _has_pages_of_log(pages, frames)):
            return True
    # If another process uses the files, they may have changed between two reads: only unchanged files prove anything.
    return _has_changed(database, file) or _has_changed(wal, log)


def _header(frames: BinaryIO) -> tuple[int, int, bytes] | None:
    """Return the magic number, the page size and the salts of the log; None if SQLite ignores the log."""
    frames.seek(0)
    magic, _, page_size, salts = _WAL_HEADER.unpack(frames.read(_WAL_HEADER.size))
    return (magic, page_size, salts) if magic in _MAGIC and page_size in (1 << bits for bits in range(9, 17)) else None


def _lacks_pages(pages: BinaryIO, frames: BinaryIO) -> bool:
    """Return whether a page of the newest commit is in neither of the files.

    The function reads the headers of the frames, which takes 0.06 s for a log of 100 MB. The headers do not reveal a frame that
    a later transaction cut off: a process that is killed may leave such a frame. So if a page is missing, the function also
    compares checksums, as SQLite does.
    """
    header = _header(frames)
    if header is None:
        return False
    magic, page_size, salts = header
    return _lacks_pages_of(_headers(frames, page_size, salts), pages, page_size) and _lacks_pages_of(
        _with_valid_checksum(frames, magic, page_size, salts), pages, page_size
    )


def _lacks_pages_of(headers: Iterator[tuple[int, int, int]], pages: BinaryIO, page_size: int) -> bool:
    in_log: set[int] = set()
    page_count = 0
    transaction: list[int] = []
    for number, size_after_commit, _ in headers:
        transaction.append(number)
        if size_after_commit:
            in_log.update(transaction)
            transaction.clear()
            page_count = size_after_commit
    # The size is read after the log: a WAL checkpoint of another process may have written pages of the log meanwhile.
    in_file = os.fstat(pages.fileno()).st_size // page_size
    in_log.add(_LOCK_BYTE // page_size + 1)
    return page_count - in_file > len(in_log) or not in_log.issuperset(range(in_file + 1, page_count + 1))


def _has_pages_of_log(pages: BinaryIO, frames: BinaryIO) -> bool:
    """Return whether a WAL checkpoint of this log may have written to the database last."""
    header = _header(frames)
    if header is None:
        return True
    _, page_size, salts = header
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
    for number, size_after_commit, position in _headers(frames, page_size, salts):
        transaction.append((number, position))
        if size_after_commit:
            yield from transaction
            transaction.clear()


def _headers(frames: BinaryIO, page_size: int, salts: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the page number, the page count after a commit or 0, and the position of the page, of each frame of this log."""
    position = _WAL_HEADER.size
    while True:
        frames.seek(position)
        header = frames.read(_FRAME_HEADER.size)
        if len(header) < _FRAME_HEADER.size:
            return
        number, size_after_commit, frame_salts = _FRAME_HEADER.unpack(header)
        if frame_salts != salts:
            return  # the frame is of an earlier use of the log
        position += _FRAME_HEADER.size
        yield number, size_after_commit, position
        position += page_size


def _with_valid_checksum(frames: BinaryIO, magic: int, page_size: int, salts: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield what _headers yields, up to the first frame with a wrong checksum. This takes 2 s for 100 MB."""
    is_big = bool(magic & 1)
    frames.seek(0)
    checksum = _checksum(frames.read(_WAL_HEADER.size - 8), is_big, (0, 0))
    for number, size_after_commit, position in _headers(frames, page_size, salts):
        frames.seek(position - _FRAME_HEADER.size)
        frame = frames.read(_FRAME_HEADER.size + page_size)
        if len(frame) < _FRAME_HEADER.size + page_size:
            return
        checksum = _checksum(frame[:8] + frame[_FRAME_HEADER.size :], is_big, checksum)
        if struct.pack(">II", *checksum) != frame[16 : _FRAME_HEADER.size]:
            return
        yield number, size_after_commit, position


def _checksum(content: bytes, is_big: bool, before: tuple[int, int]) -> tuple[int, int]:
    """Return SQLite's checksum of the content, continued from the checksum of the content *before*."""
    words = array("I", content)
    if is_big != (sys.byteorder == "big"):
        words.byteswap()
    first, second = before
    pairs = iter(words)
    for even, odd in zip(pairs, pairs, strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


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
