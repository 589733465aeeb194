"""The watchdog recovers the items of dead and hung workers; the test controls the clock."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from asyncrunner.events import Events, Recovered
from asyncrunner.runner.duties.watchdog import Watchdog
from asyncrunner.sqlite.locks.liveness_lock import EVIDENCE
from asyncrunner.store.workers import Peer
from asyncrunner.testing import FakeClock
from tests.unit.runner.fakes import FakeStore


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
            on_recovery=self.wake,
        )  # fmt: skip

    def wake(self) -> None:
        self.woken += 1

    async def look_for(self, seconds: float, *, pulse: str | None = "p") -> None:
        """Run the checks for *seconds*; without *pulse* the other worker beats before each one."""
        for number in range(round(seconds / 0.4)):
            await self.clock.advance(0.4)
            if self.store.found and pulse is None:
                self.store.found[0] = self.store.found[0]._replace(pulse=f"beat {number}")
            await self.watchdog.look()


def peer(*, alive: bool | None, pulse: str = "p") -> Peer:
    return Peer("other", pulse, "there", 42, alive, EVIDENCE[alive])


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
    assert watched.store.pulses[0] == "p", "not if it beats again at the same moment"


async def test_a_worker_that_beats_is_never_lost() -> None:
    watched = Watched(stale_after=2)
    watched.store.found = [peer(alive=True)]
    await watched.look_for(20, pulse=None)
    assert watched.store.recovered == []


async def test_a_jump_of_the_wall_clock_takes_no_item_from_a_live_worker() -> None:
    watched = Watched(stale_after=10)
    watched.store.found = [peer(alive=True)]
    await watched.look_for(4)
    watched.clock.jump(86400)
    await watched.look_for(4)
    watched.clock.jump(-2 * 86400)
    await watched.look_for(1.2)
    assert watched.store.recovered == []


async def test_after_a_suspension_of_its_process_the_watchdog_waits_for_stale_after_again() -> None:
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
    assert watched.store.recovered[0][0] is None


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


async def looks_within(watched: Watched, seconds: float) -> int:
    looks = 0
    peers = watched.store.peers

    async def counted(worker_id: str) -> Any:
        nonlocal looks
        looks += 1
        return await peers(worker_id)

    watched.store.peers = counted
    running = asyncio.ensure_future(watched.watchdog.run())
    for _ in range(round(seconds / 0.1)):
        await watched.clock.advance(0.1)
    running.cancel()
    await asyncio.wait([running])
    return looks


@pytest.mark.parametrize(("peers", "looks"), [(1, 50), (50, 50), (100, 25), (1000, 3)])
async def test_among_many_workers_each_looks_less_often(monkeypatch: pytest.MonkeyPatch, peers: int, looks: int) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    watched = Watched()
    watched.store.found = [peer(alive=True)._replace(worker_id=f"w{number}") for number in range(peers)]
    assert abs(await looks_within(watched, 20) - looks) <= 1
    assert {worker_id for worker_id, _ in watched.store.recovered} <= {None}


async def test_among_many_workers_a_free_lock_is_looked_at_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    watched = Watched()
    watched.store.found = [peer(alive=True)._replace(worker_id=f"w{number}") for number in range(999)]
    watched.store.found.append(peer(alive=None))
    assert await looks_within(watched, 4) in (9, 10)


async def test_among_many_workers_the_silence_of_a_hung_one_is_still_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    watched = Watched(stale_after=30)
    watched.store.found = [peer(alive=True)._replace(worker_id=f"w{number}") for number in range(1000)]
    await looks_within(watched, 45)
    assert len({worker_id for worker_id, _ in watched.store.recovered} - {None}) == 1000
