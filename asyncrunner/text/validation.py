"""Check the arguments of callers: each check names the argument, its value and what to give instead. No I/O."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from asyncrunner.errors import ConfigurationError

_MAX_COUNT: Final = 2_000_000_000


def checked_count(name: str, value: int) -> int:
    """Return *value*. Raises ConfigurationError unless it is a whole number from 1 to 2,000,000,000, which SQLite can hold."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name}={value!r}: give a whole number of at least 1")
    if value > _MAX_COUNT:
        raise ConfigurationError(f"{name}={value!r}: give at most {_MAX_COUNT:,}")
    return value


def checked_path(name: str, path: object) -> None:
    """Check that *path* is a non-empty path. Raises ConfigurationError otherwise."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ConfigurationError(f"{name}={path!r}: give the path of a file")


def checked_seconds(name: str, value: float) -> float:
    """Return *value* as a float. Raises ConfigurationError unless it is a finite number of seconds, 0 or more."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise ConfigurationError(f"{name}={value!r}: give seconds, 0 or more")
    return float(value)


def checked_ids(name: str, ids: Iterable[str]) -> list[str]:
    """Return *ids* without duplicates.

    Raises ConfigurationError for a single str, which would be read as a list of characters, and for invalid text.
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise ConfigurationError(f"{name}={ids!r}: give a list, as in [{ids!r}]")
    return list(dict.fromkeys(checked_text(name, each) for each in ids))


def checked_text(name: str, value: str) -> str:
    """Return *value*. Raises ConfigurationError unless it is a str without NUL and lone surrogates (shell bytes not in UTF-8)."""
    try:
        if isinstance(value, str) and "\0" not in value:
            value.encode()
            return value
    except UnicodeEncodeError:
        pass
    raise ConfigurationError(f"{name} {value!r} is not valid UTF-8 text; check how it is quoted in the shell")
