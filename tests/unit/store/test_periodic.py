"""A periodic task continues while the store is unavailable, and such tasks wake the process together."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrunner.domain.clock import aligned_pause
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


async def test_tasks_with_one_origin_run_together_whatever_they_take() -> None:
    clock = FakeClock()
    origin = clock.monotonic()
    runs: dict[float, list[float]] = {0.0: [], 0.15: [], 0.75: []}

    def lasting(seconds: float) -> asyncio.Task[None]:
        async def duty() -> None:
            runs[seconds].append(round(clock.monotonic() - origin, 6))
            if seconds:
                await clock.sleep(seconds)

        return asyncio.create_task(every(1.0, duty, clock=clock, origin=origin))

    await clock.advance(0.25)
    tasks = [lasting(seconds) for seconds in runs]
    await asyncio.sleep(0)
    for _ in range(22):
        await clock.advance(0.25)
    for task in tasks:
        task.cancel()
    assert runs == {0.0: [1, 2, 3, 4, 5], 0.15: [1, 2, 3, 4, 5], 0.75: [1, 3, 5]}


@given(st.floats(0.01, 100), st.floats(0, 1e6), st.floats(0, 1e6))
def test_an_aligned_pause_is_never_short_and_ends_at_a_multiple(seconds: float, origin: float, later: float) -> None:
    pause = aligned_pause(seconds, origin + later, origin)
    assert seconds / 4 < pause <= seconds * 1.25
    ticks = (origin + later + pause - origin) / seconds
    assert ticks == pytest.approx(round(ticks), abs=1e-6 * (1 + later / seconds))
