"""The guardian: notices that the event loop stands still, and says whose code it was.

While one handler computes or sleeps without `await`, no other runs and no heartbeat is written. Nothing is stolen from
such a worker, for its lock proves that it lives; but somebody must say why nothing goes on. The loop ticks; a thread of the
guardian's own looks at the ticks and, when they stop, at what the loop's thread is doing.
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

from asyncrunner.logs import fields
from asyncrunner.text import duration_text

if TYPE_CHECKING:
    from asyncrunner.attempt import Attempt

__all__ = ["Guardian", "Vigil"]

log = logging.getLogger("asyncrunner")

_BLOCKED_SECONDS: Final = 1.0
_TICK_SECONDS: Final = 0.25
_FRAMES: Final = 30
_NAMED: Final = 5
_DRIVER: Final = "asyncrunner.drive"  # the module whose frame calls the handler


class Vigil:
    """What the ticks tell, as arithmetic on times that come in as arguments; all seconds.

    A gap between two ticks is a block if somebody saw the loop stand still meanwhile, or if the process was computing for most of
    it, as in a C function, also of another thread, that lets nobody look. Otherwise the process was stopped, or the machine
    slept: nobody's fault.
    """

    def __init__(self, now: float, cpu: float) -> None:
        self.blocks = 0
        self.longest = 0.0
        self.was_seen = False
        self._ticked = now
        self._cpu = cpu
        self._looked = now

    def tick(self, now: float, cpu: float) -> float | None:
        """The loop turns, and the process has computed for *cpu* in all. Returns how long it was blocked, if it was."""
        gap, computed = now - self._ticked, cpu - self._cpu
        was_seen, self.was_seen = self.was_seen, False
        self._ticked, self._cpu = now, cpu
        if gap < _BLOCKED_SECONDS or not (was_seen or computed > gap / 2):
            return None
        self.blocks += 1
        self.longest = max(self.longest, gap)
        return gap

    def look(self, now: float) -> float | None:
        """Somebody looks. Returns for how long the loop has been blocked, once a block."""
        slept, self._looked = now - self._looked, now
        silence = now - self._ticked
        if self.was_seen or silence < _BLOCKED_SECONDS or slept >= _BLOCKED_SECONDS:
            return None  # who slept for that long himself was stopped along with the loop: he looks again
        self.was_seen = True
        return silence


class _Seen(NamedTuple):
    """What runs while the loop stands still, whose code its thread is in, if that is a handler's, and where it is."""

    running: Collection[Attempt]
    guilty: Attempt | None
    stack: str


class Guardian:
    """Watches the running loop from a thread, from start() to stop(). *running* gives the attempts that are being made."""

    def __init__(self, running: Callable[[], Collection[Attempt]]) -> None:
        self._running = running
        self._vigil = Vigil(0.0, 0.0)
        self._seen: _Seen | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def blocks(self) -> int:
        """How often the loop stood still for a second or more."""
        return self._vigil.blocks

    @property
    def longest(self) -> float:
        """The longest of these times, in seconds."""
        return self._vigil.longest

    def start(self) -> None:
        """Begin, in the loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._vigil = Vigil(time.monotonic(), time.process_time())
        self._ended.clear()
        self._thread = threading.Thread(target=self._watch, name="asyncrunner guardian", daemon=True)
        self._thread.start()
        self._tick()

    def stop(self) -> None:
        """End, and leave no thread behind."""
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
        seen, self._seen = self._seen, None
        if blocked is not None:
            log.warning("the event loop was blocked for %s%s", duration_text(blocked), _by(seen), extra=_fields(seen))

    def _watch(self) -> None:
        while not self._ended.wait(_TICK_SECONDS):
            blocked = self._vigil.look(time.monotonic())
            if blocked is not None:
                self._tell(blocked)

    def _tell(self, blocked: float) -> None:
        self._seen = seen = self._look_at_loop()
        log.warning(
            "the event loop has been blocked for %s%s; nothing else runs, and no heartbeat is written. Await what takes long, or "
            "make the handler a `def`, which runs in a thread. It is here:\n%s",
            duration_text(blocked), _by(seen), seen.stack, extra=_fields(seen),
        )  # fmt: skip

    def _look_at_loop(self) -> _Seen:
        running = tuple(self._running())
        task = asyncio.current_task(self._loop)
        guilty = next((attempt for attempt in running if attempt.is_made_by(task)), None)
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented
        if frame is None:
            return _Seen(running, guilty, "(it has just gone on)")
        frames = list(traceback.walk_stack(frame))  # the innermost first
        if guilty is not None:
            handler = itertools.takewhile(lambda entry: entry[0].f_globals.get("__name__") != _DRIVER, frames)
            frames = list(handler)
        stack = traceback.StackSummary.extract(reversed(frames[:_FRAMES]))
        return _Seen(running, guilty, "".join(stack.format()).rstrip())


def _by(seen: _Seen | None) -> str:
    if seen is None:
        return ""  # a C function let nobody look
    if seen.guilty is not None:
        return f" by the handler of item {seen.guilty.key!r} of {seen.guilty.batch!r}"
    names = sorted(f"{attempt.key!r} of {attempt.batch!r}" for attempt in seen.running)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f" (running: {', '.join(names[:_NAMED])}{more})" if names else " by code that is no handler's"


def _fields(seen: _Seen | None) -> dict[str, Any] | None:
    return None if seen is None or seen.guilty is None else fields(seen.guilty.batch, seen.guilty.claim)
