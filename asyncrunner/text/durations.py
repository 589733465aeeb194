"""Parse durations that people write, as in "30d" or "1d12h", and format seconds for people. No I/O."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from typing import Final, TypeAlias, cast

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.validation import argument, instant_of, is_number

Duration: TypeAlias = "float | timedelta | str"
"""Seconds, a timedelta, or a text such as ``"30d"``, ``"12h"``, ``"1d12h"``, ``"90s"``."""

_UNIT_SECONDS: Final = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 604_800.0),
}

_PART: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", re.IGNORECASE)
_NUMBER: Final = re.compile(r"\s*\d+(?:\.\d+)?\s*")
_MAX_AGE_SECONDS: Final = 1_000_000 * 86400.0


def parse_duration(text: str) -> float | None:
    """Return *text* in seconds, or None if it is not a duration; a number without a unit is in seconds.

    A duration is one or several numbers with units, as in ``90s``, ``1.5 h``, ``12h`` or ``1d12h``. The units are s,
    sec, second, m, min, minute, h, hour, d, day, w and week, in upper or lower case; whole words also in the plural. A
    value too large for a float is infinite.
    """
    if _NUMBER.fullmatch(text):
        return float(text)
    seconds, end = 0.0, 0
    while end < len(text):
        part = _PART.match(text, end)
        unit = _UNIT_SECONDS.get(part[2].lower()) if part else None
        if part is None or unit is None:
            return None
        seconds += float(part[1]) * unit
        end = part.end()
    return seconds if end else None


def parse_period(text: str) -> float | None:
    """Return the period of a rate in seconds: a duration whose first number may be missing if it is 1 (``s``, ``2s``).

    Return None for other text, also for a number without a unit.
    """
    period = text.strip()
    if not period or _NUMBER.fullmatch(period):
        return None
    return parse_duration(period if period[0].isdigit() else f"1{period}")


def seconds_of(name: str, value: object) -> float:
    """Return *value* in seconds, above 0. Raises ConfigurationError, naming the option *name*, for any other value."""
    seconds = _seconds_in(value)
    if seconds is None or not 0 < seconds < math.inf:
        raise ConfigurationError(f'{argument(name, value)}: give seconds, a timedelta, or a text such as "30d", "12h" or "1d12h"')
    return seconds


def _seconds_in(value: object) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        return parse_duration(value)
    return float(cast("float", value)) if is_number(value) else None


def checked_age(name: str, value: object) -> float:
    """Return *value* in seconds, 0 or more. Raises ConfigurationError, naming the argument *name*, for any other value."""
    seconds = _seconds_in(value)
    if seconds is None or not 0 <= seconds <= _MAX_AGE_SECONDS:
        raise ConfigurationError(f'{argument(name, value)}: give seconds, 0 or more, a timedelta, or a text such as "15m"')
    return seconds


def age(text: str, *, option: str) -> float:
    """Return an age (``90``, ``90s``, ``15m``, ``12h``, ``1d12h`` or ``2w``) in seconds.

    Raises ConfigurationError for other text, and for more than 1,000,000 days.
    """
    seconds = parse_duration(text)
    if seconds is None:
        raise ConfigurationError(f"{argument(option, text)}: give an age, as in 90s, 15m, 12h, 30d or 1d12h")
    if seconds > _MAX_AGE_SECONDS:
        raise ConfigurationError(f"{argument(option, text)} is too long ago; give at most 1000000d")
    return seconds


def moment_before(text: str, *, option: str, now: float) -> float:
    """Return the moment that a text means, in seconds since the epoch, 0 at least.

    The text is an age (``30d``: that long before *now*) or a date (``2026-11-23``; UTC unless the date has an offset).
    Raises ConfigurationError, also for a moment in the future.
    """
    if parse_duration(text) is not None:
        return max(0.0, now - age(text, option=option))  # the times of rows start at the epoch
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigurationError(
            f"{argument(option, text)}: give an age, as in 30d, 12h or 1d12h, or a date, as in 2026-11-23"
        ) from None
    instant = instant_of(moment)
    if instant > now:
        raise ConfigurationError(f"{argument(option, text)} is in the future; give an age, as in 30d, or a date in the past")
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


def rate_text(rate: float) -> str:
    """Format a rate, given per second, as ``1,204/s``, ``2.5/s`` or ``3.0/min``."""
    if rate >= 10:
        return f"{rate:,.0f}/s"
    return f"{rate:.1f}/s" if rate >= 0.5 or rate == 0 else f"{rate * 60:.1f}/min"
