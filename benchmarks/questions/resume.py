"""How soon does a batch resume when its items are given again?

Uses two files of a million items. In the first, all items are completed: the same items are given again, and all are looked up
and skipped. In the second, half of them are completed: measures the time from the call of ``run_batch`` with the same items to
the start of the first handler. A third file has as many lines of text, of 60 to 200 characters.
``python -m benchmarks resume [--items N] [--rounds N]``
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from asyncrunner import run_batch
from benchmarks.harness.figures import Benchmark, Result, figure
from benchmarks.harness.measuring import scratch
from benchmarks.questions.throughput import no_op

__all__ = ["BENCHMARK"]

BATCH: Final = "bench"


@dataclass(frozen=True)
class Size:
    items: int = 1_000_000
    rounds: int = 5


def prepare(folder: Path, items: int) -> tuple[Path, Path]:
    """Create a file with all items completed, and one whose second half is pending."""
    finished, half = folder / "finished.db", folder / "half.db"
    asyncio.run(run_batch(range(items), no_op, db=finished, batch=BATCH, concurrency=100))
    shutil.copyfile(finished, half)
    connection = sqlite3.connect(half)
    connection.execute(
        """UPDATE items SET status = 'pending', attempts = 0, worker_id = NULL, started_at = NULL, completed_at = NULL,
               result = NULL
           WHERE seq > ?""",
        (items // 2,),
    )
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return finished, half


def skip_all(finished: Path, items: int) -> float:
    """Return the items per second of a run whose items are all completed before."""
    began = time.perf_counter()
    report = asyncio.run(run_batch(range(items), no_op, db=finished, batch=BATCH, concurrency=100))
    seconds = time.perf_counter() - began
    assert report.skipped == items, report
    return items / seconds


def lines_of(items: int) -> list[str]:
    """Return lines of text, as of a log file."""
    rng = random.Random(20_261_127)
    text = "".join(rng.choices(string.ascii_letters + " ", k=100_000))
    starts = [rng.randrange(90_000) for _ in range(items)]
    return [f"{number} {text[start : start + rng.randrange(60, 400)]}"[:200] for number, start in enumerate(starts)]


async def measure_text(item: str) -> int:
    """Return the length of a line."""
    return len(item)


def run_lines(lines: Sequence[str], db: Path) -> tuple[float, int]:
    """Return the items per second of a run of the lines, and how many were skipped."""
    began = time.perf_counter()
    report = asyncio.run(run_batch(lines, measure_text, db=db, batch=BATCH, concurrency=100))
    return len(lines) / (time.perf_counter() - began), report.skipped


def first_start(half: Path, items: int) -> float:
    """Return the milliseconds to the start of the first handler, then cancel the run, which may complete a few hundred items."""

    async def everything() -> float:
        started = asyncio.Event()
        stopping = asyncio.Event()

        async def wait(item: int) -> None:
            del item
            started.set()
            await stopping.wait()

        began = time.perf_counter()
        run = asyncio.create_task(run_batch(range(items), wait, db=half, batch=BATCH, concurrency=100))
        await started.wait()
        milliseconds = (time.perf_counter() - began) * 1e3
        run.cancel()
        stopping.set()
        with contextlib.suppress(asyncio.CancelledError):
            await run
        return milliseconds

    return asyncio.run(everything())


def measure(size: Size) -> Result:
    """Measure both, in turns."""
    rates: list[float] = []
    waits: list[float] = []
    skipped_lines: list[float] = []
    lines = lines_of(size.items)
    with scratch() as folder:
        first_lines, _ = run_lines(lines, folder / "lines.db")
        finished, half = prepare(folder, size.items)
        for _ in range(size.rounds):
            rates.append(skip_all(finished, size.items))
            waits.append(first_start(half, size.items))
            rate, skipped = run_lines(lines, folder / "lines.db")
            assert skipped == size.items, skipped
            skipped_lines.append(rate)
    return Result(
        [
            figure("items skipped that were done", "items/s", rates, at_least=100_000),
            figure("lines of text skipped that were done", "items/s", skipped_lines, at_least=120_000),
            figure("lines of text, the first run", "items/s", [first_lines]),
            figure("half done: to the first handler", "ms", waits, at_most=100),
        ]
    )


BENCHMARK = Benchmark("How soon does a batch resume when its items are given again?", Size(), Size(2000, 1), measure)
