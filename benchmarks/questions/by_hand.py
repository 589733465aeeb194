"""How fast is the runner beside what a good engineer writes by hand, with the items that people give?

``run_batch`` and a program by hand (see harness/by_hand.py) run a no-op ``async def`` over the same items in turns, 100
concurrently, until every outcome is durable: ints, short texts, dicts without a key (both store a digest), dataclasses with a key
field, documents of 1 kB and of 20 kB. The result of each handler is its item's number or length, so a result is stored too.

``python -m benchmarks by_hand [--items N] [--documents N] [--large-documents N] [--rounds N] [--slots N]``
"""

from __future__ import annotations

import asyncio
import random
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from asyncrunner import run_batch
from benchmarks.harness.by_hand import by_hand_seconds
from benchmarks.harness.figures import RATIO, Benchmark, Figure, Result, figure
from benchmarks.harness.measuring import each_over, interleaved

__all__ = ["BENCHMARK"]


@dataclass(frozen=True)
class Size:
    items: int = 100_000
    documents: int = 40_000
    large_documents: int = 4_000
    rounds: int = 5
    slots: int = 100


@dataclass
class Order:
    """An item with a key of its own."""

    number: int
    customer: str
    total: float


async def run_int(item: int) -> int:
    return item


async def run_text(item: str) -> int:
    return len(item)


async def run_dict(item: dict[str, Any]) -> int:
    return len(item)


async def run_order(item: Order) -> int:
    return item.number


class Kind(NamedTuple):
    """A kind of items. ``key``: the name of the field with it; None: an int or a text is its own key, a dict has a digest."""

    name: str
    items: Sequence[Any]
    handler: Callable[[Any], Any]
    type: Any
    key: str | None = None


def kinds(size: Size) -> list[Kind]:
    """Return the kinds of items, those with the most important ratio first."""
    rng = random.Random(20_261_127)
    text = "".join(rng.choices(string.ascii_letters + string.digits + " ", k=40_000))

    def document(number: int, length: int) -> dict[str, Any]:
        start = number * 31 % 20_000
        return {"number": number, "text": text[start : start + length], "tags": ["a", "b"], "done": False}

    dicts = [
        {"url": f"https://example.com/catalogue/{number}", "page": number % 50, "tags": ["new", "sale"]}
        for number in range(size.items)
    ]
    orders = [Order(number, f"customer-{number % 1000}", number * 1.25) for number in range(size.items)]
    return [
        Kind("dicts, digest keys", dicts, run_dict, dict[str, Any]),
        Kind("ints", range(size.items), run_int, int),
        Kind("texts", [f"https://example.com/{number}" for number in range(size.items)], run_text, str),
        Kind("dataclasses, a key field", orders, run_order, Order, "number"),
        Kind("documents of 1 kB", [document(n, 1_000) for n in range(size.documents)], run_dict, dict[str, Any]),
        Kind("documents of 20 kB", [document(n, 20_000) for n in range(size.large_documents)], run_dict, dict[str, Any]),
    ]


def with_runner(kind: Kind, slots: int, folder: Path) -> float:
    """Return the seconds of ``run_batch``, from its call to the last commit."""
    began = time.perf_counter()
    report = asyncio.run(
        run_batch(kind.items, kind.handler, db=folder / "runner.db", batch="bench", key=kind.key, concurrency=slots)
    )
    seconds = time.perf_counter() - began
    assert report.completed == len(kind.items), report
    return seconds


def with_sqlite3(kind: Kind, folder: Path) -> float:
    """Return the seconds of the program by hand."""
    key: Callable[[Any], object] | None = None
    if kind.key is not None:
        key = attrgetter(kind.key)
    elif kind.type in (int, str):
        key = str
    return by_hand_seconds(folder / "hand.db", kind.items, kind.handler, key, kind.type)


def measure(size: Size) -> Result:
    """Measure the ratio of each kind."""
    ratios: list[Figure] = []
    rates: list[Figure] = []
    for number, kind in enumerate(kinds(size)):
        ways: dict[str, Callable[[Path], float]] = {
            "asyncrunner": partial(with_runner, kind, size.slots),
            "by hand": partial(with_sqlite3, kind),
        }
        seconds = interleaved(size.rounds, ways)
        ratio = each_over(seconds["by hand"], seconds["asyncrunner"])
        name = f"{kind.name}: of a program by hand"
        ratios.append(figure(name, RATIO, ratio, at_least=0.85) if number == 0 else figure(name, RATIO, ratio))
        for way, times in seconds.items():
            rates.append(figure(f"{kind.name}: {way}", "items/s", [len(kind.items) / each for each in times]))
    return Result([*ratios, *rates])


BENCHMARK = Benchmark(
    "How fast is the runner beside what a good engineer writes by hand, with the items that people give?",
    Size(),
    Size(items=2_000, documents=200, large_documents=20, rounds=1, slots=20),
    measure,
)
