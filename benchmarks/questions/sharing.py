"""How do two saturating processes share one file?

Each process runs its own endless batch with a no-op handler, so both commit as fast as they can. Measures the smaller share of
the commits, and the time of a commit, including the wait for the write lock. With ``durability="normal"`` the processes compete
for the lock and not for the disk. ``python -m benchmarks sharing [--seconds N] [--runs N]``
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncrunner import run_batch
from asyncrunner.sqlite.file.connection import Connection
from benchmarks.harness.figures import Benchmark, Result, figure
from benchmarks.harness.measuring import child_result, percentile, scratch, start_child

__all__ = ["BENCHMARK", "share"]


async def nothing(number: int) -> None:
    """The no-op handler."""
    del number


def work(path: str, batch: str, seconds: float) -> list[float]:
    """Commit as fast as possible for *seconds*, and return the seconds of each commit."""
    db = Path(path)
    commit = Connection._commit  # noqa: SLF001
    times: list[float] = []

    def timed(self: Connection, group: list[Any]) -> None:
        began = time.perf_counter()
        commit(self, group)
        times.append(time.perf_counter() - began)

    Connection._commit = timed  # type: ignore[method-assign]  # noqa: SLF001

    async def saturate() -> None:
        start_file = db.with_name("go")
        while not start_file.exists():
            await asyncio.sleep(0.01)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(
                run_batch(itertools.count(), nothing, db=db, batch=batch, concurrency=20, durability="normal", progress=False),
                seconds,
            )

    asyncio.run(saturate())
    return times


def share(seconds: float) -> list[list[float]]:
    """Run two processes for *seconds*, and return the seconds of each commit, by process."""
    with scratch() as folder:
        db = folder / "jobs.db"
        processes = [start_child(work, db, name, seconds) for name in ("one", "two")]
        time.sleep(1.0)  # until both have imported the package; a late process only measures a later time span
        db.with_name("go").touch()
        return [child_result(process) for process in processes]


@dataclass(frozen=True)
class Size:
    seconds: float = 10.0
    runs: int = 5


def measure(size: Size) -> Result:
    """Measure the smaller share of the commits, and the time of a commit."""
    smaller: list[float] = []
    slow: list[float] = []
    slowest: list[float] = []
    for _ in range(size.runs):
        times = share(size.seconds)
        commits = [len(each) for each in times]
        both = list(itertools.chain.from_iterable(times))
        smaller.append(100 * min(commits) / sum(commits))
        slow.append(percentile(0.99, both) * 1e3)
        slowest.append(max(both) * 1e3)
    return Result(
        [
            figure("the smaller share of the commits", "%", smaller),
            figure("a commit, p99", "ms", slow, lower_is_better=True),
            figure("a commit, the slowest", "ms", slowest, lower_is_better=True),
        ]
    )


BENCHMARK = Benchmark("How do two saturating processes share one file?", Size(), Size(seconds=0.5, runs=1), measure)
