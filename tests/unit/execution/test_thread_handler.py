"""A ``def`` handler and its thread."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from asyncrunner.execution import thread_handler
from asyncrunner.execution.thread_handler import as_coroutine_function


def called_in_thread(handler: Callable[[Any], Any], limit: int = 10) -> Callable[[Any], Any]:
    limiter = anyio.CapacityLimiter(limit)
    return as_coroutine_function(handler, lambda: limiter)


async def test_the_thread_is_a_daemon_thread_which_the_end_of_the_program_does_not_wait_for() -> None:
    assert await called_in_thread(lambda _: threading.current_thread().daemon)(1)


async def test_calls_one_after_another_reuse_one_thread() -> None:
    call = called_in_thread(lambda _: threading.current_thread())
    assert len({await call(n) for n in range(20)}) == 1


async def test_as_many_calls_run_at_the_same_time_as_the_limiter_admits() -> None:
    barrier = threading.Barrier(3, timeout=30)
    running, most = 0, 0
    lock = threading.Lock()

    def handler(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait()
        with lock:
            running -= 1
        barrier.wait()
        return item

    call = called_in_thread(handler, 3)
    assert await asyncio.gather(*map(call, range(9))) == list(range(9))
    assert most == 3


async def test_a_handler_calls_into_the_event_loop_with_anyio_and_with_asyncio() -> None:
    loop = asyncio.get_running_loop()

    async def add(one: int, other: int) -> int:
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0)
        return one + other

    def handler(item: int) -> list[object]:
        anyio.from_thread.check_cancelled()
        return [
            anyio.from_thread.run(add, item, 1),
            anyio.from_thread.run_sync(asyncio.get_running_loop) is loop,
            asyncio.run_coroutine_threadsafe(add(item, 2), loop).result(30),
        ]

    call = called_in_thread(handler)
    for _ in range(2):  # the second time in a reused thread
        assert await call(1) == [2, True, 3]


_name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="default")


async def test_a_handler_has_a_copy_of_the_callers_context() -> None:
    def handler(item: int) -> str:
        name = _name.get()
        _name.set("of the handler")
        return name

    call = called_in_thread(handler)
    _name.set("of the caller")
    assert [await call(n) for n in range(2)] == ["of the caller"] * 2
    assert _name.get() == "of the caller"


def test_a_handler_may_run_an_event_loop_of_its_own_although_anyio_runs_the_callers() -> None:
    call = called_in_thread(lambda item: anyio.run(anyio.sleep, 0))
    anyio.run(call, 1)


@pytest.mark.parametrize(
    ("raised", "expected"), [(ValueError, ValueError), (SystemExit, SystemExit), (StopIteration, RuntimeError)]
)
async def test_an_error_of_the_handler_is_raised_and_its_thread_makes_the_next_call(
    raised: type[BaseException], expected: type[BaseException]
) -> None:
    threads: list[threading.Thread] = []

    def handler(item: int) -> None:
        threads.append(threading.current_thread())
        raise raised

    call = called_in_thread(handler)
    for _ in range(2):
        with pytest.raises(expected):
            await call(1)
    assert len(set(threads)) == 1


class _Attempt:
    key = batch = "b"
    number = 1


async def test_a_cancelled_call_frees_its_place_and_its_thread_is_used_again_after_its_function_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(thread_handler, "current_attempt", _Attempt)
    loop = asyncio.get_running_loop()
    started, release = asyncio.Event(), threading.Event()
    stuck_in: list[threading.Thread] = []

    def handler(item: str) -> threading.Thread:
        if item == "stuck":
            stuck_in.append(threading.current_thread())
            loop.call_soon_threadsafe(started.set)
            release.wait(60)
        return threading.current_thread()

    limiter = anyio.CapacityLimiter(1)
    call = as_coroutine_function(handler, lambda: limiter)
    stuck = asyncio.ensure_future(call("stuck"))
    await started.wait()
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    assert await call("quick") not in stuck_in
    release.set()
    limiter.total_tokens = 2
    # One call more each time, because a call takes the thread that was idle last.
    while stuck_in[0] not in await asyncio.gather(*(call("quick") for _ in range(int(limiter.total_tokens)))):
        limiter.total_tokens += 1


def test_a_thread_ends_when_its_event_loop_was_closed_during_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_handler, "current_attempt", _Attempt)
    release = threading.Event()
    threads: list[threading.Thread] = []

    def handler(item: int) -> None:
        threads.append(threading.current_thread())
        release.wait(60)

    async def abandon() -> None:
        call = asyncio.ensure_future(called_in_thread(handler)(1))
        while not threads:
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})

    asyncio.run(abandon())
    assert threads[0].is_alive()
    release.set()
    threads[0].join(30)
    assert not threads[0].is_alive()


async def test_an_idle_thread_ends_and_the_next_call_starts_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_handler, "_MAX_IDLE_SECONDS", 0.01)
    call = called_in_thread(lambda _: threading.current_thread())
    first = await call(1)
    await asyncio.to_thread(first.join, 30)
    assert not first.is_alive()
    assert await call(2) is not first


def test_a_handler_that_another_event_loop_calls_runs_in_a_thread_of_that_loop() -> None:
    call = called_in_thread(lambda _: (threading.current_thread(), anyio.from_thread.run_sync(asyncio.get_running_loop)))

    async def once() -> tuple[threading.Thread, bool]:
        thread, loop = await call(1)
        return thread, loop is asyncio.get_running_loop()

    (first, is_own), (second, is_own_too) = asyncio.run(once()), asyncio.run(once())
    assert (is_own, is_own_too) == (True, True)
    first.join(30)  # it has ended, because no event loop needs it
    assert not first.is_alive()
    assert second is not first


async def test_without_the_private_names_of_anyio_a_handler_runs_in_a_thread_of_anyio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_handler, "claim_worker_thread", None)
    call = called_in_thread(lambda _: anyio.from_thread.run_sync(asyncio.get_running_loop))
    assert await call(1) is asyncio.get_running_loop()
