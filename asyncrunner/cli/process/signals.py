"""Handle Ctrl-C, SIGTERM and SIGHUP in a command that runs handlers."""

from __future__ import annotations

import _thread
import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

from asyncrunner.cli.command import EXIT_INTERRUPTED
from asyncrunner.runner.runner import Runner, internals_of, stop_retrying
from asyncrunner.text.escaping import safe_text

_BLOCKED_SECONDS: Final = 1.0
"""How long the event loop may take to handle the third signal; then the loop is blocked, and the process ends."""


class Signals:
    """The signal handlers: the first signal calls *stop* (drain), each later signal calls *cancel*.

    *has_begun* returns whether there are handlers to stop, and *shutdown_timeout* the seconds that they have to finish.

    The signals are SIGINT, SIGTERM and SIGHUP; a SIGHUP that was ignored when the process started, as under ``nohup``,
    stays ignored. A signal that arrives before the file is open cancels the task that called ``listening()``. If a handler
    blocks the event loop, the third signal ends the process; the next start recovers the items. The exception is a handler
    in a C function that holds the GIL: no other thread can run then, and only SIGKILL ends the process. ``last`` is the
    number of the newest signal, and ``received`` counts the signals that the loop has handled.
    """

    def __init__(
        self,
        stop: Callable[[], object],
        cancel: Callable[[], object],
        *,
        has_begun: Callable[[], bool],
        shutdown_timeout: Callable[[], float],
    ) -> None:
        self._has_begun = has_begun
        self._shutdown_timeout = shutdown_timeout
        self._stop = stop
        self._cancel = cancel
        self._task: asyncio.Task[Any] | None = None
        self._numbers: set[int] = set()
        self._arrived = 0  # signals for which Python has called the signal handler
        self._forwarded = 0  # signals that the watcher thread has forwarded to the loop
        self.received = 0
        self.last: int | None = None

    @classmethod
    def of_runner(cls, runner: Runner, stop: Callable[[], object], cancel: Callable[[], object]) -> Signals:
        """Return the signal handlers of a program that runs *runner*.

        From the first signal on, calls of an unavailable store are retried for 5 s after the last handler has ended; from the
        second on, they are not retried.
        """
        internals = internals_of(runner)

        def stop_soon() -> None:
            stop()
            stop_retrying(internals)

        def cancel_now() -> None:
            cancel()
            stop_retrying(internals, 0.0)

        return cls(
            stop_soon,
            cancel_now,
            has_begun=lambda: internals.engine_task is not None,
            shutdown_timeout=lambda: internals.options.shutdown_timeout,
        )

    @property
    def exit_code(self) -> int:
        """The exit code of a program that a signal has ended: 130 after Ctrl-C, otherwise 0."""
        return EXIT_INTERRUPTED if self.last == signal.SIGINT else 0

    @contextmanager
    def listening(self) -> Generator[None, None, None]:
        """Install the signal handlers in the running event loop; they stay until the loop is closed.

        Until the end of the block, a thread watches for a third signal that the loop does not handle.
        """
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._numbers.add(number)
            loop.add_signal_handler(number, self._on_signal, number)
            # The loop is notified by its wakeup descriptor. This function also runs while Python code blocks the loop.
            signal.signal(number, self._on_arrival)
            signal.siginterrupt(number, False)
        # A system call that blocks the loop is restarted after a signal, so that Python calls no signal handler then.
        # The wakeup descriptor gets each signal even then, because the operating system's handler writes it.
        reading, writing = socket.socketpair()
        with reading, writing:
            writing.setblocking(False)
            of_loop = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
            watcher = threading.Thread(target=self._watch, args=(reading, of_loop), name="asyncrunner signals", daemon=True)
            watcher.start()
            try:
                yield
            finally:
                current = signal.set_wakeup_fd(of_loop, warn_on_full_buffer=False)
                if current != writing.fileno():  # other code has set its own descriptor meanwhile
                    signal.set_wakeup_fd(current, warn_on_full_buffer=False)
                writing.close()
                watcher.join()  # it forwards the last signals; then the loop may close its descriptor

    def _watch(self, reading: socket.socket, of_loop: int) -> None:
        while numbers := reading.recv(4096):
            received = self.received  # before the loop can handle the new signals
            if of_loop != -1:
                with suppress(OSError):  # full: the loop is notified already
                    os.write(of_loop, numbers)
            self._forwarded += sum(number in self._numbers for number in numbers)
            if self._forwarded >= 3:
                _thread.start_new_thread(self._end_blocked_process, (received,))

    def _on_arrival(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._arrived += 1
        if self._arrived >= 3:  # the watcher gets no signal if a handler has set another wakeup descriptor
            # A Thread would wait for locks that the interrupted code may hold.
            _thread.start_new_thread(self._end_blocked_process, (self.received,))

    def _end_blocked_process(self, received: int) -> None:
        time.sleep(_BLOCKED_SECONDS)
        if self.received == received:
            os._exit(EXIT_INTERRUPTED)  # without a message: writing it may block too

    def _on_signal(self, number: int) -> None:
        self.received += 1
        self.last = number
        if not self._has_begun():
            if self._task is not None:
                self._task.cancel()  # the file is not open yet, so there is nothing to drain
        elif self.received == 1:
            self._stop()
            with suppress(Exception):  # the message may be lost; the stop is requested already
                self._print_stop()
        else:
            self._cancel()

    def print_unsaved(self, location: str) -> None:
        """Print what holds after a stop that ended while the store at *location* was unavailable."""
        print(
            f"Stopped early: interrupted, while {safe_text(location, limit=1000)} was unavailable. Saved items stay saved. Items "
            "that ended since then could not be saved, and run again. The next start recovers the items of this process: run the "
            "same command again when the store is available.",
            file=sys.stderr,
        )

    def _print_stop(self) -> None:
        seconds = self._shutdown_timeout()
        # With a progress bar, printed text starts on a new line. Without one, the terminal has just echoed ^C.
        is_after_echo = sys.stderr.isatty() and not hasattr(sys.stderr, "rich_proxied_file")
        print(
            f"{chr(10) if is_after_echo else ''}Stopping: running handlers have {seconds:g} s to finish. Press Ctrl-C again "
            "to cancel them; no item is lost.",
            file=sys.stderr,
        )
