"""The raw rows that operators read: batches, workers, turns, items and failures. ``admin/`` computes values from them.

Times are UTC text as in the rows, durations are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from asyncrunner.domain.item import Counts, Status, Suspicion
from asyncrunner.store.workers import Throttle
from asyncrunner.text.plain_form import PlainStruct


class BatchRow(NamedTuple):
    """A batch and its live controls. ``put_offs``: how often a service or the handler put its items off.

    ``version``: the newest version of its handler; None: no run gave one. ``copied_from``: the location from which a copy
    brings the batch here, if that copy is not complete; else None.
    """

    batch_id: int
    name: str
    handler: str
    created_at: str
    paused: bool
    cooldown_until: str | None
    concurrency: int | None
    stopped: str | None
    put_offs: int = 0
    version: str | None = None
    copied_from: str | None = None


class WorkerRow(NamedTuple):
    """A worker that has not left.

    ``alive``: whether its process is alive; None if the store cannot prove either. ``evidence``: the reason for
    ``alive``, as a clause about the worker. ``pulse`` changes with every heartbeat, also while the clock stands
    still. ``holding``: the number of items that the worker holds, of all batches or of the requested batch.
    ``slots_in_use``: the number at the last heartbeat. ``longest_block``: seconds. ``throttles``: the batches that a
    service slowed down in the worker at the last heartbeat, by name.
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
    throttles: Mapping[str, Throttle] = MappingProxyType({})
    pulse: str = ""


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


class HistoryRow(NamedTuple):
    """The attempts of a batch that were settled in one step of its history, which begins at ``at``, in epoch seconds.

    ``completed``, ``failed``: how many items they completed and failed. ``retried``: how many failed and were retried.
    ``seconds``: the sum of the durations of these attempts, without attempts whose worker was lost.
    """

    at: int
    completed: int
    failed: int
    retried: int
    seconds: float


class StuckRow(NamedTuple):
    """An item that has been in processing for a long time."""

    batch: str
    id: str
    worker_id: str | None
    started_at: str
    attempts: int


class SuspectRow(NamedTuple):
    """A pending or running item that may have killed its workers.

    ``crashes``: how many workers died while it ran. ``is_running``: a worker holds it, since ``started_at``. ``due_at``:
    when a pending item may run; None: now.
    """

    id: str
    suspicion: Suspicion
    crashes: int
    is_running: bool
    worker_id: str | None
    started_at: str | None
    due_at: str | None


class PendingRow(NamedTuple):
    """A pending item, and when it was added."""

    id: str
    created_at: str


class FailedAttempt(PlainStruct, frozen=True):
    """A failed attempt, as it was recorded at its end.

    ``duration``: seconds. ``started_at`` and ``duration`` are None if an earlier version of asyncrunner recorded the attempt.
    """

    batch: str
    id: str
    attempt: int
    failed_at: str
    error_type: str
    message: str
    traceback: str
    fingerprint: str
    started_at: str | None = None
    duration: float | None = None

    @property
    def error(self) -> str:
        return f"{self.error_type}: {self.message}" if self.message else self.error_type


class CauseRow(NamedTuple):
    """A cause of failure, with the end of the traceback of its newest failed attempt. See ``FailureCause``."""

    fingerprint: str | None
    items: int
    attempts: int
    first_seen: str | None
    last_seen: str | None
    example: str
    error: str
    traceback: str


class CausePage(NamedTuple):
    """The most frequent causes of failure of a batch, and how many causes and failed items the batch has in total."""

    rows: Sequence[CauseRow]
    causes: int
    items: int


class FailureCause(PlainStruct, frozen=True):
    """A cause of failure.

    ``items``: the number of failed items with it. ``attempts``: the number of failed attempts with it. ``first_seen``
    and ``last_seen``: times of these attempts; None if there are none, for example after a manual edit. ``example``:
    the id of one of the items, and ``error``: its error. ``fingerprint``: None if only the error text is known.
    ``causes``: more than 1 if so many causes with the same type of error and the same place were joined; then
    ``fingerprint`` is None, and ``error`` is a pattern of their errors, with ``*`` for the parts that differ.
    """

    batch: str
    fingerprint: str | None
    items: int
    attempts: int
    first_seen: str | None
    last_seen: str | None
    example: str
    error: str
    causes: int = 1


class BatchSnapshot(NamedTuple):
    """A batch at one moment.

    ``turns``: its newest turns, newest first. ``processing_starts``: when the newest items in processing were claimed.
    ``stuck``: items that have been in processing for a long time, the longest first. ``suspects``: the items that may
    have killed their workers, the isolated ones first. ``next_due_at``: when the next waiting item becomes due.
    ``oldest``: the first item in input order that is pending without a due time. ``history``: the minutes of the last hour
    with settled attempts, the running minute included.
    """

    batch: BatchRow
    counts: Counts
    turns: Sequence[TurnRow]
    processing_starts: Sequence[str | None]
    stuck: Sequence[StuckRow]
    suspects: Sequence[SuspectRow] = ()
    next_due_at: str | None = None
    oldest: PendingRow | None = None
    history: Sequence[HistoryRow] = ()


class Snapshot(NamedTuple):
    """Batches, workers and the newest failures of failed items at one moment.

    ``at``: the moment, in seconds since the epoch on the store's clock. ``isolated``: the isolated items of all batches
    of the file by batch name, because they delay the items of other batches too.
    """

    at: float
    batches: Sequence[BatchSnapshot]
    workers: Sequence[WorkerRow]
    failures: Sequence[FailedAttempt]
    isolated: Mapping[str, Sequence[SuspectRow]] = MappingProxyType({})


class ItemSummary(PlainStruct, frozen=True):
    """An item without its result. ``payload``: the first 200 characters of the JSON text of its payload."""

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
    payload: str = ""


class ItemColumns(PlainStruct, frozen=True):
    """The columns of an item without its JSON texts.

    ``suspect``: the item may have killed its workers. ``isolated``: it is a suspect that runs alone. ``put_offs``: how
    often a service or the handler put the item off. ``put_off_at``: the time of the first put-off since the
    item's last failure. ``put_off_until``: the time from which another put-off fails the item. Both are None without one.
    """

    batch: str
    id: str
    status: str
    attempts: int
    crashes: int
    priority: int
    permanent: bool
    suspect: bool
    isolated: bool
    created_at: str
    due_at: str | None
    started_at: str | None
    completed_at: str | None
    worker_id: str | None
    error: str | None
    fingerprint: str | None
    put_offs: int
    put_off_at: str | None
    put_off_until: str | None


class StoredItem(ItemColumns, frozen=True):
    """All columns of an item, and its newest failed attempts, oldest first.

    Payload, result and checkpoint are JSON text. ``rerun_payload``: the JSON text of the payload with which the item runs
    once more after its current attempt; None: it does not. ``cut``: the size in bytes of each of these texts of which the item
    has only the start, by name.
    """

    payload: str | None
    rerun_payload: str | None
    result: str | None
    checkpoint: str | None
    failures: Sequence[FailedAttempt]
    cut: Mapping[str, int] = MappingProxyType({})


class ItemRecord(NamedTuple):
    """An exported item; ``payload``, ``result``, ``checkpoint`` and ``rerun_payload`` are JSON text."""

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
    put_offs: int = 0
    rerun_payload: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of plain JSON types; a FastAPI route returns the record itself as a list."""
        return self._asdict()


class KnownItem(NamedTuple):
    """A stored item with a key of the input. ``is_changed``: the input has another payload for the key.

    ``is_other_version``: the run would run the item again, because another version completed it.
    """

    status: Status
    is_permanent: bool
    attempts: int
    is_changed: bool
    is_other_version: bool = False
