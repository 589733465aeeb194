"""The server's clock, as a program on another machine reads it."""

from __future__ import annotations

import time

from asyncrunner.domain.clock import Clock, SystemClock


class ServerClock(SystemClock):
    """The time of the server: this machine's monotonic clock plus the difference that a session measured.

    Many machines share the rows, and their clocks differ; the server has one clock. Before the first connection it is the
    clock of this machine.
    """

    def __init__(self) -> None:
        self._offset: float | None = None

    def now(self) -> float:
        return time.time() if self._offset is None else time.monotonic() + self._offset

    def measured(self, offset: float | None) -> None:
        """Record *offset*, the server's time minus ``time.monotonic()``, in seconds."""
        if offset is not None:
            self._offset = offset

    @property
    def skew(self) -> float:
        """Return how many seconds the server's clock is ahead of this machine's."""
        return self.now() - time.time()


def store_clock(clock: Clock | None) -> Clock:
    """Return the clock of a store's rows: the server's, unless a test gives *clock*."""
    return ServerClock() if clock is None or type(clock) is SystemClock else clock
