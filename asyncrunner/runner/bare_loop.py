"""End a program in a bare event loop after a Ctrl-C: ``loop.run_until_complete()`` without ``asyncio.run()``.

There Python raises KeyboardInterrupt in any step of a task. A handler, the pump or a background task that has it ends the
runner, but not the loop, and the program may wait for ever.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, cast

if TYPE_CHECKING:
    from asyncrunner.runner.engine import Engine


class LoopEnd:
    """The end of a bare event loop after a KeyboardInterrupt in one of the engine's tasks. *stop* stops the runner."""

    def __init__(self, stop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._stop = stop
        self._ending: asyncio.Future[None] | None = None  # the event loop keeps no reference

    def begin(self, engine: Engine, error: BaseException) -> None:
        """Stop the runner after *error*, a KeyboardInterrupt that ends *engine*, and then raise *error* out of the event loop.

        Do nothing if the program waits for the end of *engine*, or if a Ctrl-C raises no KeyboardInterrupt, because asyncio or
        the program handles it.
        """
        if not engine.is_awaited and _raises_at_ctrl_c():
            engine.is_awaited = True
            self._ending = asyncio.ensure_future(self._end(error))

    async def _end(self, error: BaseException) -> None:
        await self._stop()
        asyncio.get_running_loop().call_soon(_throw, error)


def _raises_at_ctrl_c() -> bool:
    return threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _throw(error: BaseException) -> NoReturn:
    raise error


def keyboard_interrupt_in(error: BaseException) -> BaseException | None:
    """Return *error* if it is a KeyboardInterrupt, or the first one in it if it is a group, or else None."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return next(filter(None, map(keyboard_interrupt_in, group.exceptions)), None)
    return error if isinstance(error, KeyboardInterrupt) else None


def is_freed_with(loop: asyncio.AbstractEventLoop | None) -> bool:
    """Return whether Python runs the caller, a coroutine of *loop*, only to free it, because *loop* is closed."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return loop is not None and loop.is_closed()
    return False
