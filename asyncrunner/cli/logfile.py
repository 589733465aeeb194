"""Where a command's log goes: to stderr, or to a file that only its owner may read."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TextIO

from asyncrunner.errors import ConfigurationError
from asyncrunner.text import safe_text

__all__ = ["log_to", "open_log"]


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


def open_log(path: Path) -> TextIO:
    """*path*, to append to; made for its owner alone. Raises ConfigurationError."""
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.fdopen(os.open(path, flags, 0o600), "a", buffering=1, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigurationError(f"the log {path} cannot be written ({error.strerror}); give another with --log-file") from error
