"""For tests of programs that use asyncrunner, and of asyncrunner itself: nothing sleeps, nothing is left on the disk.

A test runs its program's own runner in memory, on a clock that stands still until the test moves it::

    async def test_a_welcome_is_tried_again() -> None:
        async with in_memory(runner) as clock:
            handle = await welcome.submit(42, delay=3600)
            await run_until_idle(runner)  # the clock leaps over the hour, and over every backoff
            assert await handle.status() == "completed"

With pytest-asyncio there is a fixture for it, see pytest_plugin.py.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

from asyncrunner.errors import ConfigurationError, StoreClosed
from asyncrunner.runner import Runner
from asyncrunner.sqlite import SQLiteStore

__all__ = ["FakeClock", "in_memory", "run_until_idle"]

_HAIR: Final = 0.002  # a row's time has milliseconds
_PATIENCE: Final = 0.1
_LONG: Final = 10.0


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
        _check_seconds(seconds)
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
        """Let that much time pass at once, as a machine that was suspended sees it; then what is due is called, each once."""
        _check_seconds(seconds)
        self._pass(seconds)
        due: list[_Timer] = []
        while self._timers and self._timers[0][0] <= self._monotonic:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            if timer.callback is not None:
                timer.callback()
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


def _check_seconds(seconds: float) -> None:
    if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ConfigurationError(
            f"a clock cannot be moved by {seconds!r}; give seconds, 0 or more (jump() sets the wall clock back)"
        )


@asynccontextmanager
async def in_memory(runner: Runner, *, clock: FakeClock | None = None) -> AsyncGenerator[FakeClock, None]:
    """Start *runner*, with all its handlers, on a store in memory and on a FakeClock, which this gives; leaving stops it.

    Handlers that still run then are cancelled. The runner's file is neither opened nor made. Raises ConfigurationError if the
    runner is started already.
    """
    clock = clock or FakeClock()
    with runner.using(SQLiteStore(":memory:"), clock):
        await runner.start()
        try:
            yield clock
        finally:
            stopping = asyncio.ensure_future(runner.stop(drain=False))
            while not (await asyncio.wait({stopping}, timeout=_PATIENCE))[0]:
                await clock.leap(_LONG)  # a handler that does not end is left behind, in no time of the test's
            await stopping


async def run_until_idle(runner: Runner, *, delayed: bool = True) -> None:
    """Return when every item of *runner*'s handlers is done; with ``delayed=False``, when none is left that may run now.

    On a FakeClock the time leaps to each delayed item and each retry in turn; on another clock it is waited for. Handlers that
    wait for something of the test's own keep it waiting. What rests until a person says otherwise is left. Raises StoreClosed
    unless the runner is started, and what ended it.
    """
    worker, engine = runner.worker, runner.engine
    if worker is None or engine is None:
        raise StoreClosed(f"{runner!r} is not started; use `async with in_memory(runner):`")
    while True:
        resting = asyncio.ensure_future(worker.wait_until_at_rest())
        try:
            await asyncio.wait({resting, engine}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            resting.cancel()
        runner.raise_failure()
        seconds = worker.next_due()
        if not delayed or engine.done() or seconds is None or not math.isfinite(seconds):
            return
        if isinstance(runner.clock, FakeClock):
            await runner.clock.leap(max(0.0, seconds) + _HAIR)
        else:
            await runner.clock.sleep(max(0.0, seconds) + _HAIR)
