"""The contracts of a store. The docstrings are the contract, and ``tests/contract`` checks them against every store.

``EngineStore`` has the verbs of a running worker and of a program that submits items. ``ReadStore`` has the reads of reports,
handles and streams. ``Store`` is both, which a runner needs. The operations are verbs, never SQL strings, so that a store whose
rows are shared by many machines can implement them.

**Transactions.** Each verb that writes is one transaction, unless its docstring names several: it takes effect completely or not
at all, and is durable when it returns. Cancelling the caller does not undo a call that has begun; it only ends the wait.

**Errors.** Every verb raises StoreUnavailable if it had no effect and may be repeated, and StoreClosed if the store is not open.
A store that is reached over a network may lose the answer to a call that took effect. It then raises StoreUnavailable, and the
repeated call finds out what is already stored and returns that.

**Time.** A store has its own clock, so no verb takes the time. A store in a file uses the clock that it was constructed with. A
store whose rows are shared by many machines must use its server's clock, because the clocks of the machines differ. Instants are
seconds since the epoch, durations are seconds.

**Cursors and marks** are opaque: a caller only passes them back to the store that returned them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from asyncrunner.domain.item import Claim, Counts, NewItem, OnChange
from asyncrunner.domain.outcome import Settlement
from asyncrunner.store.batches import Added, Batch, BatchOptions, Controls
from asyncrunner.store.items import Cursor, FailureGroup, ItemRow, Mark, Page, PurgeStep
from asyncrunner.store.turn import Checkpoint, LostClaim, Turn, Want
from asyncrunner.store.workers import Beat, Peer, Vitals, WorkerInfo

if TYPE_CHECKING:
    from asyncrunner.domain.outcome import ErrorInfo


class ReadStore(Protocol):
    """The reads of reports, handles, streams and clients."""

    async def find_batch(self, name: str) -> Batch | None:
        """Return the batch of that name, or None."""
        ...

    async def batch_names(self) -> Sequence[str]:
        """Return the names of all batches."""
        ...

    async def counts(self, batch_id: int) -> Counts:
        """Return how many items are in each state; exact even after rows were edited by hand."""
        ...

    async def recent_rate(self, batch_id: int) -> float | None:
        """Return how many items a second all workers together finished in the batch's latest activity; None if unknown."""
        ...

    async def items(self, batch_id: int, keys: Sequence[str]) -> Sequence[ItemRow]:
        """Return the items with those keys that exist, in no order, with whole results."""
        ...

    async def item_page(self, batch_id: int, cursor: Cursor | None, limit: int) -> Page[ItemRow]:
        """Return up to *limit* items in input order with whole results, from *cursor* on (None: from the first item).

        If several processes add items at the same time, an item may become visible before *cursor* after the page was read; a
        walk that must find every item starts again at the end.
        """
        ...

    async def failure_causes(self, batch_id: int, limit: int) -> Sequence[FailureGroup]:
        """Return the failed items grouped by cause, the most frequent cause first, at most *limit* causes."""
        ...


class EngineStore(Protocol):
    """The verbs of a running worker, and of a program that submits items."""

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

    async def reader(self) -> ReadStore:
        """Return a store to read from, which stays usable after this store is closed, in any event loop.

        It sees what later calls commit, except that the reader of a store in memory is a copy of the current rows.
        """
        ...

    # --- batches and items -------------------------------------------------------------------------------------------

    async def open_batch(self, name: str, handler: str, options: BatchOptions) -> Batch:
        """Return the batch of that name, created if new. *options* replace the stored ones, and a stop of the batch is lifted."""
        ...

    async def stop_batch(self, batch_id: int, reason: str) -> None:
        """Block claims of the batch until it is opened again. The first *reason* is kept."""
        ...

    async def add(self, batch_id: int, entries: Sequence[NewItem], *, on_change: OnChange) -> Added:
        """Store new items as pending. An item whose key exists keeps its row.

        If the key exists with another payload: ``"error"`` raises KeyConflict and stores nothing of the chunk, ``"keep"``
        ignores the new payload, and ``"rerun"`` stores it and makes the item pending with fresh attempts, even if a worker
        holds it.
        """
        ...

    async def cancel(self, batch_id: int, keys: Sequence[str]) -> int:
        """Cancel the items that are pending or processing, in any worker; return the number of cancelled items."""
        ...

    async def reopen_failed(self, batch_id: int, *, max_attempts: int | None) -> int:
        """Make failed items pending and return their number.

        With *max_attempts*: the items that have made fewer attempts and have no permanent error; they keep their attempts.
        With None: all failed items, with fresh attempts.
        """
        ...

    # --- the turn ----------------------------------------------------------------------------------------------------

    async def turn(
        self,
        worker_id: str,
        settlements: Sequence[Settlement],
        wants: Sequence[Want],
        *,
        checkpoints: Sequence[Checkpoint] = (),
    ) -> Turn:
        """Commit *checkpoints* and *settlements* and claim due items for *wants*, in one transaction.

        A checkpoint or settlement whose claim is no longer current changes nothing; ``Turn.lost`` names the claim.
        A claim counts as an attempt. Items are claimed by priority, then in the order in which they were added.
        """
        ...

    async def stage_result(self, claim: Claim, piece: int, text: str) -> bool:
        """Store one piece, counted from 0, of a result longer than LARGE_RESULT; ``Completed(kept=True)`` settles it later.

        The pieces are invisible until then. Returns False, and stores nothing, if the claim is not current. A piece may
        be stored again.
        """
        ...

    async def controls(self, batch_ids: Sequence[int]) -> Mapping[int, Controls]:
        """Return the current controls of those batches, for busy workers, whose full turns do not report them."""
        ...

    async def lost_claims(self, claims: Sequence[Claim]) -> Sequence[LostClaim]:
        """Return those of *claims* that are no longer current."""
        ...

    async def wait_for_change(self, mark: Mark | None) -> Mark:
        """Wait until something may have changed since *mark*, and return a new mark; return immediately for None.

        A read that begins after the return sees everything written before the mark. The wait may also end without a change.
        """
        ...

    # --- workers -----------------------------------------------------------------------------------------------------

    async def join(self, worker: WorkerInfo) -> None:
        """Register a worker: take its liveness lock, then make the worker visible to the others."""
        ...

    async def leave(self, worker_id: str) -> None:
        """Deregister a worker: release its items (pending again, the attempt refunded) and its liveness lock."""
        ...

    async def beat(self, worker_id: str, vitals: Vitals) -> Beat:
        """Record a heartbeat and the worker's statistics. Raises StoreReplaced if the store's file was replaced.

        If the store's clock was set back since the newest heartbeat, by more than heartbeats differ anyway, then the beat also
        moves retries, pauses and rate limits earlier by as much, in the same transaction. Times that an operator set, or that an
        attempt set after the change of the clock, stay unchanged. A store that uses a server's clock does so only after a jump
        of the server's clock.
        """
        ...

    async def peers(self, worker_id: str) -> Sequence[Peer]:
        """Return the workers that joined and did not leave, without *worker_id* itself."""
        ...

    async def recover(self, worker_id: str | None, error: ErrorInfo, *, pulse: str | None = None) -> int:
        """Declare a worker lost and settle its items: pending again, or failed if no attempt is left.

        With *pulse*, only if that is still the worker's newest pulse: a worker that has sent a heartbeat meanwhile is not
        lost. Items that were held together do not fail, see ``retry.conclude_loss``; each item's error describes the loss.
        Returns the number of items. If several callers recover one worker, one of them gets the number and the others 0.

        With None for the worker, settle the orphaned items: their worker is not registered, for example because rows were
        edited by hand.
        """
        ...

    # --- retention ---------------------------------------------------------------------------------------------------

    async def purge_step(self, batch_ids: Sequence[int], *, older_than: float, cursor: Cursor | None) -> PurgeStep:
        """Delete some items of those batches that were completed more than *older_than* seconds ago, with their failures.

        One step of a walk: None begins a walk, ``PurgeStep.next`` continues it, and a walk to its end examines every item. A step
        examines about a thousand items and blocks other writers only while it deletes some of these. A walk begins with the
        oldest items and stays with them while any are due. Unfinished, failed and cancelled items stay, however old they are.
        """
        ...


class Store(EngineStore, ReadStore, Protocol):
    """The store of a runner."""


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
    ) -> int | Awaitable[int]:
        """Add *entries* in the transaction of *connection*, create the batch if it is new, and return the batch's id.

        The items exist if and only if the caller commits. Raises KeyConflict, ConfigurationError for a connection that cannot be
        used, NotAStore and StoreUnavailable; the caller's transaction is then as it was before the call.
        """
        ...
