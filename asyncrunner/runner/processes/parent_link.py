"""The link of a child process to its parent: requests arrive through one pipe, and the child's states leave by another."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec

from asyncrunner.errors import AsyncRunnerError, ConfigurationError, SetupFailed, StoreUnavailable
from asyncrunner.execution.process_handler import leave_signals_to_parent
from asyncrunner.runner.processes.messages import LOG_MARK, MAX_LINE, MAX_REASON, ChildState, LogLine, Request, Start
from asyncrunner.text.escaping import error_text, place_of

T = TypeVar("T")
_FIELDS: Final = ("batch", "item", "attempt")  # of records about items
_END_SECONDS: Final = 12.0  # after a cancellation: the grace of handlers, the retries of the store, and a margin
_EXIT_WITHOUT_PARENT: Final = 1

log = logging.getLogger("asyncrunner")


class ParentLink:
    """The link of this process, a child, to its parent. ``settings`` is what the parent wants the child to run, as JSON.

    The constructor takes over stdin, which is empty for handlers from then on, ``sys.path``, ``sys.argv`` and PYTHONPATH. The
    child ignores SIGINT, SIGTERM and SIGHUP, because the parent gets them too and decides.
    """

    def __init__(self) -> None:
        self._writing = int(sys.argv[1])
        os.set_inheritable(self._writing, False)
        os.set_blocking(self._writing, False)
        self._reading = os.fdopen(os.dup(0), "rb")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        leave_signals_to_parent()
        line = self._reading.readline()
        if not line:
            sys.exit(_EXIT_WITHOUT_PARENT)  # the parent has ended
        start = msgspec.json.decode(line, type=Start)
        sys.path[:] = start.path
        sys.argv[:] = start.arguments
        os.environ.pop("PYTHONPATH", None)
        if start.python_path is not None:
            os.environ["PYTHONPATH"] = start.python_path
        self.settings = bytes(start.settings)
        self._log_level = start.log_level
        self._sent: ChildState | None = None
        self._sent_at = -1.0

    def send(self, state: ChildState, *, every: float = 0.0) -> None:
        """Send *state* if it has changed or the newest one was sent *every* seconds ago.

        A state that the pipe has no room for, because the parent is stopped, is dropped; a later one replaces it.
        """
        now = time.monotonic()
        if state == self._sent and now - self._sent_at < every:
            return
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._writing, msgspec.json.encode(state) + b"\n")
            self._sent, self._sent_at = state, now

    def forward_log(self) -> None:
        """Log what asyncrunner logs in this process in the parent, whose program has configured where its log goes."""
        logger = logging.getLogger("asyncrunner")
        logger.setLevel(self._log_level)
        logger.addHandler(_ToParent(self._writing))
        logger.propagate = False

    def send_end(self, state: ChildState) -> None:
        """Send the last state of this process, which has ended in order or has an error, and wait for room in the pipe."""
        os.set_blocking(self._writing, True)
        with suppress(BrokenPipeError):
            end = msgspec.structs.replace(state, has_ended=state.error is None)
            os.write(self._writing, msgspec.json.encode(end) + b"\n")

    def listen(self, on_request: Callable[[Request], object], *, shutdown_timeout: float) -> None:
        """Call *on_request* in the running loop with each request, and with a drain when the parent has ended.

        A thread reads the requests. If the process has not ended some time after its parent, because a handler blocks the event
        loop, the thread ends it; the items are recovered.
        """
        loop = asyncio.get_running_loop()

        def forward(request: Request) -> None:
            with suppress(RuntimeError):  # the loop is closed: this process ends
                loop.call_soon_threadsafe(on_request, request)

        def read() -> None:
            for line in self._reading:
                forward(msgspec.json.decode(line, type=Request))
            forward(Request(stop="drain"))
            time.sleep(shutdown_timeout + _END_SECONDS)
            os._exit(_EXIT_WITHOUT_PARENT)

        threading.Thread(target=read, name="asyncrunner parent", daemon=True).start()


class _ToParent(logging.Handler):
    """A handler that writes records to the pipe of the parent. A record that the pipe has no room for is dropped."""

    def __init__(self, writing: int) -> None:
        super().__init__()
        self._writing = writing

    def emit(self, record: logging.LogRecord) -> None:
        fields = {name: value for name in _FIELDS if isinstance(value := getattr(record, name, None), str | int)}
        text = self.format(record)
        line = LogLine(record.name, record.levelno, text, fields)
        data = LOG_MARK + msgspec.json.encode(line) + b"\n"
        if len(data) > MAX_LINE:
            data = LOG_MARK + msgspec.json.encode(msgspec.structs.replace(line, message=shortened(text))) + b"\n"
        with suppress(OSError):
            os.write(self._writing, data)


def shortened(text: str) -> str:
    """Return *text*, cut so that it fits into a state."""
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def run_child(prepare: Callable[[bytes], Callable[[ParentLink], Any]]) -> None:
    """Run this process as a child: *prepare* takes the settings and returns the function that runs them in an event loop.

    An exception is reported to the parent, as an error after which no child is started again.
    """
    link = ParentLink()
    try:
        asyncio.run(prepare(link.settings)(link))
    except StoreUnavailable as error:  # calls are retried until the deadline of a stop; the start had not ended
        log.warning("stopped while the store was unavailable: %s", error)
        link.send_end(ChildState(is_stopping=True))
    except BaseException as error:  # noqa: BLE001 - the parent raises it
        link.send_end(_state_of(error))
        _exit(1)
    _exit(0)


def _state_of(error: BaseException) -> ChildState:
    if isinstance(error, SetupFailed):
        return ChildState(error=shortened(str(error)), setup_error=shortened(error.error))
    if isinstance(error, ConfigurationError):
        return ChildState(error=shortened(str(error)), is_configuration=True)
    # The text of the package's own errors says what to do; the line that raises it would mislead.
    place = "" if isinstance(error, AsyncRunnerError) else place_of(error)
    return ChildState(error=shortened(f"{error_text(error)}{place}"))


def _exit(code: int) -> None:
    """End the process, also if the thread of a `def` handler hangs; a thread cannot be stopped."""
    deadline = time.monotonic() + 1.0
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                for stream in (sys.stdout, sys.stderr):
                    with suppress(Exception):
                        stream.flush()
                os._exit(code)
    sys.exit(code)
