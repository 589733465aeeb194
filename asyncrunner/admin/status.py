"""Compute the state of a file from short reads: counts, rates, durations, workers, and problems that need an operator."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from asyncrunner.sqlite import queries
from asyncrunner.sqlite.admin import queries as admin_queries
from asyncrunner.sqlite.file import liveness_lock
from asyncrunner.store.read_models import BatchStatus, Duration, FileStatus, Stuck, WorkerStatus
from asyncrunner.text.timestamps import from_text, to_text

_MAX_DURATIONS: Final = 1000  # newest attempts of which durations are shown

_RATE_SECONDS: Final = 60.0

_MAX_STUCK: Final = 10

_MAX_FAILURES: Final = 5

_FRESH_SECONDS: Final = 10.0  # a worker without a lock file counts as alive if its heartbeat is at most this old


def read_status(
    connection: sqlite3.Connection, path: Path, location: str, batches: Sequence[queries.BatchRow], *, one: int | None,
    stuck_after: float, now: float,
) -> FileStatus:  # fmt: skip
    """Return the state of *batches* at *now*; *one* is the id of the requested batch, None for all batches.

    The duration does not depend on the number of finished items.
    """
    alive = {row.worker_id: liveness_lock.is_held(path, row.worker_id) for row in queries.workers(connection)}
    return FileStatus(
        location,
        to_text(now),
        [_batch(connection, row, alive, stuck_after, now) for row in batches],
        list(read_workers(connection, path, now)),
        list(admin_queries.newest_failures(connection, one, _MAX_FAILURES)),
    )


def read_workers(connection: sqlite3.Connection, path: Path, now: float, *, one: int | None = None) -> Iterator[WorkerStatus]:
    """Yield the workers that have not deregistered; with *one*, only those that hold items of this batch."""
    holding = admin_queries.holdings(connection, one)
    for row in queries.workers(connection):
        held = holding.get(row.worker_id, 0)
        if one is not None and not held:
            continue
        yield WorkerStatus(
            row.worker_id, row.host, row.pid, liveness_lock.is_held(path, row.worker_id), row.started_at,
            seconds_since(row.last_heartbeat, now),
            row.slots, row.slots_in_use, held, row.items_processed, row.items_failed, row.loop_blocks, row.longest_block,
        )  # fmt: skip


def read_stuck(
    connection: sqlite3.Connection, path: Path, batches: Sequence[queries.BatchRow], *, longer_than: float, limit: int, now: float
) -> Iterator[Stuck]:
    """Yield up to *limit* items per batch that are processing for more than *longer_than* seconds, longest first."""
    alive = {row.worker_id: liveness_lock.is_held(path, row.worker_id) for row in queries.workers(connection)}
    for row in batches:
        yield from _stuck(connection, row, alive, longer_than, limit, now)


def _stuck(
    connection: sqlite3.Connection,
    row: queries.BatchRow,
    alive: dict[str, bool | None],
    longer_than: float,
    limit: int,
    now: float,
) -> Iterator[Stuck]:
    for item in queries.stuck(connection, row.batch_id, to_text(now - longer_than), limit):
        # A holder that is not among the workers has deregistered or was deleted: it will not settle the item.
        lives = False if item.worker_id is None else alive.get(item.worker_id, False)
        yield Stuck(row.name, item.id, item.worker_id, lives, seconds_since(item.started_at, now), item.attempts)


def _batch(
    connection: sqlite3.Connection, row: queries.BatchRow, alive: dict[str, bool | None], stuck_after: float, now: float
) -> BatchStatus:
    counts = queries.counts(connection, row.batch_id, now)
    turns = queries.recent_turns(connection, row.batch_id)
    rate = _rate(turns, now)
    cooldown_ends = from_text(row.cooldown_until)
    durations = _durations(turns)
    running = queries.processing_seconds(connection, row.batch_id, now, _MAX_DURATIONS)
    if running:
        durations["processing"] = _duration(list(running))
    return BatchStatus(
        name=row.name,
        handler=row.handler,
        total=counts.total,
        counts=counts,
        paused=row.paused,
        stopped=row.stopped,
        resting_until=row.cooldown_until if cooldown_ends is not None and cooldown_ends > now else None,
        concurrency=row.concurrency,
        rate=rate,
        eta=counts.unfinished / rate if rate > 0 and counts.unfinished and not row.paused and row.stopped is None else None,
        durations=durations,
        stuck=list(_stuck(connection, row, alive, stuck_after, _MAX_STUCK, now)),
    )


def seconds_since(text: str, now: float) -> float:
    at = from_text(text)
    return 0.0 if at is None else max(0.0, now - at)


def _rate(turns: Sequence[queries.TurnRow], now: float) -> float:
    recent = [turn for turn in turns if now - turn.at <= _RATE_SECONDS]
    if not recent:
        return 0.0
    # The oldest stored turn settled items that finished before it, so outside the measured span.
    whole_minute = len(recent) < len(turns)
    seconds = _RATE_SECONDS if whole_minute else max(now - recent[-1].at, 0.001)
    counted = recent if whole_minute or len(recent) == 1 else recent[:-1]
    return sum(turn.completed + turn.failed for turn in counted) / seconds


def _durations(turns: Sequence[queries.TurnRow]) -> dict[str, Duration]:
    newest: dict[str, list[float]] = {}
    for turn in turns:
        for status, seconds in turn.durations.items():
            newest.setdefault(status, []).extend(seconds)
    return {status: _duration(seconds[:_MAX_DURATIONS]) for status, seconds in newest.items() if seconds}


def _duration(seconds: list[float]) -> Duration:
    ordered = sorted(seconds)
    return Duration(sum(ordered) / len(ordered), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))])


def lives(worker: WorkerStatus) -> bool:
    """Return whether *worker* is presumed alive: its lock is held, or it has no lock file but a heartbeat at most 10 s old."""
    return worker.alive is True or (worker.alive is None and worker.heartbeat_age <= _FRESH_SECONDS)
