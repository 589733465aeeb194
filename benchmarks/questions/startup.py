"""How soon does a command start?

Runs whole commands, in turns: an interpreter that imports ``asyncio`` and ``sqlite3``, which every program with a store needs;
one that imports ``asyncrunner``; ``asyncrunner status`` on a file with ten items; and an interpreter that also imports ``click``
and ``msgspec``, the two packages that ``status`` cannot do without. The figures are the CPU time of each command, and that time
divided by the time of the first one in the same round. All bytecode is cached, as an installation or a first run leaves it,
whatever PYTHONDONTWRITEBYTECODE says: otherwise each run would compile all packages but not the standard library. CPU time
is what other programs on the machine disturb least; the time on the clock is a figure without a target.

``python -m benchmarks startup [--rounds N]``
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from asyncrunner import run_batch
from benchmarks.harness.figures import RATIO, Benchmark, Result, figure
from benchmarks.harness.measuring import each_over, interleaved, scratch
from benchmarks.questions.throughput import no_op

__all__ = ["BENCHMARK"]

BASE: Final = "import asyncio, sqlite3"
PACKAGE: Final = "import asyncrunner"
STATUS: Final = "asyncrunner status"
NEEDED: Final = "import asyncio, sqlite3, click, msgspec"


@dataclass(frozen=True)
class Size:
    rounds: int = 15


def seconds_of(command: Sequence[str], clock: list[float], folder: Path) -> float:
    """Run the command in *folder*, where it caches its bytecode.

    Returns its CPU seconds, and adds its seconds on the clock to *clock*.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    _, code, usage = os.wait4(process.pid, 0)
    clock.append(time.perf_counter() - began)
    process.returncode = os.waitstatus_to_exitcode(code)
    assert process.returncode == 0, command
    return usage.ru_utime + usage.ru_stime


def measure(size: Size) -> Result:
    """Return the CPU time of each command and its ratio to the first one."""
    with scratch() as folder:
        db = folder / "small.db"
        asyncio.run(run_batch(range(10), no_op, db=db, batch="bench", progress=False))
        commands = {
            BASE: ["-c", BASE],
            PACKAGE: ["-c", PACKAGE],
            STATUS: ["-m", "asyncrunner", "status", "--db", str(db)],
            NEEDED: ["-c", NEEDED],
        }
        clocks: dict[str, list[float]] = {name: [] for name in commands}

        def way(name: str) -> float:
            return seconds_of(commands[name], clocks[name], folder)

        for name in commands:  # the first run of each compiles its files
            way(name)
            clocks[name].clear()
        values = interleaved(size.rounds, {name: lambda _, name=name: way(name) for name in commands})  # type: ignore[misc]
    limits = {PACKAGE: 2.0, STATUS: 3.0}
    figures = [figure(f"{name}, CPU", "ms", [1000 * each for each in values[name]], lower_is_better=True) for name in commands]
    figures += [
        figure(f"{name}, of {BASE}", RATIO, each_over(values[name], values[BASE]), at_most=limits.get(name), lower_is_better=True)
        for name in (PACKAGE, STATUS, NEEDED)
    ]
    figures += [figure(f"{STATUS}, on the clock", "ms", [1000 * each for each in clocks[STATUS]], lower_is_better=True)]
    return Result(figures, notes=[f"click {version('click')}, msgspec {version('msgspec')}"])


BENCHMARK: Final = Benchmark("How soon does a command start?", Size(), Size(rounds=1), measure)
