"""Heartbeat and watchdog on a clock that the test owns."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import pytest

from asyncrunner.domain.outcome import ErrorInfo
from asyncrunner.errors import StoreReplaced, StoreUnavailable
from asyncrunner.events import Events, Recovered
from asyncrunner.runner.heartbeat import Heartbeat
from asyncrunner.runner.periodic import every
from asyncrunner.runner.watchdog import Watchdog
from asyncrunner.store.retrying import Persistence
from asyncrunner.store.workers import Beat, Peer, Stop, Vitals
from asyncrunner.testing import FakeClock


class FakeStore:
    """What a heartbeat and a watchdog ask of a store."""

    def __init__(self) -> None:
        self.found: list[Peer] = []
        self.recovered: list[tuple[str, str]] = []
        self.pulses: list[str | None] = []  # that were asked for with each recovery
        self.beats = 0
        self.outcast = False
        self.stop = Stop.NO
        self.stops: list[Stop] = []
        self.error: Exception | None = None

    async def peers(self, worker_id: str) -> Sequence[Peer]:
        return list(self.found)

    async def recover(self, worker_id: str, error: ErrorInfo, *, now: float, pulse: str | None = None) -> int:
        self.recovered.append((worker_id, error.message))
        self.pulses.append(pulse)
        return 3

    async def recover_orphans(self, error: ErrorInfo, *, now: float) -> int:
        self.recovered.append(("orphans", error.message))
        return 1

    async def beat(self, worker_id: str, vitals: Vitals, *, now: float) -> Beat:
        if self.error is not None:
            raise self.error
        self.beats += 1
        return Beat(self.outcast, stop=self.stop)


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


class Watched:
    def __init__(self, stale_after: float = 300.0) -> None:
        self.clock = FakeClock()
        self.store = cast("Any", FakeStore())
        self.events = Events()
        self.woken = 0
        self.seen: list[Recovered] = []
        self.events.on(Recovered, self.seen.append)
        self.watchdog = Watchdog(
            "me", self.store, interval=0.4, stale_after=stale_after, clock=self.clock, events=self.events,
            persist=Persistence(self.clock), on_recovery=self.wake,
        )  # fmt: skip

    def wake(self) -> None:
        self.woken += 1

    async def look_for(self, seconds: float, *, pulse: str | None = "p") -> None:
        """Look at the interval for that long; without *pulse* the other one beats each time."""
        for number in range(round(seconds / 0.4)):
            await self.clock.advance(0.4)
            if self.store.found and pulse is None:
                self.store.found[0] = self.store.found[0]._replace(pulse=f"beat {number}")
            await self.watchdog.look()


def peer(*, alive: bool | None, pulse: str = "p") -> Peer:
    return Peer("other", pulse, "there", 42, alive)


async def test_a_worker_whose_lock_is_free_is_recovered_at_the_first_look() -> None:
    watched = Watched()
    watched.store.found = [peer(alive=False)]
    assert await watched.watchdog.look() == 3
    assert watched.store.recovered == [
        ("other", "worker other (pid 42 on there) was lost: its lock is free: the process is dead")
    ]
    assert watched.woken == 1
    assert [(event.worker_id, event.items) for event in watched.seen] == [("other", 3)]


async def test_a_living_worker_is_lost_only_after_its_heartbeat_has_stood_still_for_stale_after() -> None:
    watched = Watched(stale_after=300)
    watched.store.found = [peer(alive=True)]
    await watched.look_for(299.6)
    assert watched.store.recovered == []
    await watched.look_for(1.2)
    assert "its heartbeat has not changed for 300 s although its process lives" in watched.store.recovered[0][1]
    assert watched.store.pulses[0] == "p", "not if it beats again in this moment"


async def test_a_worker_that_beats_is_never_lost() -> None:
    watched = Watched(stale_after=2)
    watched.store.found = [peer(alive=True)]
    await watched.look_for(20, pulse=None)
    assert watched.store.recovered == []


async def test_a_wall_clock_that_jumps_robs_nobody() -> None:
    watched = Watched(stale_after=10)
    watched.store.found = [peer(alive=True)]
    await watched.look_for(4)
    watched.clock.jump(86400)
    await watched.look_for(4)
    watched.clock.jump(-2 * 86400)
    await watched.look_for(1.2)
    assert watched.store.recovered == []


async def test_after_a_pause_of_its_own_the_others_get_a_fresh_start() -> None:
    watched = Watched(stale_after=10)
    watched.store.found = [peer(alive=True)]
    await watched.look_for(4)
    await watched.clock.advance(3600)  # the laptop slept
    await watched.look_for(9.6)
    assert watched.store.recovered == []
    await watched.look_for(1.2)
    assert len(watched.store.recovered) > 0


async def test_a_worker_without_a_lock_file_is_lost_after_five_seconds_of_silence() -> None:
    watched = Watched()
    watched.store.found = [peer(alive=None)]
    await watched.look_for(4.8)
    assert watched.store.recovered == []
    await watched.look_for(0.8)
    assert "it has no lock file and no heartbeat for" in watched.store.recovered[0][1]


async def test_orphans_are_adopted() -> None:
    watched = Watched()
    assert await watched.watchdog.adopt_orphans() == 1
    assert watched.store.recovered[0][0] == "orphans"


async def test_the_watchdog_looks_each_interval() -> None:
    watched = Watched()
    watching = asyncio.ensure_future(watched.watchdog.run())
    await asyncio.sleep(0)
    watched.store.found = [peer(alive=False)]
    await watched.clock.advance(0.4)
    assert len(watched.store.recovered) == 1
    await watched.clock.advance(0.4)
    assert len(watched.store.recovered) == 2
    watching.cancel()


def heart(stale_after: float = 10.0) -> tuple[Heartbeat, Any, Any, FakeClock]:
    clock, store, worker = FakeClock(), FakeStore(), FakeWorker()
    made = Heartbeat(
        worker, store, Vitals, interval=1.0, stale_after=stale_after, clock=clock, persist=Persistence(clock),  # type: ignore[arg-type]
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


async def test_what_somebody_outside_asks_is_passed_on_once_each() -> None:
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


async def test_a_worker_that_was_declared_lost_hears_of_it_with_its_beat() -> None:
    heartbeat, store, worker, _ = heart()
    store.outcast = True
    await heartbeat.beat()
    assert (worker.cast, worker.may_claim) == (1, True)


async def test_a_beat_that_the_store_cannot_take_now_is_tried_again() -> None:
    heartbeat, store, _, clock = heart()
    beating = asyncio.ensure_future(heartbeat.run())
    await asyncio.sleep(0)
    store.error = StoreUnavailable("locked")
    await clock.advance(1.0)
    store.error = None
    await clock.advance(0.5)
    beating.cancel()
    assert store.beats == 1


async def test_a_replaced_file_ends_the_heartbeat() -> None:
    heartbeat, store, _, clock = heart()
    store.error = StoreReplaced("gone")
    beating = asyncio.ensure_future(heartbeat.run())
    await asyncio.sleep(0)
    await clock.advance(1.0)
    with pytest.raises(StoreReplaced):
        await beating


async def test_persistence_backs_off_and_gives_up_when_it_is_told_to() -> None:
    clock = FakeClock()
    persist = Persistence(clock)
    times: list[float] = []

    async def refuse() -> None:
        times.append(clock.monotonic())
        raise StoreUnavailable("locked")

    waiting = asyncio.ensure_future(persist(refuse))
    await asyncio.sleep(0)
    await clock.advance(30)
    gaps = [after - before for before, after in pairwise(times[1:])]
    assert gaps[0] < 0.1
    assert 4 < gaps[-1] <= 5.1
    persist.give_up_at = clock.monotonic()
    await clock.advance(6)
    with pytest.raises(StoreUnavailable):
        await waiting
    with pytest.raises(StoreUnavailable):
        await persist(refuse)


async def test_a_duty_goes_on_while_the_store_is_unavailable_and_may_begin_at_once() -> None:
    clock = FakeClock()
    runs = 0

    async def duty() -> None:
        nonlocal runs
        runs += 1
        raise StoreUnavailable("locked")

    doing = asyncio.ensure_future(every(1.0, duty, clock=clock, at_once=True))
    await asyncio.sleep(0)
    assert runs == 1
    await clock.advance(2.5)
    doing.cancel()
    assert runs == 3
