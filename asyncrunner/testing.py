"""Test programs that use asyncrunner without real sleeps and without files.

A test runs the program's own runner in memory, on a clock whose time changes only when the test moves it::

    async def test_a_welcome_is_retried() -> None:
        async with in_memory(runner) as clock:
            handle = await welcome.submit(42, delay=3600)
            await run_until_idle(runner)  # the clock skips the hour and every backoff
            assert await handle.status() == "completed"

``asyncrunner.pytest_plugin`` provides a fixture for pytest-asyncio.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

from asyncrunner.backends import MEMORY, open_engine
from asyncrunner.runner.runner import Runner, internals_of, run_until_idle
from asyncrunner.text.validation import checked_seconds

__all__ = ["FakeClock", "in_memory", "run_until_idle"]
_STOP_POLL_SECONDS: Final = 0.1
_STOP_LEAP_SECONDS: Final = 10.0


class _Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """A ``Clock`` whose time changes only when the test moves it. Times are in seconds."""

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
        """Move the time forward by *seconds*: call the due callbacks in order, and let other tasks run in between."""
        checked_seconds("seconds", seconds, instead=" (jump() sets the wall clock back)")
        end = self._monotonic + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            self._pass(max(0.0, due - self._monotonic))
            if timer.callback is not None:
                timer.callback()
            await self._let_others_run()
        self._pass(end - self._monotonic)
        await self._let_others_run()

    async def leap(self, seconds: float) -> None:
        """Move the time forward by *seconds* in one step, as on a suspended machine; then call each due callback."""
        checked_seconds("seconds", seconds, instead=" (jump() sets the wall clock back)")
        self._pass(seconds)
        due: list[_Timer] = []
        while self._timers and self._timers[0][0] <= self._monotonic:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            if timer.callback is not None:
                timer.callback()
        await self._let_others_run()

    def jump(self, seconds: float) -> None:
        """Move only the wall clock, by *seconds* (negative: back), as an operator or a time server does."""
        self._now += seconds

    def _pass(self, seconds: float) -> None:
        self._now += seconds
        self._monotonic += seconds

    async def _let_others_run(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


@asynccontextmanager
async def in_memory(runner: Runner, *, clock: FakeClock | None = None) -> AsyncGenerator[FakeClock, None]:
    """Start *runner* with all its handlers on a store in memory, yield its FakeClock, and stop the runner at the end.

    Handlers that still run at the end are cancelled. The runner's file is neither opened nor created. Raises
    ConfigurationError if the runner is already started.
    """
    clock = clock or FakeClock()
    await internals_of(runner).start(store=open_engine(MEMORY, clock=clock), clock=clock)
    try:
        yield clock
    finally:
        stopping = asyncio.ensure_future(runner.stop(drain=False))
        while not (await asyncio.wait({stopping}, timeout=_STOP_POLL_SECONDS))[0]:
            await clock.leap(_STOP_LEAP_SECONDS)  # a handler that does not end is abandoned without real waiting
        await stopping
