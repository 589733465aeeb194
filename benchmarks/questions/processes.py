"""How fast are two and four processes together on one file?

The file holds pending items; the processes start at the same time and run them (``run_batch(None, ...)``). No-op handlers are
limited by the shared file; handlers with 5 ms of CPU time scale with the number of cores.

Also measured: ``processes=2`` of one ``run_batch`` call, whose parent reads the items and supervises two children. The time is
from the first handler's start to the end of the last. Each core that another program takes away during a round is missing in the
rate; the CPU time for the same items shows what the engine, the parent and the file cost on any machine.
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
from benchmarks.harness.figures import RATIO, Benchmark, Figure, Result, figure
from benchmarks.harness.measuring import child_result, each_over, interleaved, scratch, start_child
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


async def timed(item: int) -> list[float]:
    """Use 5 ms of CPU time; return the process, its start and end (monotonic), and the CPU time of the process at both."""
    del item
    began, used = time.monotonic(), time.process_time()
    while time.process_time() < used + CPU_SECONDS:
        pass
    return [os.getpid(), began, time.monotonic(), used, time.process_time()]


def run_with_children(db: str, processes: int, items: int) -> tuple[float, float, float]:
    """Run all items in one call.

    Returns the seconds from the first handler's start to the last one's end, the CPU seconds of this process during the call,
    and those of its children, each from its first handler on.
    """

    async def run() -> tuple[float, list[list[float]]]:
        before = time.process_time()
        report = await run_batch(range(items), timed, db=db, batch=BATCH, concurrency=10, processes=processes)
        assert report.completed == items, report
        return time.process_time() - before, await report.results()

    own, calls = asyncio.run(run())
    children = {pid for pid, *_ in calls} - {os.getpid()}
    cpu = sum(
        max(call[4] for call in calls if call[0] == pid) - min(call[3] for call in calls if call[0] == pid) for pid in children
    )
    return max(call[2] for call in calls) - min(call[1] for call in calls), own, cpu


def scaling(size: Size) -> list[Figure]:
    """Measure one process and two child processes in turn: the rate for each core, and the CPU time for the same items."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    cpu: dict[int, list[float]] = {1: [], 2: []}
    parents: list[float] = []
    for number in range(size.rounds):
        for count in (1, 2) if number % 2 == 0 else (2, 1):
            with scratch() as folder:
                wall, own, of_children = child_result(start_child(run_with_children, folder / "c.db", count, size.cpu_items))
            seconds[count].append(wall)
            cpu[count].append(own + of_children)
            if count == 2:
                parents.append(100 * own / wall)
    cores = min(2, os.cpu_count() or 1)
    label = f"{CPU_SECONDS * 1e3:.0f} ms of CPU"
    return [
        figure(
            f"{label}: processes=2, for each of {cores} cores, of one process",
            RATIO,
            [one / two / cores for one, two in zip(seconds[1], seconds[2], strict=True)],
            at_least=0.95,
        ),
        figure(
            f"{label}: CPU time of one process, of that of a parent and two children",
            RATIO,
            each_over(cpu[1], cpu[2]),
            at_least=0.95,
        ),
        figure(f"{label}: processes=1", "items/s", [size.cpu_items / each for each in seconds[1]]),
        figure(f"{label}: processes=2", "items/s", [size.cpu_items / each for each in seconds[2]]),
        figure("processes=2: the parent, of a core", "%", parents),
    ]


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
    return Result(figures + scaling(size))


BENCHMARK = Benchmark(
    "How fast are several processes together on one file?", Size(), Size(items=500, cpu_items=40, rounds=1), measure
)
