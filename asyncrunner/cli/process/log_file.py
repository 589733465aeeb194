"""Write the log of a command to stderr, or to a file that only its owner can read."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from typing import TextIO

from asyncrunner.cli.process.streams import LossyFile
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import safe_text


class _Escaping(logging.Formatter):
    """A formatter that escapes control characters, so that text from items and errors cannot control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(safe_text(line, limit=4000) for line in super().format(record).splitlines())


def log_to(stream: TextIO, level: str = "info", *, always: bool = False) -> None:
    """Write the log of the whole program to *stream*, from *level* on.

    If the program has configured logging, *stream* is added only with *always*, and the program's own level is kept.
    """
    root = logging.getLogger()
    is_configured = bool(root.handlers)
    if is_configured and not always:
        return
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Escaping("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    if not is_configured:  # otherwise keep the level that the program has configured
        root.setLevel(level.upper())


class LogFile(io.TextIOWrapper):
    """A log file; an error while writing does not stop the run, and ``check()`` reports it at the end of the run."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._raw = LossyFile(descriptor, "a")
        self._path = path
        super().__init__(io.BufferedWriter(self._raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def check(self) -> None:
        """Flush the log. Raises ConfigurationError if a part of it could not be written."""
        self.flush()
        if self._raw.failure is not None:
            raise ConfigurationError(
                f"the log {self._path} could not be written ({self._raw.failure.strerror}); "
                "the run has ended, and its outcomes are saved"
            )


def open_log(path: Path) -> LogFile:
    """Open *path* for appending; a new file is readable only by its owner.

    Raises ConfigurationError if the file cannot be opened, or is a symbolic link.
    """
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return LogFile(os.open(path, flags, 0o600), path)
    except OSError as error:
        raise ConfigurationError(
            f"the log {path} cannot be written ({error.strerror}); give another path with --log-file"
        ) from error
