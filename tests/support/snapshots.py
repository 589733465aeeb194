"""Snapshots built by hand, for the tests of values computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from asyncrunner.domain.item import Counts
from asyncrunner.store.snapshot import BatchRow, BatchSnapshot, Snapshot, TurnRow, WorkerRow
from asyncrunner.store.workers import Throttle
from asyncrunner.text.timestamps import to_text

NOW: Final = 1_800_000_000.0


def snapshot(*batches: BatchSnapshot, workers: Sequence[WorkerRow] = ()) -> Snapshot:
    return Snapshot(NOW, batches, workers, ())


def batch(
    *, turns: Sequence[TurnRow] = (), processing_starts: Sequence[str | None] = (), paused: bool = False,
    stopped: str | None = None, cooldown_until: str | None = None, put_offs: int = 0, **counts: Any,
) -> BatchSnapshot:  # fmt: skip
    """Return the batch "b" with the given numbers of items by state."""
    row = BatchRow(1, "b", "m:h", to_text(NOW - 3600), paused, cooldown_until, None, stopped, put_offs)
    return BatchSnapshot(row, Counts(**counts), turns, processing_starts, ())


def turn(seconds_ago: float, *, completed: int = 0, failed: int = 0, durations: dict[str, list[float]] | None = None) -> TurnRow:
    return TurnRow(NOW - seconds_ago, completed, failed, 0, durations or {})


def worker(
    worker_id: str, *, alive: bool | None, heartbeat_age: float = 0.0, holding: int = 0, throttle: Throttle | None = None
) -> WorkerRow:
    return WorkerRow(
        worker_id, "here", 1, "work", ("b",), alive, "", to_text(NOW - 600), to_text(NOW - heartbeat_age), holding=holding,
        throttles={} if throttle is None else {"b": throttle},
    )  # fmt: skip
