"""A cell of IPython that Ctrl-C ends: the interpreter continues, and the next run resumes the batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.support.processes import Jobs

HANDLER = """
gate = []

async def waits(n: int) -> int:
    note("start", n)
    while n > 2 and not gate:
        await asyncio.sleep(0.01)
    return n
"""

RUN = 'report = await run_batch(range(6), h.waits, db="asyncrunner.db"); h.note("ran", report.completed * 10 + report.skipped)\n'


def test_ctrl_c_in_a_cell_of_ipython_ends_the_cell_and_the_next_one_resumes_the_batch(jobs: Jobs) -> None:
    jobs.handlers(HANDLER)
    process = subprocess.Popen(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor"],
        cwd=jobs.folder,
        env={**os.environ, "LOG": str(jobs.log), "IPYTHONDIR": str(jobs.folder / "ipython")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    jobs.processes.append(process)
    assert process.stdin is not None
    process.stdin.write("import h; from asyncrunner import run_batch\n" + RUN)
    process.stdin.flush()
    jobs.until(lambda: len(jobs.lines("start")) == 6)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate("h.gate.append(1)\n" + RUN + "exit()\n", timeout=60)
    assert process.returncode == 0, said
    assert [line[1:3] for line in jobs.lines("ran")] == [["33", str(process.pid)]], said
    assert "KeyboardInterrupt" in said
    assert jobs.query("SELECT status, attempts, count(*) FROM items GROUP BY 1, 2") == [("completed", 1, 6)]
    assert jobs.query("SELECT count(*) FROM failures") == [(0,)]
