"""Refuse a run that a program begins when a child process imports its file, because each child would then begin another one."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from asyncrunner.errors import ConfigurationError

_imports: Final[list[bool]] = []


@contextmanager
def importing() -> Generator[None, None, None]:
    """Refuse every run inside the ``with`` block, in which a child imports the handler."""
    _imports.append(True)
    try:
        yield
    finally:
        _imports.pop()


def refuse_while_importing() -> None:
    """Raise ConfigurationError if a child process imports the handler now."""
    if _imports:
        raise ConfigurationError(
            "the file of the handler begins a run when it is imported, and each child process of processes= imports it; put the "
            "call under `if __name__ == '__main__':`"
        )
