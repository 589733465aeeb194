"""Snapshots built by hand, for the tests of values computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from asyncrunner.domain.item import Counts, Suspicion
from asyncrunner.store.snapshot import BatchRow, BatchSnapshot, PendingRow, Snapshot, SuspectRow, TurnRow, WorkerRow
from asyncrunner.store.workers import Throttle
from asyncrunner.text.timestamps import to_text

NOW: Final = 1_800_000_000.0


def snapshot(*batches: BatchSnapshot, workers: Sequence[WorkerRow] = ()) -> Snapshot:
    isolated = {each.batch.name: [row for row in each.suspects if row.suspicion is Suspicion.ISOLATED] for each in batches}
    return Snapshot(NOW, batches, workers, (), {name: rows for name, rows in isolated.items() if rows})


def batch(
    *, turns: Sequence[TurnRow] = (), processing_starts: Sequence[str | None] = (), paused: bool = False,
    stopped: str | None = None, cooldown_until: str | None = None, put_offs: int = 0,
    suspects: Sequence[SuspectRow] = (), name: str = "b", next_due_in: float | None = None, oldest: float | None = None,
    **counts: Any,
) -> BatchSnapshot:  # fmt: skip
    """Return the batch "b" with the given numbers of items by state."""
    row = BatchRow(1, name, "m:h", to_text(NOW - 3600), paused, cooldown_until, None, stopped, put_offs)
    next_due_at = None if next_due_in is None else to_text(NOW + next_due_in)
    first = None if oldest is None else PendingRow("first", to_text(NOW - oldest))
    return BatchSnapshot(row, Counts(**counts), turns, processing_starts, (), suspects, next_due_at, first)


def suspect(
    key: str = "k", suspicion: Suspicion = Suspicion.ISOLATED, *, seconds: float | None = None, worker_id: str = "live",
    due_in: float | None = None,
) -> SuspectRow:  # fmt: skip
    """Return a suspect that has run for *seconds*, or that is pending (None) and due in *due_in* seconds."""
    due_at = None if due_in is None else to_text(NOW + due_in)
    if seconds is None:
        return SuspectRow(key, suspicion, 3, False, None, to_text(NOW - 3600), due_at)
    return SuspectRow(key, suspicion, 3, True, worker_id, to_text(NOW - seconds), None)


def turn(seconds_ago: float, *, completed: int = 0, failed: int = 0, durations: dict[str, list[float]] | None = None) -> TurnRow:
    return TurnRow(NOW - seconds_ago, completed, failed, 0, durations or {})


def worker(
    worker_id: str, *, alive: bool | None, heartbeat_age: float = 0.0, holding: int = 0, throttle: Throttle | None = None,
    batches: Sequence[str] = ("b",),
) -> WorkerRow:  # fmt: skip
    return WorkerRow(
        worker_id, "here", 1, "work", batches, alive, "", to_text(NOW - 600), to_text(NOW - heartbeat_age), holding=holding,
        throttles={} if throttle is None else {"b": throttle},
    )  # fmt: skip
