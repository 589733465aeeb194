"""The clocks: wall time for stored times, monotonic time for waits.

Tests use ``asyncrunner.testing.FakeClock``. An instant is a float: seconds since the epoch, UTC. A row stores
an instant in SQLite's text form, so that SQLite's date functions, as in ``datetime('now', '-5 minutes')`` and
``julianday()``, work on the columns directly.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer(Protocol):
    """A scheduled callback."""

    def cancel(self) -> None:
        """Cancel the callback; do nothing if the callback was already called."""
        ...


class Clock(Protocol):
    """The engine's only source of time."""

    def now(self) -> float:
        """Return the wall time in seconds since the epoch.

        It may jump: only store it, or compare it with stored times.
        """
        ...

    def monotonic(self) -> float:
        """Return seconds that never decrease, for waits and for the decision whether another worker is hung."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for *seconds*."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call *callback* in the running loop after *seconds*."""
        ...


def aligned_pause(seconds: float, now: float, origin: float) -> float:
    """Return a pause of about *seconds* from *now* on, at least a quarter of it, that ends multiples of *seconds* after *origin*.

    Duties whose pauses end together wake an idle process once instead of several times.
    """
    pause = seconds - (now - origin) % seconds
    return pause if pause > seconds / 4 else pause + seconds


class SystemClock:
    """The clock of the machine, with the timers of the running event loop."""

    now = staticmethod(time.time)  # called twice per item: a method around it doubles the cost
    monotonic = staticmethod(time.monotonic)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)
