"""Calls of an unavailable store are retried with growing delays until a deadline."""

from __future__ import annotations

import asyncio
import inspect
import logging
from itertools import pairwise
from typing import Any

import pytest

from asyncrunner.errors import StoreError, StoreUnavailable
from asyncrunner.store.protocols import EngineStore, ReadStore
from asyncrunner.store.retrying import RetryingStore, retry_while_unavailable
from asyncrunner.testing import FakeClock

VERBS = [
    name
    for contract in (EngineStore, ReadStore)
    for name, verb in vars(contract).items()
    if inspect.iscoroutinefunction(verb) and not name.startswith("_")
]


class Refusing:
    """A store whose calls raise *error* until it is None."""

    location = "here"

    def __init__(self, clock: FakeClock, error: Exception | None) -> None:
        self.clock = clock
        self.error = error
        self.calls: list[float] = []
        self.arguments: tuple[Any, ...] = ()

    def __getattr__(self, name: str) -> Any:
        async def verb(*arguments: Any, **options: Any) -> Any:
            self.calls.append(self.clock.monotonic())
            self.arguments = (*arguments, options)
            if self.error is not None:
                raise self.error
            return name

        return verb


def retrying(error: Exception | None) -> tuple[RetryingStore, Refusing, FakeClock]:
    clock = FakeClock()
    store = Refusing(clock, error)
    return RetryingStore(store, clock), store, clock


async def test_it_backs_off_and_gives_up_at_a_deadline_that_may_come_nearer() -> None:
    store, refusing, clock = retrying(StoreUnavailable("locked"))
    waiting = asyncio.ensure_future(store.counts(1))
    await asyncio.sleep(0)
    await clock.advance(30)
    gaps = [after - before for before, after in pairwise(refusing.calls[1:])]
    assert gaps[0] < 0.1
    assert 4 < gaps[-1] <= 5.1
    store.deadline = clock.monotonic()
    await clock.advance(6)
    assert waiting.done()
    with pytest.raises(StoreUnavailable):
        await waiting
    calls = len(refusing.calls)
    with pytest.raises(StoreUnavailable):
        await store.counts(1)
    assert len(refusing.calls) == calls + 1


async def test_another_error_is_not_retried() -> None:
    store, refusing, _ = retrying(StoreError("the disk is broken"))
    with pytest.raises(StoreError, match="broken"):
        await store.counts(1)
    assert len(refusing.calls) == 1


@pytest.mark.parametrize("name", [name for name in VERBS if name != "close"])
async def test_every_verb_is_retried_with_its_own_arguments(name: str) -> None:
    store, refusing, clock = retrying(StoreUnavailable("locked"))
    parameters = inspect.signature(getattr(RetryingStore, name)).parameters.values()
    positional = [each.name for each in parameters if each.name != "self" and each.kind is not each.KEYWORD_ONLY]
    named = {each.name: each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    calling = asyncio.ensure_future(getattr(store, name)(*positional, **named))
    await asyncio.sleep(0)
    await clock.advance(0.5)
    assert not calling.done()
    refusing.error = None
    await clock.advance(6)
    assert await calling in (None, name)
    assert refusing.arguments == (*positional, named)


def test_it_has_the_signatures_of_the_contract() -> None:
    for contract in (EngineStore, ReadStore):
        for name in VERBS:
            if name in vars(contract):
                assert inspect.signature(getattr(RetryingStore, name)) == inspect.signature(getattr(contract, name)), name


async def test_the_log_has_one_line_for_an_outage_one_each_minute_and_one_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    store, refusing, clock = retrying(StoreUnavailable("locked"))
    caplog.set_level(logging.WARNING, "asyncrunner")
    calls = [asyncio.ensure_future(each) for each in (store.counts(1), store.batch_names(), store.find_batch("b"))]
    beating = asyncio.ensure_future(retry_while_unavailable(refusing.beat, store.outage, max_wait=0.5))
    await asyncio.sleep(0)
    await clock.advance(0.4)
    assert caplog.messages == []  # most locks are released sooner
    await clock.advance(130)
    lines = [line.partition(" s;")[0].rpartition(" ") for line in caplog.messages]
    assert [text for text, _, _ in lines] == ["the store has been unavailable for"] * 3
    assert [round(float(seconds)) for _, _, seconds in lines] == [pytest.approx(each, abs=6) for each in (0.5, 60, 120)]
    assert caplog.messages[0].endswith("s; calls are retried, nothing is lost: locked")
    caplog.clear()
    refusing.error = None
    await clock.advance(6)
    await asyncio.gather(*calls, beating)
    assert [line.rpartition(" after ")[0] for line in caplog.messages] == ["the store is available again"]
    assert caplog.messages[0].endswith(" s")


async def test_an_outage_lasts_while_a_call_is_retried_though_others_succeed(caplog: pytest.LogCaptureFixture) -> None:
    """As on a full disk: a heartbeat fits, and a turn does not."""
    store, refusing, clock = retrying(StoreUnavailable("the disk is full"))
    caplog.set_level(logging.WARNING, "asyncrunner")
    turn = asyncio.ensure_future(store.counts(1))
    await asyncio.sleep(0)

    async def beat() -> None:
        pass

    for _ in range(20):
        await retry_while_unavailable(beat, store.outage)
        await clock.advance(1)
    assert [line.partition(" for ")[0] for line in caplog.messages] == ["the store has been unavailable"]
    refusing.error = None
    await clock.advance(6)
    await turn
    assert caplog.messages[1].startswith("the store is available again after 2")


async def test_the_last_call_of_a_worker_ends_an_outage_though_another_call_waits_for_its_retry(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, refusing, clock = retrying(StoreUnavailable("no server"))
    caplog.set_level(logging.WARNING, "asyncrunner")
    waiting = asyncio.ensure_future(store.counts(1))
    await asyncio.sleep(0)
    await clock.advance(20)
    refusing.error = None
    await store.leave("w")
    assert not waiting.done()
    assert caplog.messages[-1].startswith("the store is available again after 20")
    waiting.cancel()


async def test_a_short_outage_is_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    store, refusing, clock = retrying(StoreUnavailable("locked"))
    caplog.set_level(logging.INFO, "asyncrunner")
    calling = asyncio.ensure_future(store.counts(1))
    await asyncio.sleep(0)
    refusing.error = None
    await clock.advance(0.3)
    await calling
    assert caplog.messages == []


async def test_an_earlier_deadline_ends_a_pause_and_a_call_that_is_not_answered() -> None:
    store, _, clock = retrying(StoreUnavailable("locked"))
    pausing = asyncio.ensure_future(store.counts(1))
    await asyncio.sleep(0)
    await clock.advance(30)  # the pauses last 5 s now
    answer = asyncio.Event()

    async def unanswered() -> None:
        await answer.wait()

    waiting = asyncio.ensure_future(retry_while_unavailable(unanswered, store.outage))
    await clock.advance(0)
    store.deadline = clock.monotonic() + 0.25
    await clock.advance(0.3)
    assert pausing.done()
    with pytest.raises(StoreUnavailable, match="locked"):
        await pausing
    await clock.advance(0.3)  # a call that has just begun has half a second
    with pytest.raises(StoreUnavailable, match="has not answered before the end of the stop"):
        await waiting


async def test_a_call_of_a_healthy_store_has_all_the_time_that_it_needs() -> None:
    store, _, clock = retrying(None)
    answer = asyncio.Event()

    async def slow() -> str:
        await answer.wait()
        return "done"

    waiting = asyncio.ensure_future(retry_while_unavailable(slow, store.outage))
    store.deadline = clock.monotonic() + 1
    await clock.advance(60)
    answer.set()
    assert await waiting == "done"
