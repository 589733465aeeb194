"""How soon after kill -9 of one of two processes do its items run again in the other?

Measures the seconds from the signal to the start of the first handler that runs one of the dead process's items again; the
median of ``--times`` kills. ``python -m benchmarks recovery [--times N]``
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.figures import Benchmark, Result, figure
from benchmarks.harness.measuring import scratch

__all__ = ["BENCHMARK"]

HANDLER = """
import asyncio, os, time
LOG = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
async def work(n: int) -> None:
    os.write(LOG, f"{n} {os.getpid()} {time.monotonic()}\\n".encode())
    await asyncio.sleep(0.1)
"""


def measure_once(folder: Path, items: int) -> float:
    """Return the seconds from one kill to the first re-run."""
    (folder / "h.py").write_text(HANDLER)
    (folder / "items.txt").write_text("".join(f"{n}\n" for n in range(items)))
    command = [sys.executable, "-m", "asyncrunner", "run", "h.py:work", "items.txt", "--quiet", "-c", "10"]
    victim, survivor = (subprocess.Popen(command, cwd=folder) for _ in range(2))
    return seconds_to_rerun(victim, survivor, folder / "log")


def seconds_to_rerun(victim: subprocess.Popen[Any], survivor: subprocess.Popen[Any], log: Path, *, settle: float = 0.0) -> float:
    """Kill *victim* and return the seconds until *survivor* starts one of its items; both processes are then ended.

    *log* has a line for each start: the item, the process id and the monotonic time. *settle*: the seconds that both work before
    the kill.
    """
    try:
        while [pid for _, pid, _ in _lines(log)].count(victim.pid) < 30 or survivor.pid not in {pid for _, pid, _ in _lines(log)}:
            assert victim.poll() is None, victim.communicate()
            time.sleep(0.01)
        time.sleep(settle)
        os.kill(victim.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        victim.wait()
        while True:
            started = {number for number, pid, _ in _lines(log) if pid == victim.pid}
            reruns = [at for number, pid, at in _lines(log) if pid == survivor.pid and number in started]
            if reruns:
                return min(reruns) - killed_at
            time.sleep(0.01)
    finally:
        for process in (victim, survivor):
            process.kill()
            process.communicate()


def _lines(log: Path) -> list[tuple[int, int, float]]:
    if not log.exists():
        return []
    split = [line.split() for line in log.read_text().splitlines()]
    return [(int(number), int(pid), float(at)) for number, pid, at in split]


@dataclass(frozen=True)
class Size:
    times: int = 20
    items: int = 3000


def measure(size: Size) -> Result:
    """Measure ``size.times`` kills."""
    seconds: list[float] = []
    for _ in range(size.times):
        with scratch() as folder:
            seconds.append(measure_once(folder, size.items))
    return Result([figure("kill -9 to the first re-run in the other process", "s", seconds, at_most=1.0)])


BENCHMARK = Benchmark(
    "How soon after kill -9 of one of two processes do its items run again in the other?", Size(), Size(1), measure
)
