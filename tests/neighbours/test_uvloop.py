"""uvloop: a run on it survives Ctrl-C like one on asyncio's own loop."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.support.state import rows_of

PROGRAM = """
import asyncio, sys
import uvloop
from asyncrunner import run_batch

async def fetch(number: int) -> int:
    if number:
        print("waiting", flush=True)
        await asyncio.Event().wait()
    return number

async def main() -> None:
    assert type(asyncio.get_running_loop()).__module__ == "uvloop"
    await run_batch([0, 1], fetch, db="jobs.db", concurrency=1, shutdown_timeout=0)

uvloop.run(main())
"""


def test_ctrl_c_on_uvloop_releases_the_items_and_keeps_what_is_done(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130), error
    rows = rows_of(tmp_path / "jobs.db", "SELECT status, attempts FROM items ORDER BY seq")
    assert rows == [("completed", 1), ("pending", 0)]
