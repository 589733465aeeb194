"""Open what the handlers of a process share, such as an HTTP client, before the first handler, and close it after the last."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import anyio

from asyncrunner.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncrunner.domain.options import SetupFunction


class Setup:
    """The context manager that ``setup=`` opens, entered and left in one task of its own.

    A context manager with a task group or a timeout in it must be left by the task that entered it, but ``start()`` and
    ``stop()`` of a runner may be called from different tasks. *on_failure* is called with an exception that ends the
    context manager while handlers run.
    """

    def __init__(self, function: SetupFunction, on_failure: Callable[[Exception], object]) -> None:
        self._function = function
        self._on_failure = on_failure
        self._entered = asyncio.Event()
        self._leaving = asyncio.Event()
        self._is_open = False
        self._value: Any = None
        self._task: asyncio.Task[None] | None = None

    async def enter(self) -> Any:
        """Enter the context manager and return its value.

        Raises the exception of the context manager, and ConfigurationError if the function returns none. If the caller is
        cancelled, the context manager is cancelled too, and has ended when this raises CancelledError.
        """
        self._task = asyncio.create_task(self._run(), name="asyncrunner setup")
        entered = asyncio.ensure_future(self._entered.wait())
        try:
            await asyncio.wait({entered, self._task}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            self._task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({self._task})
            raise
        finally:
            entered.cancel()
        if not self._is_open:
            await self._task
            raise RuntimeError("the context manager of setup= ended before it was entered")
        return self._value

    async def leave(self) -> None:
        """Leave the context manager. Raises its exception, unless *on_failure* had it. A cancellation does not stop this."""
        task, self._task = self._task, None
        if task is None or not self._is_open:
            return
        self._leaving.set()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task})
        self._is_open = False
        await task

    async def _run(self) -> None:
        try:
            async with _context_manager(self._function) as self._value:
                self._is_open = True
                self._entered.set()
                await self._leaving.wait()
        except Exception as error:
            if not self._is_open or self._leaving.is_set():
                raise
            self._on_failure(error)


def _context_manager(function: Callable[[], Any]) -> AbstractAsyncContextManager[Any]:
    if inspect.isasyncgenfunction(function):
        return asynccontextmanager(cast("Any", function))()
    manager = function()
    if not isinstance(manager, AbstractAsyncContextManager):
        raise ConfigurationError(
            f"setup= must return an async context manager, and {getattr(function, '__qualname__', function)!s}() returned "
            f"{type(manager).__name__}; write an `async def` with one `yield`"
        )
    return cast("AbstractAsyncContextManager[Any]", manager)
