"""The InspectionStore protocol, implemented on a schema of a PostgreSQL server, without the code that writes."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from asyncrunner.domain.clock import Clock
from asyncrunner.domain.item import Status
from asyncrunner.postgres.admin import changes, items, queries
from asyncrunner.postgres.connection.address import parse_address
from asyncrunner.postgres.connection.schema import check_exists
from asyncrunner.postgres.connection.server_clock import ServerClock, store_clock
from asyncrunner.postgres.connection.session import Session
from asyncrunner.postgres.reader import BEFORE_EVERY_SEQ
from asyncrunner.store.admin_protocol import MAX_TEXT_BYTES, Filter, ItemSet, Matches, Selection
from asyncrunner.store.items import Cursor, Numbers, Page
from asyncrunner.store.retrying import RETRY_SECONDS, retry_for
from asyncrunner.store.snapshot import (
    BatchRow,
    CausePage,
    HistoryRow,
    ItemRecord,
    ItemSummary,
    PendingRow,
    Snapshot,
    StoredItem,
    StuckRow,
    WorkerRow,
)

if TYPE_CHECKING:
    from asyncpg import Connection, Record

T = TypeVar("T")


class PostgresInspectionStore:
    """A view of a store on a PostgreSQL server that only reads, with or without running workers. It never creates a schema."""

    def __init__(self, location: str, clock: Clock | None = None, *, retry_seconds: float = RETRY_SECONDS) -> None:
        """Prepare an operator's view of the schema at *location*; ``open()`` opens it. Raises ConfigurationError.

        *retry_seconds*: seconds for which a call is repeated while the server is unavailable.
        """
        self._address = parse_address(location)
        self._clock = store_clock(clock)
        self._retry_seconds = retry_seconds
        self._reader = Session(self._address, read_only=True)

    @property
    def location(self) -> str:
        return self._address.shown

    async def open(self) -> None:
        await self._reader.open()
        try:
            await self._reader.call(lambda connection: check_exists(connection, self._address))
        except BaseException:
            await self._reader.close()
            raise
        self._measure(self._reader)

    async def close(self) -> None:
        await self._reader.close()

    def _measure(self, session: Session) -> None:
        if isinstance(self._clock, ServerClock):
            self._clock.measured(session.offset)

    async def _read(self, operation: Callable[[Connection[Record]], Awaitable[T]]) -> T:
        return await self._retry(lambda: self._reader.call(operation))

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        return await retry_for(call, self._clock, self._retry_seconds)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def now(self) -> float:
        return self._clock.now()

    async def batches(self) -> Sequence[BatchRow]:
        return await self._read(queries.batches)

    async def batches_with(self, key: str) -> Sequence[str]:
        return await self._read(lambda connection: items.batches_with(connection, key))

    async def snapshot(self, batch_ids: Sequence[int] | None, *, stuck_after: float | None = None) -> Snapshot:
        now = self._clock.now()
        return await self._read(lambda connection: queries.snapshot(connection, batch_ids, stuck_after=stuck_after, now=now))

    async def workers(self, batch_id: int | None = None) -> Sequence[WorkerRow]:
        return await self._read(lambda connection: queries.workers(connection, batch_id))

    async def find(self, batch_id: int, criteria: Filter, *, after: str | None, limit: int) -> Sequence[ItemSummary] | None:
        return await self._read(lambda connection: items.find(connection, batch_id, criteria, after=after, limit=limit))

    async def search(self, batch_id: int, criteria: Filter, text: str, *, after: str | None, limit: int) -> Matches | None:
        return await self._read(lambda connection: items.search(connection, batch_id, criteria, text, after=after, limit=limit))

    async def item(self, batch_id: int, key: str, *, max_bytes: int = MAX_TEXT_BYTES) -> StoredItem | None:
        return await self._read(lambda connection: items.item(connection, batch_id, key, max_bytes))

    async def similar_keys(self, batch_id: int, key: str) -> Sequence[str]:
        return await self._read(lambda connection: items.similar_keys(connection, batch_id, key))

    async def keys_with(self, batch_ids: Sequence[int], prefix: str, limit: int) -> Sequence[str]:
        return await self._read(lambda connection: items.keys_with(connection, batch_ids, prefix, limit))

    async def stuck(self, batch_ids: Sequence[int], *, longer_than: float, limit: int) -> Sequence[StuckRow]:
        before = self._clock.now() - longer_than
        return await self._read(lambda connection: queries.stuck(connection, batch_ids, before, limit))

    async def oldest_pending(self, batch_id: int) -> PendingRow | None:
        return await self._read(lambda connection: queries.oldest_pending(connection, batch_id))

    async def failure_causes(self, batch_id: int, limit: int) -> CausePage:
        return await self._read(lambda connection: queries.failure_causes(connection, batch_id, limit))

    async def cause_minutes(
        self, batch_id: int, fingerprints: Sequence[str], *, since: float, limit: int
    ) -> Mapping[str, Mapping[str, int]]:
        return await self._read(
            lambda connection: queries.cause_minutes(connection, batch_id, fingerprints, since=since, limit=limit)
        )

    async def history(self, batch_id: int, *, since: int, until: int, step: int) -> Sequence[HistoryRow]:
        return await self._read(lambda connection: queries.history(connection, batch_id, since=since, until=until, step=step))

    async def export_page(self, batch_id: int, statuses: Collection[Status] | None, cursor: Cursor | None) -> Page[ItemRecord]:
        return await self._read(lambda connection: items.export_page(connection, batch_id, statuses, cursor))

    async def export_selected(self, batch_id: int, selected: ItemSet) -> Sequence[ItemRecord]:
        return await self._read(lambda connection: items.export_selected(connection, batch_id, selected))

    async def ids_of(self, selected: ItemSet) -> Sequence[str]:
        return await self._read(lambda connection: items.ids_of(connection, selected))

    async def has_orphans(self, batch_id: int | None = None) -> bool:
        return await self._read(lambda connection: queries.has_orphans(connection, batch_id))

    async def select(self, batch_id: int, selection: Selection, *, in_input_order: bool = False) -> ItemSet:
        if selection.keys is not None:
            return await self._read(lambda connection: changes.select_keys(connection, batch_id, selection))
        if Status.COMPLETED in selection.statuses:
            return await self._select_windows(batch_id, selection)
        selected = await self._read(lambda connection: changes.select_open(connection, batch_id, selection))
        if in_input_order:  # the set of numbers takes a bit for each item, a sorted list up to 40 bytes
            return selected._replace(numbers=array("q", Numbers.of(selected.numbers)))
        return selected

    async def _select_windows(self, batch_id: int, selection: Selection) -> ItemSet:
        numbers = array("q")
        counts: Counter[str] = Counter()
        after = BEFORE_EVERY_SEQ
        while True:  # several short reads: one long read would keep the server from vacuuming

            def read(connection: Connection[Record], after: int = after) -> Awaitable[Sequence[tuple[int, str]]]:
                return changes.selected_after(connection, batch_id, selection, after)

            window = await self._read(read)
            if not window:
                return ItemSet(selection, numbers, dict(counts))
            numbers.extend(seq for seq, _ in window)
            counts.update(status for _, status in window)
            after = window[-1][0]
