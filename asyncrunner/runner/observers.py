"""Deliver events to a program's observers in separate tasks, so that a slow or failing observer delays no item."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import anyio.to_thread

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import counted

if TYPE_CHECKING:
    from asyncrunner.events import Event, Events

log = logging.getLogger("asyncrunner")

MAX_WAITING: Final = 10_000
"""The number of events that may wait for one observer; further events are dropped, and the log reports their number."""


class Observer:
    """An observer function and its queue of events. An ``async def`` runs in the event loop, a ``def`` in a thread."""

    def __init__(self, observe: Callable[[Any], object]) -> None:
        if not callable(observe):
            raise ConfigurationError(f"the observer {observe!r} is not callable; pass a function that takes one event")
        try:
            inspect.signature(observe).bind(None)
        except TypeError as error:
            raise ConfigurationError(f"the observer {observe!r} cannot be called with one event ({error})") from error
        except ValueError:
            pass  # a builtin without a signature: its first call shows whether it takes an event
        self._observe = observe
        call = getattr(observe, "__call__", None)  # noqa: B004 - a callable object may have an async __call__
        self._is_async = inspect.iscoroutinefunction(observe) or inspect.iscoroutinefunction(call)
        self._waiting: deque[Event] = deque()
        self._news = asyncio.Event()
        self._all_delivered = asyncio.Event()
        self._dropped = 0

    def subscribe(self, kind: type[Any], events: Events) -> Callable[[], None]:
        """Queue the events of *kind* from now on; return the function that unsubscribes."""
        return events.on(kind, self._enqueue)

    def _enqueue(self, event: Event) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.append(event)
        self._news.set()

    async def run(self) -> None:
        """Call the observer with each event, in order, until cancelled.

        Exceptions of the observer are logged and ignored.
        """
        limiter = anyio.CapacityLimiter(1)
        # An asyncio.Event belongs to one event loop, and a runner may be started again in another loop.
        self._news, self._all_delivered = asyncio.Event(), asyncio.Event()
        while True:
            self._news.clear()
            if not self._waiting:
                self._all_delivered.set()
                await self._news.wait()
            self._all_delivered.clear()
            group, self._waiting = self._waiting, deque()
            if self._is_async:
                for event in group:
                    await self._deliver(event)
            else:
                await anyio.to_thread.run_sync(partial(self._deliver_all, group), abandon_on_cancel=True, limiter=limiter)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                log.warning("the observer %r is too slow: dropped %s", self._observe, counted(dropped, "event"))

    async def wait_until_delivered(self, max_seconds: float) -> None:
        """Wait until every event is delivered, for at most *max_seconds*."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max_seconds):
                while self._waiting:
                    await self._all_delivered.wait()
                    await asyncio.sleep(0)
                await self._all_delivered.wait()

    async def _deliver(self, event: Event) -> None:
        try:
            await cast("Awaitable[object]", self._observe(event))
        except BaseException as error:  # also SystemExit: an observer must not end the engine
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # the cancellation of this task, not one that the observer raised
            log.exception("the observer %r raised an exception for the event %s", self._observe, type(event).__name__)

    def _deliver_all(self, group: deque[Event]) -> None:
        for event in group:
            try:
                self._observe(event)
            except BaseException:
                log.exception("the observer %r raised an exception for the event %s", self._observe, type(event).__name__)
