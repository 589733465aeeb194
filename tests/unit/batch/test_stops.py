"""A failure limit, a deadline, a rate limit or a cool-down stops a batch or slows it down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncrunner import FailureShare, Retry, RetryPolicy, Runner, run_batch
from asyncrunner.batch.batch_run import BatchRun
from asyncrunner.cli.render.summary import summary_text
from asyncrunner.domain.options import RunOptions
from asyncrunner.events import Stopped
from asyncrunner.runner.runner import internals_of, run_until_idle
from asyncrunner.testing import FakeClock
from tests.conftest import Until
from tests.support.state import rows_of

InMemory = Callable[[Runner], Awaitable[FakeClock]]


async def test_a_batch_that_fails_everywhere_stops_before_it_burns_every_attempt(db: str) -> None:
    ran = 0

    async def handler(number: int) -> None:
        nonlocal ran
        ran += 1
        raise ValueError("the service is down")

    report = await run_batch(
        range(1000), handler, db=db, max_failures=FailureShare(0.5, of=20), retry=RetryPolicy(initial=0.01), batch="handler"
    )
    assert report.stopped is not None
    assert "of the newest" in report.stopped
    assert ran < 40
    assert (report.failed, report.pending) == (0, report.total)
    assert ran <= report.total <= 1000, "the source is read until the stop"
    assert rows_of(db, "SELECT stopped FROM batches") == [(report.stopped,)]

    async def mended(number: int) -> None: ...

    again = await run_batch(None, mended, db=db, batch=report.batch, retry_failed=True)
    assert again.stopped is None
    assert report.total <= again.pending + again.completed <= 1000, "an add that the stop interrupts may have stored its items"
    assert rows_of(db, "SELECT stopped FROM batches") == [(None,)]


@pytest.mark.parametrize("concurrency", [1, 10])
async def test_failures_after_the_stop_report_no_second_stop(db: str, concurrency: int, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(number: int) -> None:
        await asyncio.sleep(0)  # so fast that claims are held ahead and end after the limit is reached
        raise ValueError(number)

    for _ in range(3):
        caplog.clear()
        report = await run_batch(
            range(100), handler, db=db, max_failures=3, concurrency=concurrency, max_attempts=1, retry_failed=True
        )
        assert len([record for record in caplog.records if "is stopped" in record.message]) == 1
        assert report.failed <= 3 + concurrency - 1  # only what already ran when the limit was reached


async def test_a_service_that_stops_a_batch_reports_the_reason_and_runs_the_others(db: str, until: Until, caplog: Any) -> None:
    runner = Runner(db)
    other = Runner(db)
    seen: list[Stopped] = []
    internals_of(runner).events.on(Stopped, seen.append)
    ran: list[int] = []

    @runner.handler(batch="bad", max_failures=3, max_attempts=1)
    async def bad(number: int) -> None:
        if number == 1000:
            ran.append(number)
        raise ValueError

    @other.handler(batch="bad", max_attempts=1)
    async def bad_too(number: int) -> None:
        ran.append(number)

    @runner.handler(batch="good")
    async def good(number: int) -> int:
        return number

    with caplog.at_level(logging.ERROR):
        async with runner:
            await bad.submit_many(range(3))
            await until(lambda: seen)
            late = await bad.submit(1000)
            assert await (await good.submit(5)).result(20) == 5
            assert (await late.status()).value == "pending"
            assert seen == [Stopped("bad", "3 items failed: the limit max_failures=3 is reached")]
            assert "batch 'bad' is stopped: 3 items failed" in caplog.text
            async with other:  # reopening the batch resumes it, for both runners
                await until(lambda: ran == [1000])


async def test_at_its_deadline_a_run_stops_and_the_rest_stays_pending(db: str) -> None:
    started = 0

    async def handler(number: int) -> None:
        nonlocal started
        started += 1
        await asyncio.sleep(0.01)

    report = await run_batch(range(10_000), handler, db=db, deadline=1.0, batch="handler")
    assert report.stopped == "its deadline of 1.0 s passed"
    assert 0 < report.completed < 10_000
    assert report.pending > 0, "also of the items read so far, which are not all on a slow machine"
    assert report.completed + report.pending == report.total
    assert rows_of(db, "SELECT sum(attempts) FROM items") == [(report.completed,)]


async def test_a_run_that_did_not_read_its_whole_input_is_not_ok(db: str, until: Until) -> None:
    async def handler(number: int) -> None: ...

    async def slow() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    past = datetime(2001, 1, 1, tzinfo=UTC)
    report = await run_batch(slow(), handler, db=db, batch="b", deadline=past)
    assert (report.total, report.ok) == (0, False)
    assert "The input was not read to its end" in summary_text(report, "m.py:h", None)
    assert (await run_batch(None, handler, db=db, batch="b")).ok

    async def endless() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    run: BatchRun[int, None] = BatchRun(endless(), handler, RunOptions.of("run_batch", {"db": db, "batch": "b"}))
    async with run:
        ending = asyncio.ensure_future(run.finish())
        await until(lambda: rows_of(db, "SELECT status FROM items") == [("completed",)])
        run.request_stop("enough")
        report = await ending
    assert (report.total, report.completed, report.stopped, report.ok) == (1, 1, "enough", False)
    report = await run_batch([1], handler, db=db, batch="b")
    assert (report.stopped, report.ok) == (None, True)
    assert "The input" not in summary_text(report, "m.py:h", None)


async def test_a_deadline_in_the_past_stops_the_run_immediately(run_in_memory: InMemory) -> None:
    runner = Runner()
    ran: list[int] = []

    @runner.handler(deadline=datetime(2001, 1, 1, tzinfo=UTC), batch="late")
    async def late(number: int) -> None:
        ran.append(number)

    @runner.handler(deadline=datetime.fromtimestamp(FakeClock().now(), UTC) + timedelta(hours=1), batch="early")
    async def early(number: int) -> None:
        ran.append(number)

    clock = await run_in_memory(runner)
    await late.submit(1)
    await early.submit(2)
    await run_until_idle(runner)
    assert ran == [2]
    await clock.leap(3601)
    await early.submit(3)
    await run_until_idle(runner)
    assert ran == [2]


async def test_starts_keep_to_the_rate_in_all_runners_on_the_file_together(db: str) -> None:
    clock = FakeClock()
    started: list[float] = []
    runners = [Runner(db, clock=clock, concurrency=50) for _ in range(2)]
    for runner in runners:

        @runner.handler(batch="b", rate_limit="10/s")
        async def handler(number: int) -> None:
            started.append(clock.monotonic())

    async with runners[0], runners[1]:
        await handler.submit_many(range(40))
        begun = clock.monotonic()
        while len(started) < 40:
            for runner in runners:
                await run_until_idle(runner, delayed=False)
            await clock.advance(0.01)
    assert started[-1] - begun == pytest.approx(3.9, abs=0.3)
    for index in range(len(started) - 10):
        assert started[index + 10] - started[index] >= 0.98


async def test_a_rate_holds_over_a_restart(db: str) -> None:
    clock = FakeClock()
    runner = Runner(db, clock=clock)
    ran: list[int] = []

    @runner.handler(rate_limit="1/h", batch="handler")
    async def handler(number: int) -> None:
        ran.append(number)

    async with runner:
        await handler.submit_many(range(3))
        await run_until_idle(runner, delayed=False)
    async with runner:
        await run_until_idle(runner, delayed=False)
        assert ran == [0]
        await run_until_idle(runner)
    assert ran == [0, 1, 2]
    assert clock.monotonic() - FakeClock().monotonic() == pytest.approx(7200, abs=1)


async def test_items_that_become_due_during_a_pause_do_not_keep_the_worker_busy(run_in_memory: InMemory) -> None:
    runner = Runner()
    asked = False

    @runner.handler(batch="b", max_attempts=2)
    async def handler(number: int) -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise Retry("slow down", after=600, pause=True)

    @runner.handler(batch="stopped", deadline=60.0)
    async def never(number: int) -> None: ...

    clock = await run_in_memory(runner)
    await handler.submit(1)
    await handler.submit(2, delay=5)
    left = await never.submit(3, delay=3600)
    await run_until_idle(runner, delayed=False)
    await clock.leap(10)  # the second one is due now
    await run_until_idle(runner, delayed=False)
    worker = internals_of(runner).worker
    assert worker is not None
    assert worker.next_due() == pytest.approx(590, abs=1)
    await asyncio.wait_for(run_until_idle(runner), 20)
    assert (await left.status()).value == "pending"


async def test_a_pause_parks_the_batch_for_all_runners_and_over_a_restart(db: str) -> None:
    clock = FakeClock()
    ran: list[int] = []
    asked = False

    def service() -> tuple[Runner, Any]:
        runner = Runner(db, clock=clock, concurrency=1)

        @runner.handler(batch="b", max_attempts=2)
        async def handler(number: int) -> None:
            nonlocal asked
            if not asked:
                asked = True
                raise Retry("slow down", after=600, pause=True)
            ran.append(number)

        return runner, handler

    (one, handler), (two, _) = service(), service()
    async with one:
        await handler.submit_many(range(5))
        await run_until_idle(one, delayed=False)
    async with one, two:
        for runner in (one, two):
            await run_until_idle(runner, delayed=False)
        await clock.advance(599)
        for runner in (one, two):
            await run_until_idle(runner, delayed=False)
        assert ran == []
        await clock.advance(1.1)
        await run_until_idle(one)
        await run_until_idle(two)
    assert sorted(ran) == [0, 1, 2, 3, 4]
