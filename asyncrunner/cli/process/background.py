"""``run --detach``: run in a background process, and return as soon as the run has begun.

The process is forked before any file is opened. It has its own session, so that the process gets neither a hangup of
the terminal nor Ctrl-C. Until the run has begun, errors go to the caller's stderr; after that, all output goes to the
log.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TextIO

from asyncrunner.cli.process.log_file import log_to, open_log
from asyncrunner.cli.process.streams import LossyStream
from asyncrunner.text.escaping import json_text, safe_text

_UNSAFE_IN_FILE_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]+")


def log_path(db: Path, batch: str) -> Path:
    """Return the default path of the log: next to the database, named after the batch."""
    return db.with_name(f"{db.name}.{_UNSAFE_IN_FILE_NAME.sub('-', batch)[:80]}.log")


class Detached:
    """The background process: redirects its output to the log, and reports its start through the pipe *caller*."""

    def __init__(self, caller: int) -> None:
        self._caller = caller
        self._saved_descriptors: tuple[int, int] | None = None
        self._log: TextIO | None = None
        self.path = Path()

    def redirect_to_log(self, path: Path) -> None:
        """Redirect stdout, stderr and the log to *path*. Raises ConfigurationError."""
        self.path = path.absolute()
        self._log = open_log(path)
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved_descriptors = os.dup(1), os.dup(2)
        for number in self._saved_descriptors:
            os.set_inheritable(number, False)
        os.dup2(self._log.fileno(), 1)
        os.dup2(self._log.fileno(), 2)
        # Line buffering, so that `tail -f` shows each line immediately.
        sys.stdout = LossyStream(1)
        log_to(sys.stderr)

    def report_start(self, batch: str, db: str) -> None:
        """Report to the caller that the run has begun; the caller then exits."""
        saved, self._saved_descriptors = self._saved_descriptors, None
        for number in saved or ():
            os.close(number)
        message = {"batch": batch, "db": db, "pid": os.getpid(), "log": str(self.path)}
        with suppress(BrokenPipeError):  # the caller was killed meanwhile; the run continues
            os.write(self._caller, json.dumps(message).encode())
        os.close(self._caller)

    def restore_output(self) -> None:
        """Restore the caller's stdout and stderr, and delete an empty log; do nothing if the run has begun."""
        if self._saved_descriptors is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in enumerate(self._saved_descriptors, start=1):
                os.dup2(saved, number)
            if self.path.stat().st_size == 0:
                self.path.unlink()


def start_detached(run: Callable[[Detached], int], *, as_json: bool) -> int:
    """Call *run* in a forked process, and return twice.

    The forked process returns the exit code of *run*. The caller returns 0 once the run has begun, or the exit code of
    the forked process if the run did not begin.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        devnull = os.open(os.devnull, os.O_RDONLY)
        os.dup2(devnull, 0)
        os.close(devnull)
        return run(Detached(writing))
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            message = pipe.read()
        if not message:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return code if code >= 0 else 128 - code
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    _print_start(json.loads(message), as_json=as_json)
    return 0


def _print_start(message: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json_text(message))
        return
    selection = f"--db {shlex.quote(safe_text(message['db'], limit=1000))} --batch {shlex.quote(safe_text(message['batch']))}"
    print(f"{safe_text(message['batch'])} runs in the background as process {message['pid']}")
    print(f"  status: asyncrunner status {selection}")
    print(f"  log:    tail -f {shlex.quote(safe_text(message['log'], limit=1000))}")
    print(f"  stop:   asyncrunner stop {selection}")
