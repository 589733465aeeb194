"""How fast is the runner compared with plain sqlite3 and with in-memory pools?

Each run adds the items of a list to a new file and runs them with a no-op ``async def``, 100 concurrently, until every outcome
is durable (``synchronous=FULL``). It is compared, in the same process and in turns, with:

* plain sqlite3 (see sqlite_baseline.py): the same rows, 1,000 per transaction, without a runner. The measured time includes no
  WAL checkpoints, that of the runner does;
* in-memory pools, which store nothing: ``asyncio.gather`` with a semaphore, a task group with anyio's ``CapacityLimiter``, and
  aiometer (from the extra ``bench``).

``python -m benchmarks throughput [--items N] [--rounds N] [--slots N]``
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import anyio

from asyncrunner import run_batch
from benchmarks.harness.figures import RATIO, Benchmark, Result, figure, not_measured
from benchmarks.harness.measuring import each_over, interleaved
from benchmarks.harness.sqlite_baseline import plain_seconds

__all__ = ["BENCHMARK", "no_op", "runner_seconds"]

OURS: Final = "asyncrunner"
PLAIN: Final = "plain sqlite3"
AIOMETER: Final = "aiometer, in memory"


@dataclass(frozen=True)
class Size:
    items: int = 100_000
    rounds: int = 5
    slots: int = 100


async def no_op(item: int) -> None:
    """The no-op handler."""


def runner_seconds(folder: Path, items: int, slots: int) -> float:
    """Return the seconds of ``run_batch``, from its call to the last commit."""
    began = time.perf_counter()
    report = asyncio.run(run_batch(range(items), no_op, db=folder / "runner.db", batch="bench", concurrency=slots))
    seconds = time.perf_counter() - began
    assert report.completed == items, report
    return seconds


def with_sqlite3(folder: Path, items: int, slots: int) -> float:
    """Return the seconds of the same inserts, claims and settlements with plain sqlite3."""
    del slots
    return plain_seconds(folder, ((str(number), str(number)) for number in range(items)))


def with_gather(folder: Path, items: int, slots: int) -> float:
    """Return the seconds of ``asyncio.gather`` with a semaphore."""
    del folder

    async def everything() -> None:
        semaphore = asyncio.Semaphore(slots)

        async def one(item: int) -> None:
            async with semaphore:
                await no_op(item)

        await asyncio.gather(*map(one, range(items)))

    return _timed(everything)


def with_limiter(folder: Path, items: int, slots: int) -> float:
    """Return the seconds of a task group with one task per item and a ``CapacityLimiter``."""
    del folder

    async def everything() -> None:
        limiter = anyio.CapacityLimiter(slots)

        async def one(item: int) -> None:
            async with limiter:
                await no_op(item)

        async with anyio.create_task_group() as tasks:
            for item in range(items):
                tasks.start_soon(one, item)

    return _timed(everything)


def with_aiometer(folder: Path, items: int, slots: int) -> float:
    """Return the seconds of aiometer's ``run_on_each``."""
    del folder
    import aiometer

    async def everything() -> None:
        await aiometer.run_on_each(no_op, range(items), max_at_once=slots)

    return _timed(everything)


def _timed(everything: Callable[[], object]) -> float:
    began = time.perf_counter()
    anyio.run(everything)  # type: ignore[arg-type]
    return time.perf_counter() - began


def measure(size: Size) -> Result:
    """Measure the rates, and the ratios that have targets."""
    ways: dict[str, Callable[[Path, int, int], float]] = {
        OURS: runner_seconds,
        PLAIN: with_sqlite3,
        "gather + semaphore, in memory": with_gather,
        "anyio CapacityLimiter, in memory": with_limiter,
    }
    if find_spec("aiometer") is not None:
        ways[AIOMETER] = with_aiometer
    seconds = interleaved(size.rounds, {name: partial(_call, way, size) for name, way in ways.items()})
    ours = seconds[OURS]
    figures = [
        figure("of plain sqlite3", RATIO, each_over(seconds[PLAIN], ours), at_least=1.2),
        figure("of aiometer's rate in memory", RATIO, each_over(seconds[AIOMETER], ours), at_least=1.0)
        if AIOMETER in seconds
        else not_measured("of aiometer's rate in memory", RATIO, "aiometer is not installed (extra bench)", at_least=1.0),
    ]
    figures += [figure(name, "items/s", [size.items / each for each in times]) for name, times in seconds.items()]
    return Result(figures)


def _call(way: Callable[[Path, int, int], float], size: Size, folder: Path) -> float:
    return way(folder, size.items, size.slots)


BENCHMARK = Benchmark(
    "How fast is the runner compared with plain sqlite3 and with in-memory pools?", Size(), Size(2000, 1, 20), measure
)
