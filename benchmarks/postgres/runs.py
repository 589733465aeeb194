"""Our own runs on a server: functions that a benchmark calls in separate processes."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from asyncrunner import Client, Runner, run_batch
from asyncrunner.backends import open_engine
from benchmarks.postgres import plain, queuer

__all__ = ["concurrent_submits", "large_run", "run_ours", "serve", "submit_one_by_one", "take_part", "timed_cpu", "work_slowly"]

_STATUS_READS: Final = 20
_WAKE: Final = "wake"


async def no_op(item: int) -> None:
    """The no-op handler."""


def run_ours(url: str, items: int, slots: int) -> float:
    """Return the seconds of ``run_batch``, from its call to the last commit."""
    began = time.perf_counter()
    report = asyncio.run(run_batch(range(items), no_op, db=url, batch=plain.BATCH, concurrency=slots))
    seconds = time.perf_counter() - began
    assert report.completed == items, report
    return seconds


_WAYS: Final[dict[str, Callable[..., float]]] = {
    "ours": run_ours,
    "one table": plain.on_one_table,
    "our tables": plain.on_our_tables,
    "pgqueuer": queuer.run_jobs,
}


def timed_cpu(way: str, *arguments: Any) -> tuple[float, float]:
    """Call one of the ways. Returns its seconds, and the CPU seconds of this process in it."""
    if way == "pgqueuer":
        queuer.load()  # the import of ours is not measured either
    before = _own_cpu()
    seconds = _WAYS[way](*arguments)
    return seconds, _own_cpu() - before


def _own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def take_part(url: str, folder: str, slots: int) -> tuple[float, float, int]:
    """Wait for the common start and run pending items. Returns the times of begin and end, and the number of attempts."""
    (Path(folder) / f"ready-{os.getpid()}").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.002)
    began = time.monotonic()
    report = asyncio.run(run_batch((), no_op, db=url, batch=plain.BATCH, concurrency=slots))
    return began, time.monotonic(), report.attempts


def large_run(url: str, items: int, window: int, slots: int) -> tuple[list[float], list[float], list[float], list[float]]:
    """Run many items.

    Returns the seconds and this process's CPU seconds of each window of items, and then the milliseconds of reading the counts,
    and of reading what ``status`` shows: counts, rate and failures by cause.
    """
    seconds: list[float] = []
    cpu: list[float] = []
    ran = 0

    async def run() -> tuple[list[float], list[float]]:
        at, used = time.perf_counter(), _own_cpu()

        async def handler(item: int) -> None:
            del item
            nonlocal ran, at, used
            ran += 1
            if ran % window == 0:
                seconds.append(time.perf_counter() - at)
                cpu.append(_own_cpu() - used)
                at, used = time.perf_counter(), _own_cpu()

        report = await run_batch(range(items), handler, db=url, batch=plain.BATCH, concurrency=slots)
        assert report.completed == items, report
        return await _read_times(url)

    counts, status = asyncio.run(run())
    return seconds, cpu, counts, status


async def _read_times(url: str) -> tuple[list[float], list[float]]:
    counts: list[float] = []
    status: list[float] = []
    store = open_engine(url)
    await store.open()
    batch = await store.find_batch(plain.BATCH)
    assert batch is not None
    for _ in range(_STATUS_READS):
        began = time.perf_counter()
        await store.counts(batch.batch_id)
        counts.append((time.perf_counter() - began) * 1e3)
        await store.recent_rate(batch.batch_id)
        await store.failure_causes(batch.batch_id, 10)
        status.append((time.perf_counter() - began) * 1e3)
    await store.close()
    return counts, status


def serve(url: str, items: int) -> list[float]:
    """Print a line when the runner has started, run *items* items of others, and return the milliseconds to each start."""

    async def run() -> list[float]:
        runner = Runner(url)
        waits: list[float] = []
        ended = asyncio.Event()

        async def wake(submitted_at: float) -> None:
            waits.append((time.monotonic() - submitted_at) * 1e3)
            if len(waits) == items:
                ended.set()

        runner.handler(batch=_WAKE)(wake)
        async with runner:
            await asyncio.sleep(0.2)
            print("ready", flush=True)
            await ended.wait()
        return waits

    return asyncio.run(run())


def submit_one_by_one(url: str, items: int, pause: float) -> None:
    """Submit *items* items with their times, each *pause* seconds after the one before."""

    async def run() -> None:
        async with Client(url) as client:
            for _ in range(items):
                await client.submit(_WAKE, time.monotonic())
                await asyncio.sleep(pause)

    asyncio.run(run())


def concurrent_submits(url: str, items: int, alone: int) -> tuple[float, float]:
    """Return how many items a second are submitted one after the other, and by *items* calls at the same time."""

    async def run() -> tuple[float, float]:
        async with Client(url) as client:
            began = time.perf_counter()
            for number in range(alone):
                await client.submit(plain.BATCH, number)
            one_by_one = alone / (time.perf_counter() - began)
            began = time.perf_counter()
            await asyncio.gather(*[client.submit(plain.BATCH, alone + number) for number in range(items)])
            return one_by_one, items / (time.perf_counter() - began)

    return asyncio.run(run())


def work_slowly(url: str, log: str) -> int:
    """Run pending items, 10 at the same time, each 0.1 s, and write their numbers, this process and the times to *log*."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def work(item: int) -> None:
        os.write(descriptor, f"{item} {os.getpid()} {time.monotonic()}\n".encode())
        await asyncio.sleep(0.1)

    return asyncio.run(run_batch((), work, db=url, batch=plain.BATCH, concurrency=10)).attempts
