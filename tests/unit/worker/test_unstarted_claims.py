"""Claims that wait for a slot when their worker is drained or cast out, or their batch is paused: none of them starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from asyncrunner import Runner
from asyncrunner.runner.runner import internals_of
from asyncrunner.worker.worker import Worker
from tests.conftest import Until
from tests.support.state import execute, rows_of


class Claimed:
    """A runner that has claimed five items in one turn. ``starts``: the items whose handlers have started."""

    def __init__(self, db: str, first_calls: Callable[[Claimed], object]) -> None:
        self.db = db
        self.runner = Runner(db, concurrency=5)
        self.starts: list[int] = []
        self.release = asyncio.Event()
        self._first_calls = first_calls

    @property
    def worker(self) -> Worker:
        worker = internals_of(self.runner).worker
        assert worker is not None
        return worker

    async def handle(self, number: int) -> None:
        """Call the test in the first handler. The other claims start only when this handler waits."""
        self.starts.append(number)
        if number == 0:
            self._first_calls(self)
            await self.release.wait()

    async def until_released(self, until: Until) -> None:
        """Wait until the items of the unstarted claims are pending, with no attempt charged; no second handler has started."""
        released = [("pending", 0)] * 4 + [("processing", 1)]
        states = "SELECT status, attempts FROM items ORDER BY status"
        await until(lambda: len(self.starts) > 1 or rows_of(self.db, states) == released)
        assert self.starts == [0]


@asynccontextmanager
async def five_claims(db: str, first_calls: Callable[[Claimed], object]) -> AsyncIterator[Claimed]:
    claimed = Claimed(db, first_calls)
    handler = claimed.runner.handler(batch="b", max_attempts=1)(claimed.handle)
    async with claimed.runner:
        await handler.submit_many(range(5))
        yield claimed
        claimed.release.set()


async def test_a_drain_releases_the_claims_that_have_not_started_and_lets_the_running_handler_end(db: str, until: Until) -> None:
    async with five_claims(db, lambda claimed: claimed.worker.drain()) as claimed:
        await claimed.until_released(until)
    assert claimed.starts == [0]


async def test_a_worker_that_was_cast_out_drops_the_claims_that_have_not_started(db: str, until: Until) -> None:
    async with five_claims(db, lambda claimed: claimed.worker.cast_out()) as claimed:
        await until(lambda: claimed.starts and claimed.worker.in_hand == 0)
    assert claimed.starts == [0], "recovery has made the other items pending: another worker runs them"


async def test_a_pause_releases_the_claims_that_have_not_started_until_the_batch_is_resumed(db: str, until: Until) -> None:
    def pause(claimed: Claimed) -> None:
        execute(db, "UPDATE batches SET paused = true")
        engine = internals_of(claimed.runner)._engine
        assert engine is not None
        claimed.worker.controls.set_paused(engine.queues["b"], True)

    async with five_claims(db, pause) as claimed:
        await claimed.until_released(until)
        execute(db, "UPDATE batches SET paused = false")
        await until(lambda: sorted(claimed.starts) == [0, 1, 2, 3, 4])
