"""Drive a handler step by step in its own context.

The engine can thereby end a handler that ignores its cancellation.
"""

from __future__ import annotations

import asyncio
import ctypes
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from asyncrunner.execution.execution import Execution

_ABSORB_STEPS: Final = 2  # the second step absorbs a cancellation that the first step delivers


async def absorb_cancellation(task: asyncio.Task[Any]) -> None:
    """Clear every cancellation of *task*, the current task, also a cancellation that is not delivered yet."""
    for _ in range(_ABSORB_STEPS):
        while task.cancelling():
            task.uncancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            continue
        return


async def yield_to_loop(task: asyncio.Task[Any], seconds: float = 0.0) -> None:
    """Pause *task*, the current task, between two handlers or steps, so that the loop's other tasks run.

    The pause ignores a cancellation: no handler runs now, and a loop that is being closed also cancels the pump.
    """
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        await absorb_cancellation(task)


@types.coroutine
def drive(
    coroutine: Coroutine[Any, Any, Any], context: Context, on_wait: Callable[[], object], execution: Execution
) -> Generator[Any, Any, Any]:
    """Await *coroutine* in *context*; call *on_wait* when the coroutine first waits.

    When *execution* is abandoned, the next cancellation closes the coroutine and is raised, even if the coroutine
    ignores cancellations.
    """
    try:
        waited_for = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    on_wait()
    while True:
        step: Callable[[], Any]
        try:
            sent = yield waited_for
        except GeneratorExit:
            context.run(coroutine.close)
            raise
        except BaseException as thrown:
            if execution.abandoned:
                _close(coroutine, context)
                raise
            step = partial(coroutine.throw, thrown)
        else:
            step = partial(coroutine.send, sent)
        try:
            waited_for = context.run(step)
        except StopIteration as stop:
            return stop.value


def _close(coroutine: Coroutine[Any, Any, Any], context: Context) -> None:
    try:
        context.run(coroutine.close)
    except BaseException:  # noqa: BLE001 - the handler ignores GeneratorExit, or its cleanup fails
        if getattr(coroutine, "cr_frame", None) is not None:
            # The interpreter would close the coroutine again when it frees it, after the end of the event loop. Then
            # `while True: try: await ... except BaseException: pass` never ends. So the coroutine is never freed.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(coroutine))
