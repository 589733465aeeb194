"""Convert a handler to a coroutine function; a ``def`` handler runs in a thread."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from asyncrunner.errors import ConfigurationError
from asyncrunner.execution.answers import DescribedError
from asyncrunner.execution.attempt import current_attempt
from asyncrunner.serialization.error_info import describe

if TYPE_CHECKING:
    from anyio import CapacityLimiter

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

    def in_thread(item: Any, threads: list[threading.Thread]) -> Any:
        threads.append(threading.current_thread())
        try:
            return handler(item)
        except KeyboardInterrupt as error:  # the handler raised it: Ctrl-C raises it only in the main thread
            raise DescribedError(error, describe(error)) from None

    async def call(item: Any) -> Any:
        threads: list[threading.Thread] = []  # the one that calls the handler
        try:
            value = await anyio.to_thread.run_sync(in_thread, item, threads, abandon_on_cancel=True, limiter=limiter())
        except asyncio.CancelledError:
            for thread in threads:
                _do_not_wait_at_exit(thread)
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


def _do_not_wait_at_exit(thread: threading.Thread) -> None:
    """Make the interpreter not wait for *thread* when it exits, as if it were a daemon thread; Python 3.11 and 3.12.

    anyio's threads are not daemon threads, ``anyio.from_thread.run()`` works only in anyio's threads, and Python has no public
    function for a thread that has started. From Python 3.13 on the list of these threads is out of reach, so the interpreter
    waits for the thread.
    """
    names = vars(threading)
    lock, locks = names.get("_shutdown_locks_lock"), names.get("_shutdown_locks")
    if lock is not None and locks is not None:
        with lock:
            locks.discard(getattr(thread, "_tstate_lock", None))
