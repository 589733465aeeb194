"""Handle Ctrl-C, SIGTERM and SIGHUP in a command that runs handlers."""

from __future__ import annotations

import _thread
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from asyncrunner.cli.command import EXIT_INTERRUPTED
from asyncrunner.runner.runner import Runner, internals_of

_BLOCKED_SECONDS: Final = 1.0
"""How long the event loop may take to handle the third signal; then the loop is blocked, and the process ends."""


class Signals:
    """The signal handlers: the first signal calls *stop* (drain), each later signal calls *cancel*.

    The signals are SIGINT, SIGTERM and SIGHUP; a SIGHUP that was ignored when the process started, as under ``nohup``,
    stays ignored. A signal that arrives before the file is open cancels the task that called ``listen()``. If a handler blocks
    the event loop, the third signal ends the process; the next start recovers the items. ``last`` is the number of the
    newest signal, and ``received`` counts the signals that the loop has handled.
    """

    def __init__(self, runner: Runner, stop: Callable[[], object], cancel: Callable[[], object]) -> None:
        self._runner = runner
        self._stop = stop
        self._cancel = cancel
        self._task: asyncio.Task[Any] | None = None
        self._arrived = 0
        self.received = 0
        self.last: int | None = None

    def listen(self) -> None:
        """Install the signal handlers in the running event loop; they stay until the loop is closed."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            loop.add_signal_handler(number, self._on_signal, number)
            # The loop is notified by its wakeup descriptor. This function also runs while an item's handler blocks the loop.
            signal.signal(number, self._on_arrival)
            signal.siginterrupt(number, False)

    def _on_arrival(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._arrived += 1
        if self._arrived >= 3:
            # A Thread would wait for locks that the interrupted code may hold.
            _thread.start_new_thread(self._end_blocked_process, (self.received,))

    def _end_blocked_process(self, received: int) -> None:
        time.sleep(_BLOCKED_SECONDS)
        if self.received == received:
            os._exit(EXIT_INTERRUPTED)  # without a message: writing it may block too

    def _on_signal(self, number: int) -> None:
        self.received += 1
        self.last = number
        if internals_of(self._runner).engine_task is None:
            if self._task is not None:
                self._task.cancel()  # the file is not open yet, so there is nothing to drain
        elif self.received == 1:
            self._stop()
            with suppress(Exception):  # the message may be lost; the stop is requested already
                self._print_stop()
        else:
            self._cancel()

    def _print_stop(self) -> None:
        seconds = internals_of(self._runner).options.shutdown_timeout
        # With a progress bar, printed text starts on a new line. Without one, the terminal has just echoed ^C.
        is_after_echo = sys.stderr.isatty() and not hasattr(sys.stderr, "rich_proxied_file")
        print(
            f"{chr(10) if is_after_echo else ''}Stopping: running handlers have {seconds:g} s to finish. Press Ctrl-C again "
            "to cancel them; no item is lost.",
            file=sys.stderr,
        )
