"""How fast are two and four processes together on one file?

The file holds pending items; the processes start at the same time and run them (``run_batch(None, ...)``). No-op handlers are
limited by the shared file; handlers with 5 ms of CPU time scale with the number of cores.
``python -m benchmarks processes [--items N] [--cpu-items N] [--rounds N]``
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from asyncrunner import run_batch
from benchmarks.harness.figures import RATIO, Benchmark, Result, figure
from benchmarks.harness.measuring import child_result, each_over, interleaved, start_child
from benchmarks.harness.sqlite_baseline import fill
from benchmarks.questions.throughput import no_op

__all__ = ["BENCHMARK"]

BATCH: Final = "bench"
CPU_SECONDS: Final = 0.005


@dataclass(frozen=True)
class Size:
    items: int = 100_000
    cpu_items: int = 2000
    rounds: int = 5


async def busy(item: int) -> None:
    """Use 5 ms of CPU time."""
    del item
    end = time.thread_time() + CPU_SECONDS
    while time.thread_time() < end:
        pass


def take_part(db: str, kind: str) -> tuple[float, float, int]:
    """Wait for the common start and run pending items. Returns the times of begin and end, and the number of attempts."""
    ready = Path(db).with_name(f"ready-{os.getpid()}")
    ready.touch()
    while not Path(db).with_name("go").exists():
        time.sleep(0.002)
    began = time.monotonic()
    if kind == "busy":
        report = asyncio.run(run_batch(None, busy, db=db, batch=BATCH, concurrency=10))
    else:
        report = asyncio.run(run_batch(None, no_op, db=db, batch=BATCH, concurrency=100))
    return began, time.monotonic(), report.attempts


def together(processes: int, kind: str, items: int, folder: Path) -> float:
    """Return the seconds from the first process's begin to the last one's end."""
    db = folder / "shared.db"
    fill(db, BATCH, ((str(number), str(number)) for number in range(items)))
    started = [start_child(take_part, db, kind) for _ in range(processes)]
    while len(list(folder.glob("ready-*"))) < processes:
        if any(process.poll() is not None for process in started):
            break  # child_result() raises the error
        time.sleep(0.01)
    (folder / "go").touch()
    results = [child_result(process) for process in started]
    attempts = sum(attempts for _, _, attempts in results)
    assert attempts == items, results
    return float(max(end for _, end, _ in results) - min(begin for begin, _, _ in results))


def measure(size: Size) -> Result:
    """Measure the rates of one, two and four processes, and the ratios to one process."""
    figures = []
    for kind, items, counts in (("no-op", size.items, (1, 2, 4)), ("busy", size.cpu_items, (1, 2, 4))):
        seconds = interleaved(size.rounds, {str(count): partial(together, count, kind, items) for count in counts})
        label = "no-op handlers" if kind == "no-op" else f"{CPU_SECONDS * 1e3:.0f} ms of CPU"
        for count in counts[1:]:
            ratio = each_over(seconds["1"], seconds[str(count)])
            name = f"{label}: {count} processes together, of one"
            figures.append(figure(name, RATIO, ratio, at_least=0.8 if kind == "no-op" else None))
        figures += [
            figure(
                f"{label}: {count} process{'es' if count > 1 else ''}", "items/s", [items / each for each in seconds[str(count)]]
            )
            for count in counts
        ]
    return Result(figures)


BENCHMARK = Benchmark(
    "How fast are several processes together on one file?", Size(), Size(items=500, cpu_items=40, rounds=1), measure
)
