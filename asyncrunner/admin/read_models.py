"""The values that ``Control`` returns, as plain structs. Times are UTC text as in the rows, durations are seconds.

Each has ``to_dict()``, which returns plain JSON types. A FastAPI route can return it, and a notebook shows it as a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from asyncrunner.domain.item import Counts
from asyncrunner.store.snapshot import FailedAttempt, FailureCause, ItemColumns, ItemSummary
from asyncrunner.text.html import html_table
from asyncrunner.text.plain_form import PlainStruct


class Progress(NamedTuple):
    """The progress of a call that takes many steps: how many of its items are done, and how many there are."""

    done: int
    of: int


class Duration(PlainStruct, frozen=True):
    """Durations, in seconds, of the newest 1,000 attempts that ended in a state.

    For ``processing``, they are the times since the claims.
    """

    average: float
    p95: float


class Stuck(PlainStruct, frozen=True):
    """An item that has been in processing for a long time.

    ``seconds``: the time since its claim. ``worker_alive``: whether its worker is alive; None if unknown.
    """

    batch: str
    id: str
    worker_id: str | None
    worker_alive: bool | None
    seconds: float
    attempts: int


class Throttled(PlainStruct, frozen=True):
    """The slowdown of a batch by a service: ``limit`` of ``of`` slots may run its handlers, in all workers together.

    ``seconds``: the time since the service last refused a request.
    """

    limit: int
    of: int
    seconds: float


class Isolated(PlainStruct, frozen=True):
    """An item that runs alone, because it was the only suspect when a worker died.

    ``crashes``: how many workers died while it ran. ``seconds``: the time since its start; None if it is pending.
    """

    id: str
    crashes: int
    worker_id: str | None
    seconds: float | None


class BatchStatus(PlainStruct, frozen=True):
    """The state of a batch.

    ``rate``: finished items per second over the last minute; 0 if no live worker serves the batch. ``eta``: seconds until
    the batch is finished at that rate; None if the rate is 0, no item is left, most unfinished items wait for a later
    time, or the batch is paused, stopped or held back. ``stopped``: why a guardrail
    stopped the batch. ``resting_until``: the end of a cool-down. ``concurrency``: the operator's limit of concurrent
    handlers per worker; None: the program's number. ``put_offs``: how often a service or the handler put items off.
    ``throttled``: how a service slows the batch down; None if no service does. ``suspects``: how many unfinished items
    may have killed their workers; a worker starts one of them at a time, beside the other items. ``isolated``: the
    suspects that run alone. ``held_back``: a worker starts no other items now, because an isolated item of any batch
    runs or is due. ``workers``: how many live workers serve the batch. ``next_due_at``: when the next of the items becomes
    due that wait for a retry or a scheduled time. ``oldest``: seconds since the oldest item that is due was added.
    ``oldest_id``: its id.
    ``idle_reason``: why no item starts although some are unfinished; None if items start or none is left.
    ``version``: the newest version of its handler; None: no run gave one. ``last_hour``: the items completed in each of the
    last 60 minutes; the last number is of the running minute. ``copied_from``: the location from which ``asyncrunner copy``
    brings the batch, if that copy is not complete; else None. Then ``stopped`` and ``idle_reason`` have the command that
    completes it.
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
    put_offs: int = 0
    throttled: Throttled | None = None
    suspects: int = 0
    isolated: list[Isolated] = msgspec.field(default_factory=list)
    held_back: bool = False
    workers: int = 0
    next_due_at: str | None = None
    oldest: float | None = None
    idle_reason: str | None = None
    version: str | None = None
    last_hour: list[int] = msgspec.field(default_factory=list)
    copied_from: str | None = None
    oldest_id: str | None = None


class WorkerStatus(PlainStruct, frozen=True):
    """A worker that has not deregistered. ``alive``: whether its process is alive; None if unknown.

    ``slots_in_use``: slots that ran a handler at the last heartbeat. ``holding``: items that the worker holds now,
    including prefetched items. ``heartbeat_age``: seconds since the last heartbeat. ``longest_block``: the longest
    time, in seconds, for which the worker's event loop was blocked. ``items_processed`` and ``items_failed``: how many
    attempts ended in the worker, and how many of them failed.
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


class FileStatus(PlainStruct, frozen=True):
    """The state of a file at one time: batches, workers, and the newest failures of failed items, without tracebacks."""

    db: str
    at: str
    batches: list[BatchStatus]
    workers: list[WorkerStatus]
    failures: list[FailedAttempt] = msgspec.field(default_factory=list)


class HistoryPoint(PlainStruct, frozen=True):
    """What became of the attempts of a batch that ended in one minute or hour, which begins at ``at``.

    ``completed`` and ``failed``: the items that they completed or failed. ``retried``: how many of them failed, or lost their
    worker, and their items run again; put-offs, which cost no attempt, are not counted. ``seconds``: the sum of the durations
    of all these attempts, without those whose worker was lost.
    """

    at: str
    completed: int
    failed: int
    retried: int
    seconds: float


class History(PlainStruct, frozen=True):
    """The history of a batch, the oldest point first. ``step``: the time from one point to the next, ``"1m"`` or ``"1h"``."""

    batch: str
    step: str
    points: list[HistoryPoint]


class FailureCauses(list[FailureCause]):
    """A list of causes of failure. ``more_causes``, ``more_items``: how many causes, and failed items with them, it omits."""

    def __init__(self, causes: Iterable[FailureCause] = (), *, more_causes: int = 0, more_items: int = 0) -> None:
        super().__init__(causes)
        self.more_causes = more_causes
        self.more_items = more_items

    def to_dict(self) -> dict[str, Any]:
        """Return the causes and the two numbers as a dictionary of plain JSON types, like ``asyncrunner failures --json``."""
        return {"causes": [cause.to_dict() for cause in self], "more_causes": self.more_causes, "more_items": self.more_items}

    def _repr_html_(self) -> str:
        return html_table(self.to_dict())


class ItemPage(PlainStruct, frozen=True):
    """A page of items. ``after``: the ``after`` argument of the next page; None on the last page.

    ``looked_at``: how many items, the newest ones, were searched for ``contains``; None without it. ``of``: the number of
    items of the batch with the given status; None without ``contains``, and if ``error`` or ``older_than`` is given.
    """

    batch: str
    items: list[ItemSummary]
    after: str | None
    looked_at: int | None = None
    of: int | None = None


class Moment(PlainStruct, frozen=True):
    """An event in an item's timeline: when it happened or is due (``at``), and its description (``what``)."""

    at: str
    what: str


class ItemDetails(ItemColumns, frozen=True):
    """All stored details of an item. ``failures``: its newest 100 failed attempts, oldest first.

    ``payload``, ``result``, ``checkpoint`` and ``rerun_payload`` are JSON values; a stored text that is not valid JSON, for
    example after a manual edit, is returned unchanged. ``rerun_payload``: the item runs once more with this payload after
    its current attempt; None: it does not. Of a value with more than 65,536 bytes, only the start of its JSON text is read,
    and returned as a str: ``cut`` has the names of these values, each with its size in bytes. ``Control.export(ids=[...])``
    returns whole values.
    """

    payload: Any
    rerun_payload: Any
    result: Any
    checkpoint: Any
    failures: list[FailedAttempt]
    timeline: list[Moment]
    cut: dict[str, int] = msgspec.field(default_factory=dict[str, int])


class Changed(PlainStruct, frozen=True):
    """The result of a change, as numbers of items.

    ``unchanged``: items already in that state, or changed concurrently.
    """

    batch: str
    changed: int
    unchanged: int = 0


class StoppingWorker(PlainStruct, frozen=True):
    """A worker that a stop concerns. ``role``: run, work or service. ``batches``: those that it has handlers for."""

    worker_id: str
    host: str
    pid: int
    role: str
    batches: list[str]


class StopOutcome(PlainStruct, frozen=True):
    """The outcome of a stop request.

    ``asked``: the workers that got the request, without the unproven ones. ``running``: those of ``asked`` that have not
    ended in time. ``left``: workers that run the same batches, are not dead and got no request, because they belong to a
    service or also run other batches. ``unproven``: workers that got the request, have no lock file and have not changed their
    heartbeat since then, so that they cannot be proven alive or dead.
    """

    asked: list[StoppingWorker]
    running: list[StoppingWorker]
    left: list[StoppingWorker]
    unproven: list[StoppingWorker]


class Purged(PlainStruct, frozen=True):
    """The number of deleted items by status; in a dry run, the number of items that a purge would delete.

    ``free_bytes``: the free space in the file.
    """

    batch: str
    before: str
    items: dict[str, int]
    dry_run: bool
    free_bytes: int


class Copied(PlainStruct, frozen=True):
    """A batch that was copied to another store, and the number of its items by status that came from the source.

    ``failures``: how many records of failed attempts it has there. ``copied_before``: when an earlier call had completed the
    copy, so that this call changed nothing; else None. ``items`` and ``failures`` are then of the batch as it is there now.
    ``problem``: why the copy is not complete; None if it is. ``added``: how many items other programs have added there before
    the copy was complete. ``deleted``: how many items of an incomplete copy were deleted there, to begin again.
    """

    batch: str
    items: dict[str, int]
    failures: int
    copied_before: str | None
    problem: str | None
    added: int = 0
    deleted: int = 0


class DeletedCopy(PlainStruct, frozen=True):
    """An incomplete copy of a batch that ``Control.copy(restart=True)`` deletes, with all its ``items``, to begin again.

    ``added``: how many of these items other programs have added. ``source``: from where the copy came.
    """

    batch: str
    source: str
    items: int
    added: int


class Problem(PlainStruct, frozen=True):
    """A problem that needs an operator. ``check``: the name of the failed check. ``batch``: None for the whole file."""

    check: str
    batch: str | None
    message: str
