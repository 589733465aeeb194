"""``asyncrunner status``: how the batches of a file stand, read from the file alone."""

from __future__ import annotations

import difflib
import sqlite3
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from asyncrunner.clock import from_text, to_text
from asyncrunner.errors import ConfigurationError
from asyncrunner.item import Counts
from asyncrunner.progress import rate_text
from asyncrunner.sqlite import reading
from asyncrunner.sqlite.connection import translated
from asyncrunner.sqlite.file import connect_reader
from asyncrunner.text import duration_text, json_text, safe_text

__all__ = ["show_status"]

_NEWEST: Final = 1000
_RATE_SECONDS: Final = 60.0
_MOST_STUCK: Final = 10


class Duration(msgspec.Struct, frozen=True):
    """Seconds, over the newest thousand attempts that ended so; for ``processing``, how long they have been running."""

    average: float
    p95: float


class Stuck(msgspec.Struct, frozen=True):
    """An item that is being processed for long; ``seconds`` since its claim."""

    id: str
    worker_id: str | None
    seconds: float
    attempts: int


class BatchStatus(msgspec.Struct, frozen=True):
    """A batch. ``rate`` is items done a second over the last minute, ``eta`` the seconds left at that rate."""

    name: str
    handler: str
    total: int
    counts: Counts
    paused: bool
    stopped: str | None
    resting_until: str | None
    rate: float
    eta: float | None
    durations: dict[str, Duration]
    stuck: list[Stuck]


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker that has not left. Seconds: ``heartbeat_age``, and ``longest_block``, for which its loop stood still."""

    worker_id: str
    host: str
    pid: int
    started_at: str
    heartbeat_age: float
    items_processed: int
    items_failed: int
    loop_blocks: int
    longest_block: float


class FileStatus(msgspec.Struct, frozen=True):
    """The whole document of ``--json``."""

    db: str
    at: str
    batches: list[BatchStatus]
    workers: list[WorkerStatus]


def show_status(db: Path, batch: str | None, *, stuck_after: float, as_json: bool) -> None:
    """Print it. Raises StoreNotFound, NotAStore, or ConfigurationError for a batch that is not there."""
    status = read_status(db, batch, stuck_after=stuck_after, now=time.time())
    if as_json:
        sys.stdout.write(json_text(status) + "\n")
    else:
        sys.stdout.write("\n".join(_lines(status)) + "\n")


def read_status(db: Path, batch: str | None, *, stuck_after: float, now: float) -> FileStatus:
    """What the file says at *now*. Takes as long for ten million finished items as for ten."""
    connection = connect_reader(db)
    try:
        with translated(str(db)):
            found = reading.batches(connection, batch)
            if batch is not None and not found:
                raise ConfigurationError(_no_such_batch(connection, db, batch))
            batches = [_batch(connection, row, stuck_after, now) for row in found]
            workers = [
                WorkerStatus(
                    row.worker_id, row.host, row.pid, row.started_at, _age(row.last_heartbeat, now),
                    row.items_processed, row.items_failed, row.loop_blocks, row.longest_block,
                )
                for row in reading.workers(connection)
            ]  # fmt: skip
    finally:
        connection.close()
    return FileStatus(str(db), to_text(now), batches, workers)


def _no_such_batch(connection: sqlite3.Connection, db: Path, batch: str) -> str:
    names = [row.name for row in reading.batches(connection)]
    near = difflib.get_close_matches(batch, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, names[:5])) or 'none yet'}"
    return f"{db} has no batch {batch!r}; {hint}"


def _batch(connection: sqlite3.Connection, row: reading.BatchRow, stuck_after: float, now: float) -> BatchStatus:
    counts = reading.counts(connection, row.batch_id, now)
    turns = reading.recent_turns(connection, row.batch_id)
    rate = _rate(turns, now)
    rests_until = from_text(row.cooldown_until)
    stuck = reading.stuck(connection, row.batch_id, to_text(now - stuck_after), _MOST_STUCK)
    durations = _durations(turns)
    running = reading.processing_seconds(connection, row.batch_id, now, _NEWEST)
    if running:
        durations["processing"] = _duration(list(running))
    return BatchStatus(
        name=row.name,
        handler=row.handler,
        total=counts.total,
        counts=counts,
        paused=row.paused,
        stopped=row.stopped,
        resting_until=row.cooldown_until if rests_until is not None and rests_until > now else None,
        rate=rate,
        eta=counts.unfinished / rate if rate > 0 and counts.unfinished and not row.paused and row.stopped is None else None,
        durations=durations,
        stuck=[Stuck(each.id, each.worker_id, _age(each.started_at, now), each.attempts) for each in stuck],
    )


def _age(text: str, now: float) -> float:
    at = from_text(text)
    return 0.0 if at is None else max(0.0, now - at)


def _rate(turns: Sequence[reading.TurnRow], now: float) -> float:
    recent = [turn for turn in turns if now - turn.at <= _RATE_SECONDS]
    if not recent:
        return 0.0
    # The oldest turn kept began with the one before it; what it settled was done before the span that is looked at.
    whole_minute = len(recent) < len(turns)
    seconds = _RATE_SECONDS if whole_minute else max(now - recent[-1].at, 0.001)
    counted = recent if whole_minute or len(recent) == 1 else recent[:-1]
    return sum(turn.completed + turn.failed for turn in counted) / seconds


def _durations(turns: Sequence[reading.TurnRow]) -> dict[str, Duration]:
    newest: dict[str, list[float]] = {}
    for turn in turns:
        for status, seconds in turn.durations.items():
            newest.setdefault(status, []).extend(seconds)
    return {status: _duration(seconds[:_NEWEST]) for status, seconds in newest.items() if seconds}


def _duration(seconds: list[float]) -> Duration:
    ordered = sorted(seconds)
    return Duration(sum(ordered) / len(ordered), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))])


def _lines(status: FileStatus) -> list[str]:
    lines = [safe_text(status.db)]
    for batch in status.batches:
        lines += ["", *_batch_lines(batch)]
    if not status.batches:
        lines += ["", "no batches yet; `asyncrunner run` makes one"]
    lines.append("")
    if not status.workers:
        lines.append("no workers: nothing is running on this file")
    for worker in status.workers:
        age = duration_text(worker.heartbeat_age)
        lines.append(
            f"worker {safe_text(worker.worker_id, limit=20)}: pid {worker.pid} on {safe_text(worker.host, limit=40)}, "
            f"heartbeat {age} ago, {worker.items_processed:,} processed, {worker.items_failed:,} failed"
        )
        if worker.loop_blocks:
            lines.append(
                f"  its loop was blocked {worker.loop_blocks:,} times, {duration_text(worker.longest_block)} at the longest; "
                "its log says by which item"
            )
    return lines


def _batch_lines(batch: BatchStatus) -> list[str]:
    counts = batch.counts
    waiting = f" ({counts.waiting:,} wait for a retry or their time)" if counts.waiting else ""
    lines = [
        f"{safe_text(batch.name)}: {batch.total:,} items",
        f"  {'pending':<11}{counts.pending:>12,}{waiting}",
        *(
            f"  {name:<11}{count:>12,}{_duration_text(batch.durations.get(name))}"
            for name, count in (
                ("processing", counts.processing),
                ("completed", counts.completed),
                ("failed", counts.failed),
                ("cancelled", counts.cancelled),
            )
        ),
    ]
    if counts.unfinished:
        left = f", {duration_text(batch.eta)} left" if batch.eta is not None else ""
        lines.append(f"  {rate_text(batch.rate)}{left}")
    if batch.paused:
        lines.append("  paused")
    if batch.stopped is not None:
        lines.append(f"  stopped: {safe_text(batch.stopped)}; it goes on when it is run again")
    if batch.resting_until is not None:
        lines.append(f"  cools down until {safe_text(batch.resting_until)} UTC")
    for stuck in batch.stuck:
        lines.append(
            f"  stuck: {safe_text(stuck.id, limit=60)}, for {duration_text(stuck.seconds)}, attempt {stuck.attempts}, "
            f"worker {safe_text(stuck.worker_id, limit=20)}"
        )
    return lines


def _duration_text(duration: Duration | None) -> str:
    if duration is None:
        return ""
    return f"   {duration_text(duration.average)} on average, p95 {duration_text(duration.p95)}"
