"""Open what the handlers of a process share, such as an HTTP client, before the first handler, and close it after the last."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import anyio

from asyncrunner.errors import ConfigurationError, SetupFailed
from asyncrunner.text.escaping import error_text, place_of, safe_text

if TYPE_CHECKING:
    from asyncrunner.domain.options import SetupFunction

_MAX_ERROR: Final = 300  # characters; the message of a child process to its parent has the text twice


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

        Raises SetupFailed for an exception of the context manager, and ConfigurationError if the function returns none. If
        the caller is cancelled, the context manager is cancelled too, and has ended when this raises CancelledError.
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
        """Leave the context manager. A cancellation does not stop this.

        Raises SetupFailed for its exception, unless *on_failure* had it.
        """
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
            manager = self._call()
            if not isinstance(manager, AbstractAsyncContextManager):
                raise _NoContextManager(manager)
            async with cast("AbstractAsyncContextManager[Any]", manager) as self._value:
                self._is_open = True
                self._entered.set()
                await self._leaving.wait()
        except _NoContextManager as error:
            raise ConfigurationError(
                f"setup= must return an async context manager, and {self._name}() returned {type(error.value).__name__}; write "
                "an `async def` with one `yield`"
            ) from None
        except Exception as error:
            if not self._is_open or self._leaving.is_set():
                raise self._failure(error) from error
            failure = self._failure(error)
            failure.__cause__ = error
            self._on_failure(failure)

    def _call(self) -> object:
        if inspect.isasyncgenfunction(self._function):
            return asynccontextmanager(cast("Any", self._function))()
        return self._function()

    @property
    def _name(self) -> str:
        return safe_text(getattr(self._function, "__qualname__", self._function))

    def _failure(self, error: Exception) -> SetupFailed:
        phase = "when it was left" if self._leaving.is_set() else "while handlers ran" if self._is_open else "at the start"
        text = safe_text(error_text(error), limit=_MAX_ERROR)
        return SetupFailed(f"setup={self._name} failed {phase}: {text}{place_of(error)}; no item has lost an attempt", error=text)


class _NoContextManager(Exception):
    """The *value* that a setup function returned is no context manager."""

    def __init__(self, value: object) -> None:
        super().__init__(value)
        self.value = value
