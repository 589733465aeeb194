"""Time: wall time for rows, monotonic time for waits. A test owns both (``asyncrunner.testing.FakeClock``).

An instant is a float: seconds since the epoch, UTC. Rows hold SQLite's own text form of it, so that
``datetime('now', '-5 minutes')`` and ``julianday()`` read them as they are.
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
_LAST: Final = 253_402_300_799.999  # the end of the year 9999; SQLite's date functions end there, too


class Timer(Protocol):
    """A callback to come."""

    def cancel(self) -> None:
        """Do not call it; nothing happens if it was called."""
        ...


class Clock(Protocol):
    """What the engine knows of time."""

    def now(self) -> float:
        """Wall time, seconds since the epoch. May jump; only for rows."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow. For waits and for judging others."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait that long."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call *callback* in the running loop after that long."""
        ...


class SystemClock:
    """The machine's clocks and the running loop's timers."""

    now = staticmethod(time.time)  # asked twice an item: a method around it would take as long as the clock
    monotonic = staticmethod(time.monotonic)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)


def to_text(instant: float) -> str:
    """``2026-11-23 12:14:15.123``: UTC, milliseconds, sortable, readable by SQLite's date functions.

    Years 1970 to 9999: what is earlier or later becomes the first or last instant of them.
    """
    if not _FIRST <= instant <= _LAST:
        instant = min(max(instant, _FIRST), _LAST)
    # 0.05: a millisecond near 1970 that was read back may be a float a little below it; today's are exact.
    return _format_milliseconds(int(instant * 1000 + 0.05))


@lru_cache(maxsize=4096)  # the items of a turn share few milliseconds: formatted once, not twice an item
def _format_milliseconds(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{rest:03d}"


def from_text(text: str | None) -> float | None:
    """The instant of a row's timestamp, also of one that a person wrote with ``datetime('now')``.

    None for NULL, and for a text that is no time: people edit rows by hand, and a slip must not stop a worker.
    """
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
