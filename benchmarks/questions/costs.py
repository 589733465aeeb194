"""What does each part of the way of an item cost: triggers, indexes, statements, and the two threads?

The first table is measured in one thread, with the functions of the package on a raw connection: 4,000 items a transaction are
inserted as claimed, while those of the transaction before are settled. Each trigger and index is left out once, and other ways
are tried: turns claim the items, or a transaction has 1,000 items. The second table has the time of each small statement of a
turn. The third has the CPU time of both threads of a whole run: the event loop's thread needs the interpreter all the time, and
the connection's thread does not need it inside SQLite.

``python -m benchmarks costs [--items N] [--rounds N]``
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec

from asyncrunner import run_batch
from asyncrunner.domain.item import Claim, NewItem
from asyncrunner.domain.outcome import Completed, Settlement
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.claims.claim import claim_due
from asyncrunner.sqlite.claims.settle import prepare, settle
from asyncrunner.sqlite.file.creation import create_if_missing
from asyncrunner.sqlite.file.opening import connect_writer
from asyncrunner.sqlite.file.wal import CHECKPOINT_BYTES, wal_of
from asyncrunner.sqlite.insert import Insertion
from asyncrunner.store.turn import ClaimRequest, Want
from benchmarks.harness.figures import RATIO, Benchmark, Figure, Result, figure
from benchmarks.harness.measuring import each_over, interleaved, scratch

__all__ = ["BENCHMARK"]

WORKER: Final = "0123456789abcdef"
NOW: Final = 1_800_000_000.0
MOMENT: Final = "2027-01-15 08:00:00.000"
PARTS: Final = (
    ("TRIGGER", "items_replaced_by_hand"),
    ("TRIGGER", "items_inserted_by_hand"),
    ("TRIGGER", "items_due_by_hand"),
    ("TRIGGER", "items_deleted"),
    ("INDEX", "items_open"),
    ("INDEX", "items_failed"),
    ("INDEX", "items_suspect"),
    ("INDEX", "items_due"),
)
STATEMENTS: Final[dict[str, tuple[str, Sequence[object]]]] = {
    "IS_OUTCAST": (sql.workers.IS_OUTCAST, (WORKER,)),
    "CONTROLS": (sql.batches.CONTROLS, (1,)),
    "BEFORE_INSERT": (sql.items.BEFORE_INSERT, (1, "no such key", MOMENT, WORKER)),
    "ADD_TO_TOTAL": (sql.batches.ADD_TO_TOTAL, (0, 1)),
    "PROMOTE_DUE": (sql.claims.PROMOTE_DUE, (1, MOMENT, 500)),
    "PROMOTE_EARLIEST": (sql.claims.PROMOTE_EARLIEST, (1, MOMENT, 500)),
    "CLAIMABLE_SUSPECT": (sql.claims.CLAIMABLE_SUSPECT, (1, MOMENT)),
    "UNFINISHED": (sql.claims.UNFINISHED, (1,)),
    "NEXT_DUE": (sql.claims.NEXT_DUE, (1,)),
    "SAVEPOINT and RELEASE": ("SAVEPOINT a", ()),
}
CALLS: Final = 2_000


@dataclass(frozen=True)
class Size:
    items: int = 100_000
    rounds: int = 5


def entries_of(items: int) -> list[NewItem]:
    """Return dicts as items, whose keys are digests."""
    payloads = [
        msgspec.json.encode({"url": f"https://example.com/catalogue/{number}", "page": number % 50, "tags": ["new", "sale"]})
        for number in range(items)
    ]
    return [NewItem(blake2b(payload, digest_size=16).hexdigest(), payload.decode()) for payload in payloads]


def connect(folder: Path) -> sqlite3.Connection:
    """Return a connection to a new file with one batch and one worker."""
    path = folder / "costs.db"
    create_if_missing(path)
    connection = connect_writer(path, "full")
    connection.execute("INSERT INTO batches (name, handler, options, created_at) VALUES ('b', '', '{}', ?)", (MOMENT,))
    connection.execute(
        "INSERT INTO workers (worker_id, host, pid, started_at, last_heartbeat) VALUES (?, '', 0, ?, ?)", (WORKER, MOMENT, MOMENT)
    )
    return connection


def store_seconds(
    entries: Sequence[NewItem], folder: Path, *, without: tuple[str, str] | None = None, chunk: int = 4_000, turns: bool = False
) -> float:
    """Return the seconds of storing and settling *entries*, *chunk* a transaction; with *turns*, turns claim them."""
    connection = connect(folder)
    if without is not None:
        connection.execute(f"DROP {without[0]} {without[1]}")
    request = None if turns else ClaimRequest(WORKER, Want(1, chunk, 3))
    claims: Sequence[Claim] = ()
    began = time.perf_counter()
    for first in range(0, len(entries) + chunk, chunk):
        insertion = Insertion(1, entries[first : first + chunk], "error", NOW, request)
        prepared = prepare([Settlement(claim, Completed("3"), NOW, NOW) for claim in claims], NOW)
        connection.execute("BEGIN IMMEDIATE")
        settle(connection, prepared)
        claims = insertion.with_claims(insertion(connection)).claims
        if turns:
            claims = claim_due(connection, WORKER, Want(1, chunk, 3), NOW)[1]
        connection.execute("COMMIT")
        if wal_of(folder / "costs.db").stat().st_size >= CHECKPOINT_BYTES:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    seconds = time.perf_counter() - began
    done = connection.execute("SELECT count(*) FROM items WHERE status = 'completed'").fetchone()[0]
    assert done == len(entries), done
    connection.close()
    return seconds


def statement_microseconds(folder: Path) -> dict[str, float]:
    """Return the microseconds of a call of each small statement, on a batch with 10,000 items."""
    connection = connect(folder)
    connection.execute("BEGIN IMMEDIATE")
    Insertion(1, entries_of(10_000), "error", NOW)(connection)
    measured: dict[str, float] = {}
    for name, (statement, values) in STATEMENTS.items():
        began = time.perf_counter()
        for _ in range(CALLS):
            connection.execute(statement, values).fetchall()
            if name.startswith("SAVEPOINT"):
                connection.execute("RELEASE a")
        measured[name] = (time.perf_counter() - began) / CALLS * 1e6
    connection.execute("ROLLBACK")
    connection.close()
    return measured


def threads(items: Sequence[dict[str, Any]], folder: Path) -> tuple[float, float, float]:
    """Return the seconds of a run, and of CPU time in the loop's thread and in the other threads."""

    async def count(item: dict[str, Any]) -> int:
        return len(item)

    async def run() -> None:
        await run_batch(items, count, db=folder / "threads.db", batch="b", concurrency=100)

    began, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
    asyncio.run(run())
    seconds, cpu, own = time.perf_counter() - began, time.process_time() - cpu, time.thread_time() - own
    return seconds, own, cpu - own


def measure(size: Size) -> Result:
    """Measure all variants in turns, so that the machine's speed in a round affects all of them."""
    entries = entries_of(size.items)
    all_parts = "inserted as claimed and settled, 4,000 a transaction"
    ways: dict[str, Callable[[Path], float]] = {all_parts: partial(store_seconds, entries)}
    for part in PARTS:
        ways[f"without the {part[0].lower()} {part[1]}"] = partial(store_seconds, entries, without=part)
    ways["claimed by turns instead"] = partial(store_seconds, entries, turns=True)
    ways["1,000 a transaction instead"] = partial(store_seconds, entries, chunk=1_000)
    seconds = interleaved(size.rounds, ways)
    figures: list[Figure] = [
        figure(all_parts, "us/item", [each / size.items * 1e6 for each in seconds[all_parts]], lower_is_better=True)
    ]
    figures += [
        figure(f"{name}: of its time", RATIO, each_over(seconds[name], seconds[all_parts]), lower_is_better=True)
        for name in ways
        if name != all_parts
    ]
    statements: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    runs: list[tuple[float, float, float]] = []
    items = [{"url": f"https://example.com/catalogue/{n}", "page": n % 50, "tags": ["new", "sale"]} for n in range(size.items)]
    for _ in range(size.rounds):
        with scratch() as folder:
            for name, microseconds in statement_microseconds(folder).items():
                statements[name].append(microseconds)
            runs.append(threads(items, folder))
    figures += [figure(f"statement {name}", "us/call", times, lower_is_better=True) for name, times in statements.items()]
    names = ("a whole run", "CPU of the loop's thread", "CPU of the connection's thread")
    for name, times in zip(names, zip(*runs, strict=True), strict=True):
        figures.append(figure(name, "us/item", [each / size.items * 1e6 for each in times], lower_is_better=True))
    return Result(figures)


BENCHMARK = Benchmark("What does each part of the way of an item cost?", Size(), Size(items=2_000, rounds=1), measure)
