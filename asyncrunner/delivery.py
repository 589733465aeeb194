"""The outcomes of a run on their way to who streams them, each once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from asyncrunner.events import Settled
from asyncrunner.item import TERMINAL
from asyncrunner.report import PAGE
from asyncrunner.store import ItemRow, done_row

if TYPE_CHECKING:
    from asyncrunner.lane import Lane
    from asyncrunner.runner import Handler, Runner

__all__ = ["Delivery"]

_BUFFERED_OUTCOMES: Final = 5_000


class Delivery:
    """Which outcomes a stream has given. Committed ones wait here as rows; when too many do, the lane rests."""

    def __init__(self, runner: Runner, handler: Handler[Any, Any], lane: Lane) -> None:
        self._runner = runner
        self._handler = handler
        self._lane = lane
        self._given = bytearray()  # a bit a row: 10 million items are 1.2 MB
        self._waiting: deque[ItemRow] = deque()
        self._news = asyncio.Event()
        self._unsubscribe = runner.events.on(Settled, self._on_settled)

    def _on_settled(self, done: Settled) -> None:
        row = done_row(done.claim, done.outcome, done.started_at, done.finished_at)
        if row is None or done.claim.batch_id != self._handler.batch_id:
            return
        self._waiting.append(row)
        self._lane.held = len(self._waiting) >= _BUFFERED_OUTCOMES
        self._news.set()

    async def done_in_file(self) -> AsyncIterator[ItemRow]:
        """Rows that the file says are done and that were not given yet, in input order."""
        after = 0
        store, batch_id, persist = self._runner.store, self._handler.batch_id, self._runner.persist
        if self._runner.engine is None or self._runner.engine.done():
            return
        while page := await persist(lambda: store.rows(batch_id, after=after, limit=PAGE)):  # noqa: B023 - awaited here
            for row in page:
                if row.status in TERMINAL and self._give(row):
                    yield row
            after = page[-1].seq

    async def as_committed(self, end: Callable[[], Awaitable[None]]) -> AsyncIterator[ItemRow]:
        """Rows as they are committed by this process, until *end* returns."""
        ended = asyncio.ensure_future(end())
        ended.add_done_callback(lambda _: self._news.set())
        try:
            while self._waiting or not ended.done():
                while self._waiting:
                    row = self._waiting.popleft()
                    self._let_go_on()
                    if self._give(row):
                        yield row
                self._news.clear()
                if not ended.done():
                    await self._news.wait()
        finally:
            ended.cancel()
            self._unsubscribe()

    def _let_go_on(self) -> None:
        if self._lane.held and len(self._waiting) < _BUFFERED_OUTCOMES // 2:
            self._lane.held = False
            self._runner.wake(self._handler)

    def _give(self, row: ItemRow) -> bool:
        index, bit = divmod(row.seq, 8)
        if index >= len(self._given):
            self._given.extend(bytes(index + 1 - len(self._given) + 1024))
        if self._given[index] & (1 << bit):
            return False
        self._given[index] |= 1 << bit
        return True
