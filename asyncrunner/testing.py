"""For tests of programs that use asyncrunner, and of asyncrunner itself: a clock that the test owns."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

__all__ = ["FakeClock"]


class _Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """A clock that stands still until the test moves it. Times are seconds; it is a ``Clock``."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._monotonic = 1000.0
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_later(seconds, lambda: None if woken.done() else woken.set_result(None))
        try:
            await woken
        finally:
            timer.cancel()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> _Timer:
        timer = _Timer(callback)
        heapq.heappush(self._timers, (self._monotonic + seconds, next(self._order), timer))
        return timer

    async def advance(self, seconds: float) -> None:
        """Let that much time pass: what is due is called in order, and the loop runs between."""
        end = self._monotonic + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            self._pass(max(0.0, due - self._monotonic))
            if timer.callback is not None:
                timer.callback()
            await self._let_others_run()
        self._pass(end - self._monotonic)
        await self._let_others_run()

    def jump(self, seconds: float) -> None:
        """Move only the wall clock, as a person or a time server does."""
        self._now += seconds

    def _pass(self, seconds: float) -> None:
        self._now += seconds
        self._monotonic += seconds

    async def _let_others_run(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
