"""What do two and four processes on one file do together?

The file holds the items, all pending; the processes start together and take them from it (``run_batch(None, ...)``). For no-op
handlers the file is what they share and wait for; handlers with 5 ms of CPU time gain as much as there are cores.
``python -m benchmarks.processes [--items N] [--cpu-items N] [--rounds N]``
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
from benchmarks.figures import RATIO, Benchmark, Result, figure
from benchmarks.measuring import child_result, each_over, interleaved, start_child
from benchmarks.plain import fill
from benchmarks.throughput import no_op

__all__ = ["BENCHMARK"]

BATCH: Final = "bench"
CPU_SECONDS: Final = 0.005


@dataclass(frozen=True)
class Size:
    items: int = 100_000
    cpu_items: int = 2000
    rounds: int = 5


async def busy(item: int) -> None:
    """5 ms of CPU time."""
    del item
    end = time.thread_time() + CPU_SECONDS
    while time.thread_time() < end:
        pass


def take_part(db: str, kind: str) -> tuple[float, float, int]:
    """One of the processes: wait for the start, run what there is; when it began and ended, and what it completed."""
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
    """Seconds from the common start to the last one's end."""
    db = folder / "shared.db"
    fill(db, BATCH, ((str(number), str(number)) for number in range(items)))
    started = [start_child(take_part, db, kind) for _ in range(processes)]
    while len(list(folder.glob("ready-*"))) < processes:
        if any(process.poll() is not None for process in started):
            break  # child_result() says why
        time.sleep(0.01)
    (folder / "go").touch()
    found = [child_result(process) for process in started]
    attempts = sum(each[2] for each in found)
    assert attempts == items, found
    return float(max(each[1] for each in found) - min(each[0] for each in found))


def measure(size: Size) -> Result:
    """Rates of one, two and four, and what they are of one."""
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
    "What do several processes on one file do together?", Size(), Size(items=500, cpu_items=40, rounds=1), measure
)


def main() -> None:
    """Measure and print."""
    BENCHMARK.main()


if __name__ == "__main__":
    main()
