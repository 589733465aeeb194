"""A service that is killed keeps submitted items, saved checkpoints and committed rows, and no others."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

JOBS = """
import asyncio, os, sqlite3
from asyncrunner import Client, Runner, current_attempt

runner = Runner("jobs.db", concurrency=5)
LOG = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

@runner.handler(batch="steps", key=int, max_attempts=100)
async def steps(number: int) -> int:
    attempt = current_attempt()
    os.write(LOG, f"begin {number} {attempt.checkpoint or 0}\\n".encode())
    for step in range(attempt.checkpoint or 0, 60):
        await attempt.save(step + 1)
        os.write(LOG, f"saved {number} {step + 1}\\n".encode())
        await asyncio.sleep(0.002)
    return number

async def submit() -> None:
    async with Client("jobs.db") as client:
        await client.submit_many(steps, range(10))

def in_transaction(number: int, commit: bool) -> None:
    connection = sqlite3.connect("jobs.db")
    connection.execute("CREATE TABLE IF NOT EXISTS orders (number)")
    connection.execute("INSERT INTO orders VALUES (?)", (number,))
    steps.submit_in(connection, number)
    if commit:
        connection.commit()
    os.kill(os.getpid(), 9)
"""


def query(folder: Path, statement: str) -> list[Any]:
    connection = sqlite3.connect(folder / "jobs.db")
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def python(folder: Path, source: str) -> int:
    return subprocess.run([sys.executable, "-c", source], cwd=folder, timeout=60, check=False).returncode


def test_the_next_attempt_reads_the_checkpoint_that_was_saved_before_a_kill(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    assert python(tmp_path, "import asyncio, jobs; asyncio.run(jobs.submit())") == 0
    log = tmp_path / "log"
    command = [sys.executable, "-m", "asyncrunner", "work", "jobs:runner", "--until-idle", "--log-level", "error"]
    lines: list[list[str]] = []
    for _ in range(3):
        process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL)
        give_up_at = time.monotonic() + 30
        before = len(lines)
        while len(log.read_text().splitlines()) < before + 60:
            assert time.monotonic() < give_up_at
            time.sleep(0.002)
        process.kill()
        process.wait()
        lines = [line.split() for line in log.read_text().splitlines()]
    assert subprocess.run(command, cwd=tmp_path, timeout=60, check=False).returncode == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    saved: dict[str, int] = {}
    resumed = 0
    for what, number, step in lines:
        if what == "begin":
            resumed += int(step) > 0
            # Every checkpoint whose save() returned is there, and at most one more, whose save() the kill interrupted.
            assert saved.get(number, 0) <= int(step) <= saved.get(number, 0) + 1
        saved[number] = int(step)
    assert resumed >= 5
    assert query(tmp_path, "SELECT count(*), max(crashes) > 0, min(checkpoint) FROM items WHERE status = 'completed'") == [
        (10, 1, "60")
    ]


def test_an_item_in_a_transaction_that_a_kill_interrupts_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    assert python(tmp_path, "import asyncio, jobs; asyncio.run(jobs.submit())") == 0
    assert python(tmp_path, "import jobs; jobs.in_transaction(100, False)") == -9
    assert python(tmp_path, "import jobs; jobs.in_transaction(200, True)") == -9
    assert query(tmp_path, "SELECT number FROM orders") == [(200,)]
    assert query(tmp_path, "SELECT id FROM items WHERE id IN ('100', '200')") == [("200",)]
    assert query(tmp_path, "SELECT total FROM batches") == [(11,)]


KILLED_EARLY = """
import asyncio, os, sqlite3, sys
from asyncrunner import Runner, run_batch

def log(word: str) -> None:
    with open("log", "a") as file:
        file.write(word + "\\n")

async def work(number: int) -> int:
    log(f"started {number}")
    return number

async def submitted() -> None:
    runner = Runner("jobs.db", concurrency=1)
    handler = runner.handler(batch="b", max_attempts=1)(work)
    async with runner:
        await handler.submit_many(range(3))
        os.kill(os.getpid(), 9)

async def source():
    for number in range(3):
        yield number
    while True:
        with sqlite3.connect("jobs.db") as connection:
            if connection.execute("SELECT count(*) FROM items").fetchone()[0]:
                os.kill(os.getpid(), 9)
        connection.close()
        await asyncio.sleep(0)

async def resumed() -> None:
    log("resumed")
    await run_batch(range(3), work, db="jobs.db", batch="b", max_attempts=1, progress=False)

async def given() -> None:
    await run_batch(source(), work, db="jobs.db", batch="b", max_attempts=1, concurrency=1, progress=False)

asyncio.run(globals()[sys.argv[1]]())
"""


@pytest.mark.parametrize("how", ["submitted", "given"])
def test_an_item_whose_handler_had_not_started_at_a_kill_counts_no_attempt(tmp_path: Path, how: str) -> None:
    (tmp_path / "early.py").write_text(KILLED_EARLY)
    assert subprocess.run([sys.executable, "early.py", how], cwd=tmp_path, timeout=60, check=False).returncode == -9
    subprocess.run([sys.executable, "early.py", "resumed"], cwd=tmp_path, timeout=60, check=True)
    log = (tmp_path / "log").read_text()
    before, after = log.split("resumed\n")
    running = int(before.split()[-1]) if before else None
    untouched = [number for number in range(3) if number != running and f"started {number}" not in before]
    assert len(untouched) >= 1
    for number in untouched:
        assert f"started {number}" in after
        row = query(tmp_path, f"SELECT status, attempts, crashes FROM items WHERE id = '{number}'")
        assert row == [("completed", 1, 0)]
