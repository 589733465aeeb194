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
from asyncrunner.store.retrying import RetryingStore
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


async def test_a_store_that_stays_unavailable_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    store, refusing, clock = retrying(StoreUnavailable("locked"))
    caplog.set_level(logging.WARNING, "asyncrunner")
    calling = asyncio.ensure_future(store.counts(1))
    await asyncio.sleep(0)
    await clock.advance(300)
    text = "the store is unavailable (attempt {}); the call is retried, nothing is lost: locked"
    assert caplog.messages == [text.format(number) for number in (5, 10, 20, 40)]
    refusing.error = None
    await clock.advance(6)
    await calling
