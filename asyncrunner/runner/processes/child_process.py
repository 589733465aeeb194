"""One child process, as its parent holds it: start it, exchange messages with it, and wait for its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

import msgspec

from asyncrunner.errors import ConfigurationError
from asyncrunner.execution.process_handler import GROUP_SIGNALS
from asyncrunner.runner.processes.messages import LOG_MARK, ChildState, LogLine, Request, Start

log = logging.getLogger("asyncrunner")

StateObserver: TypeAlias = "Callable[[ChildProcess, ChildState, ChildState], object]"
_POLL_SECONDS: Final = 0.2  # for the end of a child whose pipe a process that it has forked keeps open
_READ_BYTES: Final = 65_536
_PYTHON_PATH: Final = "PYTHONPATH"


class ChildProcess:
    """A child process that runs *module* with *settings*; *on_state* is called with the child, its previous and its new state.

    ``state`` is the newest state; it is None until the child is ready to run handlers. The child has a new interpreter, which
    inherits no open file but the standard streams, and it is in the process group of its parent. It ends in order when the pipe
    from its parent closes, so also if the parent is killed.
    """

    def __init__(self, module: str, settings: bytes, on_state: StateObserver) -> None:
        self._on_state = on_state
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._received = bytearray()
        self._is_writing = False
        self._closed = asyncio.Event()  # set once the child has closed its pipe: mostly because it has ended
        self.state: ChildState | None = None
        self._process, self._reading = _start(module)
        stdin = self._process.stdin
        assert stdin is not None, "the child has a pipe"
        self._writing = stdin.fileno()
        os.set_blocking(self._writing, False)
        os.set_blocking(self._reading, False)
        self._loop.add_reader(self._reading, self._read)
        start = Start(sys.path, sys.argv, os.environ.get(_PYTHON_PATH), log.getEffectiveLevel(), msgspec.Raw(settings))
        self._send(msgspec.json.encode(start))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def return_code(self) -> int | None:
        """The exit code, or minus the number of the signal that ended the child; None while it runs."""
        return self._process.poll()

    def send(self, request: Request) -> None:
        """Send a request; if the child has ended, do nothing."""
        self._send(msgspec.json.encode(request))

    def kill(self) -> None:
        """End the child immediately; its items are recovered."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> None:
        """Wait until the child has ended, and close its pipes."""
        while self._process.poll() is None:
            with suppress(TimeoutError):
                # After the pipe is closed, the child needs a moment to end.
                await asyncio.wait_for(asyncio.sleep(0.01) if self._closed.is_set() else self._closed.wait(), _POLL_SECONDS)
        self._read()
        self._close()

    def _send(self, line: bytes) -> None:
        self._unsent += line + b"\n"
        self._write()

    def _write(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._writing, self._unsent[:_READ_BYTES])]
        except BlockingIOError:
            pass
        except OSError:  # the child has ended
            self._unsent.clear()
        if bool(self._unsent) != self._is_writing:
            self._is_writing = not self._is_writing
            if self._is_writing:
                self._loop.add_writer(self._writing, self._write)
            else:
                self._loop.remove_writer(self._writing)

    def _read(self) -> None:
        try:
            while not self._closed.is_set() and self._reading >= 0:
                received = os.read(self._reading, _READ_BYTES)
                if not received:
                    self._closed.set()
                    self._loop.remove_reader(self._reading)
                self._received += received
        except BlockingIOError:
            pass
        *lines, rest = self._received.split(b"\n")
        self._received = rest
        for line in lines:
            if line.startswith(LOG_MARK):
                _log(bytes(line.removeprefix(LOG_MARK)))
                continue
            try:
                state = msgspec.json.decode(line, type=ChildState)
            except msgspec.DecodeError:
                log.warning("a child process (pid %d) sent a message that cannot be read: %r", self.pid, bytes(line[:200]))
                continue
            before, self.state = self.state, state
            self._on_state(self, before or ChildState(), state)

    def _close(self) -> None:
        if self._reading < 0:
            return
        self._loop.remove_reader(self._reading)
        if self._is_writing:
            self._loop.remove_writer(self._writing)
            self._is_writing = False
        os.close(self._reading)
        self._reading = -1
        self._unsent.clear()
        with suppress(OSError):
            assert self._process.stdin is not None, "the child has a pipe"
            self._process.stdin.close()


def _log(line: bytes) -> None:
    """Log the record of a child in this process, with its fields."""
    with suppress(msgspec.DecodeError):
        record = msgspec.json.decode(line, type=LogLine)
        logging.getLogger(record.name).log(record.level, "%s", record.message, extra=dict(record.fields))


def _start(module: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start the child and return it with the descriptor of the pipe from which its states are read."""
    if not sys.executable:
        raise ConfigurationError("this program does not know its Python interpreter (sys.executable), so it cannot start another")
    reading, writing = os.pipe()
    # The parent decides about signals that a whole process group gets. The child inherits the block, until it ignores them.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        process = subprocess.Popen(  # noqa: S603 - the interpreter of this program, and a module of this package
            # -P: a module in the current folder must not replace one of the standard library.
            [sys.executable, "-P", "-m", module, str(writing)],
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            env={**os.environ, _PYTHON_PATH: os.pathsep.join(filter(None, sys.path))},
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        os.close(writing)
    return process, reading
