"""How soon does a submitted item start on an idle runner, and what does idling cost?

``python -m benchmarks.wakeup [--items 200] [--rounds 5]`` prints, as medians over the rounds: milliseconds from the call of
``submit`` to the start of the handler (p50 and p99), in the same process and from a client in another one; how long ``submit``
itself takes, beside one fsync of the same file system; and the CPU time of an idle runner.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from asyncrunner import Handler, Runner
from benchmarks.machine import describe_machine

SUBMITTER = """
import asyncio, sys, time
from asyncrunner import Client

async def main() -> None:
    async with Client(sys.argv[1]) as client:
        for _ in range(int(sys.argv[2])):
            await client.submit("wake", time.monotonic())
            await asyncio.sleep(0.0371)  # no multiple of how often the runner looks

asyncio.run(main())
"""


def runner_on(db: Path) -> tuple[Runner, Handler[float, None], list[float]]:
    """A runner whose handler notes how long ago its item was submitted."""
    runner = Runner(db)
    waits: list[float] = []

    async def wake(submitted_at: float) -> None:
        waits.append(time.monotonic() - submitted_at)

    return runner, runner.handler(batch="wake")(wake), waits


async def same_process(db: Path, items: int) -> tuple[list[float], list[float]]:
    """Seconds to the start of each handler, and of each submit."""
    runner, wake, waits = runner_on(db)
    submits: list[float] = []
    async with runner:
        await asyncio.sleep(0.2)
        for _ in range(items):
            began = time.monotonic()
            await wake.submit(began)
            submits.append(time.monotonic() - began)
            await asyncio.sleep(0.01)
    return waits, submits


async def other_process(db: Path, items: int) -> list[float]:
    """Seconds to the start of each handler, when another process submits."""
    runner, _, waits = runner_on(db)
    async with runner:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", SUBMITTER, str(db), str(items))
        await process.wait()
        while len(waits) < items:
            await asyncio.sleep(0.01)
    return waits


async def idle_cpu(db: Path, seconds: float) -> float:
    """CPU seconds a second of a runner that has nothing to do."""
    runner, _, _ = runner_on(db)
    async with runner:
        await asyncio.sleep(0.5)
        cpu, wall = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        return (time.process_time() - cpu) / (time.monotonic() - wall)


def fsync_seconds(folder: Path) -> float:
    """One 4 kB append and fsync, the median of a hundred."""
    descriptor = os.open(folder / "fsync", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    found: list[float] = []
    for _ in range(100):
        began = time.monotonic()
        os.write(descriptor, b"x" * 4096)
        os.fdatasync(descriptor)
        found.append(time.monotonic() - began)
    os.close(descriptor)
    return statistics.median(found)


def p(share: float, values: list[float]) -> float:
    """That quantile, in milliseconds."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            near, submits = asyncio.run(same_process(folder / "near.db", options.items))
            far = asyncio.run(other_process(folder / "far.db", options.items // 2))
            measured = {
                "same process, submit to start, p50 ms": p(0.5, near),
                "same process, submit to start, p99 ms": p(0.99, near),
                "submit itself, p50 ms": p(0.5, submits),
                "one fsync here, p50 ms": fsync_seconds(folder) * 1e3,
                "other process, submit to start, p50 ms": p(0.5, far),
                "other process, submit to start, p99 ms": p(0.99, far),
                "idle, % of a core": 100 * asyncio.run(idle_cpu(folder / "idle.db", 10)),
            }
        for label, value in measured.items():
            rows.setdefault(label, []).append(value)
    print(describe_machine())
    print(f"medians of {options.rounds} rounds of {options.items} items")
    for label, values in rows.items():
        print(f"{label:<42}{statistics.median(values):>8.2f}   ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
