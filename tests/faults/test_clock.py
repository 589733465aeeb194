"""Row 18: the wall clock jumps. No worker loses a claim, no retry comes much too late, no duration is negative."""

from __future__ import annotations

import logging

import pytest

from asyncrunner import Runner
from asyncrunner.backends import open_engine
from asyncrunner.domain.item import NewItem
from asyncrunner.domain.outcome import ErrorInfo, Retrying, Settlement
from asyncrunner.runner.runner import run_until_idle
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import Vitals, WorkerInfo
from asyncrunner.testing import FakeClock, in_memory
from asyncrunner.text.timestamps import from_text
from tests.conftest import Until
from tests.support.state import rows_of

NOW = 1_800_000_000.0
DAY = 86_400.0
STILL = Vitals(0, 0, 0, 0.0)


async def test_row_18_retries_follow_a_clock_that_is_set_back_and_requested_times_do_not(db: str) -> None:
    clock = FakeClock(NOW)
    store = open_engine(db, clock=clock)
    await store.open()
    batch = await store.open_batch("b", "m:h", BatchOptions())
    later = NOW + 2 * DAY
    entries = [NewItem("retried", "0"), NewItem("since", "0"), NewItem("asked", "0", due_at=later)]
    await store.add(batch.batch_id, entries, on_change="error")
    await store.join(WorkerInfo("a", "here", 1))
    first, second = (await store.turn("a", [], [Want(batch.batch_id, 2, 9)])).claims
    error = ErrorInfo("E", "no")
    await store.turn("a", [Settlement(first, Retrying(error, 10.0), NOW, NOW)], [])
    await store.beat("a", STILL)
    back = NOW - DAY
    clock.jump(-DAY)
    await store.turn("a", [Settlement(second, Retrying(error, 3600.0), back, back)], [])
    beat = await store.beat("a", STILL)
    assert (round(beat.set_back, 3), beat.moved) == (DAY, 1)
    due = {key: round((from_text(due_at) or 0) - NOW) for key, due_at in rows_of(db, "SELECT id, due_at FROM items")}
    assert due == {"retried": -DAY + 10, "since": -DAY + 3600, "asked": 2 * DAY}
    clock.jump(1)
    assert (await store.beat("a", STILL)).set_back == 0.0, "the due time moves once"
    await store.close()


@pytest.mark.parametrize("jump", [-DAY, DAY])
async def test_row_18_a_runner_continues_through_a_jump_of_a_day(
    jump: float, caplog: pytest.LogCaptureFixture, until: Until
) -> None:
    runner = Runner(":memory:", concurrency=2)
    starts: list[float] = []

    @runner.handler(max_attempts=3, batch="b", rate_limit="1/s")
    async def handler(n: int) -> int:
        starts.append(clock.monotonic())
        if len(starts) <= 2:
            raise ValueError(n)
        return n

    caplog.set_level(logging.WARNING, "asyncrunner")
    async with in_memory(runner) as clock:
        assert isinstance(clock, FakeClock)
        handle = await handler.submit(1)
        await until(lambda: len(starts) == 1)
        clock.jump(jump)  # the retry and the next start of the rate limit are due after the old "now"
        began = clock.monotonic()
        while await handle.status() != "completed":
            await clock.advance(0.5)
            assert clock.monotonic() - began < 60, "a retry waits until the next day"
        await run_until_idle(runner)
    assert len(starts) == 3
    assert not [record for record in caplog.records if "lost" in record.getMessage()]
    assert bool([record for record in caplog.records if "clock was set back by 86" in record.getMessage()]) == (jump < 0)


async def test_row_57_while_the_wall_clock_stands_still_every_heartbeat_is_another_pulse(db: str) -> None:
    clock = FakeClock(NOW)
    store, other = open_engine(db, clock=clock), open_engine(db, clock=clock)
    await store.open()
    await other.open()
    await store.join(WorkerInfo("a", "here", 1))
    pulses = set()
    for _ in range(3):
        (peer,) = await other.peers("b")
        pulses.add(peer.pulse)
        assert rows_of(db, "SELECT count(DISTINCT last_heartbeat) FROM workers") == [(1,)]
        await store.beat("a", STILL)
        assert await other.recover("a", ErrorInfo("WorkerLost", "no heartbeat"), pulse=peer.pulse) == 0
        assert rows_of(db, "SELECT lost FROM workers") == [(0,)], "it has sent a heartbeat since the pulse was read"
    assert len(pulses) == 3
    (peer,) = await other.peers("b")
    await other.recover("a", ErrorInfo("WorkerLost", "no heartbeat"), pulse=peer.pulse)
    assert rows_of(db, "SELECT lost FROM workers") == [(1,)]
    await store.close()
    await other.close()
