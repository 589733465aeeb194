"""Kill a working process at many exact points, then check the file: ``python -m tests.crash.sweep [--points N]``.

A point is the n-th of a kind of system call (strace injects the signal) or of a named failpoint. The file is of the first
schema, so the victim migrates it; a second process works beside it; retries, WAL checkpoints and handlers'
checkpoints are part of the work. After the kill the file is checked against the handlers' log, resumed, and checked again.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from asyncrunner.sqlite.sql.schema import APPLICATION_ID, MIGRATIONS
from tests.crash import failpoints, load
from tests.crash.history import read_log, violations

__all__ = ["Point", "points", "strike"]

ITEMS = 120
CALLS = {"pwrite64": 400, "fdatasync": 66, "ftruncate": 34, "unlink": 3}
"""The kinds of calls, and the last one of each that is tried; a run of the victim makes about as many."""


class Point(NamedTuple):
    """The n-th time of a system call or, with a blank in its name or none of that name, of a failpoint."""

    name: str
    number: int

    @property
    def is_call(self) -> bool:
        return self.name in CALLS


class Struck(NamedTuple):
    """The result of a point."""

    point: Point
    killed: bool
    wrong: list[str]


def points(count: int, *, with_strace: bool) -> list[Point]:
    """Return about *count* points, spread evenly over all kinds."""
    every = [Point(name, number) for name, last in CALLS.items() for number in range(1, last + 1)] if with_strace else []
    every += [Point(name, number) for name in failpoints.NAMES for number in (1, 2, 3, 5, 8)]
    step = max(1.0, len(every) / count)
    return [every[int(index * step)] for index in range(min(count, len(every)))]


def first_schema(path: Path) -> None:
    """Create a file with the schema of the first release."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.executescript(MIGRATIONS[0])
    connection.execute("PRAGMA user_version = 1")
    connection.close()


def strike(point: Point) -> Struck:
    """Kill a process at *point*, check the file, resume the work, and check again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        db, log = folder / "jobs.db", folder / "log"
        first_schema(db)
        killed = _kill_at(point, folder, db, log)
        wrong = [f"after the kill, {each}" for each in violations(db, log)]
        if not wrong:
            asyncio.run(load.work_off(db, load.Log(log), ITEMS))
            wrong = [f"after the resume, {each}" for each in violations(db, log, is_over=True)]
            starts = [event for event in read_log(log) if event.what == "start"]
            rows = _rows(db)
            asyncio.run(load.work_off(db, load.Log(log), ITEMS))
            if rows != _rows(db) or starts != [event for event in read_log(log) if event.what == "start"]:
                wrong.append("17: resuming a finished batch changed something")
            wrong += [f"a piece of {row} was left" for row in _stray_pieces(db)]
            leftovers = [each.name for each in folder.iterdir() if each.name.startswith(".")]
            wrong += [f"a draft was left: {each}" for each in leftovers if not killed]
        return Struck(point, killed, wrong)


def _rows(db: Path) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(db)
    try:
        return [*connection.execute("SELECT * FROM items ORDER BY seq"), *connection.execute("SELECT * FROM sqlite_sequence")]
    finally:
        connection.close()


def _stray_pieces(db: Path) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(db)
    try:
        return connection.execute(
            "SELECT seq, claim, piece FROM result_pieces WHERE NOT EXISTS (SELECT 1 FROM items WHERE items.seq = result_pieces.seq "
            "AND coalesce(items.result_claim, items.claim) = result_pieces.claim AND result = '')"
        ).fetchall()
    finally:
        connection.close()


def _kill_at(point: Point, folder: Path, db: Path, log: Path) -> bool:
    command = [sys.executable, "-m", "tests.crash.load", str(db), str(log), "--items", str(ITEMS)]
    if point.is_call:
        inject = f"inject={point.name}:signal=SIGKILL:when={point.number}"
        traced = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={point.name}", "-e", inject)
        victim_command = [*traced, *command]
    else:
        victim_command = [*command, "--failpoint", f"{point.name}:{point.number}"]
    with (folder / "said").open("w") as said:
        victim = subprocess.Popen(victim_command, stdout=said, stderr=said)
        other = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            code = victim.wait(60)
            if point.number % 2:  # the other process is killed as well, or runs to the end
                other.kill()
            other.wait(60)
        finally:
            for process in (victim, other):
                process.kill()
                process.wait()
    return code in (-signal.SIGKILL, 128 + signal.SIGKILL)


def main() -> int:
    """Print the result of each notable point; return 1 if an invariant is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.sweep", description=__doc__)
    parser.add_argument("--points", type=int, default=450)
    arguments = parser.parse_args()
    with_strace = shutil.which("strace") is not None
    tried = points(arguments.points, with_strace=with_strace)
    began = time.monotonic()
    print(f"{len(tried)} points, strace: {with_strace}, SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}")
    kills = wrong = 0
    for number, point in enumerate(tried, start=1):
        struck = strike(point)
        kills += struck.killed
        wrong += len(struck.wrong)
        for each in struck.wrong:
            print(f"WRONG at {point.name} {point.number}: {each}", flush=True)
        if number % 20 == 0:
            print(f"{number} points, {kills} kills, {wrong} violations, {time.monotonic() - began:.0f} s", flush=True)
    print(f"done: {len(tried)} points, {kills} kills, {wrong} violations, {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
