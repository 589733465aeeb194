"""How two saturating processes share one file: ``python -m benchmarks.sharing [--seconds 10] [--runs 5]``.

Each runs an endless batch of its own with a handler that does nothing, so both commit as fast as they can. Printed are each
one's share of the commits, and how long commits took, the wait for the turn included.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from asyncrunner import run_batch
from asyncrunner.sqlite.connection import Connection
from benchmarks.machine import describe_machine

__all__ = ["share"]


async def nothing(number: int) -> None:
    """A handler that leaves all the time to the store."""
    del number


def work(db: Path, batch: str, seconds: float) -> None:
    """Commit as fast as possible, then print how long each commit took, in seconds."""
    commit = Connection._commit  # noqa: SLF001
    times: list[float] = []

    def timed(self: Connection, group: list[Any]) -> None:
        began = time.perf_counter()
        commit(self, group)
        times.append(time.perf_counter() - began)

    Connection._commit = timed  # type: ignore[method-assign]  # noqa: SLF001

    async def saturate() -> None:
        go = db.with_name("go")
        while not go.exists():
            await asyncio.sleep(0.01)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(
                run_batch(itertools.count(), nothing, db=db, batch=batch, concurrency=20, durability="normal", progress=False),
                seconds,
            )

    asyncio.run(saturate())
    json.dump(times, sys.stdout)


def share(seconds: float) -> list[list[float]]:
    """The times of the commits of each of two processes."""
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "jobs.db"
        command = [sys.executable, "-m", "benchmarks.sharing", "--seconds", str(seconds), "--work", str(db)]
        processes = [subprocess.Popen([*command, "--batch", name], stdout=subprocess.PIPE, text=True) for name in ("one", "two")]
        time.sleep(1.0)  # both have been imported by then; whoever is late only works for a later span
        db.with_name("go").touch()
        said = [process.communicate(timeout=seconds + 60)[0] for process in processes]
        if any(process.returncode for process in processes):
            raise RuntimeError(f"a process failed: {[process.returncode for process in processes]}")
    return [json.loads(each) for each in said]


def main() -> None:
    """Run it and print a line a run, then the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(arguments.work, arguments.batch, arguments.seconds)
        return
    print(describe_machine())
    smaller: list[float] = []
    slow: list[float] = []
    for _ in range(arguments.runs):
        times = share(arguments.seconds)
        commits = [len(each) for each in times]
        both = sorted(itertools.chain.from_iterable(times))
        smaller.append(min(commits) / sum(commits))
        slow.append(both[int(0.99 * len(both))] * 1000)
        print(f"{commits[0]:,} and {commits[1]:,} commits, the smaller share {smaller[-1]:.0%}, p99 {slow[-1]:.1f} ms, "
              f"slowest {both[-1] * 1000:.0f} ms")  # fmt: skip
    print(f"median: smaller share {statistics.median(smaller):.0%}, p99 of a commit {statistics.median(slow):.1f} ms")


if __name__ == "__main__":
    main()
