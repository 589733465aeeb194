"""A periodic task continues while the store is unavailable."""

from __future__ import annotations

import asyncio

from asyncrunner.errors import StoreUnavailable
from asyncrunner.store.retrying import every
from asyncrunner.testing import FakeClock


async def test_a_periodic_task_continues_while_the_store_is_unavailable_and_may_begin_immediately() -> None:
    clock = FakeClock()
    runs = 0

    async def duty() -> None:
        nonlocal runs
        runs += 1
        raise StoreUnavailable("locked")

    doing = asyncio.ensure_future(every(1.0, duty, clock=clock, immediately=True))
    await asyncio.sleep(0)
    assert runs == 1
    await clock.advance(2.5)
    doing.cancel()
    assert runs == 3
