"""The slots: coroutines that run one handler at a time each, and are made only as there is something for them.

A slot goes from one claim to the next without going round the loop, as long as handlers never wait. So that this keeps nobody
out, it lets the loop's other tasks in now and then, and the store's thread while that has work to do.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import anyio

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from asyncrunner.clock import Clock
    from asyncrunner.item import Claim
    from asyncrunner.lane import Lane

__all__ = ["Slots"]

_HOG_SECONDS: Final = 0.005
"""How long a slot may run handlers that never wait before it lets the others in."""
_NAP_EVERY_SECONDS: Final = 0.0003
"""While a turn is on its way, slots let its thread have the interpreter that often."""

Run: TypeAlias = "Callable[[Lane, Claim, asyncio.Task[Any], Callable[[], object]], Awaitable[None]]"


class Slots:
    """At most ``concurrency`` of them; that may be changed at any time.

    *run* runs a claim in the slot's task to its end, and calls what it is given last when the handler first waits; what it raises
    goes to *on_failure* and ends the slot. *on_disturbed* is awaited when a slot's own wait was cancelled.
    """

    def __init__(
        self, clock: Clock, concurrency: int, run: Run, *, on_failure: Callable[[Exception], object],
        on_disturbed: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self.concurrency = concurrency
        self.starts_no_more = False
        self._clock = clock
        self._run = run
        self._on_failure = on_failure
        self._on_disturbed = on_disturbed
        self._lanes: deque[Lane] = deque()  # whose turn for a slot it is
        self._idle: deque[asyncio.Future[None]] = deque()
        self._count = 0
        self._ended = False
        self._nap_at = math.inf  # on the monotonic clock

    def add_lane(self, lane: Lane) -> None:
        """Run claims of that batch, too; the batches take turns."""
        self._lanes.append(lane)

    def wake(self, tasks: TaskGroup) -> None:
        """Have a slot look for work, if there is some. One is enough: as soon as its handler waits, it wakes the next one."""
        if self.starts_no_more or not any(lane.has_work for lane in self._lanes):
            return
        while self._idle:
            if _resolve(self._idle.popleft()):
                return
        if self._count < self.concurrency:
            self._count += 1
            tasks.start_soon(self._slot, tasks, name=f"asyncrunner slot {self._count}")

    def end(self) -> None:
        """Every slot ends, once its handler has."""
        self._ended = True
        while self._idle:
            _resolve(self._idle.popleft())

    @contextmanager
    def letting_threads_in(self) -> Generator[None, None, None]:
        """While the store's thread has work to do."""
        self._nap_at = self._clock.monotonic()
        try:
            yield
        finally:
            self._nap_at = math.inf

    async def _slot(self, tasks: TaskGroup) -> None:
        with anyio.CancelScope(shield=True):  # the worker ends handlers, once each; a scope would repeat itself
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            wake_next = partial(self.wake, tasks)
            now = self._clock.monotonic()
            let_others_in_at = now + _HOG_SECONDS
            while not self._ended:
                lane = self._next_lane()
                if lane is None:
                    await self._rest()
                    now = self._clock.monotonic()
                    let_others_in_at = now + _HOG_SECONDS
                    continue
                began = now
                try:
                    await self._run(lane, lane.ready.popleft(), task, wake_next)
                except Exception as error:  # noqa: BLE001 - ours, for a handler's is an outcome: the pump ends the engine with it
                    self._on_failure(error)
                    return
                now = self._clock.monotonic()
                if now >= self._nap_at and now - began < _NAP_EVERY_SECONDS:  # who waits lets everybody in by that
                    self._nap_at = now + _NAP_EVERY_SECONDS
                    _let_threads_in()
                if now >= let_others_in_at:
                    await _let_others_in()
                    now = self._clock.monotonic()
                    let_others_in_at = now + _HOG_SECONDS

    def _next_lane(self) -> Lane | None:
        if self.starts_no_more:
            return None
        if len(self._lanes) == 1:
            lane = self._lanes[0]
            return lane if lane.has_work else None
        for _ in range(len(self._lanes)):
            lane = self._lanes[0]
            self._lanes.rotate(-1)
            if lane.has_work:
                return lane
        return None

    async def _rest(self) -> None:
        wake_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(wake_up)
        try:
            await wake_up
        except asyncio.CancelledError:
            await self._on_disturbed()


def _resolve(future: asyncio.Future[None]) -> bool:
    if future.done():
        return False  # cancelled from outside
    future.set_result(None)
    return True


def _let_threads_in() -> None:
    """Let go of the interpreter for long enough that a thread which waits for it gets it.

    A thread asks for it after each step of SQLite. A loop that never waits hands it over only after a whole switch interval,
    5 ms, and begins the interval anew whenever it lets go for a moment: the store then stood still for as long as the loop
    worked. Sleeping for next to nothing takes the kernel long enough for the other thread to be there, and the interval, which
    is the whole program's, stays as it is.
    """
    time.sleep(1e-6)


async def _let_others_in() -> None:
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        pass  # the loop is being closed; the pump hears of it too
