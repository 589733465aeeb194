"""The heartbeat of a worker; the test controls the clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncrunner.errors import StoreReplaced, StoreUnavailable
from asyncrunner.runner.duties.heartbeat import Heartbeat
from asyncrunner.store.retrying import Outage
from asyncrunner.store.workers import Stop, Vitals
from asyncrunner.testing import FakeClock
from tests.unit.runner.fakes import FakeStore


class FakeWorker:
    id = "me"
    processed = 5
    failures = 1

    def __init__(self) -> None:
        self.may_claim = True
        self.woken = 0
        self.cast = 0

    def wake(self) -> None:
        self.woken += 1

    def cast_out(self) -> None:
        self.cast += 1
        self.may_claim = False


def heart(stale_after: float = 10.0) -> tuple[Heartbeat, Any, Any, FakeClock]:
    clock, store, worker = FakeClock(), FakeStore(), FakeWorker()
    made = Heartbeat(
        worker, store, Vitals, interval=1.0, stale_after=stale_after, clock=clock, outage=Outage(clock),  # type: ignore[arg-type]
        on_stop=store.stops.append,
    )  # fmt: skip
    return made, store, worker, clock


async def test_it_beats_each_second() -> None:
    heartbeat, store, _, clock = heart()
    beating = asyncio.ensure_future(heartbeat.run())
    await asyncio.sleep(0)
    await clock.advance(3.5)
    beating.cancel()
    assert store.beats == 3


async def test_each_stop_request_from_outside_is_forwarded_once() -> None:
    heartbeat, store, _, _ = heart()
    for store.stop in (Stop.NO, Stop.DRAIN, Stop.DRAIN, Stop.CANCEL, Stop.CANCEL):
        await heartbeat.beat()
    assert store.stops == [Stop.DRAIN, Stop.CANCEL]


async def test_a_worker_that_cannot_beat_for_half_of_stale_after_stops_claiming_until_it_can() -> None:
    heartbeat, store, worker, clock = heart(stale_after=10)
    store.error = StoreUnavailable("locked")
    for seconds, may_claim in ((4.0, True), (2.0, False)):
        await clock.advance(seconds)
        with pytest.raises(StoreUnavailable):
            await heartbeat.beat()
        assert worker.may_claim is may_claim
    store.error = None
    await heartbeat.beat()
    assert (worker.may_claim, worker.woken) == (True, 1)


async def test_a_heartbeat_reports_to_a_worker_that_it_was_declared_lost() -> None:
    heartbeat, store, worker, _ = heart()
    store.outcast = True
    await heartbeat.beat()
    assert (worker.cast, worker.may_claim) == (1, True)


async def test_a_heartbeat_is_retried_while_the_store_is_unavailable() -> None:
    heartbeat, store, _, clock = heart()
    beating = asyncio.ensure_future(heartbeat.run())
    await asyncio.sleep(0)
    store.error = StoreUnavailable("locked")
    await clock.advance(1.0)
    store.error = None
    await clock.advance(0.5)
    beating.cancel()
    assert store.beats == 1


async def test_a_heartbeat_follows_the_end_of_a_long_outage_within_a_second() -> None:
    heartbeat, store, _, clock = heart()
    store.error = StoreUnavailable("locked")
    beating = asyncio.ensure_future(heartbeat.run())
    await asyncio.sleep(0)
    for _ in range(30):  # the waits between two attempts have random parts
        store.error = StoreUnavailable("locked")
        await clock.advance(30.0)
        store.error, store.beats = None, 0
        await clock.advance(0.6)
        assert store.beats == 1
        await clock.advance(1.0)
    beating.cancel()


async def test_a_replaced_file_ends_the_heartbeat() -> None:
    heartbeat, store, _, clock = heart()
    store.error = StoreReplaced("gone")
    beating = asyncio.ensure_future(heartbeat.run())
    await asyncio.sleep(0)
    await clock.advance(1.0)
    with pytest.raises(StoreReplaced):
        await beating
