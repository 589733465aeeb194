"""What does the runner reach on a PostgreSQL server, beside plain asyncpg and pgqueuer on the same server?

A server is started from the extra ``server``, with default settings, ``fsync`` and ``synchronous_commit`` on; ``--server URL``
names another one. Each way runs in a separate process, in turns, on an empty schema. The CPU time is that of the process and of
the server's processes together; it says more than the rate on a machine that other programs use too.

* plain asyncpg on one table: COPY, claims and settlements of 1,000 rows on one connection, with partial indexes on the status;
* the same statements on our tables: those of the store without its functions, its tallies and its engine;
* pgqueuer (the extra ``bench``): ``enqueue`` of 1,000 jobs, then ``run`` until no job is left, with the batch size of 100, 500
  and 1,000 that was the quickest in a round before; its default durability.

``python -m benchmarks postgres [--server URL] [--items N] [--rounds N] [--large-items N] [--large-rounds N] ...``
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from benchmarks.harness.figures import RATIO, Benchmark, Figure, Result, figure, not_measured
from benchmarks.harness.measuring import call_in_child, child_result, each_over, percentile, scratch, start_child
from benchmarks.postgres import plain, queuer, runs
from benchmarks.postgres.server import MISSING, Server, running_server
from benchmarks.questions.recovery import seconds_to_rerun

if TYPE_CHECKING:
    import asyncpg

__all__ = ["BENCHMARK"]

SCHEMA: Final = "bench_runs"
FEW: Final = 10
MANY: Final = 100
PAUSE: Final = 0.0371  # seconds between two submits; not a multiple of a polling interval
BATCH_SIZES: Final = (100, 500, 1000)


@dataclass(frozen=True)
class Size:
    items: int = 100_000
    rounds: int = 5
    queuer_items: int = 20_000
    shared_items: int = 60_000
    large_items: int = 1_000_000
    large_rounds: int = 1
    wake_items: int = 100
    submits: int = 2000
    kills: int = 5
    server: str = ""


class Run(NamedTuple):
    """One run of one way: seconds, CPU microseconds per item of the client and of the server, WAL bytes per item, HOT share."""

    seconds: float
    client: float
    server: float | None
    wal: float
    hot: float

    @property
    def cpu(self) -> float | None:
        return None if self.server is None else self.client + self.server


def run_once(server: Server, way: str, items: int, *arguments: object) -> Run:
    """Run one way on an empty schema, in a separate process."""
    url = server.schema(SCHEMA)
    server.write_checkpoint()
    cpu, wal = server.cpu_seconds(), server.wal_position()
    seconds, own = call_in_child(runs.timed_cpu, way, url, items, *arguments)
    after, written = server.cpu_seconds(), server.wal_position()
    used = None if cpu is None or after is None else (after - cpu) / items * 1e6
    return Run(seconds, own / items * 1e6, used, (written - wal) / items, server.hot_share(SCHEMA))


def best_batch_size(server: Server, items: int) -> int:
    """Return the batch size with which pgqueuer is the quickest."""
    return min(BATCH_SIZES, key=lambda size: run_once(server, "pgqueuer", items, size).seconds)


def rates(server: Server, size: Size) -> tuple[list[Figure], list[str]]:
    """Measure no-op items: ours with many and with few slots, plain asyncpg, pgqueuer."""
    ways: dict[str, tuple[str, int, tuple[int, ...]]] = {
        "asyncrunner": ("ours", size.items, (MANY,)),
        "asyncrunner, 10 slots": ("ours", size.items, (FEW,)),
        "plain asyncpg, one table": ("one table", size.items, ()),
        "plain asyncpg, our tables": ("our tables", size.items, ()),
    }
    notes = []
    if queuer.is_installed():
        best = best_batch_size(server, size.queuer_items)
        ways["pgqueuer"] = ("pgqueuer", size.queuer_items, (best,))
        notes = [f"pgqueuer {version('pgqueuer')}, {size.queuer_items:,} jobs, its best batch size: {best:,}"]
    measured: dict[str, list[Run]] = {name: [] for name in ways}
    for number in range(size.rounds):
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            way, items, arguments = ways[name]
            measured[name].append(run_once(server, way, items, *arguments))
    per_item = {name: [one.seconds / ways[name][1] for one in found] for name, found in measured.items()}
    ours = per_item["asyncrunner"]
    by_hand = per_item["plain asyncpg, our tables"]
    figures = [
        figure("of plain asyncpg, COPY on one table", RATIO, each_over(per_item["plain asyncpg, one table"], ours), at_least=0.9),
        figure("of the same statements, our tables", RATIO, each_over(by_hand, ours), at_least=0.75),
        figure("10 slots, of 100", RATIO, each_over(ours, per_item["asyncrunner, 10 slots"]), at_least=0.8),
        *_against_queuer(per_item, measured),
        *_cpu_of_plain(measured),
        figure("WAL of an item", "bytes", [one.wal for one in measured["asyncrunner"]], at_most=1500),
        figure("HOT updates of items", "%", [100 * one.hot for one in measured["asyncrunner"]]),
    ]
    figures += [figure(name, "items/s", [1 / each for each in times]) for name, times in per_item.items()]
    for name, found in measured.items():
        figures.append(figure(f"{name}: CPU, client", "us/item", [one.client for one in found], lower_is_better=True))
        used = [one.server for one in found if one.server is not None]
        if used:
            figures.append(figure(f"{name}: CPU, server", "us/item", used, lower_is_better=True))
    return figures, notes


def _cpu_of_plain(measured: Mapping[str, Sequence[Run]]) -> list[Figure]:
    """Compare CPU times, which say more than rates while other programs use the machine."""
    ours = [one.cpu for one in measured["asyncrunner"] if one.cpu is not None]
    figures = []
    for name in ("plain asyncpg, one table", "plain asyncpg, our tables"):
        theirs = [one.cpu for one in measured[name] if one.cpu is not None]
        if ours:
            figures.append(figure(f"CPU of client and server, of {name}", RATIO, each_over(ours, theirs), lower_is_better=True))
    return figures


def _against_queuer(per_item: Mapping[str, Sequence[float]], measured: Mapping[str, Sequence[Run]]) -> list[Figure]:
    rate, cpu = "of pgqueuer at its best batch size", "CPU of client and server, of pgqueuer's"
    if "pgqueuer" not in measured:
        reason = "pgqueuer is not installed (extra bench)"
        return [not_measured(rate, RATIO, reason, at_least=2.0), not_measured(cpu, RATIO, reason, at_most=0.5)]
    ours = [one.cpu for one in measured["asyncrunner"] if one.cpu is not None]
    theirs = [one.cpu for one in measured["pgqueuer"] if one.cpu is not None]
    return [
        figure(rate, RATIO, each_over(per_item["pgqueuer"], per_item["asyncrunner"]), at_least=2.0),
        figure(cpu, RATIO, each_over(ours, theirs), at_most=0.5)
        if ours
        else not_measured(cpu, RATIO, "the server is on another machine", at_most=0.5),
    ]


def together(server: Server, processes: int, items: int) -> tuple[float, float]:
    """Return the seconds from the first process's begin to the last one's end, and the smallest share of the items."""
    url = server.schema(SCHEMA)
    plain.fill(url, items)
    server.write_checkpoint()
    with scratch() as folder:
        started = [start_child(runs.take_part, url, folder, MANY) for _ in range(processes)]
        while len(list(folder.glob("ready-*"))) < processes:
            if any(process.poll() is not None for process in started):
                break  # child_result() raises the error
            time.sleep(0.01)
        (folder / "go").touch()
        results = [child_result(process) for process in started]
    attempts = [number for _, _, number in results]
    assert sum(attempts) == items, results
    return max(end for _, end, _ in results) - min(begin for begin, _, _ in results), min(attempts) / items


def sharing(server: Server, size: Size) -> list[Figure]:
    """Measure one, two and four processes on one batch."""
    seconds: dict[int, list[float]] = {1: [], 2: [], 4: []}
    shares: list[float] = []
    for number in range(size.rounds):
        for count in (1, 2, 4) if number % 2 == 0 else (4, 2, 1):
            took, share = together(server, count, size.shared_items)
            seconds[count].append(took)
            if count == 4:
                shares.append(100 * share)
    return [
        figure("2 processes, of one", RATIO, each_over(seconds[1], seconds[2]), at_least=1.0),
        figure("4 processes, of one", RATIO, each_over(seconds[1], seconds[4]), at_least=0.8),
        figure("4 processes: the smallest share", "%", shares, at_least=15),
    ]


def large(server: Server, size: Size) -> tuple[list[Figure], dict[str, list[tuple[float, float]]]]:
    """Measure the rate of each window of a large run, alone and beside a transaction that stays open; then the reads."""
    window = size.large_items // 10
    figures: list[Figure] = []
    series: dict[str, list[tuple[float, float]]] = {}
    counts: list[float] = []
    status: list[float] = []
    sizes: dict[str, list[float]] = {"table items": [], "indexes of items": []}
    wal: list[float] = []
    for beside in (False, True):
        slowest: list[float] = []
        dearest: list[float] = []
        for number in range(size.large_rounds):
            url = server.schema(SCHEMA)
            server.write_checkpoint()
            written = server.wal_position()
            seconds, cpu, read_counts, read_status = _large_run(server, url, size.large_items, window, beside)
            if not beside:
                wal.append((server.wal_position() - written) / size.large_items)
                for known, megabytes in zip(sizes.values(), server.megabytes(SCHEMA, "items"), strict=True):
                    known.append(megabytes)
            slowest.append(statistics.median(seconds) / max(seconds))
            dearest.append(max(cpu) / statistics.median(cpu))
            counts.append(statistics.median(read_counts))
            status.append(statistics.median(read_status))
            label = f"{'beside an open snapshot' if beside else 'alone'}, round {number + 1}"
            series[label] = [((place + 1) * window, window / each) for place, each in enumerate(seconds)]
        name = f"{size.large_items:,} items{' beside an open snapshot' if beside else ''}"
        figures += [
            figure(f"{name}: slowest tenth, of the median", RATIO, slowest, at_least=0.7 if beside else 0.75),
            figure(f"{name}: client's CPU of the dearest tenth, of the median", RATIO, dearest, lower_is_better=True),
        ]
    figures += [
        figure(f"counts after {size.large_items:,} items", "ms", counts, at_most=5),
        figure("counts, rate and failures, as status reads them", "ms", status, at_most=50),
        figure(f"WAL of an item, of {size.large_items:,}", "bytes", wal, lower_is_better=True),
        *(figure(f"{name}, {size.large_items:,} items", "MB", known, lower_is_better=True) for name, known in sizes.items()),
    ]
    return figures, series


def _large_run(server: Server, url: str, items: int, window: int, beside: bool) -> Any:
    async def held(connection: asyncpg.Connection[Any]) -> Any:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.fetchval("SELECT count(*) FROM pg_class")
            return await asyncio.to_thread(call_in_child, runs.large_run, url, items, window, MANY)

    return server.run(held) if beside else call_in_child(runs.large_run, url, items, window, MANY)


def wakes(server: Server, size: Size) -> list[Figure]:
    """Measure from the submit in one process to the handler's start in another one, beside pgqueuer."""
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    for number in range(size.rounds):
        ways = [(ours, runs.serve, runs.submit_one_by_one)]
        if queuer.is_installed():
            ways.append((theirs, queuer.listen, queuer.submit_one_by_one))
        for waits, listen, submit in ways if number % 2 == 0 else reversed(ways):
            url = server.schema(SCHEMA)
            listener = start_child(listen, url, size.wake_items)
            assert listener.stdout is not None
            listener.stdout.readline()
            call_in_child(submit, url, size.wake_items, PAUSE)
            waits.append(child_result(listener))
    middle = [percentile(0.5, each) for each in ours]
    figures = [
        figure("wake in another process, p50", "ms", middle, lower_is_better=True),
        figure("wake in another process, p99", "ms", [percentile(0.99, each) for each in ours], at_most=25),
    ]
    name = "wake in another process, p50, of pgqueuer's"
    if not theirs:
        return [not_measured(name, RATIO, "pgqueuer is not installed (extra bench)", at_most=1.0), *figures]
    other = [percentile(0.5, each) for each in theirs]
    return [
        figure(name, RATIO, each_over(middle, other), at_most=1.0),
        *figures,
        figure("pgqueuer: wake in another process, p50", "ms", other, lower_is_better=True),
        figure("pgqueuer: wake in another process, p99", "ms", [percentile(0.99, each) for each in theirs], lower_is_better=True),
    ]


def submits(server: Server, size: Size) -> list[Figure]:
    """Measure submits of one item each, one after the other and at the same time."""
    alone: list[float] = []
    at_once: list[float] = []
    for _ in range(size.rounds):
        url = server.schema(SCHEMA)
        plain.fill(url, 1)
        one_by_one, concurrent = call_in_child(runs.concurrent_submits, url, size.submits, max(2, size.submits // 10))
        alone.append(one_by_one)
        at_once.append(concurrent)
    return [
        figure("concurrent submits of one item, of one by one", RATIO, each_over(at_once, alone), at_least=5.0),
        figure("concurrent submits of one item", "items/s", at_once),
    ]


def kill_once(server: Server, items: int) -> float:
    """Return the seconds from kill -9 of one of two processes to the first start of one of its items in the other."""
    url = server.schema(SCHEMA)
    plain.fill(url, items)
    with scratch() as folder:
        log = folder / "log"
        victim, survivor = (start_child(runs.work_slowly, url, log) for _ in range(2))
        return seconds_to_rerun(victim, survivor, log, settle=1.0)  # each has seen the other's lock


def measure(size: Size) -> Result:
    """Measure everything on one server."""
    with running_server(size.server) as server:
        if server is None:
            return Result([not_measured("of plain asyncpg, COPY on one table", RATIO, MISSING, at_least=0.9)])
        load = [os.getloadavg()[0]]
        figures, notes = rates(server, size)
        load.append(os.getloadavg()[0])
        figures += sharing(server, size)
        large_figures, series = large(server, size)
        load.append(os.getloadavg()[0])
        figures += [*large_figures, *wakes(server, size), *submits(server, size)]
        kills = [kill_once(server, 100_000) for _ in range(size.kills)]
        figures.append(figure("kill -9 to the first start of its items in the other process", "s", kills, at_most=1.0))
        load.append(os.getloadavg()[0])
        server.schema(SCHEMA)
        notes += [
            f"PostgreSQL {server.version}, {server.settings}, asyncpg {version('asyncpg')}",
            f"load average of a minute, before and between: {', '.join(f'{each:.1f}' for each in load)}",
        ]
        return Result(figures, series, notes)


BENCHMARK = Benchmark(
    "What does the runner reach on a PostgreSQL server, beside plain asyncpg and pgqueuer on it?",
    Size(),
    Size(items=2000, rounds=1, queuer_items=500, shared_items=1000, large_items=2000, wake_items=5, submits=50, kills=1),
    measure,
)
