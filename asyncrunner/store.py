"""The Store protocol: what the engine asks of the place where items live. The docstrings are the contract.

A store is asked by verbs, never by SQL strings, so that a store whose rows many machines share fits behind it.
Every verb that writes is one transaction, whole or not at all, durable when it returns. Cancelling a caller
does not undo what has begun; it only stops the waiting. Wall time comes in as ``now``, seconds since the epoch.
Every verb raises StoreUnavailable when it had no effect and may be repeated, StoreClosed when the store is not open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from asyncrunner.item import Cancelled, Claim, Completed, Counts, Entry, Failed, OnChange, Outcome, Settled, Status
from asyncrunner.rate import Rate
from asyncrunner.retry import RetryPolicy

if TYPE_CHECKING:
    from asyncrunner.item import ErrorInfo

__all__ = [
    "Added",
    "Batch",
    "BatchOptions",
    "BatchState",
    "Beat",
    "Controls",
    "FailureGroup",
    "ItemRow",
    "Peer",
    "Purged",
    "Revoked",
    "Saved",
    "Stop",
    "Store",
    "Turn",
    "Vitals",
    "Want",
    "WorkerInfo",
    "done_row",
]


class BatchOptions(msgspec.Struct, frozen=True):
    """What every worker must know of a batch to recover items of it, also without its handler. Seconds."""

    max_attempts: int = 3
    initial: float = 1.0
    factor: float = 2.0
    cap: float = 300.0
    jitter: str = "full"

    @classmethod
    def of(cls, max_attempts: int, policy: RetryPolicy) -> BatchOptions:
        return cls(max_attempts, policy.initial, policy.factor, policy.cap, policy.jitter)

    def policy(self) -> RetryPolicy:
        """The backoff of the batch; which errors are transient only the program with the handler knows."""
        return RetryPolicy(
            initial=self.initial,
            factor=self.factor,
            cap=self.cap,
            jitter="none" if self.jitter == "none" else "full",
        )


class Batch(NamedTuple):
    """A named set of items with one handler."""

    batch_id: int
    name: str


class Added(NamedTuple):
    """What became of a chunk: new rows, keys that were there, and how many of those had another payload.

    ``undone``: of the changed ones, those that were completed and are pending again.
    """

    new: int
    existing: int
    changed: int
    undone: int


class Want(NamedTuple):
    """Room for *limit* more items of a batch, whose attempts end at *max_attempts*, started no faster than *rate*.

    ``suspect``: the worker holds nothing else and wants an item that may have killed its workers; those are given to
    nobody who does not ask for them.
    """

    batch_id: int
    limit: int
    max_attempts: int
    rate: Rate | None = None
    suspect: bool = False


class Saved(NamedTuple):
    """What an attempt wants kept for the item's next one; JSON."""

    claim: Claim
    checkpoint: str


class Revoked(NamedTuple):
    """A claim that is not current any more; *cancelled*: because the item was cancelled."""

    claim: Claim
    cancelled: bool


class BatchState(NamedTuple):
    """How a batch stands after a turn, for a worker that got less than it wanted.

    ``unfinished``: some item is pending or processing, whoever holds it. ``next_due``: the earliest time at which
    a waiting item may run. ``resting_until``: a person, ``Retry(pause=True)`` or the rate limit holds the batch until
    then (infinity: until resumed). ``concurrency``: how many may run at once in a worker, set from outside.
    ``stopped``: why a guardrail stopped the batch. ``suspects``: it is the turn of an item that must run alone.
    """

    unfinished: bool
    next_due: float | None
    resting_until: float | None
    concurrency: int | None
    stopped: str | None = None
    suspects: bool = False


class Turn(NamedTuple):
    """What a turn brings back. ``outcast``: the worker had been declared lost; it holds nothing any more.

    ``lost`` names claims that were not current, of settlements and of checkpoints.
    """

    claims: Sequence[Claim]
    lost: Sequence[Claim]
    batches: Mapping[int, BatchState]
    outcast: bool = False


class WorkerInfo(NamedTuple):
    """Who a worker is: its id is random per start, host and pid are for people only.

    ``role``: "run" for a ``run_batch``, which ends by itself, "work" for a process of the command line that only works, "service"
    for a runner inside a program of its own. ``batches``: the names of those it has handlers for.
    """

    worker_id: str
    host: str
    pid: int
    role: str = "service"
    batches: Sequence[str] = ()


class Stop(IntEnum):
    """What a worker was asked for from outside: to let its handlers end, or to cancel them."""

    NO = 0
    DRAIN = 1
    CANCEL = 2


class Controls(NamedTuple):
    """What a person asks of a batch's workers. ``held``: start nothing more (paused, or stopped by a guardrail).

    ``concurrency``: how many handlers may run at once in a worker; None: as the program says.
    """

    held: bool
    concurrency: int | None


class Vitals(NamedTuple):
    """What a worker has done since it joined, how often its loop stood still for long, and the longest time, in seconds.

    ``slots``: how many handlers it may run at once; ``slots_in_use``: how many it runs.
    """

    processed: int = 0
    failed: int = 0
    loop_blocks: int = 0
    longest_block: float = 0.0
    slots: int = 0
    slots_in_use: int = 0


class Beat(NamedTuple):
    """What a beat brings back. ``ahead``: by how many seconds the file's newest heartbeat is later than this one.

    ``stop``: what somebody outside has asked of the worker, by ``Store.ask_to_stop``.
    """

    outcast: bool
    ahead: float = 0.0
    stop: Stop = Stop.NO


class Peer(NamedTuple):
    """Another worker of the store. ``alive``: its lock is held (True), free (False), or proves nothing (None).

    ``pulse`` changes with every heartbeat and is only ever compared with itself.
    """

    worker_id: str
    pulse: str
    host: str
    pid: int
    alive: bool | None
    role: str = ""
    batches: Sequence[str] = ()


class Purged(NamedTuple):
    """A step of a purge: how many items were due, and how many it removed (the others somebody else did).

    ``reached``: up to which ``seq`` it looked; ``newest``: the newest ``seq`` there is.
    """

    due: int
    removed: int
    reached: int
    newest: int


class ItemRow(NamedTuple):
    """An item as it stands, for reports. Times are seconds since the epoch."""

    seq: int
    id: str
    status: Status
    attempts: int
    payload: str
    result: str | None
    error: str | None
    started_at: float | None
    completed_at: float | None


def done_row(claim: Claim, outcome: Outcome, started_at: float, finished_at: float) -> ItemRow | None:
    """What the store says of an item after that settlement, if the item is done."""
    result: str | None = None
    error: str | None = None
    match outcome:
        case Completed(result):
            status = Status.COMPLETED
        case Failed(info):
            status, error = Status.FAILED, str(info)
        case Cancelled():
            status = Status.CANCELLED
        case _:
            return None
    return ItemRow(claim.seq, claim.id, status, claim.attempt, claim.payload, result, error, started_at, finished_at)


class FailureGroup(NamedTuple):
    """Failed items with one cause: how many, and one of them as an example."""

    error: str
    items: int
    example: str


class Store(Protocol):
    """Where the items live. See the module's docstring for what holds of every verb."""

    @property
    def location(self) -> str:
        """Where it is, for messages."""
        ...

    async def open(self) -> None:
        """Create or migrate it as needed. Raises NotAStore, SchemaTooNew, StoreUnavailable; then nothing changed."""
        ...

    async def close(self) -> None:
        """Finish what has begun and leave no thread, descriptor or lock behind. Closing twice is fine."""
        ...

    async def open_batch(self, name: str, handler: str, options: BatchOptions, *, now: float) -> Batch:
        """The batch of that name, made if new; *options* replace the ones it had, and a stop is lifted."""
        ...

    async def find_batch(self, name: str) -> Batch | None:
        """The batch of that name, if there is one."""
        ...

    async def batch_names(self) -> Sequence[str]:
        """Every batch's name."""
        ...

    async def stop_batch(self, batch_id: int, reason: str, *, now: float) -> None:
        """Let nobody claim of the batch until it is opened again; the first reason stays."""
        ...

    async def add(self, batch_id: int, entries: Sequence[Entry], *, on_change: OnChange, now: float) -> Added:
        """Store new items as pending. A key that exists keeps its row.

        With another payload: ``"error"`` raises KeyConflict and stores nothing of the chunk, ``"keep"`` ignores the
        new payload, ``"rerun"`` takes it and makes the item pending afresh, whoever holds it.
        """
        ...

    async def reopen(self, batch_id: int, *, max_attempts: int, everything: bool, now: float) -> int:
        """Make failed items pending: those with attempts left and no permanent error, or all of them afresh."""
        ...

    async def join(self, worker: WorkerInfo, *, now: float) -> None:
        """Become a worker: hold a liveness lock, then be visible to the others."""
        ...

    async def leave(self, worker_id: str, *, now: float) -> None:
        """Stop being one: items still held go back to pending with the attempt refunded, the lock is dropped."""
        ...

    async def beat(self, worker_id: str, vitals: Vitals, *, now: float) -> Beat:
        """Say that the worker lives, and how it fares. Raises StoreReplaced."""
        ...

    async def set_back(self, seconds: float, *, now: float) -> int:
        """The clock was set back by that much: what waits for a retry, a pause or a rate comes as much earlier.

        Returns how many items. What a person, or an attempt that failed at the new time, asked for stays as it is.
        """
        ...

    async def turn(
        self, worker_id: str, settled: Sequence[Settled], wants: Sequence[Want], *, saved: Sequence[Saved] = (), now: float
    ) -> Turn:
        """Commit *saved* and *settled* and claim due items for *wants*, in one transaction.

        What is saved or settled under a claim that is no longer current changes nothing and is named in ``Turn.lost``.
        Claiming charges the attempt. Items go out by priority, then in the order they came in.
        """
        ...

    async def keep(self, claim: Claim, piece: int, text: str) -> bool:
        """Keep a piece, counted from 0, of a result that is longer than LARGE_RESULT, for ``Completed(kept=True)`` to settle.

        Nothing of it is seen before that. False if the claim is not current: then it is nobody's. Giving it again is fine.
        """
        ...

    async def cancel(self, batch_id: int, ids: Sequence[str], *, now: float) -> int:
        """Cancel those of the items that are pending or processing, whoever holds them; returns how many were."""
        ...

    async def revoked(self, claims: Sequence[Claim]) -> Sequence[Revoked]:
        """Those of *claims* that are not current any more."""
        ...

    async def controls(self, batch_ids: Sequence[int]) -> Mapping[int, Controls]:
        """What is asked of those batches now, for workers that hold all they want and so hear nothing of it in their turns."""
        ...

    async def peers(self, worker_id: str) -> Sequence[Peer]:
        """The workers that joined and did not leave, without the asker."""
        ...

    async def ask_to_stop(self, worker_ids: Sequence[str], how: Stop) -> int:
        """Have those workers' next beats say so; returns how many there were. A stronger wish of before stays."""
        ...

    async def recover(self, worker_id: str, error: ErrorInfo, *, now: float, pulse: str | None = None) -> int:
        """Declare a worker lost and settle what it held: pending again, or failed with no attempt left.

        With *pulse*, only if that is still its newest: who has beaten since he was looked at is not lost.
        What was held together fails nobody, see ``retry.conclude_loss``; every item's error says how it came to its loss.
        Returns how many items it held. Of several that recover one worker, one does and the others get 0.
        """
        ...

    async def recover_orphans(self, error: ErrorInfo, *, now: float) -> int:
        """The same for items whose holder is no worker at all, as after rows were edited by hand."""
        ...

    async def purge(self, batch_ids: Sequence[int], *, before: float, after: int, limit: int) -> Purged:
        """Remove items of those batches that were completed before that, with their failures.

        Looks at the *limit* items after the ``seq`` *after*, whosever they are, and holds no lock for longer than those take.
        Unfinished, failed and cancelled items stay, however old.
        """
        ...

    async def counts(self, batch_id: int, *, now: float) -> Counts:
        """How many items are in each state; exact, also after a person changed rows."""
        ...

    async def recent_rate(self, batch_id: int) -> float | None:
        """Items of the batch that were done a second, by all workers, while it was last worked on; None if that is not known."""
        ...

    async def rows(self, batch_id: int, *, after: int, limit: int) -> Sequence[ItemRow]:
        """The next items in input order after that ``seq`` (0 for the first)."""
        ...

    async def items(self, batch_id: int, ids: Sequence[str]) -> Sequence[ItemRow]:
        """Those of the items that exist, in no order."""
        ...

    async def failure_groups(self, batch_id: int, *, limit: int) -> Sequence[FailureGroup]:
        """Failed items by cause, the most frequent first."""
        ...

    async def wait_for_change(self, mark: int | None) -> int:
        """Return a new mark when something may have changed since *mark*; at once for None.

        What is written before a mark is returned is seen by whoever looks afterwards.
        """
        ...
