"""Where a command's log goes: to stderr, or to a file that only its owner may read."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from asyncrunner.errors import ConfigurationError
from asyncrunner.text import safe_text

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["LogFile", "log_to", "open_log"]


class _Escaping(logging.Formatter):
    """What items and errors say is somebody else's text: no control character of it reaches the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(safe_text(line, limit=4000) for line in super().format(record).splitlines())


def log_to(stream: TextIO, level: str = "info", *, always: bool = False) -> None:
    """Have the whole program's log written to *stream*, unless (but *always*) the program has set logging up by itself."""
    root = logging.getLogger()
    is_set_up = bool(root.handlers)
    if is_set_up and not always:
        return
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Escaping("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    if not is_set_up:  # a program that has set logging up keeps what it wants
        root.setLevel(level.upper())


class _Kept(io.FileIO):
    """A file whose disk may be full: what cannot be written is dropped, and kept is why."""

    failure: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            self.failure = self.failure or error
            return memoryview(data).nbytes


class LogFile(io.TextIOWrapper):
    """A log. That it cannot be written stops nobody; ``check()`` says it at the end."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._raw = _Kept(descriptor, "a")
        self._path = path
        super().__init__(io.BufferedWriter(self._raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def check(self) -> None:
        """Raises ConfigurationError if something could not be written."""
        self.flush()
        if self._raw.failure is not None:
            raise ConfigurationError(
                f"the log {self._path} cannot be written ({self._raw.failure.strerror}); the run has ended, what was done is kept"
            )


def open_log(path: Path) -> LogFile:
    """*path*, to append to; made for its owner alone. Raises ConfigurationError."""
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return LogFile(os.open(path, flags, 0o600), path)
    except OSError as error:
        raise ConfigurationError(f"the log {path} cannot be written ({error.strerror}); give another with --log-file") from error
