"""Does it stay as fast, and as small, over ten million items, and does the finished file answer at once?

Each round takes no-op items from a generator into a new file, in a process of its own. The generator notes the time of
every 500,000th item; it is read at most 10,000 items ahead of what is done, so this is the rate at which items are done to
within 2 % of a million. Memory is the peak of the process (``VmHWM``) over what it was with asyncrunner imported. On the
finished file then, each in a new process: a run that finds nothing to do, a service's runner from its start to the start
of the handler of a new item, and what ``asyncrunner status`` asks.

``python -m benchmarks.scale [--items N] [--rounds N]``: a round of ten million takes minutes, so there are three.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

from asyncrunner import Control, Runner, run_batch
from benchmarks.figures import RATIO, Benchmark, Result, figure
from benchmarks.measuring import call_in_child, each_over, scratch
from benchmarks.throughput import no_op

__all__ = ["BENCHMARK"]

BATCH: Final = "bench"
CALLS: Final = 5
"""How often the finished file is asked each thing."""


@dataclass(frozen=True)
class Size:
    items: int = 10_000_000
    step: int = 500_000
    rounds: int = 3
    slots: int = 100


class Filled(TypedDict):
    """``marks``: seconds since the start at which each further *step* of items had been read; the last: when all were done."""

    marks: list[float]
    grown_mb: float
    file_bytes: int


def fill(db: str, items: int, step: int, slots: int) -> Filled:
    """Run that many items into a new file; what it took."""
    before = peak_mb()
    marks: list[float] = []
    began = time.perf_counter()

    def source() -> Generator[int, None, None]:
        for number in range(items):
            if number % step == 0 and number:
                marks.append(time.perf_counter() - began)
            yield number

    report = asyncio.run(run_batch(source(), no_op, db=db, batch=BATCH, concurrency=slots))
    marks.append(time.perf_counter() - began)
    assert report.completed == items, report
    return {"marks": marks, "grown_mb": peak_mb() - before, "file_bytes": Path(db).stat().st_size}


def peak_mb() -> float:
    """The most memory that this process has had, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage() also counts the process that this one was forked from
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def resume_nothing(db: str) -> float:
    """Milliseconds of a run_batch that finds everything done."""
    began = time.perf_counter()
    report = asyncio.run(run_batch(None, no_op, db=db, batch=BATCH))
    milliseconds = (time.perf_counter() - began) * 1e3
    assert report.completed == 0, report
    return milliseconds


def start_service(db: str) -> float:
    """Milliseconds from the start of a runner to the start of the handler of an item that is submitted then."""

    async def everything() -> float:
        started = asyncio.Event()
        runner = Runner(db)

        async def other(item: float) -> None:
            del item
            started.set()

        handler = runner.handler(batch="other")(other)
        began = time.perf_counter()
        async with runner:
            await handler.submit(time.time())
            await started.wait()
            return (time.perf_counter() - began) * 1e3

    return asyncio.run(everything())


def ask_status(db: str) -> float:
    """Milliseconds of what ``asyncrunner status`` reads."""

    async def ask() -> float:
        async with Control(db) as control:
            began = time.perf_counter()
            status = await control.status()
            assert status.batches
            return (time.perf_counter() - began) * 1e3

    return asyncio.run(ask())


def measure(size: Size) -> Result:
    """Rates along the way, memory, the file's size, and how soon the finished file answers."""
    filled: list[Filled] = []
    idle: list[float] = []
    service: list[float] = []
    status: list[float] = []
    for _ in range(size.rounds):
        with scratch() as folder:
            db = folder / "scale.db"
            filled.append(call_in_child(fill, db, size.items, size.step, size.slots))
            for _ in range(CALLS):
                idle.append(call_in_child(resume_nothing, db))
                status.append(call_in_child(ask_status, db))
                service.append(call_in_child(start_service, db))
    million = f"{max(size.items // 10, size.step):,}"
    first = [size.items / 10 / _until(each, size, 0.1) for each in filled]
    last = [size.items / 10 / (each["marks"][-1] - _until(each, size, 0.9)) for each in filled]
    figures = [
        figure(f"rate of the last {million} items over the first", RATIO, each_over(last, first), at_least=0.7),
        figure("memory that it grew by", "MB", [each["grown_mb"] for each in filled], at_most=80),
        figure("start: a run with nothing to do", "ms", idle, at_most=200),
        figure("start: a runner, to the handler of a new item", "ms", service, at_most=200),
        figure("status", "ms", status, at_most=50),
        figure("file, an item", "bytes", [each["file_bytes"] / size.items for each in filled], lower_is_better=True),
        figure("whole run", "items/s", [size.items / each["marks"][-1] for each in filled]),
    ]
    series = {f"round {number}": _rates(each, size) for number, each in enumerate(filled, 1)}
    return Result(figures, series)


def _until(filled: Filled, size: Size, share: float) -> float:
    """Seconds until that share of the items had been read."""
    steps = max(1, round(size.items * share / size.step))
    return filled["marks"][steps - 1]


def _rates(filled: Filled, size: Size) -> list[tuple[float, float]]:
    """Items done, items a second since the step before."""
    rates: list[tuple[float, float]] = []
    began = 0.0
    for number, mark in enumerate(filled["marks"], 1):
        rates.append((number * size.step, size.step / (mark - began)))
        began = mark
    return rates


BENCHMARK = Benchmark(
    "Does it stay as fast, and as small, over ten million items?", Size(), Size(items=10_000, step=500, rounds=1), measure
)


def main() -> None:
    """Measure and print."""
    BENCHMARK.main()


if __name__ == "__main__":
    main()
