"""Clocks: wall time for rows, monotonic time for waits. Tests control both with ``asyncrunner.testing.FakeClock``.

An instant is a float: seconds since the epoch, UTC. Rows hold it in SQLite's text form, so that SQLite's date functions,
as in ``datetime('now', '-5 minutes')`` and ``julianday()``, work on the columns directly.
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
