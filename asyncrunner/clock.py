"""Clocks: wall time for rows, monotonic time for waits. Tests control both with ``asyncrunner.testing.FakeClock``.

An instant is a float: seconds since the epoch, UTC. Rows hold it in SQLite's text form, so that SQLite's date functions,
as in ``datetime('now', '-5 minutes')`` and ``julianday()``, work on the columns directly.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clock", "SystemClock", "Timer", "from_text", "to_text"]


_FIRST: Final = 0.0
_LAST: Final = 253_402_300_799.999  # the end of the year 9999, the last that SQLite's date functions accept


class Timer(Protocol):
    """A scheduled callback."""

    def cancel(self) -> None:
        """Cancel the callback; no effect if it was already called."""
        ...


class Clock(Protocol):
    """The engine's only source of time."""

    def now(self) -> float:
        """Return the wall time in seconds since the epoch. It may jump, so it is used only for rows."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never decrease, for waits and for deciding whether another worker is hung."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for *seconds*."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call *callback* in the running loop after *seconds*."""
        ...


class SystemClock:
    """The clocks of the machine and the timers of the running loop."""

    now = staticmethod(time.time)  # read twice per item: a method around it would double the cost
    monotonic = staticmethod(time.monotonic)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)


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
