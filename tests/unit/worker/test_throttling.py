"""A service that refuses requests slows its batch down in a worker; the operator and a rate limit take precedence."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from asyncrunner import Control, Later, Runner
from asyncrunner.admin.read_models import Throttled
from asyncrunner.domain.failure_limit import FailureShare
from asyncrunner.domain.item import Claim, Counts
from asyncrunner.domain.outcome import Cancelled, Completed, ErrorInfo, Outcome, PutOff, Released, Settlement
from asyncrunner.domain.rate_limit import Rate
from asyncrunner.runner.runner import internals_of, run_until_idle
from asyncrunner.store.workers import Throttle
from asyncrunner.testing import FakeClock, in_memory
from asyncrunner.worker.admission import Blocked
from asyncrunner.worker.batch_queue import BatchQueue
from tests.support.servers import FixedRate

BUSY = ErrorInfo("HTTPStatusError", "429")
WALL = 1_800_000_000.0
FIRST_BATCH = 1  # the id of the only batch of a new store


def a_claim() -> Claim:
    return Claim(seq=1, batch_id=1, id="k", payload="1", number=1, attempt=1, crashes=0)


def queue_of(limit: int = 8, *, rate: Rate | None = None, max_failures: FailureShare | None = None) -> BatchQueue:
    return BatchQueue(1, "b", cast("Any", None), limit=limit, rate=rate, max_failures=max_failures)


def end(queue: BatchQueue, outcome: Outcome, now: float, *, seconds: float = 1.0) -> bool:
    return queue.adapt_limit(Settlement(a_claim(), outcome, WALL - seconds, WALL), now)


def refusal(after: float | None = None) -> PutOff:
    return PutOff(BUSY, after or 1.0, after=after, is_refusal=True)


def refuse(queue: BatchQueue, now: float, *, after: float = 30.0) -> None:
    """End three attempts by a refusal, the least number that lets the batch rest."""
    for _ in range(3):
        end(queue, refusal(after), now)


# --- the batch queue ------------------------------------------------------------------------------------------------


def test_while_most_answers_are_refusals_nothing_starts_before_the_time_that_the_service_requests() -> None:
    queue = queue_of()
    queue.take_in([a_claim()], 10.0)
    assert not end(queue, refusal(30.0), 10.0)
    assert not end(queue, refusal(30.0), 10.0)
    assert (queue.limit, queue.throttle.target) == (6, 8), "two answers are too few for a rest; their slots stay free"
    assert end(queue, refusal(30.0), 10.0), "the rest begins"
    assert not end(queue, refusal(40.0), 10.5), "the rest has begun already"
    assert (queue.limit, queue.has_work, queue.blocked) == (0, False, Blocked.THROTTLED)
    assert queue.current_throttle(12.0, WALL - 12.0) == Throttle(0, 8, WALL - 1.5)
    queue.refresh_limit(39.9)
    assert queue.blocked is Blocked.THROTTLED
    queue.refresh_limit(40.0)
    assert (queue.limit, queue.has_work, queue.blocked) == (1, True, Blocked.NONE)
    assert queue.current_throttle(40.0, WALL - 40.0) == Throttle(4, 8, WALL - 29.5)


def test_the_limit_rises_again_while_the_slots_are_used() -> None:
    queue = queue_of()
    refuse(queue, 10.0, after=1.0)
    for now in range(12, 40):
        queue.running = cast("Any", range(queue.limit - 1))
        end(queue, Completed("1"), float(now), seconds=0.5)
    assert queue.limit == 8
    assert queue.current_throttle(40.0, 0.0) is None
    for now in range(40, 100):
        end(queue, Completed("1"), float(now), seconds=0.5)
    assert not queue.throttle.is_active, "a minute without a refusal"


def test_a_limit_of_an_operator_and_a_probe_are_not_reported_as_slowed_down_by_a_service() -> None:
    queue = queue_of(max_failures=FailureShare(0.5, rest=60))
    end(queue, refusal(1.0), 10.0)
    queue.set_limit(5)
    assert queue.current_throttle(12.0, 0.0) is None, "the limit is the operator's"
    queue.set_limit(None)
    for now in range(12, 40):
        queue.running = cast("Any", range(7))
        end(queue, Completed("1"), float(now), seconds=0.5)
    queue.record_rest(40.0)
    assert (queue.limit, queue.current_throttle(41.0, 0.0)) == (1, None), "one item tries after a rest"


@pytest.mark.parametrize("outcome", [PutOff(BUSY, 9.0, after=9.0), Released(), Cancelled(), Completed("1")])
def test_only_refusals_of_a_service_slow_a_batch_down(outcome: Outcome) -> None:
    queue = queue_of()
    for _ in range(50):
        assert not end(queue, outcome, 10.0)
    assert (queue.limit, queue.is_resting, queue.current_throttle(10.0, 0.0)) == (8, False, None)


@pytest.mark.parametrize("requested", [3, 8, 20])
def test_the_limit_of_an_operator_takes_precedence_until_it_is_reset(requested: int) -> None:
    queue = queue_of()
    assert queue.set_limit(requested)
    assert not queue.set_limit(requested)
    for _ in range(50):
        assert not end(queue, refusal(30.0), 10.0)
    assert (queue.limit, queue.is_resting) == (requested, False)
    assert queue.set_limit(None)
    refuse(queue, 11.0)
    assert queue.limit == 0


def test_an_operator_ends_a_rest_with_a_limit() -> None:
    queue = queue_of()
    refuse(queue, 10.0)
    queue.set_limit(5)
    queue.refresh_limit(10.1)
    assert (queue.limit, queue.blocked) == (5, Blocked.NONE)


def test_a_rate_limit_takes_precedence() -> None:
    queue = queue_of(rate=Rate(100, 1))
    for _ in range(50):
        assert not end(queue, refusal(30.0), 10.0)
    assert (queue.limit, queue.is_resting) == (8, False)


# --- the worker -----------------------------------------------------------------------------------------------------


class Refused(Exception):
    """The error of an HTTP client: its response has the status 429."""

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__("429 Too Many Requests")
        self.response = type("Response", (), {"status_code": 429, "headers": headers})()


async def test_claims_that_have_not_started_are_released_for_the_rest_and_run_at_its_end() -> None:
    runner = Runner(":memory:", concurrency=10)
    attempts: list[tuple[float, int]] = []

    @runner.handler(batch="b", max_attempts=1)
    async def handler(n: int) -> int:
        attempts.append((clock.monotonic(), n))
        if len(attempts) <= 3:
            raise Refused({"Retry-After": "30"})
        return n

    async with in_memory(runner) as clock:
        began = clock.monotonic()
        await handler.submit_many(range(10))
        await run_until_idle(runner, delayed=False)
        internals = internals_of(runner)
        worker = internals.worker
        assert worker is not None
        assert (len(attempts), worker.in_hand) == (3, 0), "the other claims are released"
        assert (await internals.store.counts(FIRST_BATCH)).pending == 10
        assert worker.throttles == {"b": Throttle(0, 10, clock.now())}
        assert worker.next_due() == 30.0
        await clock.advance(29.9)
        await run_until_idle(runner, delayed=False)
        assert len(attempts) == 3
        await run_until_idle(runner)
        assert await internals.store.counts(FIRST_BATCH) == Counts(completed=10)
        assert min(at for at, _ in attempts[3:]) >= began + 30
        assert (len(attempts), worker.processed) == (13, 10)


async def test_a_handler_that_puts_its_items_off_does_not_slow_the_others_down() -> None:
    runner = Runner(":memory:", concurrency=10)
    limits: set[int] = set()
    seen: set[int] = set()

    @runner.handler(batch="b", max_attempts=1)
    async def handler(n: int) -> int:
        worker = internals_of(runner).worker
        assert worker is not None
        limits.add(worker.slots)
        if n not in seen:
            seen.add(n)
            raise Later("still running", after=60)
        return n

    async with in_memory(runner) as clock:
        began = clock.monotonic()
        handles = await handler.submit_many(range(100))
        await run_until_idle(runner)
        assert 60 <= clock.monotonic() - began <= 80
        assert [await handle.status() for handle in handles] == ["completed"] * 100
    assert limits == {10}


@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {}], ids=["Retry-After", "no header"])
@pytest.mark.parametrize("concurrency", [10, 50, 200])
async def test_no_item_fails_at_a_service_that_takes_a_hundred_requests_a_second(
    concurrency: int, headers: dict[str, str]
) -> None:
    runner = Runner(":memory:", concurrency=concurrency)
    service = FixedRate(100)
    refused = 0

    @runner.handler(batch="b")
    async def handler(n: int) -> int:
        nonlocal refused
        if not service.reply(clock.monotonic(), n).accepted:
            refused += 1
            raise Refused(headers)
        return n

    async with in_memory(runner) as clock:
        assert isinstance(clock, FakeClock)
        began = clock.monotonic()
        await handler.submit_many(range(1000))
        await run_until_idle(runner)
        assert await internals_of(runner).store.counts(FIRST_BATCH) == Counts(completed=1000)
        seconds = clock.monotonic() - began
    assert refused <= 1.5 * concurrency + 50
    assert seconds <= 15


async def test_a_heartbeat_reports_how_a_service_slows_a_batch_down(db: str) -> None:
    runner = Runner(db, concurrency=10)

    @runner.handler(batch="b", max_attempts=1)
    async def handler(n: int) -> int:
        raise Refused({"Retry-After": "30"})

    async with runner, Control(db) as control:
        await handler.submit_many(range(3))

        async def throttled() -> Throttled | None:
            (batch,) = (await control.status()).batches
            return batch.throttled

        async with asyncio.timeout(20):
            while (found := await throttled()) is None:
                await asyncio.sleep(0.02)
        assert (found.limit, found.of) == (0, 10)
        assert 0 <= found.seconds < 20
        await runner.stop(drain=False)
    async with Control(db) as control:
        (batch,) = (await control.status()).batches
        assert batch.throttled is None, "the worker has left"
        assert batch.put_offs >= 1


async def test_no_item_fails_during_an_outage_of_two_minutes_with_the_default_options() -> None:
    runner = Runner(":memory:")
    done = 0
    away_until = float("inf")

    @runner.handler(batch="b")
    async def handler(n: int) -> int:
        nonlocal done, away_until
        now = clock.monotonic()
        if done == 500:
            away_until = min(away_until, now + 120)
            if now < away_until:
                raise ConnectionError("away")
        done += 1
        return n

    async with in_memory(runner) as clock:
        began = clock.monotonic()
        await handler.submit_many(range(1000))
        await run_until_idle(runner)
        assert await internals_of(runner).store.counts(FIRST_BATCH) == Counts(completed=1000)
        assert 120 < clock.monotonic() - began < 300
