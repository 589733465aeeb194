"""Scripts that end: after Ctrl-C, and with handlers that swallow everything."""

from __future__ import annotations

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
