"""The contracts of a store. The docstrings are the contract, and ``tests/contract`` checks them against every store.

``EngineStore`` has the verbs of a running worker and of a program that submits items. ``ReadStore`` has the reads of
reports, handles and streams. A runner needs both contracts, which ``Store`` combines. The operations are verbs and not
SQL strings, so that a store that many machines share can implement them.

**Transactions.** Each verb that writes is one transaction, unless its docstring names several. The transaction takes
effect completely or not at all, and is durable when the verb returns. A cancellation of the caller ends the wait for a
call that has begun; it does not undo the call.

**Errors.** Every verb raises StoreUnavailable if the call had no effect and may be repeated, and StoreClosed if the
store is not open. A store on a network may lose the answer to a call that took effect. It then raises StoreUnavailable,
and the repeated call detects the stored effect and returns the same answer.

**Time.** A store has its own clock, so no verb takes the time. A store in a file uses the clock that its constructor
gets. A store that many machines share must use its server's clock, because the clocks of the machines differ. Instants
are seconds since the epoch, durations are seconds.

**Cursors and marks** are opaque: a caller only passes them back to the store that returned them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableSequence, Sequence
from typing import TYPE_CHECKING, Protocol

from asyncrunner.domain.item import Claim, Counts, NewItem, OnKnownKey
from asyncrunner.domain.outcome import Settlement
from asyncrunner.store.batches import Added, Batch, BatchOptions, BatchVersion, Controls
from asyncrunner.store.items import Cursor, FailureGroup, ItemRow, Mark, OpenItems, Page, PurgeStep
from asyncrunner.store.turn import Checkpoint, ClaimRequest, LostClaim, Turn, Want
from asyncrunner.store.workers import Beat, Peer, Vitals, WorkerInfo

if TYPE_CHECKING:
    from asyncrunner.domain.outcome import ErrorInfo


class ReadStore(Protocol):
    """The reads of reports, handles, streams and clients."""

    async def find_batch(self, name: str) -> Batch | None:
        """Return the batch of that name, or None."""
        ...

    async def incomplete_copies(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the sources of those of the batches that a copy began and has not completed, by name."""
        ...

    async def batch_names(self) -> Sequence[str]:
        """Return the names of all batches."""
        ...

    async def counts(self, batch_id: int) -> Counts:
        """Return how many items are in each state. The numbers are exact even after rows were edited by hand."""
        ...

    async def recent_rate(self, batch_id: int) -> float | None:
        """Return the items per second that all workers finished in the newest turns of the batch; None if unknown.

        The time in which no worker had a handler for the batch does not count.
        """
        ...

    async def items(self, batch_id: int, keys: Sequence[str]) -> Sequence[ItemRow]:
        """Return the existing items with those keys, in any order, with whole results."""
        ...

    async def items_by_seq(self, batch_id: int, seqs: Sequence[int]) -> Sequence[ItemRow]:
        """Return the items with those numbers, at most 500 and each once, that exist in the batch, in any order.

        Their results are whole.
        """
        ...

    async def item_page(self, batch_id: int, cursor: Cursor | None, limit: int) -> Page[ItemRow]:
        """Return up to *limit* items in input order with whole results, from *cursor* on (None: from the first item).

        If several processes add items at the same time, an item may become visible before *cursor* after the page was
        read. A walk that must find every item therefore repeats from the first item after its last page.
        """
        ...

    async def open_items(self, batch_id: int, *, on_snapshot: Callable[[], object] | None = None) -> OpenItems:
        """Return which items of the batch are not completed, by state, all at one moment.

        The store may call *on_snapshot* in the event loop once that moment is past and while it still reads: later changes
        are not in what it returns. After a StoreUnavailable a repeated call has a later moment.
        """
        ...

    async def failure_causes(self, batch_id: int, limit: int, *, seqs: Sequence[int] | None = None) -> Sequence[FailureGroup]:
        """Return the failed items grouped by cause, the most frequent cause first, at most *limit* causes.

        With *seqs*, only the items with those numbers.
        """
        ...


class EngineStore(Protocol):
    """The verbs of a running worker, and of a program that submits items."""

    @property
    def location(self) -> str:
        """The location of the store, for messages."""
        ...

    @property
    def busy_until(self) -> float:
        """The monotonic time before which a call in progress does not need the interpreter.

        Infinity if no call runs in a thread of this process.
        """
        ...

    @property
    def claims_with_add(self) -> bool:
        """Whether ``add`` claims new items on request."""
        ...

    async def open(self) -> None:
        """Open the store; create or migrate it if necessary.

        Raises NotAStore, SchemaTooNew or StoreUnavailable; the store is then unchanged.
        """
        ...

    async def close(self) -> None:
        """Finish the calls that have begun, and release every thread, descriptor and lock.

        A second call does nothing.
        """
        ...

    async def reader(self) -> ReadStore:
        """Return a reader, which stays usable after this store is closed, in any event loop.

        The reader sees later commits; only the reader of a store in memory is a copy of the current rows.
        """
        ...

    # --- batches and items -------------------------------------------------------------------------------------------

    async def open_batch(self, name: str, handler: str, options: BatchOptions) -> Batch:
        """Return the batch of that name; create the batch if it is new.

        *options* replace the stored options. A stop of the batch ends. Raises ConfigurationError, and changes nothing, if a
        copy began the batch and is not complete.
        """
        ...

    async def adopt_version(self, worker_id: str, batch_id: int, version: str) -> BatchVersion:
        """Make *version* the version of the batch's handler, and record that the worker runs it.

        If another worker that is not known to be dead runs another version, the call changes nothing and returns it in
        ``rivals``. Workers that run no version are no rivals. A change of the version requests a rerun of the items that
        workers hold (see ``add``), and ``apply_version`` does the rest. An earlier version counts as another version.
        """
        ...

    async def apply_version(self, batch_id: int, number: int) -> int:
        """Make the completed items pending that were claimed before the version with this number; return how many.

        They get fresh attempts, lose their checkpoint, and keep their result until another result replaces it. Many items
        take several short transactions, so other processes can write in between. After a crash or a cancellation, some of
        them are pending; another call does the rest, and never changes an item that was claimed since the change. If the
        version has changed again, the call changes nothing.
        """
        ...

    async def stop_batch(self, batch_id: int, reason: str) -> None:
        """Block claims of the batch until the batch is opened again. The first *reason* stays."""
        ...

    async def rest_batch(self, batch_id: int, seconds: float) -> None:
        """Block claims of the batch for *seconds*, or until the end of an earlier rest if that is later."""
        ...

    async def add(
        self, batch_id: int, entries: Sequence[NewItem], *, on_change: OnKnownKey, request: ClaimRequest | None = None
    ) -> Added:
        """Store new items as pending. An existing key with the same payload stays unchanged.

        *on_change* is the action for an existing key with another payload: ``"error"`` raises KeyConflict and stores no
        entry of the chunk, ``"keep"`` ignores the new payload, and ``"rerun"`` stores the new payload and makes the
        item pending with fresh attempts. For an existing key with any payload, ``"refuse"`` raises KeyConflict, and
        ``"run again"`` acts like ``"rerun"``.

        If a worker holds the item, its claim stays current, and the store keeps the request: ``turn``, ``leave`` and
        ``recover`` make the item pending with the new payload and fresh attempts when they settle the claim, whatever
        the outcome; only a cancellation withdraws the request. A newer request replaces an older one. The payload of the
        request is then the item's payload for the comparison with the next one.

        With *request*, a worker claims up to ``request.want.limit`` of the new items, the first ones, in the same transaction,
        so that they cost no claim of their own. The store claims none of them if a turn would not claim them next: another item
        of the batch is due, the batch is paused, stopped or resting or has another version, or an item of the chunk has a due
        time or another priority than the others. It may claim none for other reasons, too. A caller that is cancelled does not
        get the claims; ``leave`` releases them.
        """
        ...

    async def cancel(self, batch_id: int, keys: Sequence[str]) -> int:
        """Cancel the items with *keys* that are pending, or processing in any worker; return their number."""
        ...

    async def reopen_failed(self, batch_id: int, *, max_attempts: int | None) -> int:
        """Make failed items pending and return their number.

        With *max_attempts*, these are the items that have made fewer attempts and have no permanent error; they keep
        their attempts. With None, these are all failed items, which get fresh attempts. Many items take several short
        transactions, so other processes can write in between; after a crash or a cancellation some of them are pending.
        """
        ...

    async def give(self, batch_id: int, seqs: Sequence[int], *, max_attempts: int | None) -> int:
        """Permit the turns of this store object that have ``Want.only_given`` to claim the items with those numbers.

        The same transaction makes failed items of *seqs* pending, as ``reopen_failed`` does, and returns their number; with
        *max_attempts* of 0 none. The permission is not stored: it ends when the item has ended, and with ``close()``.
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

        A checkpoint or settlement whose claim is no longer current changes nothing; ``Turn.lost`` has the claim. If a
        rerun of the item was requested (see ``add``), the outcome is dropped, except that a failure is recorded;
        ``Turn.reruns`` has the claim. Each claim counts as an attempt. Items are claimed by priority, then in the order
        in which they were added.
        """
        ...

    async def stage_result(self, claim: Claim, piece: int, text: str) -> bool:
        """Store one piece, counted from 0, of a result longer than LARGE_RESULT; return whether it was stored.

        ``Completed(kept=True)`` settles the result later; until then its pieces are invisible. If the claim is not
        current, the call stores no piece and returns False. A piece may be stored again.
        """
        ...

    async def controls(self, batch_ids: Sequence[int]) -> Mapping[int, Controls]:
        """Return the controls of those batches. A worker needs them while its turns return all requested items."""
        ...

    async def lost_claims(self, claims: Sequence[Claim]) -> Sequence[LostClaim]:
        """Return the members of *claims* that are no longer current."""
        ...

    async def wait_for_change(self, mark: Mark | None) -> Mark:
        """Wait until the store may have changed since *mark*, and return a new mark.

        The call returns immediately if *mark* is None. A read that begins after the return sees every commit before the
        new mark. The wait may also end without a change.
        """
        ...

    async def wait_for_items(self, batch_ids: Sequence[int], mark: Mark | None) -> Mark:
        """Wait until another process or a person may have changed which items a worker of the batches can claim.

        That includes the end of the last unfinished item. *mark* and the result are as in ``wait_for_change``. The wait may also
        end without a change.
        """
        ...

    # --- workers -----------------------------------------------------------------------------------------------------

    async def join(self, worker: WorkerInfo) -> None:
        """Register a worker: acquire its liveness lock, then make the worker visible to the other workers."""
        ...

    def slot_notes(self, worker_id: str, slots: int) -> MutableSequence[int]:
        """Return a sequence of at least *slots* numbers for the seq of the item that each slot of the worker runs.

        The worker writes a seq before it starts a handler. If the store can keep the numbers beyond a kill of the
        process, recovery counts a crash only for these items and releases the others. A second call, with more slots,
        returns a longer sequence with the numbers of the first one.
        """
        ...

    async def leave(self, worker_id: str) -> None:
        """Deregister a worker: make its items pending, with the attempt refunded, and release its liveness lock."""
        ...

    async def beat(self, worker_id: str, vitals: Vitals) -> Beat:
        """Record a heartbeat and the worker's statistics. Raises StoreReplaced if the store's file was replaced.

        If the store's clock was set back since the newest heartbeat, by more than the usual difference between
        heartbeats, the same transaction moves the stored times of retries, pauses and rate limits back by that amount.
        Times that an operator set, or that an attempt set after the change of the clock, stay unchanged. With a
        server's clock, only a jump of that clock counts.
        """
        ...

    async def peers(self, worker_id: str) -> Sequence[Peer]:
        """Return the workers that have joined and have not left, without the worker *worker_id*."""
        ...

    async def recover(self, worker_id: str | None, error: ErrorInfo, *, pulse: str | None = None) -> int:
        """Declare a worker lost and settle its items: pending again, or failed if no attempt is left.

        With *pulse*, do so only if *pulse* is still the worker's newest pulse, because a worker that has sent a
        heartbeat meanwhile is not lost. ``retry.conclude_loss`` decides which items fail. Each item records *error*
        with the details of its attempt. Returns the number of items. If several callers recover one worker, one of them
        gets the number and the others get 0.

        With a *worker_id* of None, settle the orphaned items: their worker is not registered, for example because rows
        were edited by hand.
        """
        ...

    # --- retention ---------------------------------------------------------------------------------------------------

    async def purge_step(self, batch_ids: Sequence[int], *, older_than: float, cursor: Cursor | None) -> PurgeStep:
        """Delete some items that were completed more than *older_than* seconds ago, with their recorded failures.

        The call is one step of a walk over the items of *batch_ids*. A *cursor* of None begins a walk, and
        ``PurgeStep.next`` continues it; a walk to its end examines every item. A step examines about a thousand items,
        and blocks other writers only while it deletes items. A walk begins with the oldest items and stays with them
        while any of them are due. Unfinished, failed and cancelled items stay, no matter how old they are.
        """
        ...


class Store(EngineStore, ReadStore, Protocol):
    """The contract of a runner's store."""


class TransactionalInsert(Protocol):
    """The contract to insert items in a transaction of the caller, on the caller's connection. It is optional."""

    def insert_in(
        self,
        connection: object,
        batch: str,
        handler: str,
        options: BatchOptions,
        entries: Sequence[NewItem],
        *,
        on_change: OnKnownKey,
    ) -> tuple[int, Added] | Awaitable[tuple[int, Added]]:
        """Add *entries* in the transaction of *connection*, create the batch if it is new.

        Return the batch's id and what was added.

        The items exist if and only if the caller commits. Raises KeyConflict, NotAStore and StoreUnavailable, and
        ConfigurationError for a connection that cannot be used; the caller's transaction is then unchanged.
        """
        ...
