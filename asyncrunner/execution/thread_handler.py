"""Convert a handler to a coroutine function; a ``def`` handler runs in a daemon thread.

When the program ends, the interpreter waits for anyio's threads, which are not daemon threads. A function that the engine
has abandoned would keep the interpreter alive. So these threads are the engine's. ``anyio.from_thread`` has no public way to
accept another thread (its ``token=`` is an argument of each call, since anyio 4.11), so they register as anyio's threads do,
with two private names of anyio, which are the same in anyio 4.0 to 4.16. If a later anyio lacks them, the handlers run in
anyio's threads.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import anyio
import anyio.to_thread

from asyncrunner.errors import ConfigurationError
from asyncrunner.execution.answers import DescribedError
from asyncrunner.execution.attempt import current_attempt
from asyncrunner.serialization.error_info import describe

if TYPE_CHECKING:
    from anyio import CapacityLimiter

try:
    from anyio._backends._asyncio import AsyncIOBackend
    from anyio._core._eventloop import claim_worker_thread, threadlocals
except ImportError:
    AsyncIOBackend = claim_worker_thread = threadlocals = cast("Any", None)  # type: ignore[misc]

_MAX_IDLE_SECONDS: Final = 10.0  # as long as anyio's threads
log = logging.getLogger("asyncrunner")


def as_coroutine_function(
    handler: Callable[..., Any], limiter: Callable[[], CapacityLimiter]
) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    """Return *handler* as a coroutine function. A ``def`` handler runs in a thread that *limiter* admits.

    Raises ConfigurationError for a handler that is not callable or is a generator.
    """
    if not callable(handler):
        raise ConfigurationError(f"the handler {handler!r} is not callable; pass an `async def` or a `def` function")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise ConfigurationError(f"the handler {handler!r} is a generator; return the result instead of yielding it")
    for candidate in (handler, getattr(handler, "__call__", None)):  # noqa: B004 - an object may have an async __call__
        if inspect.iscoroutinefunction(candidate):
            return candidate

    threads = HandlerThreads()

    def in_thread(item: Any) -> Any:
        try:
            return handler(item)
        except KeyboardInterrupt as error:  # the handler raised it: Ctrl-C raises it only in the main thread
            raise DescribedError(error, describe(error)) from None

    async def call(item: Any) -> Any:
        try:
            if claim_worker_thread is None:
                value = await anyio.to_thread.run_sync(in_thread, item, abandon_on_cancel=True, limiter=limiter())
            else:
                value = await threads.run(in_thread, item, limiter())
        except asyncio.CancelledError:
            attempt = current_attempt()
            log.warning(
                "item %r of %r: its function continues in its thread until it returns or the program ends, because a "
                "thread cannot be stopped; the slot of the item is free, and the result of the function is dropped",
                attempt.key,
                attempt.batch,
                extra={"item": attempt.key, "batch": attempt.batch, "attempt": attempt.number},
            )
            raise
        # A lambda or a partial around an `async def` looks like a `def` and returns an awaitable.
        return await value if inspect.isawaitable(value) else value

    return call


class HandlerThreads:
    """The daemon threads of one handler, each bound to the event loop of its first call.

    A call takes an idle thread, or starts a thread if there is none. A thread ends after ``_MAX_IDLE_SECONDS`` without a call.
    Nothing waits for a thread: neither the end of the event loop nor the end of the program. At best a call costs 38 us,
    and 48 us in anyio's threads (10 calls at the same time, the fastest of nine alternating rounds).
    """

    def __init__(self) -> None:
        self._idle: deque[_HandlerThread] = deque()

    async def run(self, function: Callable[[Any], Any], item: Any, limiter: CapacityLimiter) -> Any:
        """Return ``function(item)``, called in a thread with a copy of the context, once *limiter* admits the call.

        Raises the error of the function. A cancellation abandons the thread: the function continues, its end is dropped, and
        *limiter* admits another call.
        """
        async with limiter:
            with anyio.CancelScope() as scope:
                loop = asyncio.get_running_loop()
                context = copy_context()
                if (sniffio := sys.modules.get("sniffio")) is not None:
                    context.run(sniffio.current_async_library_cvar.set, None)  # the thread has no event loop
                future: asyncio.Future[Any] = loop.create_future()
                self._idle_thread(loop).calls.put(_Call(context, function, item, future, scope))
                return await future

    def _idle_thread(self, loop: asyncio.AbstractEventLoop) -> _HandlerThread:
        while self._idle:
            thread = self._idle.pop()
            if thread.loop is loop and thread.is_alive():  # after os.fork(), no thread is alive in the child
                return thread
            thread.calls.put(None)
        thread = _HandlerThread(loop, self._idle)
        thread.start()
        return thread


class _Call(NamedTuple):
    context: Context
    function: Callable[[Any], Any]
    item: Any
    future: asyncio.Future[Any]
    scope: anyio.CancelScope


class _HandlerThread(threading.Thread):
    """A daemon thread that makes calls, one after another, and reports each end to its event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, idle: deque[_HandlerThread]) -> None:
        super().__init__(name="asyncrunner handler", daemon=True)
        self.loop = loop
        self.calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._idle = idle

    def run(self) -> None:
        with claim_worker_thread(AsyncIOBackend, self.loop):  # anyio.from_thread finds the event loop by this
            while self._make_next_call():
                pass

    def _make_next_call(self) -> bool:
        """Wait for a call and make it. Return whether the thread continues."""
        call = self._next_call()
        if call is None:
            return False
        value, error = None, None
        threadlocals.current_cancel_scope = call.scope
        try:
            value = call.context.run(call.function, call.item)
        except BaseException as caught:  # noqa: BLE001 - it is raised in the event loop
            error = caught
        finally:
            del threadlocals.current_cancel_scope
        try:
            self.loop.call_soon_threadsafe(self._report, call.future, value, error)
        except RuntimeError:  # the event loop is closed
            return False
        return True

    def _next_call(self) -> _Call | None:
        while True:
            try:
                return self.calls.get(timeout=_MAX_IDLE_SECONDS)
            except Empty:
                try:
                    self._idle.remove(self)
                except ValueError:  # the event loop has just taken this thread for a call
                    continue
                return None

    def _report(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        """Set the end of a call; in the event loop."""
        self._idle.append(self)
        if future.cancelled():
            return
        if isinstance(error, StopIteration):  # a future does not accept it
            converted = RuntimeError("coroutine raised StopIteration")
            converted.__cause__ = error
            error = converted
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
