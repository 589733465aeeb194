"""Convert the timestamps of rows to text and back: UTC, in the form that SQLite's date functions write and read."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

_FIRST: Final = 0.0
LAST: Final = 253_402_300_799.999
"""The end of the year 9999, the last instant that SQLite's date functions accept."""


def to_text(instant: float) -> str:
    """Format *instant* as ``2026-11-23 12:14:15.123``: UTC, with milliseconds.

    The text is sortable, and SQLite's date functions can read it. The range is 1970 to 9999; an earlier or later
    instant becomes the first or last one.
    """
    if not _FIRST <= instant <= LAST:
        instant = min(max(instant, _FIRST), LAST)
    # Add 0.05: near 1970, a millisecond that is read back may be a float slightly below that millisecond.
    # Today's instants are exact.
    return _format_milliseconds(int(instant * 1000 + 0.05))


def span_to_text(first: float, last: float) -> tuple[str, str]:
    """Format both ends of a span as ``to_text`` does, in one call: fast handlers begin and end in the same millisecond."""
    if not _FIRST <= first <= last <= LAST:
        return to_text(first), to_text(last)
    begin, end = int(first * 1000 + 0.05), int(last * 1000 + 0.05)
    text = _format_milliseconds(begin)
    return text, text if begin == end else _format_milliseconds(end)


@lru_cache(maxsize=4096)  # the items of a turn share a few milliseconds: each millisecond is formatted once
def _format_milliseconds(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{rest:03d}"


def from_text(text: str | None) -> float | None:
    """Return the instant of a row's timestamp, also of a timestamp written by hand with ``datetime('now')``.

    Return None for NULL and for invalid text: rows can be edited by hand, and a typing error must not stop a worker.
    """
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def datetime_of(text: str | None) -> datetime | None:
    """Return a row's timestamp as a datetime in UTC; None where ``from_text`` returns None."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
