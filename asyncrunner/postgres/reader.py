"""The reads of reports, handles and streams, for a store that is open and for a reader that connects for each call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from asyncrunner.domain.item import Counts, Status
from asyncrunner.errors import StoreError
from asyncrunner.postgres import sql
from asyncrunner.postgres.connection.server_clock import ServerClock, store_clock
from asyncrunner.postgres.connection.session import Session
from asyncrunner.store.batches import Batch
from asyncrunner.store.items import Cursor, FailureGroup, ItemRow, Numbers, OpenItems, Page
from asyncrunner.store.rules import rates
from asyncrunner.store.rules.columns import durations_in
from asyncrunner.store.snapshot import TurnRow

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock
    from asyncrunner.postgres.connection.address import Address

T = TypeVar("T")
BEFORE_EVERY_SEQ: Final = -(2**63)
"""The position at which a walk over seqs begins."""


class PostgresReads:
    """The verbs of ReadStore. A subclass provides the session of each call."""

    def __init__(self, address: Address, clock: Clock | None) -> None:
        self._address = address
        self._clock = store_clock(clock)

    async def _read(self, operation: Callable[[Session], Awaitable[T]]) -> T:
        raise NotImplementedError

    async def find_batch(self, name: str) -> Batch | None:
        batch_id = await self._read(lambda session: session.value(sql.batches.BATCH_ID, name))
        return None if batch_id is None else Batch(batch_id, name)

    async def incomplete_copies(self, names: Sequence[str]) -> Mapping[str, str]:
        rows = await self._read(lambda session: session.fetch(sql.batches.INCOMPLETE_COPIES, list(names)))
        return dict(map(tuple, rows))

    async def batch_names(self) -> Sequence[str]:
        return [name for (name,) in await self._read(lambda session: session.fetch(sql.batches.BATCH_NAMES))]

    async def counts(self, batch_id: int) -> Counts:
        row = await self._read(lambda session: session.row(sql.turns.COUNTS, batch_id, self._clock.now()))
        return Counts() if row is None else Counts(*row)

    async def recent_rate(self, batch_id: int) -> float | None:
        async def operation(session: Session) -> float | None:
            rows = await session.fetch(sql.turns.RECENT_TURNS, batch_id, rates.MAX_RATE_TURNS)
            turns = [
                TurnRow(at, completed, failed, retried, durations_in(durations))
                for at, completed, failed, retried, durations in rows
            ]
            if not turns:
                return None
            name = await session.value(sql.batches.NAME, batch_id)
            spans = [rates.WorkerSpan(*row) for row in await session.fetch(sql.workers.WORKER_SPANS, turns[-1].at)]
            return rates.recent_rate(turns, name or "", lambda _: spans)

        return await self._read(operation)

    async def items(self, batch_id: int, keys: Sequence[str]) -> Sequence[ItemRow]:
        storable = [key for key in keys if is_text(key)]
        rows = [_item_row(row) for row in await self._read(lambda each: each.fetch(sql.items.ITEMS_BY_ID, batch_id, storable))]
        for row in rows:
            if row.result == "" and row.status is Status.COMPLETED:
                raise StoreError(
                    f"{self._address.shown}: the result of item {row.id!r} is incomplete: rows of result_pieces were deleted. To "
                    "run the item again, delete its row in items and add it again, or add it with a changed payload and "
                    'on_change="rerun"'
                )
        return rows

    async def items_by_seq(self, batch_id: int, seqs: Sequence[int]) -> Sequence[ItemRow]:
        return [_item_row(row) for row in await self._read(lambda each: each.fetch(sql.items.ITEMS_BY_SEQ, batch_id, list(seqs)))]

    async def item_page(self, batch_id: int, cursor: Cursor | None, limit: int) -> Page[ItemRow]:
        after = BEFORE_EVERY_SEQ if cursor is None else int(cursor)
        found = await self._read(lambda session: session.fetch(sql.items.ITEM_PAGE, batch_id, after, limit))
        rows = [_item_row(row) for row in found]
        return Page(rows, Cursor(str(rows[-1].seq)) if len(rows) == limit else None)

    async def open_items(self, batch_id: int, *, on_snapshot: Callable[[], object] | None = None) -> OpenItems:
        del on_snapshot  # the server takes the moment and sends all rows in one answer
        row = await self._read(lambda session: session.row(sql.items.OPEN_ITEMS, batch_id))
        if row is None:
            return OpenItems()
        newest, *states = row
        return OpenItems(newest, *[Numbers.of(seqs) for seqs in states])

    async def failure_causes(self, batch_id: int, limit: int, *, seqs: Sequence[int] | None = None) -> Sequence[FailureGroup]:
        numbers = None if seqs is None else list(seqs)
        rows = await self._read(lambda session: session.fetch(sql.turns.FAILURE_CAUSES, batch_id, limit, numbers))
        return [FailureGroup(error or "", count, example) for error, count, example in rows]


class PostgresReader(PostgresReads):
    """The ReadStore that connects for each call, so it works after its store is closed, and in any event loop."""

    async def _read(self, operation: Callable[[Session], Awaitable[T]]) -> T:
        session = Session(self._address, read_only=True)
        await session.reopen()
        try:
            if isinstance(self._clock, ServerClock):
                self._clock.measured(session.offset)
            return await operation(session)
        finally:
            await session.close()


def _item_row(row: Any) -> ItemRow:
    seq, key, status, *columns = row
    return ItemRow(seq, key, Status(status), *columns)


def is_text(key: str) -> bool:
    """Return whether the server can store *key*; no item has another key."""
    return "\0" not in key and not any("\ud800" <= character <= "\udfff" for character in key)
