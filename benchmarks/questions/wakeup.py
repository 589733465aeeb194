"""How soon does a submitted item start on an idle runner, and what does idling cost?

Measures the milliseconds from the call of ``submit`` to the start of the handler, in the same process and from a client in
another process; the duration of ``submit``, compared with one fsync (an append of 4 kB and fdatasync, with the same pauses) on
the same file system; and the CPU time of an idle runner. Quantiles are computed per round; the figures are their medians over the
rounds.

``python -m benchmarks wakeup [--items N] [--rounds N] [--idle-seconds N]``
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from asyncrunner import Handler, Runner
from benchmarks.harness.figures import RATIO, Benchmark, Result, figure
from benchmarks.harness.measuring import each_over, percentile, scratch

__all__ = ["BENCHMARK"]

SUBMITTER: Final = """
import asyncio, sys, time
from asyncrunner import Client

async def main() -> None:
    async with Client(sys.argv[1]) as client:
        for _ in range(int(sys.argv[2])):
            await client.submit("wake", time.monotonic())
            await asyncio.sleep(0.0371)  # not a multiple of the runner's polling interval

asyncio.run(main())
"""

SHARES: Final = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Size:
    items: int = 200
    rounds: int = 5
    idle_seconds: float = 10.0


def runner_on(db: Path) -> tuple[Runner, Handler[float, None], list[float]]:
    """Return a runner, its handler, and the list to which it adds the milliseconds from submit to start of each item."""
    runner = Runner(db)
    waits: list[float] = []

    async def wake(submitted_at: float) -> None:
        waits.append((time.monotonic() - submitted_at) * 1e3)

    return runner, runner.handler(batch="wake")(wake), waits


async def same_process(db: Path, items: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds to the start of each handler, and of each ``submit``."""
    runner, wake, waits = runner_on(db)
    submits: list[float] = []
    async with runner:
        await asyncio.sleep(0.2)
        for _ in range(items):
            began = time.monotonic()
            await wake.submit(began)
            submits.append((time.monotonic() - began) * 1e3)
            await asyncio.sleep(0.01)
    return waits, submits


async def other_process(db: Path, items: int) -> list[float]:
    """Return the milliseconds to the start of each handler when another process submits the items."""
    runner, _, waits = runner_on(db)
    async with runner:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", SUBMITTER, str(db), str(items))
        await process.wait()
        while len(waits) < items:
            await asyncio.sleep(0.01)
    return waits


async def idle_cpu(db: Path, seconds: float) -> float:
    """Return the CPU seconds per second of an idle runner."""
    runner, _, _ = runner_on(db)
    async with runner:
        await asyncio.sleep(0.5)
        cpu, wall = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        return (time.process_time() - cpu) / (time.monotonic() - wall)


def fsyncs(folder: Path) -> list[float]:
    """Return the milliseconds of each of 100 appends of 4 kB with an fdatasync, with the pauses of ``same_process()``."""
    descriptor = os.open(folder / "fsync", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sync = os.fdatasync if hasattr(os, "fdatasync") else os.fsync
    milliseconds: list[float] = []
    for _ in range(100):
        began = time.monotonic()
        os.write(descriptor, b"x" * 4096)
        sync(descriptor)
        milliseconds.append((time.monotonic() - began) * 1e3)
        time.sleep(0.01)
    os.close(descriptor)
    return milliseconds


def measure(size: Size) -> Result:
    """Measure the waits, and compute the quantiles of every round."""
    rounds: dict[str, list[list[float]]] = {"same process": [], "submit itself": [], "one fsync": [], "another process": []}
    idle: list[float] = []
    for _ in range(size.rounds):
        with scratch() as folder:
            near, submits = asyncio.run(same_process(folder / "near.db", size.items))
            rounds["same process"].append(near)
            rounds["submit itself"].append(submits)
            rounds["one fsync"].append(fsyncs(folder))
            rounds["another process"].append(asyncio.run(other_process(folder / "far.db", max(1, size.items // 2))))
            idle.append(100 * asyncio.run(idle_cpu(folder / "idle.db", size.idle_seconds)))
    submit, fsync = _each(0.5, rounds["submit itself"]), _each(0.5, rounds["one fsync"])
    figures = [
        figure("same process, submit to start, p50", "ms", _each(0.5, rounds["same process"]), at_most=2),
        figure("same process, submit to start, p99", "ms", _each(0.99, rounds["same process"]), at_most=10),
        figure("another process, submit to start, p50", "ms", _each(0.5, rounds["another process"]), at_most=2),
        figure("another process, submit to start, p99", "ms", _each(0.99, rounds["another process"]), at_most=10),
        figure("submit itself, p50", "ms", submit, at_most=0.5),
        figure("one fsync here, p50", "ms", fsync, lower_is_better=True),
        figure("submit, in fsyncs", RATIO, each_over(submit, fsync), at_most=6),
        figure("idle, of a core", "%", idle, at_most=0.2),
    ]
    every = {name: list(itertools.chain.from_iterable(waits)) for name, waits in rounds.items()}
    series = {name: [(100 * share, percentile(share, waits)) for share in SHARES] for name, waits in every.items()}
    return Result(figures, series)


def _each(share: float, rounds: Sequence[Sequence[float]]) -> list[float]:
    return [percentile(share, values) for values in rounds]


BENCHMARK = Benchmark(
    "How soon does a submitted item start on an idle runner?", Size(), Size(items=10, rounds=1, idle_seconds=0.2), measure
)
