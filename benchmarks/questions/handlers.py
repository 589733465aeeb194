"""How much slower than an in-memory pool is a batch whose handlers wait, for example for a network?

Handlers sleep for 10 to 100 ms, with the same seeded durations on both sides and 200 slots. The pool is a semaphore with one
task per item; it stores nothing. ``python -m benchmarks handlers [--items N] [--rounds N] [--slots N]``
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from asyncrunner import run_batch
from benchmarks.harness.figures import RATIO, Benchmark, Result, figure
from benchmarks.harness.measuring import each_over, interleaved

__all__ = ["BENCHMARK"]


@dataclass(frozen=True)
class Size:
    items: int = 10_000
    rounds: int = 5
    slots: int = 200


def durations_of(items: int) -> list[float]:
    """Return the seconds that each item's handler sleeps; the same for each call."""
    rng = random.Random(20_261_123)
    return [rng.uniform(0.01, 0.1) for _ in range(items)]


def with_runner(durations: list[float], slots: int, folder: Path) -> float:
    """Return the seconds that ``run_batch`` takes."""

    async def work(item: int) -> None:
        await asyncio.sleep(durations[item])

    began = time.perf_counter()
    report = asyncio.run(run_batch(range(len(durations)), work, db=folder / "runner.db", batch="bench", concurrency=slots))
    seconds = time.perf_counter() - began
    assert report.completed == len(durations), report
    return seconds


def with_pool(durations: list[float], slots: int, folder: Path) -> float:
    """Return the seconds that the semaphore pool takes."""
    del folder

    async def everything() -> None:
        semaphore = asyncio.Semaphore(slots)

        async def one(seconds: float) -> None:
            async with semaphore:
                await asyncio.sleep(seconds)

        await asyncio.gather(*map(one, durations))

    began = time.perf_counter()
    asyncio.run(everything())
    return time.perf_counter() - began


def measure(size: Size) -> Result:
    """Measure the rates of both, and their ratio."""
    durations = durations_of(size.items)
    seconds = interleaved(
        size.rounds,
        {"asyncrunner": partial(with_runner, durations, size.slots), "semaphore pool": partial(with_pool, durations, size.slots)},
    )
    figures = [figure("of an in-memory pool", RATIO, each_over(seconds["semaphore pool"], seconds["asyncrunner"]), at_least=0.99)]
    figures += [figure(name, "items/s", [size.items / each for each in times]) for name, times in seconds.items()]
    ideal = sum(durations) / size.slots
    return Result(
        figures, notes=[f"With {size.slots} slots always busy it would take {ideal:.2f} s: {size.items / ideal:,.0f} items/s."]
    )


BENCHMARK = Benchmark("How much slower than an in-memory pool are handlers that wait?", Size(), Size(200, 1, 20), measure)
