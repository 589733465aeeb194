"""Parse and validate operator arguments: ages, dates, error patterns, item keys, misspelled names. No I/O."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from string import ascii_lowercase
from typing import Final

from asyncrunner.clock import to_text
from asyncrunner.errors import ConfigurationError
from asyncrunner.item import Status
from asyncrunner.text import safe_text

__all__ = [
    "Statuses",
    "age",
    "checked_count",
    "checked_ids",
    "checked_path",
    "checked_seconds",
    "checked_text",
    "like",
    "meant",
    "moment_before",
    "past",
    "status_of",
    "statuses_of",
    "variants",
]

Statuses = Iterable[Status | str] | Status | str
"""One state or several."""

_UNITS: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_AGE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)?")
_MAX_VARIED_LENGTH: Final = 64
_MAX_AGE_SECONDS: Final = 1_000_000 * 86400.0
_MAX_PATTERN_LENGTH: Final = 1000
_MAX_COUNT: Final = 2_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def age(text: str, *, option: str) -> float:
    """Parse an age, as in ``90``, ``90s``, ``15m``, ``12h``, ``30d`` or ``2w``, and return seconds. Raises ConfigurationError."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{option} {text!r}: give an age, as in 90s, 15m, 12h, 30d or 2w")
    seconds = float(match[1]) * _UNITS[match[2] or "s"]
    if seconds > _MAX_AGE_SECONDS:
        raise ConfigurationError(f"{option} {safe_text(text, limit=40)!r} is too long ago; give at most 1000000d")
    return seconds


def moment_before(text: str, *, option: str, now: float) -> float:
    """Parse an age (``30d``: that long before *now*) or a date (``2026-11-23``; UTC unless it has an offset).

    Return seconds since the epoch, 0 at least. Raises ConfigurationError, also for a moment in the future.
    """
    if _AGE.fullmatch(text.strip()):
        return max(0.0, now - age(text, option=option))  # the times of rows start at the epoch
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigurationError(f"{option} {text!r}: give an age, as in 30d or 12h, or a date, as in 2026-11-23") from None
    instant = _instant(moment)
    if instant > now:
        raise ConfigurationError(f"{option} {text!r} is in the future; give an age, as in 30d, or a date in the past")
    return instant


def _instant(moment: datetime) -> float:
    """Return seconds since the epoch, 0 at least: the times of rows start there. UTC if *moment* has no time zone."""
    return max(0.0, ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH).total_seconds())


def like(pattern: str, *, option: str) -> str:
    """Return the SQL LIKE pattern (escape character ``\\``) that finds *pattern* anywhere; ``*`` matches any text.

    Raises ConfigurationError for a pattern that is too long, is not UTF-8, or would match every error.
    """
    checked_text(option, pattern)
    if not pattern.strip("*"):
        raise ConfigurationError(f"{option} {pattern!r} would match everything; give a part of the error's text")
    if len(pattern) > _MAX_PATTERN_LENGTH:
        raise ConfigurationError(f"{option}: give at most {_MAX_PATTERN_LENGTH:,} characters of the error")
    escaped = re.sub(r"([\\%_])", r"\\\1", pattern)
    return f"%{escaped.replace('*', '%')}%"


def meant(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown *name*: close matches among *known*, or else up to five known names."""
    names: Sequence[str] = list(known)
    matches = difflib.get_close_matches(name, names, n=3, cutoff=0.6) if len(name) <= 1000 else []
    if matches:
        return f"did you mean {' or '.join(repr(safe_text(each, limit=80)) for each in matches)}?"
    if not names:
        return "there are none yet"
    return f"known: {', '.join(repr(safe_text(each, limit=80)) for each in names[:5])}{', ...' if len(names) > 5 else ''}"


def variants(name: str) -> list[str]:
    """Return likely intended names for a mistyped *name*: other spaces, case, ``_ - / . :``, leading zeros, one character."""
    stripped = name.strip()
    candidates = [stripped, stripped.lower(), stripped.upper(), stripped.capitalize()]
    candidates += [re.sub(r"[-_/.: ]", mark, each) for each in candidates[:2] for mark in "-_/.:"]
    candidates.append(re.sub(r"(?<!\d)0+(?=\d)", "", stripped))
    candidates += [re.sub(r"(?<!\d)(?=\d)", zeros, stripped) for zeros in ("0", "00", "000")]
    if len(stripped) <= _MAX_VARIED_LENGTH:
        candidates += [stripped[:at] + stripped[at + 1 :] for at in range(len(stripped))]
        candidates += [stripped[:at] + stripped[at] + stripped[at:] for at in range(len(stripped))]
        candidates += [stripped[:at] + stripped[at + 1] + stripped[at] + stripped[at + 2 :] for at in range(len(stripped) - 1)]
        inserted = f"{ascii_lowercase}-_"  # no digits: another number is another item
        candidates += [stripped[:at] + character + stripped[at:] for at in range(len(stripped) + 1) for character in inserted]
    return [candidate for candidate in dict.fromkeys(candidates) if candidate not in ("", name)]


def status_of(given: Status | str) -> Status:
    """Return *given* as a Status. Raises ConfigurationError if it is not a state of an item."""
    try:
        return Status(given)
    except ValueError:
        known = [each.value for each in Status]
        matches = difflib.get_close_matches(str(given), known, n=1)
        raise ConfigurationError(
            f"status {given!r}: give one of {', '.join(known)}" + (f"; did you mean {matches[0]!r}?" if matches else "")
        ) from None


def statuses_of(given: Statuses) -> list[Status]:
    """Return the given states without duplicates. Raises ConfigurationError for an unknown state and for an empty list."""
    statuses = [status_of(each) for each in ([given] if isinstance(given, str) else given)]
    if not statuses:
        raise ConfigurationError("no status given; give at least one state")
    return list(dict.fromkeys(statuses))


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


def past(before: datetime | timedelta, now: float) -> str:
    """Return *before*, a moment or a duration before *now*, as a row's time.

    Raises ConfigurationError for a moment in the future or without a time zone.
    """
    if isinstance(before, timedelta):
        return to_text(now - checked_seconds("before", before.total_seconds()))
    if not isinstance(before, datetime) or before.tzinfo is None:
        raise ConfigurationError(f"before={before!r}: give a timedelta, or a datetime with a time zone")
    instant = _instant(before)
    if instant > now:
        raise ConfigurationError(f"before={before!r} is in the future; give a moment in the past")
    return to_text(instant)
