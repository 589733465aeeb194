"""What a program hears of the engine, beside the engine: a slow or broken observer holds nobody up."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import anyio
import anyio.to_thread

from asyncrunner.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncrunner.events import Event, Events

__all__ = ["Observer"]

log = logging.getLogger("asyncrunner")

MOST_WAITING: Final = 10_000
"""Events that wait for one observer; what is more is dropped, counted, and said in the log."""


class Observer:
    """One observer and what it has still to hear. An ``async def`` runs in the loop, a ``def`` in a thread, in order."""

    def __init__(self, observe: Callable[[Any], object]) -> None:
        if not callable(observe):
            raise ConfigurationError(f"the observer {observe!r} is not callable; give a function of the event")
        try:
            inspect.signature(observe).bind(None)
        except TypeError as error:
            raise ConfigurationError(f"the observer {observe!r} cannot be called with one event ({error})") from error
        except ValueError:
            pass  # a builtin without a signature: called and seen
        self._observe = observe
        call = getattr(observe, "__call__", None)  # noqa: B004 - of an object, to see whether it is async
        self._is_async = inspect.iscoroutinefunction(observe) or inspect.iscoroutinefunction(call)
        self._waiting: deque[Event] = deque()
        self._news = asyncio.Event()
        self._told = asyncio.Event()
        self._dropped = 0
        self._unsubscribe: Callable[[], None] | None = None

    def subscribe(self, kind: type[Any], events: Events) -> Callable[[], None]:
        """From now on; returns what ends it."""
        self._unsubscribe = events.on(kind, self._hear)
        return self._unsubscribe

    def _hear(self, event: Event) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._dropped += 1
            return
        self._waiting.append(event)
        self._news.set()

    async def run(self) -> None:
        """Tell it what happens, until cancelled."""
        limiter = anyio.CapacityLimiter(1)
        self._news, self._told = asyncio.Event(), asyncio.Event()  # of this loop: a runner may be started again in another
        while True:
            self._news.clear()
            if not self._waiting:
                self._told.set()
                await self._news.wait()
            self._told.clear()
            group, self._waiting = self._waiting, deque()
            if self._is_async:
                for event in group:
                    await self._tell(event)
            else:
                await anyio.to_thread.run_sync(partial(self._tell_all, group), abandon_on_cancel=True, limiter=limiter)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                log.warning("the observer %r is too slow: %d events were not told to it", self._observe, dropped)

    async def all_told(self, patience: float) -> None:
        """Wait until it has heard everything, at most that many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._waiting:
                    await self._told.wait()
                    await asyncio.sleep(0)
                await self._told.wait()

    async def _tell(self, event: Event) -> None:
        try:
            await cast("Awaitable[object]", self._observe(event))
        except BaseException as error:  # SystemExit, too: an observer ends nothing
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # ours, not the observer's own
            log.exception("the observer %r failed at %s", self._observe, type(event).__name__)

    def _tell_all(self, group: deque[Event]) -> None:
        for event in group:
            try:
                self._observe(event)
            except BaseException:
                log.exception("the observer %r failed at %s", self._observe, type(event).__name__)
