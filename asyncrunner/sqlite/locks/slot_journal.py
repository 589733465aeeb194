"""The slot journal of each worker: a small file with the item that each slot runs, which outlives the process.

The file is mapped into memory, so that a note is one write to memory, without a system call. The kernel keeps the file
when the process is killed. It may lose the newest notes in a power cut, so a journal of an earlier boot is not read.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from collections.abc import MutableSequence
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

from asyncrunner.sqlite.locks.liveness_lock import lock_path

_HEADER: Final = struct.Struct("<8s36s4x")  # a mark, and the id of the boot; the seqs follow, 8 bytes each
_MARK: Final = b"slots-1\n"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PAGE: Final = 4096


class SlotJournal:
    """The journal that a worker writes."""

    def __init__(self, database: Path, worker_id: str) -> None:
        self._path = _path(database, worker_id)
        self._map: mmap.mmap | None = None
        self._notes: list[int] | memoryview[int] = []

    def notes(self, slots: int) -> MutableSequence[int]:
        """Return a sequence of at least *slots* numbers, in which the worker notes the seq of the item of each slot.

        The numbers of an earlier call stay. If the file cannot be created or extended (the disk is full, or the system
        reports no boot id), the sequence is a list, and the file of an earlier call is deleted: after a crash, every
        item that the worker held may then have been running.
        """
        earlier = list(self._notes)
        mapped = self._mapped(slots)
        if mapped is None:
            with suppress(OSError):
                self.delete()  # otherwise recovery would read the file, although the newest notes are in the list
            self._notes = earlier + [0] * (slots - len(earlier))
            return self._notes
        self.drop()
        self._map = mapped
        self._notes = memoryview(mapped)[_HEADER.size :].cast("q")
        for slot, seq in enumerate(earlier):  # the earlier sequence may have been a list
            self._notes[slot] = seq
        return cast("MutableSequence[int]", self._notes)

    def _mapped(self, slots: int) -> mmap.mmap | None:
        """Return the file in memory with room for *slots* numbers, or None if it cannot be created or extended."""
        boot_id = _boot_id()
        if boot_id is None or self._path is None or sys.byteorder != "little":
            return None
        size = -(-(_HEADER.size + 8 * slots) // _PAGE) * _PAGE
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return None
        try:
            # A write to a page for which the disk has no room would kill the process: allocate the pages first.
            os.posix_fallocate(descriptor, 0, size)
            mapped = mmap.mmap(descriptor, size)
        except (OSError, AttributeError):
            return None
        finally:
            os.close(descriptor)
        _HEADER.pack_into(mapped, 0, _MARK, boot_id)
        return mapped

    def delete(self) -> None:
        """Delete the file, after the worker has left and holds no items."""
        self.drop()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def drop(self) -> None:
        """Close the file but keep it. The sequence of the last call must not be used any more."""
        if isinstance(self._notes, memoryview):
            self._notes.release()
        self._notes = []
        if self._map is not None:
            self._map.close()
            self._map = None


def running(database: Path, worker_id: str) -> frozenset[int] | None:
    """Return the seqs of the items that the worker's slots ran last; None if they are unknown."""
    path = _path(database, worker_id)
    data = b""
    if path is not None:
        with suppress(OSError):
            data = path.read_bytes()
    if len(data) < _HEADER.size or _HEADER.unpack_from(data) != (_MARK, _boot_id()):
        return None
    body = data[_HEADER.size :]
    return frozenset(seq for (seq,) in struct.iter_unpack("<q", body[: len(body) // 8 * 8]) if seq)


def forget(database: Path, worker_id: str) -> None:
    """Delete a dead worker's journal."""
    path = _path(database, worker_id)
    if path is not None:
        path.unlink(missing_ok=True)


def _path(database: Path, worker_id: str) -> Path | None:
    path = lock_path(database, worker_id)
    return None if path is None else path.with_name(path.name + ".slots")


def _boot_id() -> bytes | None:
    try:
        return _BOOT_ID.read_bytes().strip()[:36]
    except OSError:
        return None
