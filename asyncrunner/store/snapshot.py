"""The raw rows that operators read: batches, workers, turns and items. ``admin/`` computes values from them.

Times are UTC text as in the rows, durations are seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from asyncrunner.domain.item import Counts, Status
from asyncrunner.store.read_models import FailedAttempt


class BatchRow(NamedTuple):
    """A batch and its live controls."""

    batch_id: int
    name: str
    handler: str
    created_at: str
    paused: bool
    cooldown_until: str | None
    concurrency: int | None
    stopped: str | None


class WorkerRow(NamedTuple):
    """A worker that has not left.

    ``alive``: whether its process is alive; None if the store cannot prove either. ``evidence``: the reason for
    ``alive``, as a clause about the worker. ``last_heartbeat`` is also the worker's pulse: it changes with every
    heartbeat. ``holding``: the number of items that the worker holds, of all batches or of the requested batch.
    ``slots_in_use``: the number at the last heartbeat. ``longest_block``: seconds.
    """

    worker_id: str
    host: str
    pid: int
    role: str
    batches: Sequence[str]
    alive: bool | None
    evidence: str
    started_at: str
    last_heartbeat: str
    holding: int = 0
    items_processed: int = 0
    items_failed: int = 0
    loop_blocks: int = 0
    longest_block: float = 0.0
    slots: int = 0
    slots_in_use: int = 0


class TurnRow(NamedTuple):
    """The numbers of items that one recent turn settled.

    ``at``: when the turn ran, in seconds since the epoch. ``durations``: seconds per attempt, by status; an evenly
    spaced sample if the turn settled many items.
    """

    at: float
    completed: int
    failed: int
    retried: int
    durations: dict[str, list[float]]


class StuckRow(NamedTuple):
    """An item that has been in processing for a long time."""

    batch: str
    id: str
    worker_id: str | None
    started_at: str
    attempts: int


class PendingRow(NamedTuple):
    """A pending item, and when it was added."""

    id: str
    created_at: str


class BatchSnapshot(NamedTuple):
    """A batch at one moment.

    ``turns``: its newest turns, newest first. ``processing_starts``: when the newest items in processing were claimed.
    ``stuck``: items that have been in processing for a long time, the longest first.
    """

    batch: BatchRow
    counts: Counts
    turns: Sequence[TurnRow]
    processing_starts: Sequence[str | None]
    stuck: Sequence[StuckRow]


class Snapshot(NamedTuple):
    """Batches, workers and the newest failed attempts at one moment.

    ``at``: the moment, in seconds since the epoch on the store's clock.
    """

    at: float
    batches: Sequence[BatchSnapshot]
    workers: Sequence[WorkerRow]
    failures: Sequence[FailedAttempt]


class StoredItem(NamedTuple):
    """All columns of an item, and its newest failed attempts, oldest first.

    Payload, result and checkpoint are JSON text.
    """

    batch: str
    id: str
    status: str
    attempts: int
    crashes: int
    priority: int
    permanent: bool
    suspect: bool
    created_at: str
    due_at: str | None
    started_at: str | None
    completed_at: str | None
    worker_id: str | None
    error: str | None
    fingerprint: str | None
    payload: str | None
    result: str | None
    checkpoint: str | None
    failures: Sequence[FailedAttempt]


class KnownItem(NamedTuple):
    """A stored item with a key of the input. ``is_changed``: the input has another payload for the key."""

    status: Status
    is_permanent: bool
    attempts: int
    is_changed: bool
