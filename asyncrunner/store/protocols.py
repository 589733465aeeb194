"""The Store protocol: the operations that the engine needs from a store of items. The docstrings are the contract.

The operations are verbs, never SQL strings, so that a store whose rows are shared by many machines can implement them.
Each verb that writes is one transaction: it takes effect completely or not at all, and is durable when it returns. Cancelling
the caller does not undo a call that has begun; it only ends the wait. Wall time is passed in as ``now``, in seconds since the
epoch. Every verb raises StoreUnavailable if it had no effect and may be repeated, and StoreClosed if the store is not open.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from asyncrunner.domain.item import Claim, Counts, NewItem, OnChange
from asyncrunner.domain.outcome import Settlement
from asyncrunner.store.batches import Added, Batch, BatchOptions, Controls
from asyncrunner.store.items import FailureGroup, ItemRow, Purged
from asyncrunner.store.turn import Checkpoint, LostClaim, Turn, Want
from asyncrunner.store.workers import Beat, Peer, Stop, Vitals, WorkerInfo

if TYPE_CHECKING:
    from asyncrunner.domain.outcome import ErrorInfo


class Store(Protocol):
    """A store of items. The module's docstring has the rules that hold for every verb."""

    @property
    def location(self) -> str:
        """The location of the store, for messages."""
        ...

    async def open(self) -> None:
        """Open the store; create or migrate it as needed.

        Raises NotAStore, SchemaTooNew or StoreUnavailable; then nothing was changed.
        """
        ...

    async def close(self) -> None:
        """Finish the calls that have begun, and release every thread, descriptor and lock. May be called twice."""
        ...

    async def open_batch(self, name: str, handler: str, options: BatchOptions, *, now: float) -> Batch:
        """Return the batch of that name, created if new. *options* replace the stored ones, and a stop of the batch is lifted."""
        ...

    async def find_batch(self, name: str) -> Batch | None:
        """Return the batch of that name, or None."""
        ...

    async def batch_names(self) -> Sequence[str]:
        """Return the names of all batches."""
        ...

    async def stop_batch(self, batch_id: int, reason: str, *, now: float) -> None:
        """Block claims of the batch until it is opened again. The first *reason* is kept."""
        ...

    async def add(self, batch_id: int, entries: Sequence[NewItem], *, on_change: OnChange, now: float) -> Added:
        """Store new items as pending. An item whose key exists keeps its row.

        If the key exists with another payload: ``"error"`` raises KeyConflict and stores nothing of the chunk, ``"keep"``
        ignores the new payload, and ``"rerun"`` stores it and makes the item pending with fresh attempts, even if a worker
        holds it.
        """
        ...

    async def reopen(self, batch_id: int, *, max_attempts: int, everything: bool, now: float) -> int:
        """Make failed items pending and return their number.

        Without *everything*: those with attempts left and no permanent error. With it: all of them, with fresh attempts.
        """
        ...

    async def join(self, worker: WorkerInfo, *, now: float) -> None:
        """Register a worker: take its liveness lock, then make the worker visible to the others."""
        ...

    async def leave(self, worker_id: str, *, now: float) -> None:
        """Deregister a worker: release its items (pending again, the attempt refunded) and its liveness lock."""
        ...

    async def beat(self, worker_id: str, vitals: Vitals, *, now: float) -> Beat:
        """Record a heartbeat and the worker's statistics. Raises StoreReplaced."""
        ...

    async def set_back(self, seconds: float, *, now: float) -> int:
        """Move retries, pauses and rate limits *seconds* earlier, after the clock was set back by that much.

        Returns the number of moved retries. Times that an operator set, or that an attempt set after the change of the
        clock, stay unchanged.
        """
        ...

    async def turn(
        self,
        worker_id: str,
        settled: Sequence[Settlement],
        wants: Sequence[Want],
        *,
        saved: Sequence[Checkpoint] = (),
        now: float,
    ) -> Turn:
        """Commit *saved* and *settled* and claim due items for *wants*, in one transaction.

        A checkpoint or settlement whose claim is no longer current changes nothing; ``Turn.lost`` names the claim.
        A claim counts as an attempt. Items are claimed by priority, then in the order in which they were added.
        """
        ...

    async def keep(self, claim: Claim, piece: int, text: str) -> bool:
        """Store one piece, counted from 0, of a result longer than LARGE_RESULT; ``Completed(kept=True)`` settles it later.

        The pieces are invisible until then. Returns False, and stores nothing, if the claim is not current. A piece may
        be stored again.
        """
        ...

    async def cancel(self, batch_id: int, ids: Sequence[str], *, now: float) -> int:
        """Cancel the items that are pending or processing, in any worker; return the number of cancelled items."""
        ...

    async def revoked(self, claims: Sequence[Claim]) -> Sequence[LostClaim]:
        """Return those of *claims* that are no longer current."""
        ...

    async def controls(self, batch_ids: Sequence[int]) -> Mapping[int, Controls]:
        """Return the current controls of those batches, for busy workers, whose full turns do not report them."""
        ...

    async def peers(self, worker_id: str) -> Sequence[Peer]:
        """Return the workers that joined and did not leave, without *worker_id* itself."""
        ...

    async def ask_to_stop(self, worker_ids: Sequence[str], how: Stop) -> int:
        """Request a stop of those workers, which their next heartbeats return; return how many of them are registered.

        An earlier request for a stronger stop stays.
        """
        ...

    async def recover(self, worker_id: str, error: ErrorInfo, *, now: float, pulse: str | None = None) -> int:
        """Declare a worker lost and settle its items: pending again, or failed if no attempt is left.

        With *pulse*, only if that is still the worker's newest pulse: a worker that has sent a heartbeat meanwhile is not
        lost. Items that were held together do not fail, see ``retry.conclude_loss``; each item's error describes the loss.
        Returns the number of items. If several callers recover one worker, one of them gets the number and the others 0.
        """
        ...

    async def recover_orphans(self, error: ErrorInfo, *, now: float) -> int:
        """Recover items whose worker is not registered, for example after rows were edited by hand; return their number."""
        ...

    async def purge(self, batch_ids: Sequence[int], *, before: float, after: int, limit: int) -> Purged:
        """Delete items of those batches that were completed before *before* (epoch seconds), with their failures.

        It examines the *limit* items after the ``seq`` *after*, of all batches, and holds the write lock only for these.
        Unfinished, failed and cancelled items stay, however old they are.
        """
        ...

    async def counts(self, batch_id: int, *, now: float) -> Counts:
        """Return how many items are in each state; exact even after rows were edited by hand."""
        ...

    async def recent_rate(self, batch_id: int) -> float | None:
        """Return how many items a second all workers together finished in the batch's latest activity; None if unknown."""
        ...

    async def rows(self, batch_id: int, *, after: int, limit: int) -> Sequence[ItemRow]:
        """Return the next items in input order after the ``seq`` *after* (0: from the first item)."""
        ...

    async def items(self, batch_id: int, ids: Sequence[str]) -> Sequence[ItemRow]:
        """Return the items with those keys that exist, in no order."""
        ...

    async def failure_groups(self, batch_id: int, *, limit: int) -> Sequence[FailureGroup]:
        """Return the failed items grouped by cause, the most frequent cause first."""
        ...

    async def wait_for_change(self, mark: int | None) -> int:
        """Wait until something may have changed since *mark*, and return a new mark; return immediately for None.

        A read that begins after the return sees everything written before the mark.
        """
        ...


class TransactionalInsert(Protocol):
    """The insertion of items in a transaction of the caller, on the caller's own connection. A store may lack it."""

    def insert_in(
        self,
        connection: object,
        batch: str,
        handler: str,
        options: BatchOptions,
        entries: Sequence[NewItem],
        *,
        on_change: OnChange,
        now: float,
    ) -> int | Awaitable[int]:
        """Add *entries* in the transaction of *connection*, create the batch if it is new, and return the batch's id.

        The items exist if and only if the caller commits. Raises KeyConflict, ConfigurationError for a connection that cannot be
        used, NotAStore and StoreUnavailable; the caller's transaction is then as it was before the call.
        """
        ...
