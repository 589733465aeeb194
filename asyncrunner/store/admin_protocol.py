"""The contract between operators and a store: ``Control``, the command line and the dry run use nothing else.

**Reads** return raw rows and compute nothing. A read takes no lock that blocks a writer. It is short, no matter how
large the store is, unless its docstring describes an exception.

**Writes.** Each verb that writes is one transaction, which waits in a fair queue with the transactions of the workers.
The transaction takes effect completely or not at all, and is durable when the verb returns.

**Time.** The store has its own clock, so no verb takes the time. A caller that converts an age to an instant calls
``now()``. Instants are seconds since the epoch, but UTC text in rows. Cursors are opaque.

**Errors.** Every verb raises StoreClosed if the store is not open, StoreUnavailable if the store stays locked, full or
unreadable for longer than the wait for which it was opened (30 seconds), and StoreError for lasting errors. A verb that
raises has changed nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from asyncrunner.domain.item import NewItem, Status
from asyncrunner.store.items import Cursor, Page
from asyncrunner.store.snapshot import (
    BatchRow,
    CausePage,
    HistoryRow,
    ItemRecord,
    ItemSummary,
    KnownItem,
    PendingRow,
    Snapshot,
    StoredItem,
    StuckRow,
    WorkerRow,
)
from asyncrunner.store.workers import Stop

if TYPE_CHECKING:
    from asyncrunner.domain.outcome import ErrorInfo


MAX_TEXT_BYTES: Final = 65_536
"""How much of a JSON text is read when one item is shown; a payload of 31 MB took 3.5 s and 382 MB."""


class Filter(NamedTuple):
    """A filter for items to list: by state, by a part of the error or its fingerprint, and by age; and their order.

    None matches all items. In ``error``, ``*`` matches any text. ``before``: only items whose latest change is before
    this instant. ``newest``: the order is that of the input, backwards.
    """

    status: Status | None = None
    error: str | None = None
    before: float | None = None
    newest: bool = False


class Matches(NamedTuple):
    """The items that a search found, the newest first.

    ``looked_at``: how many items it looked at. ``of``: the number of items of the batch in the state of the filter; None if
    the filter has an error or an age. ``last``: the key of the last item that it looked at, where the next search begins;
    None if no older item matches the filter, or none that the search can reach.
    """

    rows: Sequence[ItemSummary]
    looked_at: int
    of: int | None
    last: str | None


class Selection(NamedTuple):
    """A selection of items: the items with ``keys``, in any state, or else those in one of ``statuses``.

    ``error``: select only items whose error contains this text (``*`` matches any text) or has this fingerprint.
    ``before``: select only items whose latest change is before this instant: their end, else their start if they are
    processing, else their arrival.
    """

    statuses: Collection[Status] = ()
    keys: Sequence[str] | None = None
    error: str | None = None
    before: float | None = None


class ItemSet(NamedTuple):
    """A set of selected items; 8 bytes per item. Only the store that returned the set knows the meaning of ``numbers``.

    ``counts``: how many items were in each state when they were selected. ``missing``: requested keys that do not
    exist.
    """

    selection: Selection
    numbers: array[int]
    counts: Mapping[str, int]
    missing: Sequence[str] = ()

    def part(self, first: int, size: int) -> ItemSet:
        """Return up to *size* items of the set, from the one with the index *first* on, for one transaction."""
        return self._replace(numbers=self.numbers[first : first + size])


class Change(Enum):
    """A change of selected items. Items that have left the selected states meanwhile stay unchanged.

    RETRY: failed and cancelled items become pending and due, with fresh attempts. RERUN: the same, also for completed
    items, without a checkpoint; the result stays until another result replaces it, and items that a worker holds run once
    more after their attempt. CANCEL: pending and processing items
    are cancelled, also items that a worker holds. PURGE: completed, failed and cancelled items are deleted, with their
    recorded failures and large results.
    """

    RETRY = "retry"
    RERUN = "rerun"
    CANCEL = "cancel"
    PURGE = "purge"


class Unset(Enum):
    """The type of ``UNSET``, the default of an argument for which None has a meaning."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


class InspectionStore(Protocol):
    """The contract of a store with operators who only read. The module's docstring has the rules for every verb."""

    @property
    def location(self) -> str:
        """The location of the store, for messages."""
        ...

    async def open(self) -> None:
        """Open an existing store. Raises StoreNotFound (and creates no store), NotAStore, SchemaTooNew, StoreError."""
        ...

    async def close(self) -> None:
        """Close the store. A second call does nothing."""
        ...

    async def now(self) -> float:
        """Return the time on the store's clock."""
        ...

    async def batches(self) -> Sequence[BatchRow]:
        """Return all batches, in the order of their creation."""
        ...

    async def batches_with(self, key: str) -> Sequence[str]:
        """Return the names of the batches that have an item with that key, in the order of their creation."""
        ...

    async def snapshot(self, batch_ids: Sequence[int] | None, *, stuck_after: float | None = None) -> Snapshot:
        """Return the state of those batches (None: all batches), all workers, and the newest failures of failed items.

        *stuck_after*: seconds in processing after which an item counts as stuck; None returns no stuck items. The
        duration of the call does not depend on the number of finished items.
        """
        ...

    async def workers(self, batch_id: int | None = None) -> Sequence[WorkerRow]:
        """Return the workers that have not left, the oldest first; with *batch_id*, only those that hold its items."""
        ...

    async def find(self, batch_id: int, criteria: Filter, *, after: str | None, limit: int) -> Sequence[ItemSummary] | None:
        """Return up to *limit* items in the filter's order, from the item behind the key *after* (None: from the first one).

        Returns None if no item has the key *after*. The position is a key and not a cursor, because people read and
        type it. If the clock was set back by more than an hour while items were added, ``Filter.before`` may miss some
        of these items.
        """
        ...

    async def search(self, batch_id: int, criteria: Filter, text: str, *, after: str | None, limit: int) -> Matches | None:
        """Search the newest items, or those behind the key *after*, for *text*; return up to *limit* items that contain it.

        The search compares the key, payload, result and error of each item, ignoring the case of ASCII letters; ``*``
        matches any text. It looks at up to 10,000 items that match *criteria*, and at fewer if their payloads and results
        have more than 100 MB together. A large result, which is stored in pieces, is not searched. Returns None if no item
        has the key *after*.
        """
        ...

    async def item(self, batch_id: int, key: str, *, max_bytes: int = MAX_TEXT_BYTES) -> StoredItem | None:
        """Return an item with its newest 100 failed attempts, or None if no item has that key.

        Of a JSON text with more than *max_bytes* bytes, only that many are read: the item has its start, and its size.
        """
        ...

    async def similar_keys(self, batch_id: int, key: str) -> Sequence[str]:
        """Return existing keys that resemble *key*, a key that does not exist.

        These are up to 3 keys that differ from *key* by a likely typing error. If no such key exists, they are keys
        that precede or follow *key*, or a prefix of it, in sorted order.
        """
        ...

    async def keys_with(self, batch_ids: Sequence[int], prefix: str, limit: int) -> Sequence[str]:
        """Return up to *limit* keys per batch that start with *prefix*, in sorted order.

        With an empty *prefix*, return those of the newest items first; only the newest 10,000 items of the store are read.
        """
        ...

    async def stuck(self, batch_ids: Sequence[int], *, longer_than: float, limit: int) -> Sequence[StuckRow]:
        """Return up to *limit* items per batch that have been in processing for more than *longer_than* seconds.

        The items that have been in processing for the longest time come first.
        """
        ...

    async def oldest_pending(self, batch_id: int) -> PendingRow | None:
        """Return the first item in input order that is pending without a due time; None if there is none."""
        ...

    async def failure_causes(self, batch_id: int, limit: int) -> CausePage:
        """Return up to *limit* causes of failure: most failed items first, then most failed attempts."""
        ...

    async def cause_minutes(
        self, batch_id: int, fingerprints: Sequence[str], *, since: float, limit: int
    ) -> Mapping[str, Mapping[str, int]]:
        """Return how many attempts failed with each of these causes in each minute from *since* on.

        A minute is the start of a row's time, as in ``2026-11-27 16:05``. Of each cause, only the newest *limit* attempts
        count. Minutes without one are omitted.
        """
        ...

    async def history(self, batch_id: int, *, since: int, until: int, step: int) -> Sequence[HistoryRow]:
        """Return a batch's history from *since* to before *until*, summed up in steps of *step* seconds, the oldest step first.

        The three are whole multiples of 60 seconds, *since* and *until* in epoch seconds; steps begin at multiples of
        *step*. A step without settled attempts has no row. An attempt counts in the minute of the transaction that settled
        it, and is in the history if and only if that transaction is committed, also after a kill. Put-offs, releases,
        cancellations and outcomes that were dropped for a rerun do not count. The store keeps 14 days: it deletes older
        minutes sooner or later.
        """
        ...

    async def export_page(self, batch_id: int, statuses: Collection[Status] | None, cursor: Cursor | None) -> Page[ItemRecord]:
        """Return the next page of items in input order, with whole results.

        With *statuses*, the page has only items in these states. A page is one read of up to 1,000 items. A *cursor* of
        None begins with the first item.
        """
        ...

    async def export_selected(self, batch_id: int, selected: ItemSet) -> Sequence[ItemRecord]:
        """Return the items of the set, in its order, as ``export_page`` does.

        Items that were deleted or left the selected states are omitted. Callers keep reads short with ``ItemSet.part()``.
        """
        ...

    async def ids_of(self, selected: ItemSet) -> Sequence[str]:
        """Return the keys of the items of the set, in its order, without those that ``export_selected`` omits."""
        ...

    async def has_orphans(self, batch_id: int | None = None) -> bool:
        """Return whether a batch, or any batch, has an item in processing whose worker is not registered."""
        ...

    async def select(self, batch_id: int, selection: Selection, *, in_input_order: bool = False) -> ItemSet:
        """Return the selected items, without changing them. The call may read all items of the selected states."""
        ...


class AdminStore(InspectionStore, Protocol):
    """The contract of a store with its operators, who read and change it."""

    async def pulses(self) -> Mapping[str, str]:
        """Return the pulse of each worker that cannot be proven alive or dead, by worker id.

        The call waits until the store can be written. While another program prevents writes, no worker can write a
        heartbeat, and an unchanged pulse proves nothing.
        """
        ...

    async def match_input(
        self, batch_id: int, entries: Sequence[NewItem], *, version: str | None = None
    ) -> Mapping[str, KnownItem]:
        """Return the stored items whose key is in *entries*, by key, as a run with *version* would find them."""
        ...

    async def count_other_version(self, batch_id: int, version: str) -> int:
        """Return how many items a run with *version* would run again, because another version completed them.

        The read examines every item only if a change to this version was interrupted.
        """
        ...

    async def count_reopenable(self, batch_id: int, *, max_attempts: int) -> int:
        """Return how many failed items have made fewer than *max_attempts* attempts and have no permanent error."""
        ...

    # --- changing ----------------------------------------------------------------------------------------------------

    async def change(self, items: ItemSet, change: Change) -> int:
        """Change the items, and return how many were changed.

        Callers keep transactions short with ``ItemSet.part()``.
        """
        ...

    async def set_controls(self, batch_id: int, *, paused: bool | None = None, concurrency: int | Unset | None = UNSET) -> bool:
        """Set a batch's controls, which workers apply within a second; return whether something changed.

        ``paused=False`` ends a pause, a stop by a guardrail and a cool-down. *concurrency* is the maximum number of
        handlers that run at the same time in each worker; None restores the program's number.
        """
        ...

    async def request_stop(self, worker_ids: Sequence[str], how: Stop) -> int:
        """Request a stop of those workers; return how many of them are registered.

        The next heartbeat of each worker returns the request. An earlier request for a stronger stop stays.
        """
        ...

    async def recover(
        self, worker_id: str | None, error: ErrorInfo, *, pulse: str | None = None, batch_id: int | None = None
    ) -> int:
        """Declare a worker lost and settle its items; with None, settle the orphaned items, of all batches or of one.

        See ``EngineStore.recover``.
        """
        ...


class InputKeys(Protocol):
    """The keys that a dry run has read from its input. They are stored neither in memory nor in the store."""

    def first_ones(self, entries: Sequence[NewItem]) -> tuple[Sequence[NewItem], Sequence[NewItem]]:
        """Record *entries*; return those with a new key, and those whose key was recorded with another payload."""
        ...

    def close(self) -> None:
        """Delete the recorded keys."""
        ...
