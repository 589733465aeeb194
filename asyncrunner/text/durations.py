"""Durations as people write and read them: parse "30d" and "1d12h", format seconds. No I/O."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.timestamps import parse_instant

Duration: TypeAlias = "float | timedelta | str"
"""Seconds, a timedelta, or a text such as ``"30d"``, ``"12h"``, ``"1d12h"``, ``"90s"``."""

_SECONDS: Final = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 604_800.0),
}

_PART: Final = re.compile(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([a-z]{1,7})\s*", re.IGNORECASE)

_PLAIN: Final = re.compile(r"\s*\d{1,12}(?:\.\d{1,6})?\s*")


def seconds_of(name: str, value: object) -> float:
    """Return *value* in seconds, above 0. Raises ConfigurationError, naming the option *name*, for any other value."""
    seconds: float | None = None
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str):
        seconds = _parse(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    if seconds is None or not 0 < seconds < math.inf:
        raise ConfigurationError(f'{name}={value!r}: give seconds, a timedelta, or a text such as "30d", "12h" or "90s"')
    return seconds


def _parse(text: str) -> float | None:
    if _PLAIN.fullmatch(text):
        return float(text)
    seconds, end = 0.0, 0
    while end < len(text):
        part = _PART.match(text, end)
        unit = _SECONDS.get(part[2].lower()) if part else None
        if part is None or unit is None:
            return None
        seconds += float(part[1]) * unit
        end = part.end()
    return seconds


_UNITS: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}

_AGE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)?")

_MAX_AGE_SECONDS: Final = 1_000_000 * 86400.0


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
    instant = parse_instant(moment)
    if instant > now:
        raise ConfigurationError(f"{option} {text!r} is in the future; give an age, as in 30d, or a date in the past")
    return instant


def duration_text(seconds: float) -> str:
    """Format seconds, as in ``0.3 ms``, ``2.5 s``, ``4 min 10 s``, ``3 h 05 min`` or ``2 d 4 h``."""
    if seconds < 0.1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
