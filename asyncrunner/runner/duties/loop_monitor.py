"""Detect that the event loop is blocked, and log which handler blocks it.

While one handler computes or sleeps without `await`, no other handler runs and no heartbeat is written. The worker's
liveness lock proves that the worker is alive, so it keeps its items until its heartbeat is stale; but the log must
explain why no item progresses. A timer ticks in the loop. The monitor's own thread wakes a second after the last tick
that it knows and, if no tick has followed, examines the stack of the loop's thread.
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

from asyncrunner.domain.clock import aligned_pause
from asyncrunner.execution.item_log import fields
from asyncrunner.text.durations import duration_text

if TYPE_CHECKING:
    from asyncrunner.execution.execution import Execution

log = logging.getLogger("asyncrunner")

_BLOCKED_SECONDS: Final = 1.0
_TICK_SECONDS: Final = 0.25
_IDLE_TICK_SECONDS: Final = 0.4  # while no handler runs
_MAX_LATE_SECONDS: Final = 0.5  # a check that is later than this shows that the monitor was stopped too
_MAX_FRAMES: Final = 30
_MAX_NAMED: Final = 5
_DRIVER: Final = "asyncrunner.execution.coroutine_driver"  # the module whose frame calls the handler


class BlockDetector:
    """A detector of blocks of the event loop. It reads no clock: its caller passes all times, in seconds.

    A gap of a second or more between two ticks counts as a block if the monitor thread detected it, or if the process
    used the CPU for more than half of it: a C function that holds the interpreter, in any thread, also stops the
    monitor thread. Otherwise the process was stopped or the machine slept, and the gap does not count.
    """

    def __init__(self, now: float, cpu: float) -> None:
        self.blocks = 0
        self.longest = 0.0
        self._is_detected = False
        self._ticked_at = now
        self._cpu = cpu
        self.check_at = now + _BLOCKED_SECONDS  # the time of the next look()

    def tick(self, now: float, cpu: float) -> float | None:
        """Record a tick of the loop; return how long the loop was blocked before it, or None.

        *cpu*: the CPU time that the process has used in total.
        """
        gap, computed = now - self._ticked_at, cpu - self._cpu
        was_detected, self._is_detected = self._is_detected, False
        self._ticked_at, self._cpu = now, cpu
        if gap < _BLOCKED_SECONDS or not (was_detected or computed > gap / 2):
            return None
        self.blocks += 1
        self.longest = max(self.longest, gap)
        return gap

    def look(self, now: float) -> float | None:
        """Check the ticks from the monitor thread; once for each block, return its duration so far, otherwise None.

        Call it at ``check_at``: the next check is due as soon as the loop is blocked if it does not tick until then.
        """
        is_late, silence = now - self.check_at >= _MAX_LATE_SECONDS, now - self._ticked_at
        if silence < _BLOCKED_SECONDS:
            self.check_at = self._ticked_at + _BLOCKED_SECONDS
            return None
        self.check_at = now + _TICK_SECONDS
        if self._is_detected or is_late:
            return None  # after a late check the next one decides: the whole process may have been stopped
        self._is_detected = True
        return silence


class _BlockedLoop(NamedTuple):
    """A snapshot of a blocked loop: the running executions, the one that blocks the loop (or None), and the stack."""

    running: Collection[Execution]
    blocking: Execution | None
    stack: str


class LoopMonitor:
    """A monitor of the event loop, in its own thread, from start() to stop(). *running* returns the executions."""

    def __init__(self, running: Callable[[], Collection[Execution]]) -> None:
        self._running = running
        self._detector = BlockDetector(0.0, 0.0)
        self._blocked_loop: _BlockedLoop | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._origin = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def blocks(self) -> int:
        """How often the loop was blocked for a second or more."""
        return self._detector.blocks

    @property
    def longest(self) -> float:
        """The longest block, in seconds."""
        return self._detector.longest

    def start(self, *, origin: float | None = None) -> None:
        """Start to monitor the event loop that runs in the calling thread.

        *origin*: the monotonic time from which the pauses of an idle loop are counted; None: now.
        """
        self._origin = time.monotonic() if origin is None else origin
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._detector = BlockDetector(time.monotonic(), time.process_time())
        self._ended.clear()
        self._thread = threading.Thread(target=self._watch, name="asyncrunner loop monitor", daemon=True)
        self._thread.start()
        self._tick()

    def stop(self) -> None:
        """Stop the monitor, and wait up to a second for its thread to end."""
        if self._timer is not None:
            self._timer.cancel()
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)
            self._thread = None

    def _tick(self) -> None:
        assert self._loop is not None
        now = time.monotonic()
        pause = _TICK_SECONDS if self._running() else aligned_pause(_IDLE_TICK_SECONDS, now, self._origin)
        self._timer = self._loop.call_later(pause, self._tick)
        blocked = self._detector.tick(now, time.process_time())
        block, self._blocked_loop = self._blocked_loop, None
        if blocked is not None:
            log.warning("the event loop was blocked for %s%s", duration_text(blocked), _blamed_code(block), extra=_fields(block))

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._detector.check_at - time.monotonic())):
            blocked = self._detector.look(time.monotonic())
            if blocked is not None:
                self._report(blocked)

    def _report(self, blocked: float) -> None:
        self._blocked_loop = block = self._examine_loop()
        log.warning(
            "the event loop has been blocked for %s%s; nothing else runs, and no heartbeat is written. Await slow calls, or "
            "make the handler a `def`, which runs in a thread. The stack of the loop's thread:\n%s",
            duration_text(blocked),
            _blamed_code(block),
            block.stack,
            extra=_fields(block),
        )

    def _examine_loop(self) -> _BlockedLoop:
        running = tuple(self._running())
        task = asyncio.current_task(self._loop)
        blocking = next((execution for execution in running if execution.is_made_by(task)), None)
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented
        if frame is None:
            return _BlockedLoop(running, blocking, "(the loop's thread has ended)")
        frames = list(traceback.walk_stack(frame))  # the innermost first
        if blocking is not None:
            handler = itertools.takewhile(lambda entry: entry[0].f_globals.get("__name__") != _DRIVER, frames)
            frames = list(handler)
        stack = traceback.StackSummary.extract(reversed(frames[:_MAX_FRAMES]))
        return _BlockedLoop(running, blocking, "".join(stack.format()).rstrip())


def _blamed_code(block: _BlockedLoop | None) -> str:
    if block is None:
        return ""  # a C function held the interpreter, so the monitor took no snapshot
    if block.blocking is not None:
        return f" by the handler of item {block.blocking.key!r} of {block.blocking.batch!r}"
    names = sorted(f"{execution.key!r} of {execution.batch!r}" for execution in block.running)
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f" (running: {', '.join(names[:_MAX_NAMED])}{more})" if names else " by code outside the handlers"


def _fields(block: _BlockedLoop | None) -> dict[str, Any] | None:
    return None if block is None or block.blocking is None else fields(block.blocking.batch, block.blocking.claim)
