"""Print a few lines instead of Python's traceback if a Ctrl-C ends a program in which a runner runs.

A Ctrl-C ends ``asyncio.run()`` with a KeyboardInterrupt, whose traceback shows the insides of asyncio. The program may catch
the KeyboardInterrupt; these lines replace only what ``sys.excepthook`` prints, if the program has no hook of its own.

A Ctrl-C also ends ``loop.run_until_complete()`` and ``loop.run_forever()``, but there the loop just stops, with the runner in
it. Then the items are released before the lines are printed.
"""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

from asyncrunner.backends import MEMORY
from asyncrunner.text.escaping import safe_text


@dataclass(frozen=True, slots=True)
class Summary:
    """What a runner has done: a line of counts for each batch, the location of its store, and whether its items are released."""

    counts: Sequence[str]
    location: str
    is_released: bool


@dataclass(frozen=True, slots=True)
class _Running:
    """A runner that has not ended: its event loop, and the functions that describe it and release its items."""

    loop: asyncio.AbstractEventLoop
    summary: Callable[[], Summary]
    release: Callable[[], Coroutine[Any, Any, None]]


_running: Final[dict[object, _Running]] = {}
_interrupted: Final[list[Summary]] = []  # of the runners that a Ctrl-C has ended
_RELEASE_SECONDS: Final = 3.0  # for all runners together; a person waits
_FOLDERS: Final = (str(Path(asyncio.__file__).parent), str(Path(__file__).parent.parent))  # asyncio and this package


def watch_for_ctrl_c(
    summary: Callable[[], Summary], release: Callable[[], Coroutine[Any, Any, None]]
) -> Callable[[BaseException | None], None]:
    """Print *summary* if a Ctrl-C ends the program before the runner has ended, or has ended the runner.

    If the runner has not ended, await *release* first, in a new event loop, after the loop of the runner is closed. Do nothing
    outside of the main thread, and if the program has its own ``sys.excepthook``. Returns the function to call with the failure
    of the runner when it has ended.
    """
    if threading.current_thread() is not threading.main_thread() or sys.excepthook not in (sys.__excepthook__, _on_exception):
        return lambda _: None
    run, runner = object(), _asyncio_runner()
    _interrupted.clear()
    for other, running in list(_running.items()):
        if running.loop.is_closed():
            del _running[other]
    _running[run] = _Running(asyncio.get_running_loop(), summary, release)
    sys.excepthook = _on_exception

    def end(failure: BaseException | None) -> None:
        if _running.pop(run, None) is None:
            return
        if isinstance(failure, KeyboardInterrupt) or (runner is not None and _was_interrupted(runner)):
            _interrupted.append(summary())
        elif not _running and not _interrupted and sys.excepthook is _on_exception:
            sys.excepthook = sys.__excepthook__

    return end


def _asyncio_runner() -> asyncio.Runner | None:
    """Return the asyncio.Runner that handles Ctrl-C, as in ``asyncio.run()``, or None if nothing or other code does."""
    runner = getattr(getattr(signal.getsignal(signal.SIGINT), "func", None), "__self__", None)
    return runner if isinstance(runner, asyncio.Runner) else None


def _was_interrupted(runner: asyncio.Runner) -> bool:
    """Return whether a Ctrl-C has cancelled the main task of *runner*; only asyncio can tell that from a timeout.

    A second Ctrl-C ends the main task before the runner; then *runner* no longer handles Ctrl-C.
    """
    return _asyncio_runner() is not runner or getattr(runner, "_interrupt_count", 0) > 0


def _on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    is_of_a_runner = bool(_interrupted or _running) and _has_left_a_loop(trace)
    if not issubclass(kind, KeyboardInterrupt) or not is_of_a_runner:
        sys.__excepthook__(kind, error, trace)
        return
    runners = list(_running.values())
    _release(runners)
    _silence_more_ctrl_c()
    with suppress(Exception):  # stderr may be closed
        summaries = [*_interrupted, *(runner.summary() for runner in runners)]
        print("\n".join(_lines(summaries, is_after_echo=sys.stderr.isatty())), file=sys.stderr)  # noqa: T201


def _silence_more_ctrl_c() -> None:
    """Print no traceback for a Ctrl-C from now on, while the interpreter exits; it still ends the wait for a thread."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, _on_signal_at_exit)
    unraisable = sys.unraisablehook

    def hook(ignored: sys.UnraisableHookArgs) -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            unraisable(ignored)

    sys.unraisablehook = hook


def _on_signal_at_exit(number: int, frame: FrameType | None) -> None:
    at = frame
    while at is not None:
        if at.f_code is _on_exception.__code__:
            return  # the lines are printed just now; Python prints a traceback if its hook fails
        at = at.f_back
    signal.default_int_handler(number, frame)


def _release(runners: Sequence[_Running]) -> None:
    """Release the items of *runners*, whose event loops a Ctrl-C has stopped; their summaries show whether it succeeded.

    In an interactive interpreter, release nothing, because the person may run the loop again.
    """
    is_interactive = hasattr(sys, "ps1") or sys.flags.interactive
    if not runners or is_interactive or any(runner.loop.is_running() for runner in runners):
        return
    with suppress(Exception, KeyboardInterrupt):  # for example another Ctrl-C; the next start recovers the items
        for runner in runners:
            runner.loop.close()
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda _loop, _context: None)  # the lines report a failure
        try:
            loop.run_until_complete(_release_soon(runners))
        finally:
            loop.close()


async def _release_soon(runners: Sequence[_Running]) -> None:
    await asyncio.wait([asyncio.ensure_future(runner.release()) for runner in runners], timeout=_RELEASE_SECONDS)


def _has_left_a_loop(trace: TracebackType | None) -> bool:
    """Return whether the exception was raised in an event loop; another Ctrl-C may follow that the runners do not concern."""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith(_FOLDERS):
            return True
        trace = trace.tb_next
    return False


def _lines(summaries: Sequence[Summary], *, is_after_echo: bool) -> list[str]:
    lines = [""] if is_after_echo else []  # the terminal has just echoed ^C
    lines += [line for summary in summaries for line in summary.counts]
    locations = [location for location in dict.fromkeys(each.location for each in summaries) if location != MEMORY]
    if not locations:
        return [*lines, "Stopped early: interrupted."]
    if all(summary.is_released for summary in summaries):
        lines += ["Stopped early: interrupted. No item is lost; run it again to continue."]
    else:  # the event loop ended before the runner could release them
        lines += ["Stopped early: interrupted. The next start recovers the items that were running, and counts a crash of each."]
    lines += ["To see the status:"]
    return lines + [f"  asyncrunner status --db {shlex.quote(safe_text(location))}" for location in locations]
