"""Does a batch lose items at a service that refuses requests, or during an outage, with no option set?

A simulated service accepts ``--rate`` requests in each second and answers the others with 429. A batch with all defaults runs
at 10, 50 and 200 slots, with and without ``Retry-After: 1``. No item may fail; the requests that are refused are at most 1.5
times the slots plus 5 % of the items, and the time is at most 1.5 times the ideal. Then a service is away for ``--outage``
seconds in the middle of a batch. Exits 1 if an item fails.

``python -m benchmarks throttling [--items N] [--rate N] [--reply-ms N] [--outage-items N] [--outage N]``
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from asyncrunner import run_batch
from benchmarks.harness.figures import Benchmark, Figure, Result, figure
from benchmarks.harness.measuring import scratch

__all__ = ["BENCHMARK"]

SLOTS: Final = (10, 50, 200)


@dataclass(frozen=True)
class Size:
    items: int = 1000
    rate: int = 100
    reply_ms: int = 20
    outage_items: int = 4000
    outage: float = 60.0


class Response:
    """The response of an HTTP client, with the two attributes that are read."""

    def __init__(self, status_code: int, headers: dict[str, str]) -> None:
        self.status_code = status_code
        self.headers = headers


class HTTPError(Exception):
    """The error that an HTTP client raises for a response with an error status."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"status {response.status_code}")
        self.response = response


class Service:
    """A service that accepts *rate* requests in each second of the monotonic clock, and refuses the others."""

    def __init__(self, rate: int, reply_ms: int, headers: dict[str, str]) -> None:
        self.refused = 0
        self._rate = rate
        self._reply_seconds = reply_ms / 1000
        self._headers = headers
        self._accepted: Counter[int] = Counter()

    async def request(self, number: int) -> int:
        second = int(time.monotonic())
        is_accepted = self._accepted[second] < self._rate
        self._accepted[second] += is_accepted
        self.refused += not is_accepted
        await asyncio.sleep(self._reply_seconds)
        if not is_accepted:
            raise HTTPError(Response(429, self._headers))
        return number


def throttled(folder: Path, size: Size, slots: int, headers: dict[str, str]) -> tuple[int, int, float]:
    """Run a batch against a service that refuses requests; return failed items, refused requests, and seconds."""
    service = Service(size.rate, size.reply_ms, headers)
    began = time.monotonic()
    report = asyncio.run(
        run_batch(range(size.items), service.request, db=folder / "batch.db", batch="throttled", concurrency=slots)
    )
    return size.items - report.completed, service.refused, time.monotonic() - began


def interrupted(folder: Path, size: Size) -> tuple[int, float]:
    """Run a batch whose service is away for a while in the middle; return failed items and seconds."""
    away_until = 0.0
    done = 0

    async def request(number: int) -> int:
        nonlocal away_until, done
        await asyncio.sleep(size.reply_ms / 1000)
        if done == size.outage_items // 2 and not away_until:
            away_until = time.monotonic() + size.outage
        if time.monotonic() < away_until:
            raise ConnectionError("connection refused")
        done += 1
        return number

    began = time.monotonic()
    report = asyncio.run(run_batch(range(size.outage_items), request, db=folder / "batch.db", batch="outage"))
    return size.outage_items - report.completed, time.monotonic() - began


def measure(size: Size) -> Result:
    """Run the batches one after another."""
    figures: list[Figure] = []
    broken: list[str] = []
    for slots in SLOTS:
        for name, headers in (("Retry-After: 1", {"Retry-After": "1"}), ("no header", {})):
            with scratch() as folder:
                failed, refused, seconds = throttled(folder, size, slots, headers)
            case = f"{slots} slots, {name}"
            figures += [
                figure(f"{case}: failed", "items", [failed], at_most=0),
                figure(f"{case}: refused", "requests", [refused], at_most=1.5 * slots + 0.05 * size.items),
                figure(f"{case}: time", "s", [seconds], at_most=1.5 * size.items / size.rate),
            ]
            broken += [f"{case}: {failed} items failed"] if failed else []
    with scratch() as folder:
        failed, seconds = interrupted(folder, size)
    case = f"away for {size.outage:g} s"
    figures += [figure(f"{case}: failed", "items", [failed], at_most=0), figure(f"{case}: time", "s", [seconds])]
    broken += [f"{case}: {failed} items failed"] if failed else []
    return Result(figures, broken=broken)


BENCHMARK = Benchmark(
    "Does a batch lose items at a service that refuses requests, or during an outage, with no option set?",
    Size(),
    Size(items=30, rate=20, outage_items=40, outage=0.4),
    measure,
)
