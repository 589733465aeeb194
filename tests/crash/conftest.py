"""Real processes: handlers that write to an append-only log, started through the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import Folder

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
    """A folder with handlers, a database and a log."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "asyncrunner.db")
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()
        (folder / "h.py").write_text(HANDLERS)

    def items(self, count: int) -> str:
        (self.folder / "items.txt").write_text("".join(f"{n}\n" for n in range(count)))
        return "items.txt"

    def start(self, *arguments: str, seconds: float = 0.005) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncrunner", *arguments],
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "LOG": str(self.log), "SECONDS": str(seconds)},
        )  # fmt: skip
        self.processes.append(process)
        return process

    def run(self, *arguments: str, seconds: float = 0.0) -> tuple[int, str]:
        process = self.start(*arguments, seconds=seconds)
        _, said = process.communicate(timeout=60)
        return process.returncode, said

    def lines(self, what: str) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines() if line.startswith(what)]

    def runs(self, what: str) -> Counter[int]:
        return Counter(int(line[1]) for line in self.lines(what))


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()
