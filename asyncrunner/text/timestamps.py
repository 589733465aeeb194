"""Timestamps of rows as text: UTC, in the form that SQLite itself writes and reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.validation import checked_seconds

_FIRST: Final = 0.0

_LAST: Final = 253_402_300_799.999  # the end of the year 9999, the last that SQLite's date functions accept


def to_text(instant: float) -> str:
    """Format *instant* as ``2026-11-23 12:14:15.123``: UTC, milliseconds, sortable, readable by SQLite's date functions.

    The range is 1970 to 9999; an earlier or later instant becomes the first or last one.
    """
    if not _FIRST <= instant <= _LAST:
        instant = min(max(instant, _FIRST), _LAST)
    # 0.05: near 1970, a millisecond that was read back may be a float slightly below it; today's instants are exact.
    return _format_milliseconds(int(instant * 1000 + 0.05))


@lru_cache(maxsize=4096)  # the items of a turn share a few milliseconds: each is formatted once, not twice per item
def _format_milliseconds(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{rest:03d}"


def from_text(text: str | None) -> float | None:
    """Return the instant of a row's timestamp, also of one written by hand with ``datetime('now')``.

    Return None for NULL and for invalid text: rows can be edited by hand, and a typing error must not stop a worker.
    """
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def parse_instant(moment: datetime) -> float:
    """Return seconds since the epoch, 0 at least: the times of rows start there. UTC if *moment* has no time zone."""
    return max(0.0, ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH).total_seconds())


def past(before: datetime | timedelta, now: float) -> str:
    """Return *before*, a moment or a duration before *now*, as a row's time.

    Raises ConfigurationError for a moment in the future or without a time zone.
    """
    if isinstance(before, timedelta):
        return to_text(now - checked_seconds("before", before.total_seconds()))
    if not isinstance(before, datetime) or before.tzinfo is None:
        raise ConfigurationError(f"before={before!r}: give a timedelta, or a datetime with a time zone")
    instant = parse_instant(before)
    if instant > now:
        raise ConfigurationError(f"before={before!r} is in the future; give a moment in the past")
    return to_text(instant)
