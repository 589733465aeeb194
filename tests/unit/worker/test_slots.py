"""Nothing that a handler leaves behind in its task reaches the next item, although items share a task when nothing is left."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from asyncrunner import run_batch
from asyncrunner.execution.coroutine_driver import absorb_cancellation
from asyncrunner.testing import FakeClock
from asyncrunner.worker import slots as slots_module
from asyncrunner.worker.slots import Slots
from tests.conftest import Until

Leave = Callable[["Left"], Awaitable[None]]
VARIABLE: ContextVar[int] = ContextVar("variable", default=0)


class Left:
    """What the first item leaves behind, and what the second item finds."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.by_task: dict[object, str] = {}
        self.weakly_by_task: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self.fire: Callable[[], object] = lambda: None


async def a_timeout(left: Left) -> None:
    async def values() -> AsyncGenerator[int, None]:
        async with asyncio.timeout(3600) as timeout:
            left.fire = lambda: timeout.reschedule(0)
            yield 1

    left.kept.append(values())
    await anext(left.kept[0])


async def an_open_cancel_scope(left: Left) -> None:
    scope = anyio.CancelScope()
    scope.__enter__()
    left.fire = scope.cancel


async def an_open_task_group(left: Left) -> None:
    async def values() -> AsyncGenerator[int, None]:
        async with anyio.create_task_group() as group:
            left.fire = group.cancel_scope.cancel
            yield 1

    left.kept.append(values())
    await anext(left.kept[0])


async def a_reference_that_cancels(left: Left) -> None:
    task = asyncio.current_task()
    assert task is not None
    left.fire = task.cancel


async def a_session_in_a_registry(left: Left) -> None:  # as SQLAlchemy's async_scoped_session(scopefunc=current_task)
    left.by_task[asyncio.current_task()] = "the session of the first item"


async def a_session_in_a_weak_registry(left: Left) -> None:
    left.weakly_by_task[asyncio.current_task()] = "the session of the first item"


async def a_name(left: Left) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.set_name("the first item")


async def cancellations(left: Left) -> None:
    task = asyncio.current_task()
    assert task is not None
    for _ in range(2):
        task.cancel()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
    task.cancel()  # not delivered yet


async def a_context_variable(left: Left) -> None:
    VARIABLE.set(1)


@pytest.mark.parametrize(
    "leave",
    [
        a_timeout,
        an_open_cancel_scope,
        an_open_task_group,
        a_reference_that_cancels,
        a_session_in_a_registry,
        a_session_in_a_weak_registry,
        a_name,
        cancellations,
        a_context_variable,
    ],
)
async def test_what_a_handler_leaves_in_its_task_does_not_reach_the_next_item(leave: Leave, db: str) -> None:
    left = Left()
    found: list[object] = []

    async def handler(n: int) -> int:
        if n == 1:
            await leave(left)
            return n
        task = asyncio.current_task()
        assert task is not None
        found.extend([left.by_task.get(task), left.weakly_by_task.get(task), task.cancelling(), VARIABLE.get()])
        found.append("first" in task.get_name())
        fire, left.fire = left.fire, lambda: None
        fire()
        for _ in range(10):  # a cancellation that reaches this item arrives here
            await asyncio.sleep(0)
        return n

    report = await run_batch([1, 2, 3], handler, db=db, batch="b", concurrency=1, max_attempts=1)
    assert (report.completed, report.failed) == (3, 0)
    assert found == [None, None, 0, 0, False] * 2


async def test_items_share_a_task_as_long_as_nothing_is_left_in_it(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_claims = Slots._run_claims
    names: list[str] = []

    def counted(self: Slots, index: int) -> Any:
        names.append(f"slot {index}")
        return run_claims(self, index)

    async def handler(n: int) -> None:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0)
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(0))
        await asyncio.wait_for(asyncio.sleep(0), 60)
        await anyio.to_thread.run_sync(int)
        asyncio.get_running_loop().call_later(3600, int)
        if n % 2:
            raise ValueError(n)

    monkeypatch.setattr(Slots, "_run_claims", counted)
    report = await run_batch(range(10), handler, db=db, batch="b", concurrency=1, max_attempts=1)
    assert (report.completed, report.failed) == (5, 5)
    assert names == ["slot 0"]


class Claims:
    """It runs a claim by recording that its handler ran."""

    starts_no_more = False
    absorb_cancelled_wait = staticmethod(absorb_cancellation)

    def __init__(self) -> None:
        self.events: list[str] = []

    async def run(self, *_: object) -> None:
        self.events.append("handler")


class Queue:
    """A batch queue with no limits."""

    def __init__(self) -> None:
        self.ready: deque[Any] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self.ready)


class WaitingClaims(Claims):
    """It runs a claim by recording its handler, which waits for ``release``."""

    def __init__(self) -> None:
        super().__init__()
        self.release = asyncio.Event()

    async def run(self, *arguments: Any) -> None:
        await super().run()
        arguments[-1]()  # wake_next
        await self.release.wait()


def slots_for(claims: Claims, queue: Queue, *, busy_until: float, concurrency: int = 1) -> Slots:
    slots = Slots(FakeClock(), concurrency, cast("Any", claims), lambda number: [0] * number, lambda: busy_until)
    slots.add_queue(cast("Any", queue))
    return slots


@pytest.mark.parametrize("count", [1, slots_module._FEW_CLAIMS, slots_module._FEW_CLAIMS + 1])
async def test_a_turn_is_sent_before_the_many_handlers_of_the_turn_before_it_run(count: int, until: Until) -> None:
    claims, queue = Claims(), Queue()
    slots = slots_for(claims, queue, busy_until=math.inf)

    async def send() -> None:
        claims.events.append("sent")

    async with anyio.create_task_group() as tasks:
        slots.begin(tasks)
        queue.ready.append(SimpleNamespace(seq=1))
        slots.wake_soon()
        await until(lambda: slots._idle)
        queue.ready.extend(SimpleNamespace(seq=number) for number in range(count))
        slots.wake_soon()
        sending = asyncio.ensure_future(send())
        await until(lambda: len(claims.events) == 2 + count)
        slots.end()
        await sending
    assert claims.events[1:].index("sent") == (0 if count > slots_module._FEW_CLAIMS else count)


async def passes_until(condition: Callable[[], bool]) -> int:
    """Return after how many passes of the event loop the condition is true."""
    passes = 0
    while not condition() and passes < 1000:
        await asyncio.sleep(0)
        passes += 1
    return passes


async def test_the_busy_slots_double_while_their_handlers_wait_and_no_slot_is_woken_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claims, queue, waits = WaitingClaims(), Queue(), 0
    slots = slots_for(claims, queue, busy_until=math.inf, concurrency=64)
    wait = Slots._wait_for_wake

    async def counted(self: Slots, task: asyncio.Task[Any]) -> None:
        nonlocal waits
        waits += 1
        await wait(self, task)

    monkeypatch.setattr(Slots, "_wait_for_wake", counted)
    async with anyio.create_task_group() as tasks:
        slots.begin(tasks)
        for count in (64, 64, 5):  # new slots, then idle ones
            before, waits = len(claims.events), 0
            claims.release.clear()
            queue.ready.extend(SimpleNamespace(seq=number) for number in range(count))
            slots.wake()
            assert await passes_until(lambda: len(claims.events) == before + count) <= 32  # noqa: B023 - it is called only in this round
            claims.release.set()
            await passes_until(lambda: len(slots._idle) == 64)
            assert waits == count
        slots.end()


@pytest.mark.parametrize("busy_until", [0.0, math.inf])
async def test_slots_release_the_interpreter_only_to_a_thread_that_may_need_it(
    busy_until: float, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims, queue = Claims(), Queue()
    slots = slots_for(claims, queue, busy_until=busy_until)
    monkeypatch.setattr(slots_module, "_yield_to_threads", lambda: claims.events.append("released"))
    async with anyio.create_task_group() as tasks:
        slots.begin(tasks)
        slots.begin_call()
        queue.ready.append(SimpleNamespace(seq=1))
        slots.wake()
        await until(lambda: slots._idle)
        slots.end_call()
        slots.end()
    assert ("released" in claims.events) == (busy_until == 0.0)
