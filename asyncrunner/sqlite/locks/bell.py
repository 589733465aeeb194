"""Ring at the workers of other processes with a datagram, so that they need not read the file often to notice new items.

Each worker has a bell: a Unix-domain socket with a random name, and a file beside the lock files that has this name. A process
that has committed new items sends one byte to each bell. A lost datagram loses no item: a worker also reads the database
regularly, only less often. The sockets are in Linux's abstract namespace, not in the folder: ``shutil.copytree()``, for example,
cannot copy a folder with a socket. On other systems there are no bells.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final

from asyncrunner.errors import StoreError
from asyncrunner.sqlite.locks.liveness_lock import lock_path
from asyncrunner.sqlite.locks.lock_file import create_folder, locks_folder

NEW_ITEMS: Final = b"n"
"""A message: the file has items that a worker may claim now."""

SOON: Final = b"s"
"""A message: an open transaction of a program has items, which a worker may claim when the program commits."""

_SUFFIX: Final = ".bell"
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_SETTLED_NS: Final = 50_000_000  # a folder that changed less long ago may change again without another time of change
_bells: Final[weakref.WeakSet[Bell]] = weakref.WeakSet()


class Bell:
    """The bell of a worker. ``name``: the name of its socket."""

    def __init__(self, database: Path, worker_id: str) -> None:
        """Create the socket and its file. Raises OSError, and StoreError as ``create_folder()`` does."""
        self._database = database
        self._path = _path(database, worker_id)
        self.name = secrets.token_hex(16)  # no other user can guess it
        self._socket = _datagram_socket()
        try:
            self._socket.bind(_address(self.name))
            self.restore()
        except BaseException:
            self._socket.close()
            raise
        _bells.add(self)

    def restore(self) -> None:
        """Write the file again if it was deleted. Raises OSError and StoreError."""
        if not self._path.exists():
            create_folder(self._database)
            draft = self._path.with_name(self._path.name + ".new")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            try:
                os.write(descriptor, self.name.encode())
            finally:
                os.close(descriptor)
            draft.replace(self._path)

    def fileno(self) -> int:
        """Return the descriptor, which is readable after a ring."""
        return self._socket.fileno()

    def take(self) -> bytes:
        """Return the messages that have arrived since the last call, and forget them."""
        messages = b""
        with suppress(OSError):
            while len(messages) < 1000:
                messages += self._socket.recv(16)
        return messages

    def close(self) -> None:
        """Close the socket and delete its file."""
        self.abandon()
        self._path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Close this process's copy of the socket."""
        _bells.discard(self)
        self._socket.close()


class Ringer:
    """A sender to the bells of *database*."""

    def __init__(self, database: Path) -> None:
        self._folder = locks_folder(database)
        self._names: frozenset[str] = frozenset()
        self._listed: int | None = None  # the time of change of the folder when it was listed

    def ring(self, message: bytes, *, own: str = "") -> None:
        """Send *message* to every bell but the one whose name is *own*, without waiting."""
        with suppress(OSError):
            names = self._read_names() - {own}
            if names:
                with _datagram_socket() as sender:
                    for name in names:
                        # A bell may be full of rings that its worker has not taken yet, belong to a dead process, or be in
                        # another container.
                        with suppress(OSError):
                            sender.sendto(message, _address(name))

    def _read_names(self) -> frozenset[str]:
        changed = self._folder.stat().st_mtime_ns
        if changed != self._listed:
            texts = [_read_name(path) for path in self._folder.iterdir() if path.suffix == _SUFFIX]
            self._names = frozenset(text for text in texts if _NAME.fullmatch(text))
            self._listed = changed if time.time_ns() - changed > _SETTLED_NS else None
        return self._names


def open_bell(database: Path, worker_id: str) -> Bell | None:
    """Return a new bell, or None if it cannot be created, for example on another system than Linux."""
    if sys.platform != "linux":
        return None
    try:
        return Bell(database, worker_id)
    except (OSError, StoreError):
        return None


def announce(database: Path) -> None:
    """Let the workers of *database* read the file often for a while, because a program may soon commit new items."""
    Ringer(database).ring(SOON)


def forget(database: Path, worker_id: str) -> None:
    """Delete the file of a dead worker's bell."""
    if lock_path(database, worker_id) is not None:
        _path(database, worker_id).unlink(missing_ok=True)


def _path(database: Path, worker_id: str) -> Path:
    return locks_folder(database) / f"{worker_id}{_SUFFIX}"


def _read_name(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 64).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _address(name: str) -> str:
    return f"\0asyncrunner-{name}"


def _datagram_socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)
    return made


def _abandon_inherited() -> None:
    for bell in list(_bells):
        bell.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_inherited)
