"""Slots: coroutines that each run one handler at a time, created only when there is work for them.

A slot takes claim after claim without returning to the event loop, as long as handlers never wait. It therefore yields to
the loop's other tasks every few milliseconds, and releases the interpreter to the store's thread during a turn.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import anyio

from asyncrunner.execution.coroutine_driver import yield_to_loop

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from asyncrunner.domain.clock import Clock
    from asyncrunner.worker.batch_queue import BatchQueue
    from asyncrunner.worker.claim_runner import ClaimRunner


_MAX_BURST_SECONDS: Final = 0.005
"""How long a slot may run handlers that never wait before it yields to the loop's other tasks."""

_THREAD_YIELD_SECONDS: Final = 0.0003
"""How often slots release the interpreter to the store's thread during a turn."""


class Slots:
    """At least ``concurrency`` slots for the claims of the batch queues, which *claims* runs; an operator may want more."""

    def __init__(self, clock: Clock, concurrency: int, claims: ClaimRunner) -> None:
        self.concurrency = concurrency
        self._own_concurrency = concurrency  # from the program
        self._clock = clock
        self._claims = claims
        self._queues: deque[BatchQueue] = deque()  # the first one is next to get a slot
        self._idle: deque[asyncio.Future[None]] = deque()
        self._count = 0
        self._ended = False
        self._thread_yield_at = math.inf  # on the monotonic clock

    def add_queue(self, queue: BatchQueue) -> None:
        """Run claims of that batch too; slots go to the batches round-robin."""
        self._queues.append(queue)

    def fit_limits(self) -> None:
        """Follow a changed limit of a batch queue: a batch may use more slots than the program has set."""
        self.concurrency = max(self._own_concurrency, *(queue.limit for queue in self._queues))

    def wake(self, tasks: TaskGroup) -> None:
        """Let one slot look for work, if there is any. One is enough: it wakes the next slot when its handler waits."""
        if self._claims.starts_no_more:
            return
        for queue in self._queues:
            if queue.has_work:
                break
        else:
            return
        while self._idle:
            if _resolve(self._idle.popleft()):
                return
        if self._count < self.concurrency:
            self._count += 1
            tasks.start_soon(self._slot, tasks, name=f"asyncrunner slot {self._count}")

    def end(self) -> None:
        """End every slot after its current handler."""
        self._ended = True
        while self._idle:
            _resolve(self._idle.popleft())

    @contextmanager
    def letting_threads_in(self) -> Generator[None, None, None]:
        """Surround a turn: inside it, slots regularly release the interpreter to the store's thread."""
        self._thread_yield_at = self._clock.monotonic()
        try:
            yield
        finally:
            self._thread_yield_at = math.inf

    async def _slot(self, tasks: TaskGroup) -> None:
        with anyio.CancelScope(shield=True):  # the worker cancels each handler once; a cancel scope would repeat the cancellation
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            wake_next = partial(self.wake, tasks)
            now = self._clock.monotonic()
            loop_yield_at = now + _MAX_BURST_SECONDS
            while not self._ended:
                queue = self._next_queue()
                if queue is None:
                    await self._wait_for_wake(task)
                    now = self._clock.monotonic()
                    loop_yield_at = now + _MAX_BURST_SECONDS
                    continue
                began = now
                try:
                    await self._claims.run(queue, queue.ready.popleft(), task, wake_next)
                except Exception as error:  # noqa: BLE001 - an engine error (a handler's is an outcome); the pump raises it
                    self._claims.fail(error)
                    return
                now = self._clock.monotonic()
                # A handler that took longer has waited, and so let other threads run.
                if now >= self._thread_yield_at and now - began < _THREAD_YIELD_SECONDS:
                    self._thread_yield_at = now + _THREAD_YIELD_SECONDS
                    _yield_to_threads()
                if now >= loop_yield_at:
                    await yield_to_loop(task)
                    now = self._clock.monotonic()
                    loop_yield_at = now + _MAX_BURST_SECONDS

    def _next_queue(self) -> BatchQueue | None:
        if self._claims.starts_no_more:
            return None
        if len(self._queues) == 1:
            queue = self._queues[0]
            return queue if queue.has_work else None
        for _ in range(len(self._queues)):
            queue = self._queues[0]
            self._queues.rotate(-1)
            if queue.has_work:
                return queue
        return None

    async def _wait_for_wake(self, task: asyncio.Task[Any]) -> None:
        wake_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(wake_up)
        try:
            await wake_up
        except asyncio.CancelledError:
            await self._claims.absorb_cancelled_wait(task)


def _resolve(future: asyncio.Future[None]) -> bool:
    if future.done():
        return False  # cancelled from outside
    future.set_result(None)
    return True


def _yield_to_threads() -> None:
    """Release the interpreter for long enough that a waiting thread gets it.

    The store's thread needs the interpreter after each step of SQLite. A loop that never waits hands it over only after a
    whole switch interval, 5 ms, and each moment of release restarts the interval: without this function the store stood
    still as long as the loop was busy. In a sleep of one microsecond the kernel takes long enough for the other thread to
    get the interpreter. The switch interval, which belongs to the whole program, stays unchanged.
    """
    time.sleep(1e-6)
