"""Parse durations: numbers of seconds, timedeltas and texts such as ``"12h"``."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Final, TypeAlias

from asyncrunner.errors import ConfigurationError

__all__ = ["Duration", "seconds_of"]

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
