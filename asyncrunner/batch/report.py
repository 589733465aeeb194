"""The report of a run: counts, causes of failure, and the outcome of every item, streamed from the file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, overload

from asyncrunner.domain.item import TERMINAL, Counts, Status
from asyncrunner.errors import AsyncRunnerError, BatchFailed, ItemCancelled, ItemNotFound, ItemUnfinished, StoreError
from asyncrunner.store.items import FailureGroup
from asyncrunner.submission.handle import item_failed
from asyncrunner.text.escaping import counted
from asyncrunner.text.plain_form import PlainForm

if TYPE_CHECKING:
    from asyncrunner.batch.source.given import GivenItems
    from asyncrunner.serialization.codec import Codec
    from asyncrunner.store.items import Cursor, ItemRow
    from asyncrunner.store.protocols import ReadStore

T = TypeVar("T")
R = TypeVar("R")
PAGE: Final = 500  # items in a page that is read from the store
GROUPS: Final = 20  # causes of failure in a report


@dataclass(frozen=True, slots=True)
class ItemOutcome(PlainForm, Generic[T, R]):
    """The outcome of an item that is done: its ``result`` if completed, its ``error`` (type and message) if failed.

    ``item`` and ``result`` are decoded to the types of the handler's annotations. ``duration`` is the duration of the
    last attempt in seconds. If another program damaged the stored result of a completed item, ``result`` is None,
    ``error`` reports the damage, and ``ok`` is False.

    A FastAPI route that names this type can return it, and ``to_dict()`` returns its fields as plain JSON types: ``item`` and
    ``result`` as they are stored.
    """

    id: str
    status: Status
    item: T
    result: R | None
    error: str | None
    attempts: int
    duration: float

    @property
    def ok(self) -> bool:
        """Whether the item is completed, and its result could be read."""
        return self.status is Status.COMPLETED and self.error is None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary of plain JSON types: dict, list, str, int, float, bool and None."""
        import msgspec

        from asyncrunner.serialization.codec import Codec  # many programs read no outcomes

        encode = Codec(nan="null").encode_result
        return {
            "id": self.id,
            "status": self.status.value,
            "item": msgspec.json.decode(encode(self.item)),
            "result": msgspec.json.decode(encode(self.result)),
            "error": self.error,
            "attempts": self.attempts,
            "duration": self.duration,
        }

    def _pydantic_fields(self) -> dict[str, Any]:
        return {**self.to_dict(), "status": self.status}  # an item may be of a type that pydantic does not know


class Outcomes(Generic[T, R]):
    """A converter of the store's rows to outcomes."""

    def __init__(self, items: Codec[T], results: Codec[R]) -> None:
        self._items = items
        self._results = results

    def of(self, row: ItemRow) -> ItemOutcome[T, R]:
        duration = 0.0
        if row.started_at is not None and row.completed_at is not None:
            duration = max(0.0, row.completed_at - row.started_at)
        result, error = None, row.error
        if row.result is not None and row.status is Status.COMPLETED:  # else it is the result of an earlier version or run
            try:
                result = self.result_of(row)
            except StoreError as damage:
                error = f"StoreError: {damage}"
        item = self._items.decode_result(row.payload)
        return ItemOutcome(row.id, row.status, item, result, error, row.attempts, duration)

    def result_of(self, row: ItemRow) -> R | None:
        """Return the result of a completed item. Raises StoreError if another program damaged it."""
        if row.result is None:
            return None
        try:
            return self._results.decode_result(row.result)
        except StoreError as damage:
            raise StoreError(f"the result of item {row.id!r} cannot be read: {damage}") from damage


def is_input_read(report: BatchReport[Any, Any]) -> bool:
    """Return whether the call read its whole input before it ended."""
    return report._stored.is_input_read  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - package-internal access


@dataclass(frozen=True, slots=True)
class StoredItems(Generic[T, R]):
    """Where a report reads the items that its call was given; without *given*, every item of the batch."""

    is_input_read: bool
    given: GivenItems | None  # None: the call continued with the items in the file
    reader: ReadStore
    batch_id: int
    outcomes: Outcomes[T, R]

    async def rows(self) -> AsyncIterator[ItemRow | None]:
        """Yield the row of each given item, in input order; None for an item that was deleted since."""
        if self.given is None:
            async for row in self._rows_of_batch():
                yield row
            return
        for seqs in self.given.pages(PAGE):
            rows = {row.seq: row for row in await self.reader.items_by_seq(self.batch_id, list(dict.fromkeys(seqs)))}
            for seq in seqs:
                yield rows.get(seq)

    async def _rows_of_batch(self) -> AsyncIterator[ItemRow]:
        cursor: Cursor | None = None
        while True:
            page = await self.reader.item_page(self.batch_id, cursor, PAGE)
            for row in page.rows:
                yield row
            cursor = page.next
            if cursor is None:
                return


def with_items(report: BatchReport[T, R], stored: StoredItems[T, R]) -> BatchReport[T, R]:
    """Let *report* read its items from *stored*, which is no field: FastAPI and ``to_dict()`` return every field."""
    vars(report)["_stored"] = stored
    return report


@dataclass(frozen=True, kw_only=True)
class BatchReport(PlainForm, Generic[T, R]):
    """What became of the items that one ``run_batch`` call was given.

    A FastAPI route can return the report, ``to_dict()`` returns its fields as plain JSON types, and a notebook shows them
    as a table. The outcomes and results of the items are no fields.

    The first counts are of what was given, each item once; without ``items`` that is every item of the batch. A stopped
    call does not count the items that it did not read. ``total``: the given items. ``completed``: those of them that any
    process completed during the call. ``skipped``: those that were completed before it. ``failed``, ``cancelled``,
    ``pending``: those in that state at its end; ``pending`` is 0 unless the call was stopped early. Items that were deleted
    since, for example by ``retention``, count as completed or skipped. ``duplicates``: items of the input that had the key of
    an earlier item of the input; each key runs once. ``failures``: the failed given items grouped by cause, the most
    frequent first, at most 20 causes. ``other_failures``: how many failed given items have other causes than these;
    ``Control.failures()`` has all causes of the batch.

    ``leftovers``: the items that earlier runs left unfinished, and that the call was not given, by their state at its end.
    ``batch_counts``: all items of the batch, by their state at its end.

    ``attempts``, ``retried`` and ``put_offs`` are of this process, for given items and for leftovers: attempts that it
    settled, attempts after which it scheduled a retry, and how often a service or the handler put an item off, which costs
    no attempt. ``duration``: seconds that the call took. ``stopped``: why the call ended early, or None.
    """

    batch: str
    db: str
    total: int
    completed: int
    skipped: int
    failed: int
    cancelled: int
    pending: int
    leftovers: Counts
    batch_counts: Counts
    attempts: int
    retried: int
    put_offs: int
    duplicates: int
    duration: float
    failures: Sequence[FailureGroup]
    other_failures: int = field(init=False)
    stopped: str | None

    def __post_init__(self) -> None:
        others = self.failed - sum(group.items for group in self.failures)
        object.__setattr__(self, "other_failures", max(0, others))  # the report is frozen

    @property
    def _stored(self) -> StoredItems[T, R]:
        stored: StoredItems[T, R] = vars(self)["_stored"]
        return stored

    @property
    def ok(self) -> bool:
        """Whether the whole input was read and every given item is completed."""
        return self._stored.is_input_read and not (self.failed or self.cancelled or self.pending)

    def raise_for_failures(self) -> BatchReport[T, R]:
        """Return the report. Raises BatchFailed if a given item failed."""
        if not self.failed:
            return self
        causes = "; ".join(f"{group.items} x {group.error:.200}" for group in self.failures[:3])
        others = self.failed - sum(group.items for group in self.failures[:3])
        more = f"; and {counted(others, 'item')} with other causes" if others > 0 else ""
        raise BatchFailed(
            f"{self.failed:,} of {counted(self.total, 'item')} of {self.batch!r} failed: {causes}{more}. "
            "Fix the cause and run again with retry_failed=True",
            failed=self.failed,
            total=self.total,
        )

    async def outcomes(self) -> AsyncIterator[ItemOutcome[T, R]]:
        """Yield the outcome of each given item that is done, in input order; an item that was given twice has two outcomes.

        Items that are not done, and items that were deleted since, have no outcome. Without ``items``, the outcomes are of
        all items of the batch. The file is read in pages, so the outcomes are those of now.
        """
        async for row in self._stored.rows():
            if row is not None and row.status in TERMINAL:
                yield self._stored.outcomes.of(row)

    @overload
    async def results(self) -> list[R]: ...
    @overload
    async def results(self, *, return_exceptions: Literal[False]) -> list[R]: ...
    @overload
    async def results(self, *, return_exceptions: bool) -> list[R | AsyncRunnerError]: ...

    async def results(self, *, return_exceptions: bool = False) -> list[Any]:
        """Return the result of each given item, in input order: as many results as items, duplicates included.

        Without ``items``, the results are those of all items of the batch. The list is in memory; ``outcomes()`` needs only
        one page at a time.

        Raises BatchFailed if an item failed, ItemUnfinished if the call stopped before it read or ran every item, and for
        single items ItemCancelled, ItemNotFound if the item was deleted since (by ``retention``, for example), or StoreError
        if its result cannot be read. With *return_exceptions*, the list has these exceptions in the places of their items
        (ItemFailed for a failed one), and it ends at the last item that the call read.
        """
        if not return_exceptions:
            self.raise_for_failures()
            if not self._stored.is_input_read:
                raise self._unfinished("the input of {batch} was not read to its end", None)
        results: list[Any] = []
        async for row in self._stored.rows():
            result = self._result_of(row, len(results))
            if isinstance(result, AsyncRunnerError) and not return_exceptions:
                raise result
            results.append(result)
        return results

    def _result_of(self, row: ItemRow | None, position: int) -> R | AsyncRunnerError | None:
        """Return the result of an item, or the exception that stands for it."""
        if row is None:
            return ItemNotFound(f"item {position} of the input was deleted from {self.batch!r} after it was given")
        if row.status is Status.FAILED:
            return item_failed(self.batch, row)
        if row.status is Status.CANCELLED:
            return ItemCancelled(f"item {row.id!r} of {self.batch!r} was cancelled", batch=self.batch, key=row.id)
        if row.status is not Status.COMPLETED:
            return self._unfinished(f"item {row.id!r} of {{batch}} is {row.status.value}", row.id)
        try:
            return self._stored.outcomes.result_of(row)
        except StoreError as damage:
            return damage

    def _unfinished(self, event: str, key: str | None) -> ItemUnfinished:
        reason = "" if self.stopped is None else f", because the call stopped early: {self.stopped}"
        message = f"{event.replace('{batch}', repr(self.batch))}{reason}. Run it again to continue"
        return ItemUnfinished(message, batch=self.batch, key=key)
