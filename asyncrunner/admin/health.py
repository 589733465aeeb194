"""Find the problems that need an operator, in a snapshot of raw rows. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from asyncrunner.admin.read_models import Problem, WorkerStatus
from asyncrunner.admin.status import isolated_items, lives, seconds_since, worker_statuses
from asyncrunner.store.liveness import unproven_text
from asyncrunner.store.snapshot import BatchSnapshot, PendingRow, Snapshot
from asyncrunner.text.durations import duration_text
from asyncrunner.text.escaping import counted, safe_text

_MAX_ISOLATION_SECONDS: Final = 60.0  # the time for which an isolated item may run without a report


def problems(
    snapshot: Snapshot, *, max_failed: int | None, max_pending_age: float | None, oldest: Mapping[int, PendingRow | None]
) -> Iterator[Problem]:
    """Yield the problems that only an operator can solve.

    *oldest*: the oldest item of each batch that is ready to run, by batch id; used only with *max_pending_age*.
    """
    workers = worker_statuses(snapshot.workers, snapshot.at)
    has_live_worker = any(lives(worker) for worker in workers)
    if not has_live_worker:
        yield from _worker_problems(workers)
    for batch in snapshot.batches:
        yield from _batch_problems(batch, has_live_worker=has_live_worker, max_failed=max_failed)
        yield from _isolation_problems(batch, snapshot.at)
        pending = oldest.get(batch.batch.batch_id)
        if max_pending_age is not None and pending is not None:
            yield from _age_problems(batch.batch.name, pending, max_pending_age, snapshot.at)


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


def _batch_problems(batch: BatchSnapshot, *, has_live_worker: bool, max_failed: int | None) -> Iterator[Problem]:
    row, counts = batch.batch, batch.counts
    if counts.unfinished and not has_live_worker:
        yield Problem("workers", row.name, f"{counted(counts.unfinished, 'unfinished item')} and no live worker")
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
