"""Handle Ctrl-C and SIGTERM in a command that runs handlers."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Any

from asyncrunner.runner.runner import Runner, internals_of


class Signals:
    """The signal handlers: the first SIGINT or SIGTERM calls *stop* (drain), each later signal calls *cancel*.

    A signal that arrives before the file is open cancels the task that called ``listen()``. ``last`` is the number of
    the newest signal, and ``received`` counts the signals.
    """

    def __init__(self, runner: Runner, stop: Callable[[], object], cancel: Callable[[], object]) -> None:
        self._runner = runner
        self._stop = stop
        self._cancel = cancel
        self._task: asyncio.Task[Any] | None = None
        self.received = 0
        self.last: int | None = None

    def listen(self) -> None:
        """Install the signal handlers in the running event loop; they stay until the loop is closed."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        self.received += 1
        self.last = number
        if internals_of(self._runner).engine_task is None:
            if self._task is not None:
                self._task.cancel()  # the file is still being opened: there is nothing to drain
        elif self.received == 1:
            seconds = internals_of(self._runner).options.shutdown_timeout
            # With a progress bar, printed text starts on a new line. Without one, the terminal has just echoed ^C.
            is_after_echo = sys.stderr.isatty() and not hasattr(sys.stderr, "rich_proxied_file")
            print(
                f"{chr(10) if is_after_echo else ''}Stopping: running handlers have {seconds:g} s to finish. Press Ctrl-C again "
                "to cancel them; no item is lost.",
                file=sys.stderr,
            )
            self._stop()
        else:
            self._cancel()
