"""Problems that need a person, computed from a status. No I/O."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from asyncrunner.admin.status import lives, read_workers, seconds_since
from asyncrunner.sqlite import queries
from asyncrunner.sqlite.admin import queries as admin_queries
from asyncrunner.store.liveness import unproven_text
from asyncrunner.store.read_models import Problem
from asyncrunner.text.durations import duration_text
from asyncrunner.text.escaping import counted

# --- problems ----------------------------------------------------------------------------------------------------------


def problems(
    connection: sqlite3.Connection, path: Path, batches: Sequence[queries.BatchRow], *, max_failed: int | None,
    max_pending_age: float | None, now: float,
) -> Iterator[Problem]:  # fmt: skip
    """Yield the problems that need an operator, because they do not resolve without one."""
    workers = list(read_workers(connection, path, now))
    has_live_worker = any(lives(worker) for worker in workers)
    unproven = unproven_text(sum(worker.alive is None for worker in workers))
    if unproven is not None and not has_live_worker:
        yield Problem("workers", None, unproven)
    dead = [worker for worker in workers if worker.alive is False and worker.holding]
    for worker in dead if not has_live_worker else ():
        yield Problem(
            "workers",
            None,
            f"worker {worker.worker_id} is dead and holds {counted(worker.holding, 'item')}; start a worker to recover its items",
        )
    for row in batches:
        yield from _problems_of(
            connection, row, has_live_worker=has_live_worker, max_failed=max_failed, max_pending_age=max_pending_age, now=now
        )


def _problems_of(
    connection: sqlite3.Connection, row: queries.BatchRow, *, has_live_worker: bool, max_failed: int | None,
    max_pending_age: float | None, now: float,
) -> Iterator[Problem]:  # fmt: skip
    counts = queries.counts(connection, row.batch_id, now)
    if counts.unfinished and not has_live_worker:
        yield Problem("workers", row.name, f"{counted(counts.unfinished, 'unfinished item')} and no live worker")
    if counts.unfinished and row.stopped is not None:
        yield Problem("stopped", row.name, f"stopped ({row.stopped}) with {counted(counts.unfinished, 'unfinished item')}")
    if max_failed is not None and counts.failed > max_failed:
        yield Problem("failed", row.name, f"{counted(counts.failed, 'failed item')}, more than {max_failed:,}")
    if max_pending_age is not None:
        oldest = admin_queries.oldest_pending(connection, row.batch_id)
        pending_age = 0.0 if oldest is None else seconds_since(oldest[1], now)
        if oldest is not None and pending_age > max_pending_age:
            limit = duration_text(max_pending_age)
            yield Problem(
                "pending", row.name, f"item {oldest[0]!r} has been waiting for {duration_text(pending_age)}, more than {limit}"
            )
