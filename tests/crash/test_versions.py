"""A real kill -9 in the middle of a change of the version: the next run does the rest, and no item runs twice for one version."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.state import rows_of

ITEMS = 200
PROGRAM = r"""
import asyncio, os, signal, sys
from asyncrunner import run_batch
from asyncrunner.sqlite import versions
from asyncrunner.store.batches import LargeChange

db, version, where, steps = sys.argv[1], sys.argv[2] or None, sys.argv[3], int(sys.argv[4])
LargeChange.MAX_STEP = versions._FIRST_STEP = 10
log = os.open(db + ".log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
reopen = versions._reopen

def dying(connection, **window):
    global steps
    steps -= 1
    if not steps and where == "before the commit":
        reopen(connection, **window)
        os.kill(os.getpid(), signal.SIGKILL)
    if not steps and where == "between two steps":
        os.kill(os.getpid(), signal.SIGKILL)
    return reopen(connection, **window)

versions._reopen = dying

async def handler(number: int) -> str:
    os.write(log, f"{version} {number}\n".encode())
    return f"{version} {number}"

async def main() -> None:
    report = await run_batch(range(int(sys.argv[5])), handler, db=db, batch="b", version=version)
    print(report.completed, report.skipped)

asyncio.run(main())
"""


def run(db: Path, version: str, where: str = "", steps: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(db), version, where, str(steps), str(ITEMS)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def runs(db: Path) -> Counter[str]:
    return Counter(Path(f"{db}.log").read_text().splitlines())


@pytest.mark.sqlite_file
@pytest.mark.parametrize("where", ["before the commit", "between two steps"])
@pytest.mark.parametrize("steps", [1, 7])
def test_a_change_of_the_version_that_is_killed_continues_with_the_next_run(tmp_path: Path, where: str, steps: int) -> None:
    db = tmp_path / "jobs.db"
    assert run(db, "v1").stdout == f"{ITEMS} 0\n"
    killed = run(db, "v2", where, steps)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    counts = dict(rows_of(str(db), "SELECT status, count(*) FROM items GROUP BY status"))
    assert counts.get("pending", 0) == 10 * (steps - 1)
    assert rows_of(str(db), "SELECT DISTINCT result LIKE '\"v1 %' FROM items") == [(1,)], "the old results are kept"
    assert run(db, "").stdout.split() == [str(10 * (steps - 1)), str(ITEMS - 10 * (steps - 1))], (
        "no opinion: only what is pending"
    )
    ended = run(db, "v2")
    assert ended.stdout.split() == [str(ITEMS - 10 * (steps - 1)), str(10 * (steps - 1))], ended.stderr
    assert run(db, "v2").stdout == f"0 {ITEMS}\n"
    expected = Counter({f"v1 {number}": 1 for number in range(ITEMS)})
    expected += Counter({f"{'None' if number < 10 * (steps - 1) else 'v2'} {number}": 1 for number in range(ITEMS)})
    assert runs(db) == expected
    assert rows_of(str(db), "PRAGMA integrity_check") == [("ok",)]
