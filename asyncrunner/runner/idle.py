"""Wait until a runner has no items to run."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final

from asyncrunner.errors import StoreClosed
from asyncrunner.runner.runner import Runner, internals_of

_CLOCK_RESOLUTION_SECONDS: Final = 0.002  # stored times have a resolution of 1 ms


async def run_until_idle(runner: Runner, *, delayed: bool = True) -> None:
    """Wait until every item of *runner*'s handlers is done; with ``delayed=False``, until no item runs or is due.

    On a test clock, which has ``leap()``, the time leaps to each delayed item and each retry in turn; on another clock
    this function waits for their times. It also waits for a handler that waits for the test. Items of a paused or
    stopped batch stay pending. Raises StoreClosed if the runner is not started, and the runner's failure if it failed.
    """
    internals = internals_of(runner)
    worker, engine = internals.worker, internals.engine_task
    if worker is None or engine is None:
        raise StoreClosed(f"{runner!r} is not started; use `async with in_memory(runner):`")
    while True:
        idle = asyncio.ensure_future(worker.wait_until_at_rest())
        try:
            await asyncio.wait({idle, engine}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()
        internals.raise_failure()
        seconds = worker.next_due()
        if not delayed or engine.done() or seconds is None or not math.isfinite(seconds):
            return
        pass_time: Callable[[float], Awaitable[None]] = getattr(internals.clock, "leap", internals.clock.sleep)
        await pass_time(max(0.0, seconds) + _CLOCK_RESOLUTION_SECONDS)
