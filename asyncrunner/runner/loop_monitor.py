"""The event-loop monitor: detects that the event loop is blocked, and names the handler that blocks it.

While one handler computes or sleeps without `await`, no other handler runs and no heartbeat is written. The worker's lock
proves that it lives, so it keeps its items until its heartbeat is stale; but a user must learn why nothing progresses. The
loop ticks. The monitor's own thread watches the ticks and, when they stop, examines the stack of the loop's thread.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asyncrunner.execution.item_log import fields
from asyncrunner.text.durations import duration_text

if TYPE_CHECKING:
    from asyncrunner.execution.execution import Execution


log = logging.getLogger("asyncrunner")

_BLOCKED_SECONDS: Final = 1.0

_TICK_SECONDS: Final = 0.25

_MAX_FRAMES: Final = 30

_MAX_NAMED: Final = 5

_DRIVER: Final = "asyncrunner.execution.coroutine_driver"  # the module whose frame calls the handler


class BlockDetector:
    """The block detector: arithmetic on times that are passed in, all in seconds.

    A gap between two ticks counts as a block if the monitor thread saw it, or if the process used the CPU for most of it: a C
    function that holds the interpreter, in any thread, hides the loop from the monitor. Otherwise the process was stopped or
    the machine slept, and the gap does not count.
    """

    def __init__(self, now: float, cpu: float) -> None:
        self.blocks = 0
        self.longest = 0.0
        self.was_seen = False
        self._ticked_at = now
        self._cpu = cpu
        self._checked_at = now

    def tick(self, now: float, cpu: float) -> float | None:
        """Record a tick of the loop; return how long the loop was blocked before it, or None.

        *cpu*: the CPU time that the process has used in total.
        """
        gap, computed = now - self._ticked_at, cpu - self._cpu
        was_seen, self.was_seen = self.was_seen, False
        self._ticked_at, self._cpu = now, cpu
        if gap < _BLOCKED_SECONDS or not (was_seen or computed > gap / 2):
            return None
        self.blocks += 1
        self.longest = max(self.longest, gap)
        return gap

    def look(self, now: float) -> float | None:
        """Check from the monitor thread; return how long the loop has been blocked, once for each block, or None."""
        since_check, self._checked_at = now - self._checked_at, now
        silence = now - self._ticked_at
        if self.was_seen or silence < _BLOCKED_SECONDS or since_check >= _BLOCKED_SECONDS:
            return None  # after so long a sleep the monitor was stopped along with the loop: it checks again
        self.was_seen = True
        return silence


class _BlockedLoop(NamedTuple):
    """What the monitor sees of a blocked loop: the running executions, the one whose handler blocks it (or None), the stack."""

    running: Collection[Execution]
    culprit: Execution | None
    stack: str


class LoopMonitor:
    """Monitors the running event loop from its own thread, from start() to stop(). *running* returns the running executions."""

    def __init__(self, running: Callable[[], Collection[Execution]]) -> None:
        self._running = running
        self._vigil = BlockDetector(0.0, 0.0)
        self._blocked_loop: _BlockedLoop | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def blocks(self) -> int:
        """How often the loop was blocked for a second or more."""
        return self._vigil.blocks

    @property
    def longest(self) -> float:
        """The longest block, in seconds."""
        return self._vigil.longest

    def start(self) -> None:
        """Start to monitor the running loop, which must be the caller's."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._vigil = BlockDetector(time.monotonic(), time.process_time())
        self._ended.clear()
        self._thread = threading.Thread(target=self._watch, name="asyncrunner loop monitor", daemon=True)
        self._thread.start()
        self._tick()

    def stop(self) -> None:
        """Stop, and wait up to a second for the monitor thread to end."""
        if self._timer is not None:
            self._timer.cancel()
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)
            self._thread = None

    def _tick(self) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)
        blocked = self._vigil.tick(time.monotonic(), time.process_time())
        block, self._blocked_loop = self._blocked_loop, None
        if blocked is not None:
            log.warning("the event loop was blocked for %s%s", duration_text(blocked), _by_whom(block), extra=_fields(block))

    def _watch(self) -> None:
        while not self._ended.wait(_TICK_SECONDS):
            blocked = self._vigil.look(time.monotonic())
            if blocked is not None:
                self._report(blocked)

    def _report(self, blocked: float) -> None:
        self._blocked_loop = block = self._examine_loop()
        log.warning(
            "the event loop has been blocked for %s%s; nothing else runs, and no heartbeat is written. Await slow calls, or "
            "make the handler a `def`, which runs in a thread. The loop is here:\n%s",
            duration_text(blocked),
            _by_whom(block),
            block.stack,
            extra=_fields(block),
        )

    def _examine_loop(self) -> _BlockedLoop:
        running = tuple(self._running())
        task = asyncio.current_task(self._loop)
        culprit = next((execution for execution in running if execution.is_made_by(task)), None)
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented
        if frame is None:
            return _BlockedLoop(running, culprit, "(the loop's thread has ended)")
        frames = list(traceback.walk_stack(frame))  # the innermost first
        if culprit is not None:
            handler = itertools.takewhile(lambda entry: entry[0].f_globals.get("__name__") != _DRIVER, frames)
            frames = list(handler)
        stack = traceback.StackSummary.extract(reversed(frames[:_MAX_FRAMES]))
        return _BlockedLoop(running, culprit, "".join(stack.format()).rstrip())


def _by_whom(block: _BlockedLoop | None) -> str:
    if block is None:
        return ""  # a C function held the interpreter, so the monitor saw nothing
    if block.culprit is not None:
        return f" by the handler of item {block.culprit.key!r} of {block.culprit.batch!r}"
    names = sorted(f"{execution.key!r} of {execution.batch!r}" for execution in block.running)
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f" (running: {', '.join(names[:_MAX_NAMED])}{more})" if names else " by code outside the handlers"


def _fields(block: _BlockedLoop | None) -> dict[str, Any] | None:
    return None if block is None or block.culprit is None else fields(block.culprit.batch, block.culprit.claim)
