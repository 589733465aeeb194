"""Scripts that end: after Ctrl-C, and with handlers that swallow everything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.support.processes import Jobs

SWALLOWING = """
import asyncio, sys
import anyio
from asyncrunner import run_batch

async def waits(n: int) -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except BaseException:
            pass

async def in_a_shield(n: int) -> None:
    with anyio.CancelScope(shield=True):
        await waits(n)

async def iterates(n: int) -> None:
    async def values():
        while True:
            try:
                yield 1
                await asyncio.sleep(3600)
            except BaseException:
                pass

    while True:
        try:
            async for _ in values():
                pass
        except BaseException:
            pass

async def quick(n: int) -> int:
    return n

async def main() -> None:
    handler = globals()[sys.argv[1]]
    report = await run_batch([1, 2], handler, db="jobs.db", timeout=0.1, max_attempts=1, concurrency=1)
    print(report.failed, "failed", flush=True)
    print((await run_batch([1], quick, db="jobs.db")).completed, "completed", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("handler", ["waits", "in_a_shield", "iterates"])
def test_an_abandoned_handler_that_swallows_everything_does_not_keep_the_interpreter(handler: str, jobs: Jobs) -> None:
    (jobs.folder / "script.py").write_text(SWALLOWING)
    done = subprocess.run(
        [sys.executable, "script.py", handler], cwd=jobs.folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "2 failed\n1 completed\n"), done.stderr


IN_A_LOOP = """
import asyncio, os, sys, time
sys.path.insert(0, ".")
from h import forever, note, work
from asyncrunner import run_batch
from asyncrunner.batch import ctrl_c

async def blocks(n: int) -> None:
    note("start", n)
    while not ctrl_c._interrupted:
        time.sleep(0.01)
    note("interrupted", n)
    time.sleep(3600)

async def raises(n: int) -> None:
    note("start", n)
    await asyncio.sleep(0)
    raise KeyboardInterrupt

async def main(handler) -> None:
    await run_batch(range(5), work, db="asyncrunner.db")
    await run_batch(range(5), handler, db="asyncrunner.db", max_attempts=1)

loop = asyncio.new_event_loop()
try:
    loop.run_until_complete(main(globals()[sys.argv[1]]))
except KeyboardInterrupt:
    sys.exit(77)
"""


@pytest.mark.parametrize("handler", ["forever", "blocks", "raises"])
def test_ctrl_c_ends_run_until_complete_in_order(handler: str, jobs: Jobs) -> None:
    (jobs.folder / "script.py").write_text(IN_A_LOOP)
    process = subprocess.Popen(
        [sys.executable, "script.py", handler],
        cwd=jobs.folder,
        env={**os.environ, "LOG": str(jobs.log)},
        stderr=subprocess.PIPE,
        text=True,
    )
    jobs.until(lambda: len(jobs.lines("start")) >= (10 if handler == "forever" else 6))
    if handler != "raises":
        process.send_signal(signal.SIGINT)
    if handler == "blocks":  # the first Ctrl-C waits for the loop, the second interrupts the handler
        jobs.until(lambda: jobs.lines("interrupted"))
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 77, said
    assert "interrupted: running handlers are cancelled, finished items are saved; run again to continue" in said
    assert "Traceback" not in said
    assert jobs.query("SELECT status, attempts, count(*) FROM items GROUP BY 1, 2 ORDER BY 1") == [
        ("completed", 1, 5),
        ("pending", 0, 5),
    ]
    assert jobs.query("SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]
