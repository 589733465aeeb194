"""How much of plain sqlite3's speed is left with a whole runner around it?

Each run takes 100,000 items from a list into a new file and through a no-op ``async def``, 100 at a time, until every outcome
is durable (``synchronous=FULL``). Beside it, in the same process and in turns:

* plain sqlite3: the same rows into the same tables with the same indexes: inserts, claims and finishes of 1,000 rows a
  transaction, and no runner, no coroutine, no JSON around it;
* ``asyncio.gather`` with a semaphore: nothing is kept.

``python -m benchmarks.throughput [--items N] [--rounds N] [--slots N]`` prints medians and ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from asyncrunner import run_batch
from asyncrunner.sqlite.file import connect_writer, create_if_missing
from benchmarks.machine import describe_machine

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 1000
NOW = "2026-11-23 12:14:15.123"


async def no_op(item: int) -> None:
    """What is run for each item."""


def with_asyncrunner(folder: Path, items: int, slots: int) -> float:
    """Seconds of run_batch, from the list to the last commit."""
    began = time.perf_counter()
    report = asyncio.run(run_batch(range(items), no_op, db=folder / "runner.db", batch="bench", concurrency=slots))
    seconds = time.perf_counter() - began
    assert report.completed == items, report
    return seconds


def with_sqlite3(folder: Path, items: int, slots: int) -> float:
    """Seconds of the same inserts, claims and finishes by hand."""
    del slots
    path = folder / "plain.db"
    create_if_missing(path)
    connection = connect_writer(path, "full")
    connection.execute("INSERT INTO batches (name, handler, options, created_at) VALUES ('bench', '', '{}', ?)", (NOW,))
    began = time.perf_counter()
    for first in range(0, items, CHUNK):
        _insert(connection, range(first, min(first + CHUNK, items)))
    while claimed := _claim(connection):
        _finish(connection, claimed)
    seconds = time.perf_counter() - began
    done = connection.execute("SELECT count(*) FROM items WHERE status = 'completed'").fetchone()[0]
    assert done == items, done
    connection.close()
    return seconds


def _insert(connection: sqlite3.Connection, chunk: range) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        "INSERT INTO items (batch_id, id, priority, due_at, created_at, payload, claim) VALUES (1, ?, 0, NULL, ?, ?, 0)",
        [(str(number), NOW, str(number)) for number in chunk],
    )
    connection.execute("UPDATE batches SET total = total + ? WHERE batch_id = 1", (len(chunk),))
    connection.execute("COMMIT")


def _claim(connection: sqlite3.Connection) -> list[tuple[int, int]]:
    connection.execute("BEGIN IMMEDIATE")
    claimed = connection.execute(
        """UPDATE items SET status = 'processing', attempts = attempts + 1, claim = claim + 1, worker_id = 'plain',
               started_at = ?
           WHERE seq IN (SELECT seq FROM items
                         WHERE batch_id = 1 AND status = 'pending' AND status <> 'completed' AND due_at IS NULL
                         ORDER BY priority DESC, seq LIMIT ?)
           RETURNING seq, claim, id, payload""",
        (NOW, CHUNK),
    ).fetchall()
    connection.execute("COMMIT")
    return [(row[0], row[1]) for row in claimed]


def _finish(connection: sqlite3.Connection, claimed: list[tuple[int, int]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        """UPDATE items SET status = 'completed', started_at = ?, completed_at = ?, result = 'null', error = NULL
           WHERE seq = ? AND claim = ? AND status = 'processing'""",
        [(NOW, NOW, seq, claim) for seq, claim in claimed],
    )
    connection.execute("COMMIT")


def with_gather(folder: Path, items: int, slots: int) -> float:
    """Seconds of a semaphore and gather; nothing survives."""
    del folder

    async def everything() -> None:
        semaphore = asyncio.Semaphore(slots)

        async def one(item: int) -> None:
            async with semaphore:
                await no_op(item)

        await asyncio.gather(*map(one, range(items)))

    began = time.perf_counter()
    asyncio.run(everything())
    return time.perf_counter() - began


def measure(items: int, rounds: int, slots: int) -> dict[str, list[float]]:
    """Seconds of each way, a list a way; the ways take turns so that the machine's moods hit all of them."""
    ways: dict[str, Callable[[Path, int, int], float]] = {
        "asyncrunner": with_asyncrunner,
        "plain sqlite3": with_sqlite3,
        "gather + semaphore": with_gather,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory(prefix="asyncrunner-bench-") as folder:
                seconds[name].append(way(Path(folder), items, slots))
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=100)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    seconds = measure(given.items, given.rounds, given.slots)
    print(describe_machine())
    print(f"{given.items:,} items, {given.slots} slots, synchronous=FULL, median of {given.rounds}\n")
    print(f"{'':20} {'items/s':>10} {'min':>10} {'max':>10} {'of plain sqlite3':>18}")
    plain = seconds["plain sqlite3"]
    for name, times in seconds.items():
        rates = [given.items / each for each in times]
        ratio = statistics.median(base / each for base, each in zip(plain, times, strict=True))
        print(f"{name:20} {statistics.median(rates):10,.0f} {min(rates):10,.0f} {max(rates):10,.0f} {ratio:18.2f}")


if __name__ == "__main__":
    main()
