"""Where does the time of a no-op item go?

Three looks at the run that throughput.py measures, as microseconds an item, which is what a change has to bring down:

* Two threads: the event loop's CPU time, the SQLite thread's, and how long that one was busy, waits for the disk included.
* SQLite's statements by name, with the clock around each call. They are few and large, so the clock costs nothing.
  What a statement waits for the interpreter lock when it returns is in its time.
* The event loop's CPU time by layer, from cProfile, which makes calls dearer than they are: what it says of the layers' shares is
  scaled to the time measured without it. What a builtin takes belongs to the layer that called it.

``python -m benchmarks`` also draws a flame graph with py-spy (extra ``bench``), of both threads.
``python -m benchmarks.profile [--items N] [--rounds N] [--slots N]``; ``--rounds`` counts for the first two.
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
from asyncrunner.sqlite import statements
from asyncrunner.sqlite import store as sqlite_store
from asyncrunner.sqlite.blocks import Blocks
from asyncrunner.sqlite.connection import Connection
from asyncrunner.sqlite.file import Durability, connect_writer
from benchmarks.figures import Benchmark, Figure, Result, figure
from benchmarks.measuring import ROOT, scratch
from benchmarks.throughput import no_op

__all__ = ["BENCHMARK", "flame_graph", "run_no_op"]

UNIT: Final = "us/item"

LAYERS: Final[Mapping[str, Sequence[str]]] = {
    "ingest": ("asyncrunner/ingest.py", "asyncrunner/desk.py", "asyncrunner/sqlite/adding.py"),
    "codec": ("asyncrunner/codec.py", "msgspec/", "json/"),
    "turn: pump and lanes": ("asyncrunner/worker.py", "asyncrunner/lane.py", "asyncrunner/pace.py", "asyncrunner/transient.py"),
    "slot: attempt and handler": (
        "asyncrunner/attempt.py",
        "asyncrunner/drive.py",
        "asyncrunner/retry.py",
        "benchmarks/throughput.py",
    ),
    "events and logs": ("asyncrunner/events.py", "asyncrunner/logs.py", "logging/"),
    "store's front": ("asyncrunner/sqlite/", "aiosqlite/"),
    "loop": ("asyncio/", "anyio/", "selectors.py"),
    "other asyncrunner": ("asyncrunner/",),
}
"""The parts of a path that belong to a layer; the first that fits. ``worker.py`` has the pump and the slots' loop."""

OTHER: Final = "other"
_SMALL: Final = 0.05  # us an item, below which a statement is not named


@dataclass(frozen=True)
class Size:
    items: int = 100_000
    rounds: int = 5
    slots: int = 100


class Watch:
    """What one run cost: seconds by statement, and of the SQLite thread's work. Used as a patch of the store's connection."""

    def __init__(self) -> None:
        self.statements: dict[str, float] = defaultdict(float)
        self.busy = 0.0
        self.cpu = 0.0

    def connect(self, path: Path, durability: Durability) -> TimedConnection:
        """In place of ``connect_writer``."""
        return TimedConnection(connect_writer(path, durability), self)

    def commit(self, connection: Connection, group: list[Any]) -> None:
        """In place of ``Connection._commit``: a whole transaction, on the SQLite thread."""
        began, cpu = time.perf_counter(), time.thread_time()
        _commit(connection, group)
        self.busy += time.perf_counter() - began
        self.cpu += time.thread_time() - cpu


_commit = Connection._commit  # noqa: SLF001


class TimedConnection:
    """An sqlite3 connection with the clock around each call of ``execute``."""

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
    for name, value in vars(statements).items():
        if isinstance(value, str) and name.isupper():
            names[value] = name
        elif isinstance(value, Blocks):
            names.update(dict.fromkeys(value._statements.values(), name))  # noqa: SLF001
    return names


def _first_words(statement: str) -> str:
    return " ".join(statement.split()[:2]).partition("(")[0]


_NAMES: Final = _names()


def run_no_op(items: int, slots: int, around: Callable[[Callable[[], None]], object] | None = None) -> None:
    """The run itself, in a new file; *around* is called with it."""
    with scratch() as folder:

        def run() -> None:
            report = asyncio.run(run_batch(range(items), no_op, db=folder / "runner.db", batch="bench", concurrency=slots))
            assert report.completed == items, report

        if around is None:
            run()
        else:
            around(run)


def watched(size: Size) -> dict[str, float]:
    """One run: microseconds an item, by what took them."""
    watch = Watch()
    with (
        mock.patch.object(sqlite_store, "connect_writer", watch.connect),
        mock.patch.object(Connection, "_commit", lambda connection, group: watch.commit(connection, group)),
    ):
        wall, cpu = time.perf_counter(), time.thread_time()
        run_no_op(size.items, size.slots)
        found = {
            "whole run": time.perf_counter() - wall,
            "loop thread, CPU": time.thread_time() - cpu,
            "SQLite thread, CPU": watch.cpu,
            "SQLite thread, busy": watch.busy,
        }
    found |= {f"statement {name}": seconds for name, seconds in watch.statements.items()}
    return {name: seconds * 1e6 / size.items for name, seconds in found.items()}


def by_layer(size: Size) -> dict[str, float]:
    """Each layer's share of the loop thread's time, under cProfile."""
    profile = cProfile.Profile()
    run_no_op(size.items, size.slots, profile.runcall)
    taken: dict[str, float] = defaultdict(float)
    stats: Any = pstats.Stats(profile)
    for (path, _, _), (_, _, own, _, callers) in stats.stats.items():
        if path == "~" and callers:
            for (caller, _, _), (_, _, of_caller, _) in callers.items():
                taken[_layer(caller)] += of_caller
        else:
            taken[_layer(path)] += own
    idle = sum(own for (path, _, name), (_, _, own, _, _) in stats.stats.items() if path == "~" and "of 'select." in name)
    taken["loop"] -= idle  # it waits for the SQLite thread, which is not the loop's doing
    total = sum(taken.values())
    return {layer: seconds / total for layer, seconds in taken.items()}


def _layer(path: str) -> str:
    for layer, parts in LAYERS.items():
        if any(part in path for part in parts):
            return layer
    return OTHER


def measure(size: Size) -> Result:
    """All three."""
    rounds = [watched(size) for _ in range(size.rounds)]
    names = {name: None for found in rounds for name in found}
    figures = [_figure(name, rounds) for name in names if not name.startswith("statement ")]
    loop_cpu = next(one.value for one in figures if one.name == "loop thread, CPU") or 0.0
    shares = by_layer(size)
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    layers = [figure(f"loop thread: {layer}", UNIT, [share * loop_cpu], lower_is_better=True) for layer, share in ordered]
    taken = [_figure(name, rounds) for name in names if name.startswith("statement ")]
    taken.sort(key=lambda one: -(one.value or 0.0))
    small = [one for one in taken if (one.value or 0.0) < _SMALL]
    rest = sum(one.value or 0.0 for one in small)
    notes = ["Of the loop thread's CPU time: " + ", ".join(f"{layer} {share:.0%}" for layer, share in ordered) + "."]
    notes += [f"{len(small)} further statements take {rest:.2f} us an item together."] if small else []
    return Result([*figures, *layers, *(one for one in taken if one not in small)], notes=notes)


def _figure(name: str, rounds: Sequence[dict[str, float]]) -> Figure:
    return figure(name, UNIT, [found.get(name, 0.0) for found in rounds], lower_is_better=True)


def flame_graph(path: Path, items: int) -> str | None:
    """Draw the run with py-spy; why it could not be drawn, or None. What is drawn has no paths of this machine in it."""
    py_spy = Path(sys.executable).with_name("py-spy")
    if not py_spy.exists():
        return "py-spy is not installed (extra bench)"
    command = [
        str(py_spy), "record", "--rate", "250", "--threads", "--format", "flamegraph",
        "--output", str(path.absolute()), "--",
        sys.executable, "-c", f"from benchmarks.profile import run_no_op; run_no_op({items}, 100)",
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


def main() -> None:
    """Measure and print."""
    BENCHMARK.main()


if __name__ == "__main__":
    main()
