"""Controls that an operator sets during a run: workers read them twice a second, and no item loses an attempt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from asyncrunner import Control, Fail, Runner
from asyncrunner.runner.runner import internals_of
from asyncrunner.store.batches import Controls
from asyncrunner.testing import FakeClock
from asyncrunner.worker.worker import Worker
from tests.conftest import Until
from tests.support.state import execute, rows_of
from tests.support.stores import Overridden


def worker_of(runner: Runner) -> Worker:
    """Return the worker of a started runner."""
    worker = internals_of(runner).worker
    assert worker is not None
    return worker


def write(db: str, statement: str) -> None:
    execute(db, statement)


class Slow:
    """A handler that runs until it is released, with a list of its running items."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.done = 0
        self.seconds = 0.02

    async def work(self, number: int) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.running -= 1
        self.done += 1
        return number


@asynccontextmanager
async def busy(db: str, slow: Slow, *, items: int = 5000, concurrency: int = 4) -> AsyncIterator[Runner]:
    runner = Runner(db, concurrency=concurrency)
    handler = runner.handler(batch="b", concurrency=1000)(slow.work)
    async with runner:
        await handler.submit_many(range(items))
        yield runner
        await runner.stop(drain=False)


class Polled(Overridden):
    """A store that counts how often the worker reads its controls."""

    polls = 0

    async def controls(self, batch_ids: Sequence[int]) -> Mapping[int, Controls]:
        controls = await super().controls(batch_ids)
        self.polls += 1
        return controls


async def test_a_worker_reads_its_controls_twice_a_second_so_that_it_obeys_within_a_second(db: str, until: Until) -> None:
    store, clock = Polled(db), FakeClock()
    runner = Runner(db, store=store, clock=clock)
    runner.handler(batch="b")(Slow().work)
    async with runner:
        await until(lambda: store.polls == 1)
        for polls in (2, 3):
            await clock.advance(0.5)
            await until(lambda: store.polls == polls)  # noqa: B023


async def test_a_pause_starts_no_more_items_and_releases_the_prefetched_claims(db: str, until: Until) -> None:
    slow = Slow()
    slow.seconds = 0.0  # so fast that the worker claims far ahead
    async with busy(db, slow, items=20_000) as runner:
        await until(lambda: slow.done > 2000)
        slow.seconds = 0.1
        write(db, "UPDATE batches SET paused = true")
        await until(lambda: slow.running == 0 and worker_of(runner).in_hand == 0)
        await until(lambda: not rows_of(db, "SELECT 1 FROM items WHERE status = 'processing' LIMIT 1"))
        assert rows_of(db, "SELECT max(attempts) FROM items WHERE status = 'pending'") == [(0,)]
        done = slow.done
        await asyncio.sleep(0.6)  # wait, because the absence of a start cannot be observed
        assert slow.done == done
        write(db, "UPDATE batches SET paused = false")
        await until(lambda: slow.done > done)


@pytest.mark.parametrize("wanted", [1, 40])
async def test_a_new_concurrency_is_obeyed_up_and_down_beyond_the_value_in_the_code(db: str, until: Until, wanted: int) -> None:
    slow = Slow()
    async with busy(db, slow) as runner:
        await until(lambda: slow.running == 4)
        write(db, f"UPDATE batches SET concurrency = {wanted}")
        await until(lambda: worker_of(runner).slots == wanted)
        await until(lambda: slow.running == wanted)
        slow.most = slow.running
        done = slow.done
        await until(lambda: slow.done > done + 3 * wanted)
        assert slow.most == wanted
        write(db, "UPDATE batches SET concurrency = NULL")
        await until(lambda: worker_of(runner).slots == 4)
        await until(lambda: slow.running == 4)


async def test_a_def_gets_the_threads_it_needs_for_a_new_concurrency(db: str, until: Until) -> None:
    running: set[int] = set()

    def work(number: int) -> None:
        running.add(number)
        time.sleep(0.05)
        running.discard(number)

    runner = Runner(db, concurrency=2)
    handler = runner.handler(batch="b")(work)
    async with runner:
        await handler.submit_many(range(500))
        await until(lambda: len(running) == 2)
        write(db, "UPDATE batches SET concurrency = 12")
        await until(lambda: len(running) == 12)
        await runner.stop(drain=False)


async def test_a_concurrency_that_is_no_number_of_slots_changes_nothing(db: str, until: Until) -> None:
    slow = Slow()
    async with busy(db, slow):
        await until(lambda: slow.running == 4)
        write(db, "UPDATE batches SET concurrency = -3, handler = 'x'")
        done, slow.most = slow.done, 0
        await until(lambda: slow.done > done + 200)
        assert slow.most == 4


async def test_a_heartbeat_reports_the_number_of_slots_in_use(db: str, until: Until) -> None:
    slow = Slow()
    async with busy(db, slow):
        await until(lambda: rows_of(db, "SELECT slots, slots_in_use FROM workers") == [(4, 4)])


async def test_an_operator_resumes_a_batch_that_the_failure_limit_stopped_and_the_same_process_continues(
    db: str, until: Until
) -> None:
    broken = True

    async def work(number: int) -> int:
        if broken:
            raise Fail("broken")
        return number

    runner = Runner(db, concurrency=1)
    handler = runner.handler(batch="b", max_failures=1)(work)
    async with runner:
        first = await handler.submit(1)
        await until(lambda: rows_of(db, "SELECT 1 FROM batches WHERE stopped IS NOT NULL"))
        await until(lambda: rows_of(db, "SELECT status FROM items") == [("failed",)])  # settled in the turn after the stop
        second = await handler.submit(2)
        broken = False
        async with Control(db) as control:
            assert await control.resume()
            assert (await control.retry(failed=True)).changed == 1
        assert await second.result(timeout=20) == 2
        assert await first.result(timeout=20) == 1


async def test_a_pause_is_logged_by_running_workers_and_by_a_worker_that_starts(
    db: str, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Slow()
    async with busy(db, slow):
        await until(lambda: slow.running > 0)
        write(db, "UPDATE batches SET paused = true")
        await until(lambda: "batch 'b' is paused: no more of its items start" in caplog.text)
    caplog.clear()
    async with busy(db, slow, items=0):
        await until(lambda: "batch 'b' is paused: no more of its items start" in caplog.text)
