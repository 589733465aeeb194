"""A batch that fails everywhere rests in every process, and lets one item try: ``FailureShare(rest=...)``."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from asyncrunner import FailureShare, RetryPolicy, Runner
from asyncrunner.domain.item import Counts
from asyncrunner.runner.runner import internals_of, run_until_idle
from asyncrunner.testing import in_memory
from tests.conftest import Until

if TYPE_CHECKING:
    import pytest

FIRST_BATCH = 1  # the id of the only batch of a new store
NO_DELAY = RetryPolicy(initial=0, jitter="none")


async def test_a_batch_rests_and_lets_one_item_try_until_the_service_is_back(caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner(":memory:", concurrency=10)
    starts: list[int] = []  # whole seconds since the start

    @runner.handler(batch="b", max_attempts=1000, retry=NO_DELAY, max_failures=FailureShare(0.5, of=10, rest=60))
    async def handler(n: int) -> int:
        now = clock.monotonic() - began
        starts.append(int(now))
        await asyncio.sleep(0)
        if now < 150:
            raise ConnectionError("away")
        return n

    caplog.set_level(logging.INFO, "asyncrunner")
    async with in_memory(runner) as clock:
        began = clock.monotonic()
        await handler.submit_many(range(100))
        await run_until_idle(runner)
        internals = internals_of(runner)
        assert internals.worker is not None
        assert await internals.store.counts(FIRST_BATCH) == Counts(completed=100)
        assert internals.worker.slots == 10, "the batch continues with all its slots"
    assert 5 <= starts.count(0) <= 15, "the limit is 5 attempts; the other handlers that run end too"
    assert (starts.count(60), starts.count(120)) == (1, 1), "one item runs as a test, and fails"
    assert starts.count(180) == 100
    assert set(starts) == {0, 60, 120, 180}
    messages = [record.getMessage() for record in caplog.records if record.name == "asyncrunner"]
    rests = [message for message in messages if "rests for 1 min 00 s" in message]
    assert len(rests) == 3
    assert rests[1] == "batch 'b' rests for 1 min 00 s: the item that ran as a test failed; then one item runs as a test"
    assert "batch 'b' continues: an item completed after the rest" in messages


async def test_claims_that_have_not_started_are_released_for_the_rest() -> None:
    runner = Runner(":memory:", concurrency=5)
    starts: list[int] = []

    @runner.handler(batch="b", max_attempts=1, max_failures=FailureShare(0.5, of=2, rest=3600))
    async def handler(n: int) -> int:
        starts.append(n)
        if n == 0:
            raise ConnectionError("away")
        return n

    async with in_memory(runner):
        await handler.submit_many(range(5))
        await run_until_idle(runner, delayed=False)
        internals = internals_of(runner)
        assert internals.worker is not None
        assert (starts, internals.worker.in_hand, internals.worker.next_due()) == ([0], 0, 3600.0)
        assert await internals.store.counts(FIRST_BATCH) == Counts(pending=4, failed=1)
        await run_until_idle(runner)
        assert await internals.store.counts(FIRST_BATCH) == Counts(completed=4, failed=1)


async def test_handlers_that_run_when_the_rest_begins_end_and_do_not_end_the_rest(until: Until) -> None:
    runner = Runner(":memory:", concurrency=2)
    starts: list[int] = []
    release, fail = asyncio.Event(), asyncio.Event()

    @runner.handler(batch="b", max_attempts=1, max_failures=FailureShare(0.5, of=2, rest=60))
    async def handler(n: int) -> int:
        starts.append(n)
        if n == 0:
            await release.wait()
        elif n == 1:
            await fail.wait()
            raise ConnectionError("away")
        return n

    async with in_memory(runner) as clock:
        await handler.submit_many(range(5))
        worker = internals_of(runner).worker
        assert worker is not None
        await until(lambda: len(starts) == 2)
        await clock.advance(1)
        fail.set()
        await until(lambda: len(worker.running) == 1 and worker.failures == 1)
        release.set()
        await run_until_idle(runner, delayed=False)
        assert worker.slots == 1, "the handler that ended is not the one that tries"
        await clock.advance(59)
        await run_until_idle(runner, delayed=False)
        assert starts == [0, 1]
        await run_until_idle(runner)
        assert starts == [0, 1, 2, 3, 4]
