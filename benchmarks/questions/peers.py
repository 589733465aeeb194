"""How much faster is it than other packages that keep jobs in SQLite?

Each package runs no-op jobs in a separate process, in turns, measured from the first enqueue until all jobs are finished; slow
packages get fewer items. Each is used as its documentation shows, on a new SQLite file:

* tinyjobs: ``await task.aenqueue(n)`` one by one, then ``app.worker(concurrency=100)`` in the same event loop. Its default
  durability, WAL with ``synchronous=NORMAL``, syncs less often than the others. Its counts are polled every 20 ms for the end.
* huey: ``SqliteHuey``, one call of the task per item, then a consumer with one worker thread (its default; four are slower).
  Its default durability: WAL, ``synchronous=FULL``.
* localqueue: ``put_many`` of 1,000, then ``Worker.run_once`` until the queue is empty; ``DurabilityMode.DURABLE``.
* DBOS: one workflow per job on a queue with ``worker_concurrency=100``, polled every 10 ms instead of its 1 s; then the result
  of each handle is awaited. Its default durability: a rollback journal, ``synchronous=FULL``.
* batchledger: ``ledger.run(function, items)``, which runs one item after the other by design; WAL, ``synchronous=FULL``.

A package that is not installed (the extra ``bench`` has all of them) or fails is reported as not measured, with the reason.
``python -m benchmarks peers [--items N] [--our-items N] [--rounds N]``
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from benchmarks.harness.figures import RATIO, Benchmark, Figure, Result, figure, not_measured
from benchmarks.harness.measuring import call_in_child, each_over, interleaved
from benchmarks.questions.throughput import runner_seconds

__all__ = ["BENCHMARK"]

SLOTS: Final = 100
TIMES: Final = 10.0
"""The target: asyncrunner's rate as a multiple of each package's rate."""


@dataclass(frozen=True)
class Size:
    items: int = 3000
    our_items: int = 100_000
    rounds: int = 5


async def async_no_op(item: int) -> None:
    """An asynchronous job."""


def no_op(item: object) -> None:
    """A synchronous job."""


def run_asyncrunner(folder: str, items: int) -> float:
    return runner_seconds(Path(folder), items, SLOTS)


def run_tinyjobs(folder: str, items: int) -> float:
    from tinyjobs import TinyJobs

    app = TinyJobs(f"sqlite:///{folder}/jobs.db")
    task = app.task(async_no_op)

    async def everything() -> float:
        async with app:
            began = time.perf_counter()
            for number in range(items):
                await task.aenqueue(number)
            worker = app.worker(concurrency=SLOTS, scheduler=False, handle_signals=False)
            running = asyncio.create_task(worker.start())
            while (await app.acounts()).get("success", 0) < items:
                await asyncio.sleep(0.02)
            seconds = time.perf_counter() - began
            worker.stop()
            await running
            return seconds

    return asyncio.run(everything())


def run_huey(folder: str, items: int) -> float:
    from huey import SqliteHuey

    app = SqliteHuey(filename=f"{folder}/huey.db")
    left = [items]
    done = threading.Event()

    def job(item: int) -> None:
        del item
        left[0] -= 1  # there is one worker
        if left[0] == 0:
            done.set()

    task = app.task()(job)
    began = time.perf_counter()
    for number in range(items):
        task(number)
    consumer = app.create_consumer(workers=1, periodic=False)
    consumer.start()
    done.wait()
    seconds = time.perf_counter() - began
    consumer.stop(graceful=True)
    return seconds


def run_localqueue(folder: str, items: int) -> float:
    from localqueue import DurabilityMode, SimpleQueue, Worker

    with SimpleQueue(folder, durability=DurabilityMode.DURABLE) as queue:
        began = time.perf_counter()
        for first in range(0, items, 1000):
            queue.put_many(list(range(first, min(first + 1000, items))))
        worker = Worker(queue, no_op)
        while worker.run_once():
            pass
        seconds = time.perf_counter() - began
        assert queue.stats()["acked"] == items
    return seconds


def run_dbos(folder: str, items: int) -> float:
    from dbos import DBOS

    DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{folder}/dbos.sqlite", "log_level": "ERROR"})
    workflow = DBOS.workflow()(async_no_op)
    DBOS.launch()
    DBOS.register_queue("bench", worker_concurrency=SLOTS, polling_interval_sec=0.01)

    async def everything() -> float:
        began = time.perf_counter()
        handles = [await DBOS.enqueue_workflow_async("bench", workflow, number) for number in range(items)]
        for handle in handles:
            await handle.get_result(polling_interval_sec=0.01)
        return time.perf_counter() - began

    try:
        return asyncio.run(everything())
    finally:
        DBOS.destroy()


def run_batchledger(folder: str, items: int) -> float:
    from batchledger import Ledger

    with Ledger(f"{folder}/ledger.sqlite", namespace="bench", version="1") as ledger:
        began = time.perf_counter()
        done = sum(outcome.ok for outcome in ledger.run(no_op, range(items)))
        seconds = time.perf_counter() - began
    assert done == items
    return seconds


PEERS: Final[dict[str, tuple[Callable[[str, int], float], int]]] = {
    "tinyjobs": (run_tinyjobs, 1),
    "huey": (run_huey, 1),
    "localqueue": (run_localqueue, 1),
    "DBOS": (run_dbos, 6),
    "batchledger": (run_batchledger, 1),
}
"""For each package: the function that runs it, and the divisor of its number of items."""


def measure(size: Size) -> Result:
    """Measure the rate of each package, and asyncrunner's rate as a multiple of it."""
    absent = {name: reason for name, (run, _) in PEERS.items() if (reason := _why_unavailable(name, run)) is not None}
    counts = {"asyncrunner": size.our_items}
    runs: dict[str, Callable[[str, int], float]] = {"asyncrunner": run_asyncrunner}
    for name, (run, divisor) in PEERS.items():
        if name not in absent:
            runs[name], counts[name] = run, max(1, size.items // divisor)
    seconds = interleaved(size.rounds, {name: partial(_in_child, run, counts[name]) for name, run in runs.items()})
    rates = {name: [counts[name] / each for each in times] for name, times in seconds.items()}
    figures = [_ratio(name, rates, absent) for name in PEERS]
    figures += [
        figure(f"{name} {_version(name)}", "items/s", each, note=f"{counts[name]:,} items") for name, each in rates.items()
    ]
    return Result(figures)


def _ratio(name: str, rates: dict[str, list[float]], absent: dict[str, str]) -> Figure:
    label = f"times {name}"
    if name in absent:
        return not_measured(label, RATIO, absent[name], at_least=TIMES)
    return figure(label, RATIO, each_over(rates["asyncrunner"], rates[name]), at_least=TIMES)


def _why_unavailable(name: str, run: Callable[[str, int], float]) -> str | None:
    if _version(name) == "":
        return f"{name} is not installed (extra bench)"
    try:
        interleaved(1, {name: partial(_in_child, run, 10)})
    except RuntimeError as error:
        return f"{name} {_version(name)} does not run here: {str(error).splitlines()[-1]}"
    return None


def _version(name: str) -> str:
    try:
        return version(name.lower())
    except PackageNotFoundError:
        return ""


def _in_child(run: Callable[[str, int], float], items: int, folder: Path) -> float:
    return float(call_in_child(run, folder, items))


BENCHMARK = Benchmark("How much faster is it than other packages that keep jobs in SQLite?", Size(), Size(30, 500, 1), measure)
