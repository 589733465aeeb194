"""What people write when they ask: ages, moments, patterns and names that are nearly right. Pure."""

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
"""One state, or several."""

_UNITS: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_AGE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)?")
_LONGEST_VARIED: Final = 64
_LONGEST_AGE: Final = 1_000_000 * 86400.0
_LONGEST_PATTERN: Final = 1000
_MOST: Final = 2_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def age(text: str, *, option: str) -> float:
    """``90``, ``90s``, ``15m``, ``12h``, ``30d``, ``2w`` in seconds. Raises ConfigurationError."""
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError(f"{option} {text!r}: give an age, as in 90s, 15m, 12h, 30d or 2w")
    seconds = float(found[1]) * _UNITS[found[2] or "s"]
    if seconds > _LONGEST_AGE:
        raise ConfigurationError(f"{option} {safe_text(text, limit=40)!r} is too long ago; give at most 1000000d")
    return seconds


def moment_before(text: str, *, option: str, now: float) -> float:
    """``30d`` as the moment that long ago, or a date such as ``2026-11-23`` (UTC unless it says otherwise).

    Raises ConfigurationError, also for a moment that is still to come.
    """
    if _AGE.fullmatch(text.strip()):
        return max(0.0, now - age(text, option=option))  # nothing is older than that
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigurationError(f"{option} {text!r}: give an age, as in 30d or 12h, or a date, as in 2026-11-23") from None
    instant = _instant(moment)
    if instant > now:
        raise ConfigurationError(f"{option} {text!r} is still to come; give an age, as in 30d, or a date in the past")
    return instant


def _instant(moment: datetime) -> float:
    """Seconds since the epoch, at which the times of rows begin."""
    return max(0.0, ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH).total_seconds())


def like(pattern: str, *, option: str) -> str:
    """A pattern of SQL's LIKE (with ``\\`` as its escape) for a part of a text in which ``*`` stands for anything."""
    checked_text(option, pattern)
    if not pattern.strip("*"):
        raise ConfigurationError(f"{option} {pattern!r} would match everything; give a part of the error's text")
    if len(pattern) > _LONGEST_PATTERN:
        raise ConfigurationError(f"{option}: give at most {_LONGEST_PATTERN:,} characters of the error")
    escaped = re.sub(r"([\\%_])", r"\\\1", pattern)
    return f"%{escaped.replace('*', '%')}%"


def meant(name: str, known: Iterable[str]) -> str:
    """What to say after a name that is not there: the one that was meant, or some that are there."""
    names: Sequence[str] = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6) if len(name) <= 1000 else []
    if near:
        return f"did you mean {' or '.join(repr(safe_text(each, limit=80)) for each in near)}?"
    if not names:
        return "there is none yet"
    return f"there is {', '.join(repr(safe_text(each, limit=80)) for each in names[:5])}{', ...' if len(names) > 5 else ''}"


def variants(name: str) -> list[str]:
    """Names that differ from *name* by what is easily mistyped: spaces, case, ``_ - / . :``, a digit's zeros, one character."""
    stripped = name.strip()
    found = [stripped, stripped.lower(), stripped.upper(), stripped.capitalize()]
    found += [re.sub(r"[-_/.: ]", mark, each) for each in found[:2] for mark in "-_/.:"]
    found.append(re.sub(r"(?<!\d)0+(?=\d)", "", stripped))
    found += [re.sub(r"(?<!\d)(?=\d)", zeros, stripped) for zeros in ("0", "00", "000")]
    if len(stripped) <= _LONGEST_VARIED:
        found += [stripped[:at] + stripped[at + 1 :] for at in range(len(stripped))]
        found += [stripped[:at] + stripped[at] + stripped[at:] for at in range(len(stripped))]
        found += [stripped[:at] + stripped[at + 1] + stripped[at] + stripped[at + 2 :] for at in range(len(stripped) - 1)]
        # Not a digit: another number is another item.
        found += [stripped[:at] + each + stripped[at:] for at in range(len(stripped) + 1) for each in f"{ascii_lowercase}-_"]
    return [each for each in dict.fromkeys(found) if each not in ("", name)]


def status_of(given: Status | str) -> Status:
    """Raises ConfigurationError for what is no state of an item."""
    try:
        return Status(given)
    except ValueError:
        known = [each.value for each in Status]
        near = difflib.get_close_matches(str(given), known, n=1)
        raise ConfigurationError(
            f"status {given!r}: give one of {', '.join(known)}" + (f"; did you mean {near[0]!r}?" if near else "")
        ) from None


def statuses_of(given: Statuses) -> list[Status]:
    """Each once. Raises ConfigurationError, also for none."""
    statuses = [status_of(each) for each in ([given] if isinstance(given, str) else given)]
    if not statuses:
        raise ConfigurationError("no status was given")
    return list(dict.fromkeys(statuses))


def checked_count(name: str, value: int) -> int:
    """Raises ConfigurationError unless it is a whole number of at least 1, and one that SQLite counts to with ease."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name}={value!r}: give a whole number of at least 1")
    if value > _MOST:
        raise ConfigurationError(f"{name}={value!r}: give at most {_MOST:,}")
    return value


def checked_path(name: str, path: object) -> None:
    """Raises ConfigurationError for what is no path."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ConfigurationError(f"{name}={path!r}: give the path of a file")


def checked_seconds(name: str, value: float) -> float:
    """Raises ConfigurationError unless it is a number of seconds."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise ConfigurationError(f"{name}={value!r}: give seconds, 0 or more")
    return float(value)


def checked_ids(name: str, ids: Iterable[str]) -> list[str]:
    """Each once. Raises ConfigurationError for a single text, whose characters nobody means, and for what no file can hold."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise ConfigurationError(f"{name}={ids!r}: give a list, as in [{ids!r}]")
    return list(dict.fromkeys(checked_text(name, each) for each in ids))


def checked_text(name: str, value: str) -> str:
    """Raises ConfigurationError for what no file can hold, as bytes from a shell that are no UTF-8."""
    try:
        if isinstance(value, str) and "\0" not in value:
            value.encode()
            return value
    except UnicodeEncodeError:
        pass
    raise ConfigurationError(f"{name} {value!r} is no text of UTF-8; is it quoted as the shell wants it?")


def past(before: datetime | timedelta, now: float) -> str:
    """A moment, or how long ago it was, as a row's time. Raises ConfigurationError for one to come or without a time zone."""
    if isinstance(before, timedelta):
        return to_text(now - checked_seconds("before", before.total_seconds()))
    if not isinstance(before, datetime) or before.tzinfo is None:
        raise ConfigurationError(f"before={before!r}: give a timedelta, or a datetime with a time zone")
    instant = _instant(before)
    if instant > now:
        raise ConfigurationError(f"before={before!r} is still to come")
    return to_text(instant)
