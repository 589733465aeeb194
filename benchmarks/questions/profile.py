"""Where does the time of a no-op item go?

Profiles the run of throughput.py in three ways, in microseconds per item:

* By thread: the CPU time of the event loop, the CPU time of the SQLite thread, and the SQLite thread's busy time, which includes
  waiting for the disk.
* By SQL statement: the time of each call. There are few calls, each for many rows, so measuring adds almost nothing. The time
  includes the wait for the interpreter lock (GIL) when the call returns.
* By layer: the event loop's CPU time from cProfile. cProfile slows calls down, so only the layers' shares are used, scaled to the
  CPU time measured without it. The time of a builtin counts for the layer that called it.

``python -m benchmarks`` also draws a flame graph of both threads with py-spy (extra ``bench``).
``python -m benchmarks profile [--items N] [--rounds N] [--slots N]``; ``--rounds`` applies to the first two.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest import mock

from asyncrunner import run_batch
from asyncrunner.domain.options import Durability
from asyncrunner.sqlite import sql
from asyncrunner.sqlite import store as sqlite_store
from asyncrunner.sqlite.file.connection import Connection
from asyncrunner.sqlite.file.opening import connect_writer
from asyncrunner.sqlite.sql.bulk import BulkStatement
from benchmarks.harness.figures import Benchmark, Figure, Result, figure
from benchmarks.harness.measuring import ROOT, scratch
from benchmarks.questions.throughput import no_op

__all__ = ["BENCHMARK", "flame_graph", "run_no_op"]

UNIT: Final = "us/item"

LAYERS: Final[Mapping[str, Sequence[str]]] = {
    "ingest": ("asyncrunner/batch/source/", "asyncrunner/submission/", "asyncrunner/sqlite/insert.py"),
    "codec": ("asyncrunner/serialization/", "msgspec/", "json/"),
    "slot: attempt and handler": ("asyncrunner/execution/", "asyncrunner/domain/retry.py", "benchmarks/questions/throughput.py"),
    "turn: pump and queues": ("asyncrunner/worker/", "asyncrunner/store/"),
    "events and logs": ("asyncrunner/events.py", "logging/"),
    "store's front": ("asyncrunner/sqlite/", "aiosqlite/"),
    "loop": ("asyncio/", "anyio/", "selectors.py"),
    "other asyncrunner": ("asyncrunner/",),
}
"""Parts of file paths by layer; the first match counts. ``worker.py`` contains the pump and the loop of the slots."""

OTHER: Final = "other"
_MIN_SHOWN: Final = 0.05  # us per item; faster statements are only summed up


@dataclass(frozen=True)
class Size:
    items: int = 100_000
    rounds: int = 5
    slots: int = 100


class Watch:
    """The seconds of one run by statement and of the SQLite thread. Its methods replace those of the store's connection."""

    def __init__(self) -> None:
        self.statements: dict[str, float] = defaultdict(float)
        self.busy = 0.0
        self.cpu = 0.0

    def connect(self, path: Path, durability: Durability) -> TimedConnection:
        """Replace ``connect_writer``: return a connection that measures its statements."""
        return TimedConnection(connect_writer(path, durability), self)

    def commit(self, connection: Connection, group: list[Any]) -> None:
        """Replace ``Connection._commit``: measure a whole transaction on the SQLite thread."""
        began, cpu = time.perf_counter(), time.thread_time()
        _commit(connection, group)
        self.busy += time.perf_counter() - began
        self.cpu += time.thread_time() - cpu


_commit = Connection._commit  # noqa: SLF001


class TimedConnection:
    """An sqlite3 connection that measures the time of each call of ``execute``."""

    def __init__(self, connection: sqlite3.Connection, watch: Watch) -> None:
        self._connection = connection
        self._watch = watch

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        began = time.perf_counter()
        try:
            return self._connection.execute(statement, *parameters)
        finally:
            self._watch.statements[_NAMES.get(statement) or _first_words(statement)] += time.perf_counter() - began

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _names() -> dict[str, str]:
    names: dict[str, str] = {}
    statements = [item for module in sql.__all__ for item in vars(getattr(sql, module)).items()]
    for name, value in statements:
        if isinstance(value, str) and name.isupper():
            names[value] = name
        elif isinstance(value, BulkStatement):
            names.update(dict.fromkeys(value._statements.values(), name))  # noqa: SLF001
    return names


def _first_words(statement: str) -> str:
    return " ".join(statement.split()[:2]).partition("(")[0]


_NAMES: Final = _names()


def run_no_op(items: int, slots: int, around: Callable[[Callable[[], None]], object] | None = None) -> None:
    """Run no-op items in a new file; with *around*, call it with the run as its argument, for example to profile it."""
    with scratch() as folder:

        def run() -> None:
            report = asyncio.run(run_batch(range(items), no_op, db=folder / "runner.db", batch="bench", concurrency=slots))
            assert report.completed == items, report

        if around is None:
            run()
        else:
            around(run)


def watched(size: Size) -> dict[str, float]:
    """Return the microseconds per item of one run, by thread and by statement."""
    watch = Watch()
    with (
        mock.patch.object(sqlite_store, "connect_writer", watch.connect),
        mock.patch.object(Connection, "_commit", lambda connection, group: watch.commit(connection, group)),
    ):
        wall, cpu = time.perf_counter(), time.thread_time()
        run_no_op(size.items, size.slots)
        seconds_by_name = {
            "whole run": time.perf_counter() - wall,
            "loop thread, CPU": time.thread_time() - cpu,
            "SQLite thread, CPU": watch.cpu,
            "SQLite thread, busy": watch.busy,
        }
    seconds_by_name |= {f"statement {name}": seconds for name, seconds in watch.statements.items()}
    return {name: seconds * 1e6 / size.items for name, seconds in seconds_by_name.items()}


def by_layer(size: Size) -> dict[str, float]:
    """Return the share of the loop thread's CPU time of each layer, measured with cProfile."""
    profile = cProfile.Profile()
    run_no_op(size.items, size.slots, profile.runcall)
    seconds_of: dict[str, float] = defaultdict(float)
    stats: Any = pstats.Stats(profile)
    for (path, _, _), (_, _, own, _, callers) in stats.stats.items():
        if path == "~" and callers:
            for (caller, _, _), (_, _, of_caller, _) in callers.items():
                seconds_of[_layer(caller)] += of_caller
        else:
            seconds_of[_layer(path)] += own
    idle = sum(own for (path, _, name), (_, _, own, _, _) in stats.stats.items() if path == "~" and "of 'select." in name)
    seconds_of["loop"] -= idle  # the loop waits for the SQLite thread, which is no CPU time
    total = sum(seconds_of.values())
    return {layer: seconds / total for layer, seconds in seconds_of.items()}


def _layer(path: str) -> str:
    for layer, parts in LAYERS.items():
        if any(part in path for part in parts):
            return layer
    return OTHER


def measure(size: Size) -> Result:
    """Measure by thread, by statement and by layer."""
    rounds = [watched(size) for _ in range(size.rounds)]
    names = {name: None for one_round in rounds for name in one_round}
    figures = [_figure(name, rounds) for name in names if not name.startswith("statement ")]
    loop_cpu = next(one.value for one in figures if one.name == "loop thread, CPU") or 0.0
    shares = by_layer(size)
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    layers = [figure(f"loop thread: {layer}", UNIT, [share * loop_cpu], lower_is_better=True) for layer, share in ordered]
    by_statement = [_figure(name, rounds) for name in names if name.startswith("statement ")]
    by_statement.sort(key=lambda one: -(one.value or 0.0))
    small = [one for one in by_statement if (one.value or 0.0) < _MIN_SHOWN]
    rest = sum(one.value or 0.0 for one in small)
    notes = ["Of the loop thread's CPU time: " + ", ".join(f"{layer} {share:.0%}" for layer, share in ordered) + "."]
    notes += [f"{len(small)} further statements take {rest:.2f} us per item together."] if small else []
    return Result([*figures, *layers, *(one for one in by_statement if one not in small)], notes=notes)


def _figure(name: str, rounds: Sequence[dict[str, float]]) -> Figure:
    return figure(name, UNIT, [one_round.get(name, 0.0) for one_round in rounds], lower_is_better=True)


def flame_graph(path: Path, items: int) -> str | None:
    """Draw the run with py-spy, without paths of this machine. Returns None, or the reason why it could not be drawn."""
    py_spy = Path(sys.executable).with_name("py-spy")
    if not py_spy.exists():
        return "py-spy is not installed (extra bench)"
    command = [
        str(py_spy), "record", "--rate", "250", "--threads", "--format", "flamegraph",
        "--output", str(path.absolute()), "--",
        sys.executable, "-c", f"from benchmarks.questions.profile import run_no_op; run_no_op({items}, 100)",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if not path.exists():
        return f"py-spy could not draw it: {done.stderr.strip()[-500:]}"
    text = path.read_text()
    text = text.replace(str(path.absolute()), path.name)
    for prefix in (ROOT, sys.prefix, sys.base_prefix):
        text = text.replace(f"{prefix}/", "")
    path.write_text(text)
    return None


BENCHMARK = Benchmark("Where does the time of a no-op item go?", Size(), Size(1000, 1, 20), measure)
