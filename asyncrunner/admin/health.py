"""Find the problems that need an operator, in a snapshot of raw rows. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from asyncrunner.admin.read_models import Problem, WorkerStatus
from asyncrunner.admin.status import isolated_items, lives, seconds_since, time_of, why_incomplete, worker_statuses, workers_of
from asyncrunner.store.liveness import unproven_text
from asyncrunner.store.snapshot import BatchSnapshot, PendingRow, Snapshot
from asyncrunner.text.durations import duration_text
from asyncrunner.text.escaping import counted, safe_text
from asyncrunner.text.timestamps import from_text

_MAX_ISOLATION_SECONDS: Final = 60.0  # the time for which an isolated item may run without a report
_MAX_HEARTBEAT_SECONDS: Final = 60.0  # workers write a heartbeat each 1.2 s


class Limits(NamedTuple):
    """What an operator accepts: a number of failed items per batch, and ages in seconds. None accepts any."""

    max_failed: int | None = 0
    max_pending_age: float | None = None
    max_processing_age: float | None = None


def problems(snapshot: Snapshot, limits: Limits, location: str) -> Iterator[Problem]:
    """Yield the problems of the store at *location* that only an operator can solve.

    The stuck items of the *snapshot* are those that have been processing for longer than ``max_processing_age``.
    """
    workers = worker_statuses(snapshot.workers, snapshot.at)
    living = sum(map(lives, workers))
    if not living:
        yield from _worker_problems(workers)
    for batch in snapshot.batches:
        name = batch.batch.name
        incomplete = why_incomplete(batch.batch, location)
        if incomplete is not None:
            yield Problem("copy", name, incomplete)
            continue
        serving = workers_of(name, snapshot.workers, snapshot.at)
        yield from _batch_problems(batch, serving=len(serving), living=living, max_failed=limits.max_failed)
        if batch.counts.unfinished:
            yield from _rest_problems(batch, snapshot.at)
        yield from _isolation_problems(batch, snapshot.at)
        if limits.max_pending_age is not None and batch.oldest is not None:
            yield from _age_problems(name, batch.oldest, limits.max_pending_age, snapshot.at)
        if limits.max_processing_age is not None:
            yield from _processing_problems(batch, limits.max_processing_age, snapshot.at)


def liveness_problems(snapshot: Snapshot, host: str, batch: str | None) -> Iterator[Problem]:
    """Yield the problems that a restart of the workers of *host* solves: none is alive, or one writes no heartbeats.

    With a *batch*, only workers that serve it count.
    """
    rows = [row for row in snapshot.workers if row.host == host and (batch is None or batch in row.batches)]
    living = [worker for worker in worker_statuses(rows, snapshot.at) if lives(worker)]
    if not living:
        yield Problem("liveness", batch, f"no live worker on this host ({safe_text(host, limit=80)})")
    for worker in living:
        if worker.heartbeat_age > _MAX_HEARTBEAT_SECONDS:
            yield Problem(
                "liveness",
                batch,
                f"worker {safe_text(worker.worker_id, limit=40)} (pid {worker.pid}) wrote its newest heartbeat "
                f"{duration_text(worker.heartbeat_age)} ago: its event loop is blocked, or it cannot write to the store",
            )


def readiness_problems(snapshot: Snapshot, location: str) -> Iterator[Problem]:
    """Yield why an item that is added now would not start: no responsive worker, a pause, a stop, a rest, an incomplete copy.

    A batch whose items are all finished needs no worker: usually its run has ended, and no item waits for one.
    """
    living = [worker for worker in worker_statuses(snapshot.workers, snapshot.at) if _responds(worker)]
    if not snapshot.batches and not living:
        yield Problem("readiness", None, "no live worker")
    for batch in snapshot.batches:
        row = batch.batch
        incomplete = why_incomplete(row, location)
        if incomplete is not None:
            yield Problem("readiness", row.name, incomplete)
            continue
        is_finished = batch.counts.total > 0 and not batch.counts.unfinished
        if not is_finished and not any(map(_responds, workers_of(row.name, snapshot.workers, snapshot.at))):
            yield Problem("readiness", row.name, "no live worker serves the batch")
        if row.paused:
            yield Problem("readiness", row.name, "paused")
        if row.stopped is not None:
            yield Problem("readiness", row.name, f"stopped ({row.stopped})")
        yield from (Problem("readiness", row.name, each.message) for each in _rest_problems(batch, snapshot.at))


def _responds(worker: WorkerStatus) -> bool:
    return lives(worker) and worker.heartbeat_age <= _MAX_HEARTBEAT_SECONDS


def why_in_use(workers: Sequence[WorkerStatus]) -> str | None:
    """Return why the file may be in use (a worker is alive, or not proven dead), or None if all workers are dead."""
    living = sum(worker.alive is True for worker in workers)
    if living:
        return f"{counted(living, 'live worker')}: the file cannot be rewritten while workers run; stop them first"
    return unproven_text(sum(worker.alive is None for worker in workers))


def _worker_problems(workers: Sequence[WorkerStatus]) -> Iterator[Problem]:
    unproven = unproven_text(sum(worker.alive is None for worker in workers))
    if unproven is not None:
        yield Problem("workers", None, unproven)
    for worker in workers:
        if worker.alive is False and worker.holding:
            yield Problem(
                "workers",
                None,
                f"worker {worker.worker_id} is dead and holds {counted(worker.holding, 'item')}; "
                "start a worker to recover its items",
            )


def _batch_problems(batch: BatchSnapshot, *, serving: int, living: int, max_failed: int | None) -> Iterator[Problem]:
    row, counts = batch.batch, batch.counts
    if counts.unfinished and not serving:
        which = f", but no worker for this batch among {counted(living, 'live worker')}" if living else " and no live worker"
        paused = "; the batch is paused" if row.paused else ""
        yield Problem("workers", row.name, f"{counted(counts.unfinished, 'unfinished item')}{which}{paused}")
    if counts.unfinished and row.stopped is not None:
        yield Problem("stopped", row.name, f"stopped ({row.stopped}) with {counted(counts.unfinished, 'unfinished item')}")
    if max_failed is not None and counts.failed > max_failed:
        yield Problem("failed", row.name, f"{counted(counts.failed, 'failed item')}, more than {max_failed:,}")


def _isolation_problems(batch: BatchSnapshot, now: float) -> Iterator[Problem]:
    for item in isolated_items(batch.suspects, now):
        if item.seconds is not None and item.seconds >= _MAX_ISOLATION_SECONDS:
            yield Problem(
                "isolated",
                batch.batch.name,
                f"item {safe_text(item.id, limit=80)!r} has run in isolation for {duration_text(item.seconds)}, because "
                f"{counted(item.crashes, 'worker')} died while it ran; see its errors with `asyncrunner show KEY`, and end it "
                "with `asyncrunner cancel KEY` if it hangs",
            )


def _age_problems(batch: str, pending: PendingRow, max_age: float, now: float) -> Iterator[Problem]:
    age = seconds_since(pending.created_at, now)
    if age > max_age:
        limit = duration_text(max_age)
        yield Problem("pending", batch, f"item {pending.id!r} has been waiting for {duration_text(age)}, more than {limit}")


def _rest_problems(batch: BatchSnapshot, now: float) -> Iterator[Problem]:
    until = batch.batch.cooldown_until
    ends_at = from_text(until)
    if until is not None and ends_at is not None and ends_at > now:
        yield Problem(
            "resting",
            batch.batch.name,
            f"rests until {time_of(until, now)}, because a guardrail or a handler requested it; `asyncrunner resume` ends "
            "the rest",
        )


def _processing_problems(batch: BatchSnapshot, max_age: float, now: float) -> Iterator[Problem]:
    if batch.stuck:
        longest = batch.stuck[0]
        number = "more than 9 items have" if len(batch.stuck) > 9 else f"{counted(len(batch.stuck), 'item')} {_have(batch.stuck)}"
        yield Problem(
            "processing",
            batch.batch.name,
            f"{number} been processing for more than {duration_text(max_age)}; the longest is "
            f"{safe_text(longest.id, limit=80)!r}, for {duration_text(seconds_since(longest.started_at, now))}; "
            "see `asyncrunner stuck`",
        )


def _have(items: Sequence[object]) -> str:
    return "has" if len(items) == 1 else "have"
