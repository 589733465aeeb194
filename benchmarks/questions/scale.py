"""Do speed and memory stay constant over ten million items, and does the finished file respond quickly?

Each round runs no-op items from a generator in a new file, in a separate process. The generator records the time of every
500,000th item; it is read at most 10,000 items ahead of the finished items, so the recorded rate is that of finished items to
within 2 % of a million. Memory is the growth of the process's peak (``VmHWM``) since the import of asyncrunner. On the finished
file, each in a new process: a run with nothing to do, a service from the start of its runner to the start of the handler of a
new item, and the reads of ``asyncrunner status``.

``python -m benchmarks scale [--items N] [--rounds N]``: a round of ten million takes minutes, so the default is three rounds.
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
from benchmarks.harness.figures import RATIO, Benchmark, Result, figure
from benchmarks.harness.measuring import call_in_child, each_over, scratch
from benchmarks.questions.throughput import no_op

__all__ = ["BENCHMARK"]

BATCH: Final = "bench"
CALLS: Final = 5
"""Measurements per round on the finished file."""


@dataclass(frozen=True)
class Size:
    items: int = 10_000_000
    step: int = 500_000
    rounds: int = 3
    slots: int = 100


class Filled(TypedDict):
    """The measurements of ``fill()``.

    ``marks``: seconds from the start until each further *step* of items was read; the last: until all items were finished.
    """

    marks: list[float]
    grown_mb: float
    file_bytes: int


def fill(db: str, items: int, step: int, slots: int) -> Filled:
    """Run *items* no-op items in a new file."""
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
    """Return the peak memory of this process in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage() also counts the process that this one was forked from
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def resume_nothing(db: str) -> float:
    """Return the milliseconds of a ``run_batch`` that finds everything completed."""
    began = time.perf_counter()
    report = asyncio.run(run_batch(None, no_op, db=db, batch=BATCH))
    milliseconds = (time.perf_counter() - began) * 1e3
    assert report.completed == 0, report
    return milliseconds


def start_service(db: str) -> float:
    """Return the milliseconds from the start of a runner to the start of the handler of a newly submitted item."""

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


def read_status(db: str) -> float:
    """Return the milliseconds of the reads of ``asyncrunner status``."""

    async def timed() -> float:
        async with Control(db) as control:
            began = time.perf_counter()
            status = await control.status()
            assert status.batches
            return (time.perf_counter() - began) * 1e3

    return asyncio.run(timed())


def measure(size: Size) -> Result:
    """Measure the rates over time, memory, the file's size, and the response times of the finished file."""
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
                status.append(call_in_child(read_status, db))
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
    """Return the seconds until *share* of the items was read."""
    steps = max(1, round(size.items * share / size.step))
    return filled["marks"][steps - 1]


def _rates(filled: Filled, size: Size) -> list[tuple[float, float]]:
    """Return points of finished items, and items per second since the previous step."""
    rates: list[tuple[float, float]] = []
    began = 0.0
    for number, mark in enumerate(filled["marks"], 1):
        rates.append((number * size.step, size.step / (mark - began)))
        began = mark
    return rates


BENCHMARK = Benchmark(
    "Do speed and memory stay constant over ten million items?", Size(), Size(items=10_000, step=500, rounds=1), measure
)
