"""Store calls are repeated while the store is unavailable."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from asyncrunner.errors import StoreUnavailable
from asyncrunner.store.retrying import Persistence
from asyncrunner.testing import FakeClock


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
