"""Observers receive the runner's events in order, and a slow or broken observer does not disturb the runner."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from asyncrunner import ConfigurationError, Runner, Status
from asyncrunner.events import Accepted, Settled, Started
from asyncrunner.runner import observers
from asyncrunner.runner.runner import run_until_idle
from tests.conftest import Until
from tests.support.handlers import failing_once
from tests.support.state import counts, rows_of


async def test_functions_and_coroutines_get_every_event_in_order(db: str) -> None:
    runner = Runner(db)
    in_thread: list[Any] = []
    in_loop: list[Any] = []
    threads: set[int] = set()

    def sync(event: Settled) -> None:
        threads.add(threading.get_ident())
        in_thread.append((event.batch, event.id, event.attempt, event.status, event.error))

    async def in_the_loop(event: Settled) -> None:
        await asyncio.sleep(0)
        in_loop.append((event.batch, event.id, event.attempt, event.status, event.error))

    runner.on(Settled, sync)
    runner.on(Settled, in_the_loop)
    handler = failing_once(runner)
    async with runner:
        await handler.submit(1, key=1)
        await run_until_idle(runner)
    expected = [("b", "1", 1, Status.PENDING, "ValueError: once"), ("b", "1", 2, Status.COMPLETED, None)]
    assert in_thread == in_loop == expected
    assert threading.get_ident() not in threads


async def test_an_observer_gets_an_event_after_its_commit(db: str) -> None:
    runner = Runner(db)
    seen: list[Any] = []
    runner.on(Settled, lambda event: seen.append(rows_of(db, f"SELECT status FROM items WHERE id = '{event.id}'")))

    @runner.handler
    async def handler(number: int) -> None: ...

    async with runner:
        await handler.submit_many(range(20))
        await run_until_idle(runner)
    assert seen == [[("completed",)]] * 20


async def test_an_observer_that_raises_is_logged_and_called_again(db: str, caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner(db)
    calls = {"sync": 0, "async": 0}

    def sync(event: Started) -> None:
        calls["sync"] += 1
        raise SystemExit("observer")

    async def coroutine(event: Started) -> None:
        calls["async"] += 1
        raise (ValueError("observer"), SystemExit("observer"), asyncio.CancelledError("observer"))[calls["async"] - 1]

    runner.on(Started, sync)
    runner.on(Started, coroutine)

    @runner.handler
    async def handler(number: int) -> int:
        return number

    async with runner:
        await handler.submit_many(range(3))
        await run_until_idle(runner)
    assert calls == {"sync": 3, "async": 3}
    assert caplog.text.count("raised an exception for the event Started") == 6
    assert counts(db)["completed"] == 3


async def test_a_slow_observer_delays_no_worker_and_its_missed_events_are_reported(
    db: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(observers, "MAX_WAITING", 50)
    runner = Runner(db)
    release = threading.Event()
    seen: list[Any] = []

    def slow(event: Settled) -> None:
        release.wait(20)
        seen.append(event.id)

    runner.on(Settled, slow)

    @runner.handler
    async def handler(number: int) -> int:
        return number

    async with runner:
        first = await handler.submit(0)
        await first.result(20)
        while runner._internals._observers[0]._waiting:
            await asyncio.sleep(0.001)
        handles = await handler.submit_many(range(1, 200))
        await asyncio.gather(*(handle.result(20) for handle in handles))
        assert seen == []
        release.set()
    assert len(seen) == 51
    assert "is too slow: dropped 149 events" in caplog.text


async def test_an_observer_may_come_and_go_while_it_runs(db: str, until: Until) -> None:
    runner = Runner(db)
    seen: list[str] = []

    @runner.handler
    async def handler(number: int) -> None: ...

    async with runner:
        end = runner.on(Settled, lambda event: seen.append(event.id))
        await handler.submit(1, key=1)
        await until(lambda: seen == ["1"])
        end()
        end()
        await (await handler.submit(2, key=2)).result(20)
    assert seen == ["1"]
    with pytest.raises(ConfigurationError, match="is not callable"):
        runner.on(Settled, "print")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="cannot be called with one event"):
        runner.on(Settled, lambda: None)  # type: ignore[arg-type,misc]
    with pytest.raises(
        ConfigurationError, match=r"there is no event 'settled'; asyncrunner.events has Accepted, Started, Settled"
    ):
        runner.on("settled", print)  # type: ignore[arg-type]


async def test_observers_get_events_again_after_a_restart(db: str) -> None:
    runner = Runner(db)
    seen: list[str] = []

    @runner.handler(batch="b")
    async def handler(number: int) -> None: ...

    runner.on(Accepted, lambda event: seen.append(f"{event.batch} {event.added} {event.existing}"))
    for _ in range(2):
        async with runner:
            await handler.submit(1, key=1)
    assert seen == ["b 1 0", "b 0 1"]
