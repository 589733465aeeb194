"""What stops a batch, slows it down, or lets it rest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrunner import ConfigurationError, FailureShare, Retry, RetryPolicy, Runner, run_batch
from asyncrunner.domain.failure_limit import FailureCounter
from asyncrunner.domain.options import Settings
from asyncrunner.domain.outcome import Completed, ErrorInfo, Failed, Outcome, Released, Retrying
from asyncrunner.domain.rate_limit import Rate
from asyncrunner.events import Stopped
from asyncrunner.runner.idle import run_until_idle
from asyncrunner.testing import FakeClock
from tests.conftest import Until, rows_of

InMemory = Callable[[Runner], Awaitable[FakeClock]]
BOOM = ErrorInfo("ValueError", "boom")
NOW = 1_800_000_000.0

# --- max_failures ----------------------------------------------------------------------------------------------------


def after(limit: Any, *outcomes: Outcome) -> str | None:
    guard = FailureCounter(limit)
    for outcome in outcomes:
        guard.saw(outcome)
    return guard.reason


def test_a_count_counts_failed_items() -> None:
    failed, retried, done = Failed(BOOM, permanent=False), Retrying(BOOM, 1.0), Completed("1")
    assert after(2, failed, retried, retried, done) is None
    assert after(2, failed, done, failed) == "2 items failed: the limit max_failures=2 is reached"
    assert after(None, *[failed] * 1000) is None


def test_a_share_counts_failed_attempts_among_the_newest() -> None:
    failed: Outcome = Failed(BOOM, permanent=False)
    done: Outcome = Completed("1")
    retried: Outcome = Retrying(BOOM, 1.0)
    asked: Outcome = Retrying(BOOM, 1.0, asked=True)
    share = FailureShare(0.5, of=10)
    assert after(share, *[retried] * 4) is None
    reason = "5 of the newest 5 attempts failed: the limit max_failures=50% of 10 is reached"
    assert after(share, *[retried] * 4, failed) == reason
    assert after(share, *[asked] * 50, *[Released()] * 50, *[retried] * 4) is None
    assert after(share, *[retried] * 4, *[done] * 6, failed) is None  # the first one is out of the window
    assert after(share, *[done, retried] * 4, done, done) is None


@given(st.lists(st.booleans()), st.integers(1, 20), st.floats(0.01, 1))
def test_a_window_trips_exactly_when_a_recount_says_so(history: list[bool], of: int, share: float) -> None:
    guard = FailureCounter(FailureShare(share, of))
    tripped = False
    for index, failed in enumerate(history):
        guard.saw(Retrying(BOOM, 0.0) if failed else Completed("1"))
        tripped = tripped or sum(history[max(0, index + 1 - of) : index + 1]) >= max(1.0, share * of)
    assert (guard.reason is not None) == tripped


@pytest.mark.parametrize("value", [0, -1, 1.5, 1.0, 0.0, True, "x", FailureShare])
def test_limits_that_mean_nothing_are_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"max_failures"):
        Settings(max_failures=value)


@pytest.mark.parametrize(
    "options", [{"share": 0}, {"share": 1.1}, {"share": "x"}, {"share": 0.5, "of": 0}, {"share": 0.5, "of": 1.5}]
)
def test_shares_that_mean_nothing_are_refused(options: Any) -> None:
    with pytest.raises(ConfigurationError, match="FailureShare"):
        FailureShare(**options)


async def test_a_batch_that_fails_everywhere_stops_before_it_burns_every_attempt(db: Path) -> None:
    ran = 0

    async def handler(number: int) -> None:
        nonlocal ran
        ran += 1
        raise ValueError("the service is down")

    report = await run_batch(range(1000), handler, db=db, max_failures=FailureShare(0.5, of=20), retry=RetryPolicy(initial=0.01))
    assert report.stopped is not None
    assert "of the newest" in report.stopped
    assert ran < 40
    assert (report.failed, report.pending) == (0, 1000)
    assert rows_of(db, "SELECT stopped FROM batches") == [(report.stopped,)]

    async def mended(number: int) -> None: ...

    again = await run_batch(None, mended, db=db, batch=report.batch, retry_failed=True)
    assert (again.stopped, again.pending + again.completed) == (None, 1000)
    assert rows_of(db, "SELECT stopped FROM batches") == [(None,)]


async def test_a_service_that_stops_a_batch_says_why_and_the_others_go_on(db: Path, until: Until, caplog: Any) -> None:
    runner = Runner(db)
    other = Runner(db)
    seen: list[Stopped] = []
    runner.events.on(Stopped, seen.append)
    ran: list[int] = []

    @runner.handler(batch="bad", max_failures=3, max_attempts=1)
    async def bad(number: int) -> None:
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
            async with other:  # opening the batch again lets it go on
                await until(lambda: ran == [1000])


# --- deadline --------------------------------------------------------------------------------------------------------


async def test_at_its_deadline_a_run_stops_and_the_rest_stays_pending(db: Path) -> None:
    started = 0

    async def handler(number: int) -> None:
        nonlocal started
        started += 1
        await asyncio.sleep(0.01)

    report = await run_batch(range(10_000), handler, db=db, deadline=0.2)
    assert report.stopped == "its deadline of 0.2 s passed"
    assert 0 < report.completed < 10_000
    assert report.pending > 0, "also of what was read, which on a slow machine is not all by then"
    assert report.completed + report.pending == report.total
    assert rows_of(db, "SELECT sum(attempts) FROM items") == [(report.completed,)]


async def test_a_moment_that_has_passed_stops_at_once(run_in_memory: InMemory) -> None:
    runner = Runner()
    ran: list[int] = []

    @runner.handler(deadline=datetime(2001, 1, 1, tzinfo=UTC))
    async def late(number: int) -> None:
        ran.append(number)

    @runner.handler(deadline=datetime.fromtimestamp(FakeClock().now(), UTC) + timedelta(hours=1))
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


@pytest.mark.parametrize("value", [0, -5, "soon", datetime(2030, 1, 1), float("inf")])  # noqa: DTZ001
def test_deadlines_that_mean_nothing_are_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="deadline="):
        Settings(deadline=value)


# --- rate_limit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50/s", (50.0, 1)), ("100/min", (100 / 60, 1)), ("3600 / hour", (1.0, 1)), ("10/2s", (5.0, 1)), ("5000/second", (5000.0, 100)),
        ("0.5/s", (0.5, 1)), ("86400/day", (1.0, 1)),
    ],
)  # fmt: skip
def test_rates_are_read(text: str, expected: tuple[float, int]) -> None:
    assert Rate.parse(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "50", "50/x", "/s", "0/s", "-1/s", "5/0s", "99999999/s", "1/99999999d", 50])
def test_rates_that_mean_nothing_are_refused(text: Any) -> None:
    with pytest.raises(ConfigurationError, match="rate_limit="):
        Settings(rate_limit=text)


@given(
    rate=st.floats(0.1, 20_000),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(0, 500)), max_size=60),
    start=st.floats(0, 2e9),
)
def test_no_span_of_time_has_more_starts_than_the_rate_and_a_burst_allow(
    rate: float, steps: list[tuple[float, int]], start: float
) -> None:
    limit = Rate(rate, max(1, int(rate * 0.02)))
    spent: float | None = None
    now = start
    starts: list[tuple[float, int]] = []
    for pause, wanted in steps:
        now += pause
        count = min(wanted, max(0, limit.allowed(spent, now)))
        spent = limit.spend(spent, now, count)
        starts.append((now, count))
    for first, (since, _) in enumerate(starts):
        total = 0
        for until, count in starts[first:]:
            total += count
            assert total <= (until - since) * rate + limit.burst + 0.01 * limit.burst + 1e-3 * total + 1e-3


def test_a_clock_that_was_put_back_holds_nobody_up() -> None:
    limit = Rate(50.0, 1)
    spent = limit.spend(None, NOW, 1)
    assert limit.allowed(spent, NOW) == 0
    assert limit.allowed(spent, NOW + 0.02) == 1
    assert limit.allowed(spent, NOW - 86_400) == 1


async def test_starts_keep_to_the_rate_in_all_runners_on_the_file_together(db: Path) -> None:
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


async def test_a_rate_holds_over_a_restart(db: Path) -> None:
    clock = FakeClock()
    runner = Runner(db, clock=clock)
    ran: list[int] = []

    @runner.handler(rate_limit="1/h")
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


# --- cool-down -------------------------------------------------------------------------------------------------------


async def test_items_that_become_due_while_the_batch_rests_keep_nobody_busy(run_in_memory: InMemory) -> None:
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
    assert runner.worker is not None
    assert runner.worker.next_due() == pytest.approx(590, abs=1)
    await asyncio.wait_for(run_until_idle(runner), 20)
    assert (await left.status()).value == "pending"


async def test_a_pause_parks_the_batch_for_all_runners_and_over_a_restart(db: Path) -> None:
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
