"""Drive a handler step by step in its own context, so that the engine can end it even if it ignores its cancellation."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from asyncrunner.execution.execution import Execution

_ABSORB_STEPS: Final = 2


async def absorb_cancellation(task: asyncio.Task[Any]) -> None:
    """Clear every cancellation of *task*, the current one, also a cancellation that is not delivered yet."""
    for _ in range(_ABSORB_STEPS):
        while task.cancelling():
            task.uncancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            continue
        return


async def yield_to_loop(task: asyncio.Task[Any], seconds: float = 0.0) -> None:
    """Pause *task*, the current one, between two handlers or steps so that the loop's other tasks run.

    A cancellation of the pause is ignored: no handler runs now, and a loop that is being closed cancels the pump as well.
    """
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        await absorb_cancellation(task)


@types.coroutine
def drive(
    coroutine: Coroutine[Any, Any, Any], context: Context, on_wait: Callable[[], object], execution: Execution
) -> Generator[Any, Any, Any]:
    """Await *coroutine* in *context*; call *on_wait* when it first waits.

    Once *execution* is abandoned, the next cancellation closes the coroutine and is raised, even if the coroutine would
    ignore it.
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
    except BaseException:  # noqa: BLE001, S110 - it ignores even GeneratorExit, or its cleanup fails: the outcome is known
        pass
