"""Compute the state of a store from a snapshot of raw rows: rates, ETA, durations, workers, stuck items. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

from asyncrunner.admin.inspection.history import last_hour
from asyncrunner.admin.read_models import BatchStatus, Duration, FileStatus, Isolated, Stuck, Throttled, WorkerStatus
from asyncrunner.domain.item import MAX_ISOLATION_SECONDS, Suspicion
from asyncrunner.store.copying.incomplete import CopyCommand, why_blocked
from asyncrunner.store.snapshot import BatchRow, BatchSnapshot, Snapshot, StuckRow, SuspectRow, TurnRow, WorkerRow
from asyncrunner.text.timestamps import from_text, to_text

_MAX_DURATIONS: Final = 1000  # durations are computed from at most this many of the newest attempts
_RATE_SECONDS: Final = 60.0
FRESH_SECONDS: Final = 10.0  # a worker without a lock file counts as alive if its heartbeat is at most this old

NO_WORKER: Final = "no live worker"
"""The reason why a batch starts no items if no live worker has a handler for it."""


def file_status(snapshot: Snapshot, location: str) -> FileStatus:
    """Return the state of the batches of *snapshot*, of the workers, and the newest failures of failed items."""
    held_back = _held_back(snapshot.isolated, snapshot.workers, snapshot.at)
    return FileStatus(
        location,
        to_text(snapshot.at),
        [_batch_status(batch, snapshot.workers, held_back, snapshot.at, location) for batch in snapshot.batches],
        worker_statuses(snapshot.workers, snapshot.at),
        list(snapshot.failures),
    )


def worker_statuses(workers: Iterable[WorkerRow], now: float) -> list[WorkerStatus]:
    """Return the workers with the ages of their heartbeats; *now* is in seconds since the epoch."""
    return [
        WorkerStatus(
            row.worker_id,
            row.host,
            row.pid,
            row.alive,
            row.started_at,
            seconds_since(row.last_heartbeat, now),
            row.slots,
            row.slots_in_use,
            row.holding,
            row.items_processed,
            row.items_failed,
            row.loop_blocks,
            row.longest_block,
        )
        for row in workers
    ]


def stuck_items(rows: Iterable[StuckRow], workers: Iterable[WorkerRow], now: float) -> list[Stuck]:
    """Return the stuck items with the liveness of their workers; *now* is in seconds since the epoch."""
    alive = {worker.worker_id: worker.alive for worker in workers}
    return [
        Stuck(
            row.batch,
            row.id,
            row.worker_id,
            # A holder that is not among the workers has deregistered or was deleted: it will not settle the item.
            False if row.worker_id is None else alive.get(row.worker_id, False),
            seconds_since(row.started_at, now),
            row.attempts,
        )
        for row in rows
    ]


def isolated_items(rows: Iterable[SuspectRow], now: float) -> list[Isolated]:
    """Return the isolated items among suspects; *now* is in seconds since the epoch."""
    return [
        Isolated(row.id, row.crashes, row.worker_id, seconds_since(row.started_at, now) if row.is_running else None)
        for row in rows
        if row.suspicion is Suspicion.ISOLATED
    ]


def _held_back(isolated: Mapping[str, Sequence[SuspectRow]], workers: Sequence[WorkerRow], now: float) -> Set[str]:
    """Return the names of the batches of which a worker starts no items now, because an isolated item runs or is due.

    The file does not show whether a worker already waits for its other items, so each due isolated item counts.
    """
    living = [worker for worker in workers if worker.alive is not False]
    holding: list[WorkerRow] = []
    for batch, items in isolated.items():
        for item in items:
            if not item.is_running and (from_text(item.due_at) or now) <= now:
                holding += [worker for worker in living if batch in worker.batches]
            elif item.is_running and seconds_since(item.started_at, now) < MAX_ISOLATION_SECONDS:
                holding += [worker for worker in living if worker.worker_id == item.worker_id]
    return {name for worker in holding for name in worker.batches}


def _batch_status(
    snapshot: BatchSnapshot, workers: Sequence[WorkerRow], held_back: Set[str], now: float, location: str
) -> BatchStatus:
    row, counts = snapshot.batch, snapshot.counts
    incomplete = why_incomplete(row, location)
    may_start = not row.paused and row.stopped is None and incomplete is None
    is_held_back = may_start and row.name in held_back
    serving = workers_of(row.name, workers, now)
    # A pause before the run is no part of its rate. Times of rows are text of one form, so they sort as times do.
    began = from_text(min((worker.started_at for worker in serving), default=None))
    rate = rate_of([turn for turn in snapshot.turns if began is None or turn.at >= began], now) if serving else 0.0
    cooldown_ends = from_text(row.cooldown_until)
    resting_until = row.cooldown_until if cooldown_ends is not None and cooldown_ends > now else None
    # The rate does not tell when items are finished that wait for a later time.
    has_eta = may_start and not is_held_back and rate > 0 and counts.unfinished and 2 * counts.waiting <= counts.unfinished
    durations = _durations(snapshot.turns)
    running = _processing_seconds(snapshot.processing_starts, now)
    if running:
        durations["processing"] = _duration(running)
    return BatchStatus(
        name=row.name,
        handler=row.handler,
        total=counts.total,
        counts=counts,
        paused=row.paused,
        stopped=row.stopped if incomplete is None else incomplete,
        resting_until=resting_until,
        concurrency=row.concurrency,
        rate=rate,
        eta=counts.unfinished / rate if has_eta else None,
        durations=durations,
        stuck=stuck_items(snapshot.stuck, workers, now),
        put_offs=row.put_offs,
        throttled=_throttled(row.name, workers, now),
        suspects=len(snapshot.suspects),
        isolated=isolated_items(snapshot.suspects, now),
        held_back=is_held_back,
        workers=len(serving),
        next_due_at=snapshot.next_due_at if counts.waiting else None,
        oldest=None if snapshot.oldest is None else seconds_since(snapshot.oldest.created_at, now),
        idle_reason=incomplete or _idle_reason(snapshot, resting_until, len(serving), now, is_held_back=is_held_back),
        version=row.version,
        last_hour=last_hour(snapshot.history, now),
        copied_from=row.copied_from,
        oldest_id=None if snapshot.oldest is None else snapshot.oldest.id,
    )


def why_incomplete(row: BatchRow, location: str) -> str | None:
    """Return why no worker starts items of a batch at *location* whose copy is not complete, or None."""
    return None if row.copied_from is None else why_blocked(CopyCommand(row.copied_from, location, [row.name]))


def _idle_reason(
    snapshot: BatchSnapshot, resting_until: str | None, serving: int, now: float, *, is_held_back: bool
) -> str | None:
    """Return why a worker starts no items of the batch although some are unfinished, or None; an operator's pause is first."""
    row, counts = snapshot.batch, snapshot.counts
    if not counts.unfinished:
        return None
    if row.paused:
        return "paused"
    if row.stopped is not None:
        return f"stopped: {row.stopped}"
    if not serving:
        return NO_WORKER
    if resting_until is not None:
        return f"rests until {time_of(resting_until, now)}"
    if is_held_back:
        return "held back by an isolated item"
    if counts.waiting == counts.unfinished and snapshot.next_due_at is not None:
        return f"next at {time_of(snapshot.next_due_at, now)}"
    return None


def time_of(moment: str, now: float) -> str:
    """Return a row's time for people, as in ``04:00 UTC``, its seconds unless they are 0, and its date unless it is today."""
    seconds = moment[16:19] if moment[16:19] != ":00" else ""
    date = "" if moment[:10] == to_text(now)[:10] else f"{moment[:10]} "
    return f"{date}{moment[11:16]}{seconds} UTC"


def workers_of(batch: str, workers: Iterable[WorkerRow], now: float) -> list[WorkerStatus]:
    """Return the workers that are presumed alive and have a handler for *batch*."""
    serving = [worker for worker in workers if batch in worker.batches]
    return [worker for worker in worker_statuses(serving, now) if lives(worker)]


def _throttled(batch: str, workers: Iterable[WorkerRow], now: float) -> Throttled | None:
    throttles = [worker.throttles[batch] for worker in workers if worker.alive is not False and batch in worker.throttles]
    if not throttles:
        return None
    return Throttled(
        sum(throttle.limit for throttle in throttles),
        sum(throttle.of for throttle in throttles),
        max(0.0, now - max(throttle.refused_at for throttle in throttles)),
    )


def seconds_since(text: str | None, now: float) -> float:
    """Return the seconds from a row's time to *now*, 0 at least; 0 for an unreadable time."""
    at = from_text(text)
    return 0.0 if at is None else max(0.0, now - at)


def rate_of(turns: Sequence[TurnRow], now: float) -> float:
    """Return the items finished per second in the last minute; *turns* are the newest turns, newest first."""
    recent = [turn for turn in turns if now - turn.at <= _RATE_SECONDS]
    if not recent:
        return 0.0
    # The items of the oldest turn finished before that turn, so before the time span begins: leave them out.
    whole_minute = len(recent) < len(turns)
    seconds = _RATE_SECONDS if whole_minute else max(now - recent[-1].at, 0.001)
    counted = recent if whole_minute or len(recent) == 1 else recent[:-1]
    return sum(turn.completed + turn.failed for turn in counted) / seconds


def _durations(turns: Sequence[TurnRow]) -> dict[str, Duration]:
    newest: dict[str, list[float]] = {}
    for turn in turns:
        for status, seconds in turn.durations.items():
            newest.setdefault(status, []).extend(seconds)
    return {status: _duration(seconds[:_MAX_DURATIONS]) for status, seconds in newest.items() if seconds}


def _processing_seconds(starts: Iterable[str | None], now: float) -> list[float]:
    instants = (from_text(start) for start in starts)
    return [max(0.0, now - instant) for instant in instants if instant is not None]


def _duration(seconds: list[float]) -> Duration:
    ordered = sorted(seconds)
    return Duration(sum(ordered) / len(ordered), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))])


def lives(worker: WorkerStatus) -> bool:
    """Return whether *worker* is presumed alive.

    Its lock is held, or it has no lock file and its heartbeat is at most 10 s old.
    """
    return worker.alive is True or (worker.alive is None and worker.heartbeat_age <= FRESH_SECONDS)
