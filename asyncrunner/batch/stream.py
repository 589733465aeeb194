"""The stream of a run's outcomes: deliver each outcome once, with backpressure."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from asyncrunner.batch.report import PAGE
from asyncrunner.domain.item import TERMINAL
from asyncrunner.events import Settled
from asyncrunner.store.items import ItemRow, done_row
from asyncrunner.worker.admission import ConsumerWindow

if TYPE_CHECKING:
    from asyncrunner.batch.source.given import GivenItems
    from asyncrunner.runner.internals import RunnerInternals
    from asyncrunner.submission.handler import Handler
    from asyncrunner.worker.batch_queue import BatchQueue


class OutcomeStream:
    """The outcome stream of one run: buffers the committed rows and records which rows it has delivered.

    The batch queue claims only the items for which the window of the consumer has room; see ``ConsumerWindow``.
    """

    def __init__(self, runner: RunnerInternals, handler: Handler[Any, Any], queue: BatchQueue) -> None:
        self._runner = runner
        self._handler = handler
        self._queue = queue
        self._delivered = defaultdict[int, bytearray](lambda: bytearray(1024))  # one bit per row: 1.2 MB for 10 million items
        self._buffer: deque[ItemRow] = deque()
        self._changed = asyncio.Event()
        self._window = queue.window = ConsumerWindow(queue.base_limit)
        self._unsubscribe = runner.events.on(Settled, self._on_settled)

    def _on_settled(self, settled: Settled) -> None:
        row = done_row(settled.claim, settled.outcome, settled.started_at, settled.finished_at)
        if row is None or settled.claim.batch_id != self._queue.batch_id:
            return
        self._buffer.append(row)
        self._window.waiting += 1
        self._changed.set()

    async def rows(self, given: GivenItems | None, end: Callable[[], Awaitable[None]]) -> AsyncIterator[ItemRow]:
        """Yield each row that is done once, until *end* has returned or raised; with *given*, only rows of given items.

        Raises the failure of the runner.
        """
        if given is None:  # otherwise nothing is given yet
            async for row in self.done_in_file():
                yield row
        async for row in self.as_committed(end):
            yield row
        self._runner.raise_failure()
        async for row in self.done_in_file(given):  # the items that other processes settled
            yield row

    async def done_in_file(self, given: GivenItems | None = None) -> AsyncIterator[ItemRow]:
        """Yield the rows that are done in the file and not delivered yet, in input order: of the batch, or of *given* items.

        After the engine has ended, yield no rows.
        """
        if self._runner.engine_task is None or self._runner.engine_task.done():
            return
        async for row in self._rows_of_batch() if given is None else self._rows_of(given):
            if row.status in TERMINAL and self._mark_delivered(row):
                yield row

    async def _rows_of_batch(self) -> AsyncIterator[ItemRow]:
        store, cursor = self._runner.retrying_store, None
        while True:
            page = await store.item_page(self._queue.batch_id, cursor, PAGE)
            for row in page.rows:
                yield row
            cursor = page.next
            if cursor is None:
                return

    async def _rows_of(self, given: GivenItems) -> AsyncIterator[ItemRow]:
        for seqs in given.pages(PAGE):
            unique = list(dict.fromkeys(seqs))
            rows = {row.seq: row for row in await self._runner.retrying_store.items_by_seq(self._queue.batch_id, unique)}
            for seq in unique:
                if seq in rows:
                    yield rows[seq]

    async def as_committed(self, end: Callable[[], Awaitable[None]]) -> AsyncIterator[ItemRow]:
        """Yield rows as this process commits them, until *end* has returned or raised and the buffer is empty.

        Then unsubscribe from the events.
        """
        ended = asyncio.ensure_future(end())
        ended.add_done_callback(lambda _: self._changed.set())
        try:
            while self._buffer or not ended.done():
                while self._buffer:
                    row = self._buffer.popleft()
                    self._wake_if(self._window.record_taken())
                    if self._mark_delivered(row):
                        taken_at = self._runner.clock.monotonic()
                        yield row
                        self._wake_if(self._window.record_held(self._runner.clock.monotonic() - taken_at))
                self._changed.clear()
                if not ended.done():
                    await self._changed.wait()
        finally:
            ended.cancel()
            self._unsubscribe()

    def _wake_if(self, has_more_room: bool) -> None:
        if has_more_room and not self._queue.answer.exhausted:
            self._runner.wake(self._handler)

    def _mark_delivered(self, row: ItemRow) -> bool:
        """Mark the row as delivered, and return whether it was not marked before."""
        page = self._delivered[row.seq >> 13]  # a person may have written a negative or a huge seq
        index, bit = row.seq >> 3 & 1023, 1 << (row.seq & 7)
        if page[index] & bit:
            return False
        page[index] |= bit
        return True
