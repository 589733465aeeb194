"""What do large items and large results cost?

* Items of 20 kB with no-op handlers, compared with plain sqlite3 (see sqlite_baseline.py) that writes the same bytes. Here plain
  sqlite3 runs WAL checkpoints within the measured time, as often as the runner does.
* A result of 50 MB while small items run: the longest time without a settled item, the longest block of the event loop, and the
  longest wait of a store call, such as a heartbeat. Each is measured with and without the large result; for comparison, the time
  of a plain write of as many bytes with its fsync.

``python -m benchmarks payloads [--items N] [--payload-bytes N] [--rounds N] [--result-mb N]``
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import string
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict

import msgspec

from asyncrunner import Runner, run_batch
from asyncrunner.events import Settled
from asyncrunner.runner.runner import internals_of
from benchmarks.harness.figures import RATIO, Benchmark, Result, figure
from benchmarks.harness.measuring import each_over, interleaved, scratch
from benchmarks.harness.sqlite_baseline import plain_seconds

__all__ = ["BENCHMARK"]


@dataclass(frozen=True)
class Size:
    items: int = 5000
    payload_bytes: int = 20_000
    rounds: int = 5
    result_mb: int = 50
    seconds: float = 3.0


class Document(TypedDict):
    """A large item."""

    number: int
    text: str


async def read(document: Document) -> None:
    """The handler of the large items; does nothing."""


def documents(items: int, payload_bytes: int) -> list[Document]:
    """Return *items* different documents of *payload_bytes* characters; the same for each call."""
    rng = random.Random(20_261_123)
    text = "".join(rng.choices(string.ascii_letters + string.digits, k=payload_bytes))
    return [Document(number=number, text=text[number % 97 :] + text[: number % 97]) for number in range(items)]


def with_runner(given: list[Document], folder: Path) -> float:
    """Return the seconds that ``run_batch`` takes."""
    began = time.perf_counter()
    report = asyncio.run(run_batch(given, read, db=folder / "runner.db", batch="bench", key="number", concurrency=100))
    seconds = time.perf_counter() - began
    assert report.completed == len(given), report
    return seconds


def with_sqlite3(given: list[Document], folder: Path) -> float:
    """Return the seconds that plain sqlite3 takes to write the same bytes."""
    rows = [(str(document["number"]), msgspec.json.encode(document).decode()) for document in given]
    return plain_seconds(folder, rows, write_back=True)


class Gaps(TypedDict):
    """Longest times in milliseconds: without a settled item, of a blocked event loop, of a store call."""

    settled: float
    loop: float
    store: float


async def longest_gaps(db: Path, result_bytes: int, seconds: float) -> Gaps:
    """Run small items for *seconds*, and after half of the time one item with a result of *result_bytes*, if not 0."""
    runner = Runner(db, concurrency=20)
    settled_at: list[float] = []
    internals_of(runner).events.on(Settled, lambda event: settled_at.append(time.monotonic()) if event.batch == "small" else None)

    async def small(number: int) -> None:
        del number
        await asyncio.sleep(0.001)

    async def large(size: int) -> str:
        return "x" * size

    small_items = runner.handler(batch="small")(small)
    large_items = runner.handler(batch="large")(large)
    async with runner:
        feeder = asyncio.create_task(_feed(small_items.submit_many))
        loop = asyncio.create_task(_longest_ms(partial(asyncio.sleep, 0.001)))
        store = asyncio.create_task(_longest_ms(partial(_call_store, runner)))
        await asyncio.sleep(seconds / 2)
        if result_bytes:
            handle = await large_items.submit(result_bytes)
            assert len(await handle.result(timeout=60) or "") == result_bytes
        await asyncio.sleep(seconds / 2)
        gaps = [b - a for a, b in itertools.pairwise(settled_at)]
        for task in (feeder, loop, store):
            task.cancel()
        longest = await asyncio.gather(loop, store, return_exceptions=True)
        assert all(isinstance(each, float) for each in longest), longest
    return {"settled": max(gaps) * 1e3, "loop": float(str(longest[0])), "store": float(str(longest[1]))}


async def _feed(submit_many: Callable[[list[int]], Awaitable[object]]) -> None:
    """Submit small items until cancelled, up to 2,000 per second."""
    number = 0
    while True:
        await submit_many(list(range(number, number + 10)))
        number += 10
        await asyncio.sleep(0.005)


async def _call_store(runner: Runner) -> None:
    await internals_of(runner).store.find_batch("small")
    await asyncio.sleep(0.002)


async def _longest_ms(once: Callable[[], Awaitable[object]]) -> float:
    """Call *once* repeatedly until cancelled, and return the longest time of a call in milliseconds."""
    longest = 0.0
    try:
        while True:
            began = time.monotonic()
            await once()
            longest = max(longest, (time.monotonic() - began) * 1e3)
    except asyncio.CancelledError:
        return longest


def bare_write(folder: Path, size: int) -> float:
    """Return the milliseconds of writing *size* bytes to a file with an fsync, the minimum for any durable store."""
    descriptor = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT, 0o600)
    began = time.monotonic()
    data = memoryview(b"x" * size)
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)
    milliseconds = (time.monotonic() - began) * 1e3
    os.close(descriptor)
    return milliseconds


def measure(size: Size) -> Result:
    """Measure the ratio for large items, and the gaps with and without a large result."""
    inputs = documents(size.items, size.payload_bytes)
    seconds = interleaved(
        size.rounds, {"asyncrunner": partial(with_runner, inputs), "plain sqlite3": partial(with_sqlite3, inputs)}
    )
    with_large: list[Gaps] = []
    without: list[Gaps] = []
    bare: list[float] = []
    for _ in range(size.rounds):
        with scratch() as folder:
            bare.append(bare_write(folder, size.result_mb * 1_000_000))
        for gaps, result_bytes in ((without, 0), (with_large, size.result_mb * 1_000_000)):
            with scratch() as folder:
                gaps.append(asyncio.run(longest_gaps(folder / "gaps.db", result_bytes, size.seconds)))
    large, kilobytes = f"a result of {size.result_mb} MB", size.payload_bytes // 1000
    ratios = each_over(seconds["plain sqlite3"], seconds["asyncrunner"])
    figures = [
        figure(f"{kilobytes} kB items, of plain sqlite3", RATIO, ratios, at_least=0.5),
        figure(f"{large}: nothing else settled for", "ms", [each["settled"] for each in with_large], at_most=100),
        figure(f"{large}: the loop stood still for", "ms", [each["loop"] for each in with_large], at_most=100),
        figure(f"{large}: a call of the store waited", "ms", [each["store"] for each in with_large], at_most=100),
        figure(f"a bare write of {size.result_mb} MB and its fsync", "ms", bare, lower_is_better=True),
        figure("without it: nothing settled for", "ms", [each["settled"] for each in without], lower_is_better=True),
        figure("without it: the loop stood still for", "ms", [each["loop"] for each in without], lower_is_better=True),
        figure("without it: a call of the store waited", "ms", [each["store"] for each in without], lower_is_better=True),
    ]
    figures += [figure(name, "items/s", [size.items / each for each in times]) for name, times in seconds.items()]
    return Result(figures)


BENCHMARK = Benchmark(
    "What do large items and large results cost?",
    Size(),
    Size(items=100, payload_bytes=2000, rounds=1, result_mb=1, seconds=0.4),
    measure,
)
