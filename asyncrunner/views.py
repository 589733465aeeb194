"""What is shown of a file: plain values, with times as the rows' own text (UTC) and everything else in seconds."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from asyncrunner.item import Counts

__all__ = [
    "BatchStatus",
    "Changed",
    "Duration",
    "FailedAttempt",
    "FailureCause",
    "FileStatus",
    "ItemDetails",
    "ItemPage",
    "ItemRecord",
    "ItemSummary",
    "Moment",
    "Problem",
    "Purged",
    "Stuck",
    "WorkerStatus",
]


class Duration(msgspec.Struct, frozen=True):
    """Seconds, over the newest thousand attempts that ended so; for ``processing``, how long they have been running."""

    average: float
    p95: float


class Stuck(msgspec.Struct, frozen=True):
    """An item that is being processed for long; ``seconds`` since its claim. ``worker_alive``: None if that is unknown."""

    batch: str
    id: str
    worker_id: str | None
    worker_alive: bool | None
    seconds: float
    attempts: int


class FailedAttempt(msgspec.Struct, frozen=True):
    """An attempt that failed, as it was recorded then."""

    batch: str
    id: str
    attempt: int
    failed_at: str
    error_type: str
    message: str
    traceback: str
    fingerprint: str

    @property
    def error(self) -> str:
        return f"{self.error_type}: {self.message}" if self.message else self.error_type


class BatchStatus(msgspec.Struct, frozen=True):
    """A batch. ``rate`` is items done a second over the last minute, ``eta`` the seconds left at that rate.

    ``concurrency``: handlers at once in a worker, if a person has set that; None: as the program says.
    """

    name: str
    handler: str
    total: int
    counts: Counts
    paused: bool
    stopped: str | None
    resting_until: str | None
    concurrency: int | None
    rate: float
    eta: float | None
    durations: dict[str, Duration]
    stuck: list[Stuck]


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker that has not left. ``alive``: whether its process lives; None if that is unknown.

    ``slots_in_use`` of ``slots`` ran a handler at its last heartbeat; ``holding`` are the items it holds now, unstarted ones too.
    Seconds: ``heartbeat_age``, and ``longest_block``, for which its loop stood still.
    """

    worker_id: str
    host: str
    pid: int
    alive: bool | None
    started_at: str
    heartbeat_age: float
    slots: int
    slots_in_use: int
    holding: int
    items_processed: int
    items_failed: int
    loop_blocks: int
    longest_block: float


class FileStatus(msgspec.Struct, frozen=True):
    """A file at a moment: its batches, its workers, and the newest failed attempts, those without their tracebacks."""

    db: str
    at: str
    batches: list[BatchStatus]
    workers: list[WorkerStatus]
    failures: list[FailedAttempt] = []


class ItemSummary(msgspec.Struct, frozen=True):
    """An item without its payload and result."""

    id: str
    status: str
    attempts: int
    crashes: int
    priority: int
    created_at: str
    due_at: str | None
    started_at: str | None
    completed_at: str | None
    worker_id: str | None
    error: str | None


class ItemPage(msgspec.Struct, frozen=True):
    """Some items in input order. ``after``: what to give as ``after`` for the next page; None at the end."""

    batch: str
    items: list[ItemSummary]
    after: str | None


class Moment(msgspec.Struct, frozen=True):
    """Something that happened to an item."""

    at: str
    what: str


class ItemDetails(msgspec.Struct, frozen=True):
    """Everything the file knows of an item. ``failures``: its newest hundred failed attempts, the oldest of them first.

    ``payload``, ``result`` and ``checkpoint`` are JSON values; a text that is none, as after an edit by hand, is given as it is.
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
    payload: Any
    result: Any
    checkpoint: Any
    failures: list[FailedAttempt]
    timeline: list[Moment]


class FailureCause(msgspec.Struct, frozen=True):
    """A cause of failure. ``items``: how many items have failed of it for good; ``attempts``: how many attempts ever did.

    ``first_seen`` and ``last_seen`` are of those attempts, None if a person made the items failed. ``example``: one of the items,
    and ``error`` is what it failed with. ``fingerprint`` is None where nothing but the error is known.
    """

    batch: str
    fingerprint: str | None
    items: int
    attempts: int
    first_seen: str | None
    last_seen: str | None
    example: str
    error: str


class Changed(msgspec.Struct, frozen=True):
    """What became of a request. ``changed`` items; ``unchanged`` were so already, or changed under our hands."""

    batch: str
    changed: int
    unchanged: int = 0


class Purged(msgspec.Struct, frozen=True):
    """What was deleted, or would be: ``items`` by status. ``free_bytes``: room in the file that new items will use."""

    batch: str
    before: str
    items: dict[str, int]
    dry_run: bool
    free_bytes: int


class Problem(msgspec.Struct, frozen=True):
    """What needs a person: ``check`` names the rule, ``batch`` is None for the whole file."""

    check: str
    batch: str | None
    message: str


class ItemRecord(NamedTuple):
    """An item as it is exported; ``payload``, ``result`` and ``checkpoint`` are JSON texts."""

    batch: str
    id: str
    status: str
    attempts: int
    crashes: int
    priority: int
    created_at: str
    due_at: str | None
    started_at: str | None
    completed_at: str | None
    payload: str
    result: str | None
    error: str | None
    fingerprint: str | None
    checkpoint: str | None
