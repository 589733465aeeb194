"""An event loop with virtual time, which several simulated processes share.

The loop never sleeps: when no callback is ready, the time leaps to the next timer. Every callback belongs to an actor, through a context
variable that tasks and timers inherit. An actor is the loop of a process, the thread of its store, or the world around them. The loop
picks one of the actors with ready callbacks at random and runs one callback, so processes are interleaved in every possible way. Within
an actor the order is first in, first out, as asyncio promises: the engine may rely on it, and another order would produce faults that
no real loop has. asyncio does not promise when a timer fires, so each timer is late by a random amount.

A killed actor runs no callback again, not even a ``finally``. A held actor runs the callbacks that became due after its release.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

__all__ = ["ACTOR", "WORLD", "Actor", "Loop", "Stuck"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_MOST_AT_ONCE: Final = 100_000
"""Callbacks at one instant: more is a loop that goes round without waiting for anything."""


class Stuck(Exception):
    """Raised when no callback is ready and no timer is left, or the time does not advance."""


class Actor:
    """A sequence of callbacks that run one after the other."""

    __slots__ = ("held_until", "is_dead", "name", "owner", "ready")

    def __init__(self, name: str, owner: Any = None) -> None:
        self.name = name
        self.owner = owner
        self.ready: deque[asyncio.Handle] = deque()
        self.is_dead = False
        self.held_until = -math.inf

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def kill(self) -> None:
        self.is_dead = True
        self.ready.clear()

    def context(self) -> Context:
        """Return a context whose callbacks belong to this actor."""
        context = copy_context()
        context.run(ACTOR.set, self)
        return context


WORLD: Final = Actor("world")
"""What belongs to no process. Never killed or held."""
ACTOR: ContextVar[Actor] = ContextVar("actor", default=WORLD)


class _Task(asyncio.Task[T]):
    """A task with its number as hash, so that a set of tasks always has the same order."""

    _number = 0
    _actor = WORLD

    def __hash__(self) -> int:
        return self._number


class Loop(asyncio.BaseEventLoop):
    """The event loop. *late*: the maximum delay of a timer, in seconds."""

    def __init__(self, rng: random.Random, late: float) -> None:
        super().__init__()
        self._rng = rng
        self._late = late
        self._time = 0.0
        self._runnable: dict[Actor, None] = {}
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = 0
        self._tasks: list[_Task[Any]] = []
        self._since_it_moved = 0
        self.set_task_factory(self._make_task)
        self.callbacks = 0

    # --- what asyncio calls ------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._time

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        late = self._rng.random() * self._late
        timer = asyncio.TimerHandle(max(when, self._time) + late, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]
        heapq.heappush(self._timers, (timer.when(), self._next_number(), timer))
        return timer

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._time + delay, callback, *args, context=context)

    def _call_soon(self, callback: Callable[..., object], args: Any, context: Context | None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._put(handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # it is dropped when its time comes

    def _write_to_self(self) -> None:
        pass  # the loop never sleeps in a selector

    def _run_once(self) -> None:
        while True:
            self._take_due_timers()
            ready = [actor for actor in self._runnable if actor.ready and actor.held_until <= self._time]
            if ready:
                break
            self._leap()
        actor = ready[0] if len(ready) == 1 else self._rng.choice(ready)
        handle = actor.ready.popleft()
        if not actor.ready:
            del self._runnable[actor]
        self.callbacks += 1
        self._since_it_moved += 1
        if self._since_it_moved > _MOST_AT_ONCE:
            raise Stuck(f"{actor} goes round and round at {self._time:.3f}: {handle!r}")
        if not handle.cancelled():
            handle._run()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> _Task[Any]:
        task: _Task[Any] = _Task.__new__(_Task)
        task._number = self._next_number()
        context: Context | None = options.get("context")
        task._actor = ACTOR.get() if context is None else context.get(ACTOR, WORLD)
        task.__init__(coro, loop=loop, **options)  # type: ignore[misc]
        self._tasks.append(task)
        if len(self._tasks) > 2000:
            self._tasks = [each for each in self._tasks if not each.done()]
        return task

    def _put(self, handle: asyncio.Handle) -> None:
        actor = handle._context.get(ACTOR, WORLD)  # type: ignore[attr-defined]
        if not actor.is_dead:
            actor.ready.append(handle)
            self._runnable[actor] = None

    def _take_due_timers(self) -> None:
        while self._timers and self._timers[0][0] <= self._time:
            timer = heapq.heappop(self._timers)[2]
            timer._scheduled = False  # type: ignore[attr-defined]
            if not timer.cancelled():
                self._put(timer)

    def _leap(self) -> None:
        for actor in [actor for actor in self._runnable if not actor.ready]:
            del self._runnable[actor]
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        moments = [actor.held_until for actor in self._runnable]
        if self._timers:
            moments.append(self._timers[0][0])
        if not moments:
            raise Stuck(f"nothing is left to happen at {self._time:.3f}")
        moment = min(moments)
        if moment > self._time:
            self._time = moment
            self._since_it_moved = 0

    # --- for the world -----------------------------------------------------------------------------------------------

    def begin(self, actor: Actor, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run *coroutine* as a task of *actor*."""
        return self.create_task(coroutine, context=actor.context())

    def tasks_of(self, actor: Actor) -> list[asyncio.Task[Any]]:
        """Return the unfinished tasks."""
        return [task for task in self._tasks if not task.done() and task._actor is actor]

    def bury(self) -> None:
        """Drop the tasks of killed processes without warnings; they never run again."""
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _end(task.get_coro())
        self._tasks.clear()
        self._runnable.clear()
        self._timers.clear()


def _end(coroutine: Generator[Any, Any, Any] | Coroutine[Any, Any, Any] | None) -> None:
    for _ in range(50):  # each wait in a `finally` ignores one close
        if coroutine is None:
            return
        try:
            with warnings.catch_warnings(action="ignore"):  # it may never have begun
                coroutine.close()
        except BaseException:
            continue
        return
