"""``asyncrunner work`` in real processes, with real signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Folder
from tests.support.state import execute

JOBS = """
import asyncio, os
from asyncrunner import Runner

runner = Runner("jobs.db", concurrency=4, shutdown_timeout=20)
empty = Runner("jobs.db")

@runner.handler(batch="work")
async def work(number: int) -> int:
    with open("log", "a") as log:
        log.write(f"{number} {os.getpid()}\\n")
    if number >= 1000:
        await asyncio.sleep(3600)
    while number >= 500 and not os.path.exists("go"):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.005)
    return number * 2

@runner.handler(batch="escape", max_attempts=1)
async def escape(text: str) -> None:
    raise ValueError("\\x1b[31mred\\x1b[0m")
"""


class Jobs(Folder):
    def __init__(self, path: Path) -> None:
        super().__init__(path, "jobs.db")
        (path / "jobs.py").write_text(JOBS)
        (path / "log").touch()

    def python(self, source: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", source], cwd=self.path, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def submit(self, batch: str, *items: object) -> None:
        self.python(
            "from asyncrunner import BlockingClient\nimport jobs\nwith BlockingClient('jobs.db') as client:\n"
            f"    client.submit_many(jobs.{batch}, {list(items)!r})"
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncrunner", "work", *arguments], cwd=self.path, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
        )  # fmt: skip
        self.processes.append(process)
        return process

    def log(self) -> list[list[str]]:
        return [line.split() for line in (self.path / "log").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path)
    yield made
    made.end()


def test_it_works_until_all_items_are_finished(folder: Jobs) -> None:
    folder.submit("work", *range(20))
    folder.submit("escape", "x")
    process = folder.start("jobs:runner", "--until-idle")
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert f"Working on {folder.path / 'jobs.db'} (pid " in said
    assert ": work, escape. Stop with Ctrl-C or SIGTERM." in said
    assert re.search(r"WARNING item '[0-9a-f-]{36}' of '[^']+', attempt 1: failed: ValueError: ", said), said
    assert "\x1b" not in said
    assert folder.query("SELECT status, count(*) FROM items GROUP BY status") == [("completed", 20), ("failed", 1)]


def test_several_processes_share_the_work_and_the_items_of_a_killed_one_run_in_the_others(folder: Jobs) -> None:
    folder.submit("work", *range(500, 900))
    one, two = folder.start("jobs.py:runner"), folder.start("jobs:runner", "-c", "8")
    folder.until(lambda: len({pid for _, pid in folder.log()}) == 2)
    one.kill()  # it has items, which wait
    (folder.path / "go").touch()
    folder.until(lambda: folder.query("SELECT count(*) FROM items WHERE status = 'completed'") == [(400,)])
    two.send_signal(signal.SIGTERM)
    _, said = two.communicate(timeout=60)
    assert two.returncode == 0
    assert "recovered" in said
    assert "Traceback" not in said
    assert folder.query("SELECT count(*), max(crashes) FROM items WHERE result = 2 * (seq + 499)") == [(400, 1)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_second_signal_cancels_running_handlers_and_releases_their_items(
    number: signal.Signals, code: int, folder: Jobs
) -> None:
    folder.submit("work", 1000)
    process = folder.start("jobs:runner")
    folder.until(lambda: folder.log())
    process.send_signal(number)
    folder.until(lambda: folder.query("SELECT count(*) FROM items WHERE status = 'processing'") == [(1,)])
    time.sleep(0.2)
    assert process.poll() is None  # it drains
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Stopping: running handlers have 20 s to finish." in said
    assert folder.query("SELECT status, attempts FROM items") == [("pending", 0)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["jobs"], "does not name a runner; give package.module:runner"),
        (["jobs:runer"], "jobs has no 'runer'; did you mean 'runner'?"),
        (["jobs:work"], "jobs:work is Handler, not a Runner; use `asyncrunner run` for one handler"),
        (["jobs:empty"], "has no handlers"),
        (["nothing:runner"], "there is no module 'nothing'"),
        (["jobs:runner", "--log-level", "loud"], "give one of debug, info, warning, error"),
        (["jobs:runner", "--concurrency", "0"], "concurrency=0"),
    ],
)  # fmt: skip
def test_mistakes_are_named(arguments: list[str], said: str, folder: Jobs) -> None:
    process = folder.start(*arguments)
    _, found = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said in found
    assert "Traceback" not in found


def test_a_file_that_is_replaced_ends_it_with_the_reason(folder: Jobs) -> None:
    folder.submit("work", 1)
    process = folder.start("jobs:runner")
    folder.until(lambda: folder.query("SELECT count(*) FROM items WHERE status = 'completed'") == [(1,)])
    (folder.path / "jobs.db").rename(folder.path / "moved.db")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "was deleted, moved or replaced" in said


def test_a_stopped_batch_shows_in_status(folder: Jobs) -> None:
    folder.submit("work", 1)
    execute(folder.path / "jobs.db", "UPDATE batches SET stopped = '5 items failed: the limit max_failures=5 is reached'")
    shown = subprocess.run(
        [sys.executable, "-m", "asyncrunner", "status", "--db", "jobs.db"],
        cwd=folder.path, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert "  stopped: 5 items failed: the limit max_failures=5 is reached; run it again to continue" in shown


AIOHTTP = """
import aiohttp
from asyncrunner import Runner

async def session():
    async with aiohttp.ClientSession() as session:
        print("opened", flush=True)
        yield session
    print("closed", flush=True)

async def broken():
    raise OSError("no route to host")
    yield

async def fetch(number: int, session: aiohttp.ClientSession) -> str:
    assert not session.closed
    return type(session).__name__

runner = Runner("jobs.db", setup=broken)
runner.handler(batch="pages", max_attempts=1)(fetch)
"""


def test_run_and_work_open_a_setup_once_and_close_it(tmp_path: Path) -> None:
    (tmp_path / "pages.py").write_text(AIOHTTP)
    (tmp_path / "items.jsonl").write_text("1\n2\n3\n")

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-X", "dev", "-m", "asyncrunner", *arguments], cwd=tmp_path, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    options = ("--db", "jobs.db", "--batch", "pages", "--quiet")
    failed = command("run", "pages.py:fetch", "items.jsonl", *options, "--setup", "pages.py:broken")
    assert failed.returncode != 0
    assert "no route to host" in failed.stderr
    assert "Traceback" not in failed.stderr
    done = command("run", "pages.py:fetch", "items.jsonl", *options, "--setup", "pages.py:session")
    assert (done.returncode, done.stdout.split()) == (0, ["opened", "closed"]), done.stderr
    assert "Unclosed" not in done.stderr
    missing = command("run", "pages.py:fetch", "items.jsonl", *options, "--setup", "pages.py:sesion")
    assert (missing.returncode, "did you mean 'session'?" in missing.stderr) == (2, True)
    execute(str(tmp_path / "jobs.db"), "UPDATE items SET status = 'pending', attempts = 0 WHERE id = '2'")
    failed = command("work", "pages:runner", "--until-idle")
    assert failed.returncode == 2
    assert "no route to host" in failed.stderr
    done = command("work", "pages:runner", "--until-idle", "--setup", "pages:session")
    assert (done.returncode, done.stdout.split()) == (0, ["opened", "closed"]), done.stderr
    assert "Unclosed" not in done.stderr
