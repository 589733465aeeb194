"""The contract between operators and a store: ``Control``, the command line and the dry run use nothing else.

Reads return raw rows and compute nothing. They take no lock that blocks a writer, and each is short, however large the store is;
the exceptions are named. Each verb that writes is one transaction. Transactions are queued fairly with those of the workers. It
takes effect completely or not at all, and is durable when the verb returns.

No verb takes the time: the store has the clock. ``now()`` reads it, for callers that turn an age into a moment. Instants are
seconds since the epoch, in rows UTC text. Cursors are opaque.

Every verb raises StoreClosed if the store is not open, StoreUnavailable if the store stays locked, full or unreadable for
longer than it was opened to wait (30 seconds), and StoreError for lasting errors. A verb that raises has changed nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from asyncrunner.domain.item import NewItem, Status
from asyncrunner.store.items import Cursor, Page
from asyncrunner.store.read_models import FailureCause, ItemRecord, ItemSummary
from asyncrunner.store.snapshot import BatchRow, KnownItem, PendingRow, Snapshot, StoredItem, StuckRow, WorkerRow
from asyncrunner.store.workers import Stop

if TYPE_CHECKING:
    from asyncrunner.domain.outcome import ErrorInfo


class Filter(NamedTuple):
    """Items to list: by state, by a part of the error or its fingerprint, and by age; None lists all.

    In ``error``, ``*`` matches any text. ``before``: only items whose latest change is older than this instant.
    """

    status: Status | None = None
    error: str | None = None
    before: float | None = None


class Selection(NamedTuple):
    """Items to change: those with ``keys``, whatever their state, or else all in one of the states ``statuses``.

    ``error``: of the failed items, only those whose error contains this text (``*`` matches any text) or has this fingerprint.
    ``before``: of finished items, only those that ended before this instant.
    """

    statuses: Collection[Status] = ()
    keys: Sequence[str] | None = None
    error: str | None = None
    before: float | None = None


class ItemSet(NamedTuple):
    """Selected items; 8 bytes an item. Only the store that made the set knows the meaning of ``numbers``.

    ``counts``: how many items were in each state when they were selected. ``missing``: requested keys that do not exist.
    """

    selection: Selection
    numbers: array[int]
    counts: Mapping[str, int]
    missing: Sequence[str] = ()

    def parts(self, size: int) -> Iterator[ItemSet]:
        """Yield the set in parts of up to *size* items, for one transaction each."""
        for first in range(0, len(self.numbers), size):
            yield self._replace(numbers=self.numbers[first : first + size])


class Change(Enum):
    """A change of selected items. Items that meanwhile left the selected states stay as they are.

    RETRY: failed and cancelled items become pending and due, with fresh attempts. CANCEL: pending and processing items are
    cancelled, also in the hands of a worker. PURGE: completed, failed and cancelled items are deleted, with their failures and
    large results.
    """

    RETRY = "retry"
    CANCEL = "cancel"
    PURGE = "purge"


class Unset(Enum):
    """The type of ``UNSET``, for an argument that was not given where None has a meaning."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


class AdminStore(Protocol):
    """An operator's view of a store. The module's docstring has the rules that hold for every verb."""

    @property
    def location(self) -> str:
        """The location of the store, for messages."""
        ...

    async def open(self) -> None:
        """Open an existing store. Raises StoreNotFound (and creates nothing), NotAStore, SchemaTooNew, StoreError."""
        ...

    async def close(self) -> None:
        """Close the store. A second call does nothing."""
        ...

    # --- reading -----------------------------------------------------------------------------------------------------

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
        """Return the state of those batches (None: of all), of all workers, and the newest failed attempts of those batches.

        *stuck_after*: seconds in processing after which an item counts as stuck; None returns no stuck items. The duration
        does not depend on the number of finished items.
        """
        ...

    async def workers(self, batch_id: int | None = None) -> Sequence[WorkerRow]:
        """Return the workers that have not left, the oldest first; with *batch_id*, only those that hold items of it."""
        ...

    async def pulses(self) -> Mapping[str, str]:
        """Return the pulse of each worker that cannot be proven alive or dead, by worker id.

        Waits until the store can be written. While another program prevents that, no worker can write a heartbeat, and an
        unchanged pulse proves nothing.
        """
        ...

    async def find(self, batch_id: int, wanted: Filter, *, after: str | None, limit: int) -> Sequence[ItemSummary] | None:
        """Return up to *limit* items in input order, behind the item with the key *after* (None: from the first item).

        Returns None if no item has the key *after*. The position is a key, because people read and type it. If the clock was set
        back by more than an hour while items were added, ``Filter.before`` may miss some of them.
        """
        ...

    async def item(self, batch_id: int, key: str) -> StoredItem | None:
        """Return an item with its newest 100 failed attempts, or None if no item has that key."""
        ...

    async def similar_keys(self, batch_id: int, key: str) -> Sequence[str]:
        """Return keys that resemble *key*, which does not exist.

        These are up to 3 keys that differ from it by a likely typing error. If there are none, keys near it in order.
        """
        ...

    async def stuck(self, batch_ids: Sequence[int], *, longer_than: float, limit: int) -> Sequence[StuckRow]:
        """Return up to *limit* items per batch that are in processing for more than *longer_than* seconds, the longest first."""
        ...

    async def oldest_pending(self, batch_id: int) -> PendingRow | None:
        """Return the first item, in input order, of the pending items without a due time; None if there is none."""
        ...

    async def failure_causes(self, batch_id: int, limit: int) -> Sequence[FailureCause]:
        """Return the causes of failure, those with the most failed items first, then those with the most failed attempts."""
        ...

    async def export_page(self, batch_id: int, statuses: Collection[Status] | None, cursor: Cursor | None) -> Page[ItemRecord]:
        """Return the next page of items in input order, with whole results; only items in one of *statuses*, if given.

        A page is one read of up to 1,000 items. None for the cursor begins with the first item.
        """
        ...

    async def match_input(self, batch_id: int, entries: Sequence[NewItem]) -> Mapping[str, KnownItem]:
        """Return the stored items that have a key of *entries*, by key."""
        ...

    async def count_reopenable(self, batch_id: int, *, max_attempts: int) -> int:
        """Return how many failed items have made fewer than *max_attempts* attempts and have no permanent error."""
        ...

    async def has_orphans(self, batch_id: int | None = None) -> bool:
        """Return whether a batch, or any batch, has an item in processing whose worker is not registered."""
        ...

    # --- changing ----------------------------------------------------------------------------------------------------

    async def select(self, batch_id: int, selection: Selection) -> ItemSet:
        """Return the selected items, without changing them. Takes as long as reading all items of these states may take."""
        ...

    async def change(self, items: ItemSet, change: Change) -> int:
        """Change the items, and return how many have changed. The caller keeps transactions short with ``ItemSet.parts()``."""
        ...

    async def set_controls(self, batch_id: int, *, paused: bool | None = None, concurrency: int | Unset | None = UNSET) -> bool:
        """Set a batch's controls, which workers apply within a second; return whether something changed.

        ``paused=False`` ends a pause, a stop by a guardrail and a cool-down. *concurrency* is the number of handlers that run at
        the same time in each worker; None restores the program's number.
        """
        ...

    async def request_stop(self, worker_ids: Sequence[str], how: Stop) -> int:
        """Request a stop of those workers, which their next heartbeats return; return how many of them are registered.

        An earlier request for a stronger stop stays.
        """
        ...

    async def recover(self, worker_id: str | None, error: ErrorInfo, *, pulse: str | None = None) -> int:
        """Declare a worker lost and settle its items; with None, settle the orphaned items. See ``EngineStore.recover``."""
        ...


class InputKeys(Protocol):
    """The keys of the input of a dry run that were read so far, kept outside memory and outside the store."""

    def first_ones(self, entries: Sequence[NewItem]) -> tuple[Sequence[NewItem], Sequence[NewItem]]:
        """Record *entries*; return those whose key is new, and those whose key was seen before with another payload."""
        ...

    def close(self) -> None:
        """Delete the recorded keys."""
        ...
