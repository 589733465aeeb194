"""Does the number of slots affect the rate?

Runs no-op items from a list in a new file, with 1, 10, 100, 1,000 and 10,000 slots in turns; the ratios compare each rate with
that of 100 slots in the same round. ``python -m benchmarks slots [--items N] [--rounds N]``
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.harness.figures import RATIO, Benchmark, Result, figure
from benchmarks.harness.measuring import each_over, interleaved
from benchmarks.questions.throughput import runner_seconds

__all__ = ["BENCHMARK"]

SLOTS: Final = (1, 10, 100, 1000, 10_000)


@dataclass(frozen=True)
class Size:
    items: int = 50_000
    rounds: int = 5


def measure(size: Size) -> Result:
    """Measure the rate with each number of slots."""
    ways = {f"{slots:,} slots": partial(_seconds, size.items, slots) for slots in SLOTS}
    seconds = interleaved(size.rounds, ways)
    base = seconds["100 slots"]
    figures = [
        figure(f"{name}, of the rate with 100", RATIO, each_over(base, times), at_least=0.5)
        for name, times in seconds.items()
        if times is not base
    ]
    figures += [figure(name, "items/s", [size.items / each for each in times]) for name, times in seconds.items()]
    return Result(figures)


def _seconds(items: int, slots: int, folder: Path) -> float:
    return runner_seconds(folder, items, slots)


BENCHMARK = Benchmark("Does the number of slots affect the rate?", Size(), Size(500, 1), measure)
