"""``run --detach``: the run goes on in a process of its own, and its caller is told once it has begun.

The process is forked off before anything is opened. It has a session of its own, so no hangup of the terminal and no Ctrl-C
reaches it. Until the run has begun its complaints go to the caller's stderr; from then on everything goes to the log.
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

from asyncrunner.cli.logfile import log_to, open_log
from asyncrunner.text import json_text, safe_text

__all__ = ["Detached", "log_path", "start_detached"]


_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.-]+")


def log_path(db: Path, batch: str) -> Path:
    """Beside the database, named by the batch."""
    return db.with_name(f"{db.name}.{_UNFIT.sub('-', batch)[:80]}.log")


class Detached:
    """The process that was forked off, as it sees itself."""

    def __init__(self, caller: int) -> None:
        self._caller = caller
        self._kept: tuple[int, int] | None = None
        self._log: TextIO | None = None
        self.path = Path()

    def begin_to_log(self, path: Path) -> None:
        """From now on what is printed and logged goes to *path*. Raises ConfigurationError."""
        self.path = path.absolute()
        self._log = open_log(path)
        sys.stdout.flush()
        sys.stderr.flush()
        self._kept = os.dup(1), os.dup(2)
        for number in self._kept:
            os.set_inheritable(number, False)
        os.dup2(self._log.fileno(), 1)
        os.dup2(self._log.fileno(), 2)
        # Who follows the log wants to see it now.
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
        log_to(sys.stderr)

    def has_begun(self, batch: str, db: str) -> None:
        """Tell the caller, who goes on without this process."""
        kept, self._kept = self._kept, None
        for number in kept or ():
            os.close(number)
        said = {"batch": batch, "db": db, "pid": os.getpid(), "log": str(self.path)}
        with suppress(BrokenPipeError):  # the caller was killed meanwhile: the run goes on
            os.write(self._caller, json.dumps(said).encode())
        os.close(self._caller)

    def give_back(self) -> None:
        """The run did not begin: what is printed from now on is for the caller."""
        if self._kept is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, kept in enumerate(self._kept, start=1):
                os.dup2(kept, number)
            if self.path.stat().st_size == 0:
                self.path.unlink()


def start_detached(run: Callable[[Detached], int], *, as_json: bool) -> int:
    """Call *run* in a process of its own. Returns its exit code there; here 0 once it has begun, or its code if it did not."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        os.close(nowhere)
        return run(Detached(writing))
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        if not said:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return code if code >= 0 else 128 - code
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    _tell(json.loads(said), as_json=as_json)
    return 0


def _tell(said: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json_text(said))
        return
    which = f"--db {shlex.quote(safe_text(said['db'], limit=1000))} --batch {shlex.quote(safe_text(said['batch']))}"
    print(f"{safe_text(said['batch'])} runs in the background, as process {said['pid']}")
    print(f"  how it stands: asyncrunner status {which}")
    print(f"  its log:       tail -f {shlex.quote(safe_text(said['log'], limit=1000))}")
    print(f"  to stop it:    asyncrunner stop {which}")
