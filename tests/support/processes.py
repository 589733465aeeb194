"""Folders, databases and processes for the tests that start real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.state import rows_of


class Folder:
    """A folder with a database in it. ``end()`` stops the processes started in it."""

    def __init__(self, path: Path, db: str) -> None:
        self.path = path
        self.db = path / db
        self.processes: list[subprocess.Popen[str]] = []

    def query(self, query: str) -> list[Any]:
        """Return the rows of *query*; the database must exist. Closing the connection makes no WAL checkpoint."""
        return rows_of(self.db, query, read_only=True)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; fail the test after 30 s."""
        give_up_at = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < give_up_at, "the condition did not become true within 30 s"
            time.sleep(0.005)

    def end(self) -> None:
        """Stop every process, first with a signal that lets it write its coverage data."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


HANDLERS = """
import asyncio, os, sys, time

LOG = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
SECONDS = float(os.environ.get("SECONDS", "0.005"))

def note(what, n):
    os.write(LOG, f"{what} {n} {os.getpid()} {time.monotonic()}\\n".encode())

async def work(n: int) -> int:
    note("start", n)
    await asyncio.sleep(SECONDS)
    note("end", n)
    return n

async def until_go(n: int) -> int:
    note("start", n)
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    note("end", n)
    return n

async def forever(n: int) -> None:
    note("start", n)
    await asyncio.Event().wait()

def in_thread(n: int) -> None:
    note("start", n)
    time.sleep(3600)

async def stubborn(n: int) -> None:
    note("start", n)
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

async def killer(n: int) -> int:
    note("start", n)
    await asyncio.sleep(0.05)  # what ended before is committed by then
    if n == 3:
        os.kill(os.getpid(), 9)
    return n
"""


class Jobs(Folder):
    """A folder with handlers that write to an append-only log, a database, and runs through the command line."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "asyncrunner.db")
        self.folder = folder
        self._groups: list[int] = []
        self.log = folder / "log"
        self.log.touch()
        (folder / "h.py").write_text(HANDLERS)

    def handlers(self, source: str) -> None:
        """Append the source code of more handlers to ``h.py``."""
        with (self.folder / "h.py").open("a") as file:
            file.write(source)

    def items(self, count: int) -> str:
        (self.folder / "items.txt").write_text("".join(f"{n}\n" for n in range(count)))
        return "items.txt"

    def start(
        self, *arguments: str, seconds: float = 0.005, under: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start ``asyncrunner`` with *arguments*; *under* is a command that runs it, such as ``strace`` or ``unshare``.

        With *under*, coverage is not measured: faults injected into system calls would affect its files too.
        """
        unmeasured = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""} if under else {}
        process = subprocess.Popen(
            [*under, sys.executable, "-m", "asyncrunner", *arguments],
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "LOG": str(self.log), "SECONDS": str(seconds), **unmeasured, **(env or {})},
            start_new_session=bool(under),
        )  # fmt: skip
        self.processes.append(process)
        if under:
            self._groups.append(process.pid)
        return process

    def start_script(self, source: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a Python script in the folder, which Ctrl-C interrupts as in a terminal, without measuring coverage.

        Coverage writes its file at the exit, where another Ctrl-C interrupts it.
        """
        (self.folder / "script.py").write_text(source)
        process = subprocess.Popen(
            [sys.executable, "script.py", *arguments], cwd=self.folder, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "LOG": str(self.log), "COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        self.processes.append(process)
        return process

    def run(
        self, *arguments: str, seconds: float = 0.0, under: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        process = self.start(*arguments, seconds=seconds, under=under, env=env)
        _, said = process.communicate(timeout=60)
        return process.returncode, said

    def go(self) -> None:
        """Let the handlers ``until_go`` end."""
        (self.folder / "go").touch()

    def lines(self, what: str) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines() if line.startswith(what)]

    def runs(self, what: str) -> Counter[int]:
        return Counter(int(line[1]) for line in self.lines(what))

    def kill(self) -> None:
        """Kill the remaining processes and the children of those under another command."""
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        for process in self.processes:
            process.kill()
            process.communicate()
