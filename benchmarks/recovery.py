"""How long after kill -9 of one of two processes do its items run again in the other?

``python -m benchmarks.recovery [--times N]`` prints the median and the maximum over N kills, in seconds, from the signal to
the start of the first handler that runs one of the dead process's items again.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe_machine

HANDLER = """
import asyncio, os, time
LOG = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
async def work(n: int) -> None:
    os.write(LOG, f"{n} {os.getpid()} {time.monotonic()}\\n".encode())
    await asyncio.sleep(0.1)
"""


def measure_once(folder: Path, items: int) -> float:
    """Seconds from one kill to the first re-run."""
    (folder / "h.py").write_text(HANDLER)
    (folder / "items.txt").write_text("".join(f"{n}\n" for n in range(items)))
    command = [sys.executable, "-m", "asyncrunner", "run", "h.py:work", "items.txt", "--quiet", "-c", "10"]
    victim, survivor = (subprocess.Popen(command, cwd=folder) for _ in range(2))
    log = folder / "log"
    try:
        while len([line for line in _lines(log) if line[1] == victim.pid]) < 30 or survivor.pid not in {
            line[1] for line in _lines(log)
        }:
            time.sleep(0.01)
        os.kill(victim.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        victim.wait()
        while True:
            started = {number for number, pid, _ in _lines(log) if pid == victim.pid}
            again = [at for number, pid, at in _lines(log) if pid == survivor.pid and number in started]
            if again:
                return min(again) - killed_at
            time.sleep(0.01)
    finally:
        for process in (victim, survivor):
            process.kill()
            process.wait()


def _lines(log: Path) -> list[tuple[int, int, float]]:
    if not log.exists():
        return []
    split = [line.split() for line in log.read_text().splitlines()]
    return [(int(number), int(pid), float(at)) for number, pid, at in split]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    given = parser.parse_args()
    seconds: list[float] = []
    for _ in range(given.times):
        with tempfile.TemporaryDirectory(prefix="asyncrunner-bench-") as folder:
            seconds.append(measure_once(Path(folder), 3000))
    print(describe_machine())
    print(f"kill -9 of one of two processes to the first re-run of its items, {given.times} times:")
    print(f"median {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s, min {min(seconds):.2f} s")


if __name__ == "__main__":
    main()
