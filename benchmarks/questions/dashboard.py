"""How fast are the pages of the dashboard on a large file, and what do open pages cost?

Creates a file of ten million items with a million failed attempts and 100,000 pending items (see operate.py), serves it with
``asyncrunner dashboard``, and requests each page in turns. Then 50 pages stay open, as browsers keep them, while a worker runs an
item each second: measures the CPU time and the memory of the server. Then no-op items run on another file, with no page open and
with 20: measures the worker's rate.

``python -m benchmarks dashboard [--items N] [--rounds N] [--pages N] [--open-seconds N] [--worker-items N] [--worker-rounds N]``
"""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

from asyncrunner import Control, Runner
from asyncrunner.dashboard.rendering import assets
from benchmarks.harness.figures import RATIO, Benchmark, Figure, Result, figure
from benchmarks.harness.measuring import child_result, scratch, start_child
from benchmarks.questions.operate import BATCH, make
from benchmarks.questions.throughput import no_op, runner_seconds

__all__ = ["BENCHMARK"]

TOKEN: Final = "a-token-of-the-benchmark"
CAUSES: Final = "causes"
SPARE_SECONDS: Final = 3.0  # before a measurement of open pages begins


@dataclass(frozen=True)
class Size:
    items: int = 10_000_000
    rounds: int = 7
    pages: int = 50
    open_seconds: float = 20.0
    worker_items: int = 100_000
    worker_rounds: int = 5
    worker_pages: int = 20


class Server(NamedTuple):
    """A dashboard that a process of its own serves."""

    process: subprocess.Popen[str]
    port: int

    @property
    def cpu_seconds(self) -> float:
        """The CPU time of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def megabytes(self) -> float:
        """The resident memory of the process."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmRSS"))

    def seconds(self, page: str) -> float:
        """Request a page and return the seconds until it is complete."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", f"/{page}", headers={"Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        body = response.read()
        seconds = time.perf_counter() - began
        connection.close()
        assert response.status == 200, (page, response.status, body[:500])
        return seconds


@contextmanager
def served(db: Path) -> Generator[Server, None, None]:
    """Serve *db* with the command until the end of the ``with`` block."""
    command = [sys.executable, "-m", "asyncrunner", "dashboard", str(db), "--port", "0"]
    environment = {**os.environ, "ASYNCRUNNER_DASHBOARD_TOKEN": TOKEN}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield Server(process, urlsplit(process.stdout.readline().strip()).port or 0)
    finally:
        process.terminate()
        process.communicate()


def pages(items: int) -> dict[str, str]:
    """Return the addresses of the pages by name."""
    batch = quote(BATCH)
    key = f"item-{items // 2:08d}"
    failed = f"item-{next(n for n in range(items // 2, items) if 951 <= (n * 7919) % 1000 < 985):08d}"
    return {
        "overview": "",
        "batch": f"batch?batch={batch}",
        "batch, 14 days": f"batch?batch={batch}&span=14d",
        CAUSES: "causes",
        "items": f"items?batch={batch}",
        "items, failed": f"items?batch={batch}&status=failed",
        "items, by cause": f"items?batch={batch}&status=failed&error=c0ffee0000000002",
        "items, pending, deep": f"items?batch={batch}&status=pending&order=input&after={key}",
        "items, by id": f"items?batch={batch}&id=item-0000",
        "item": f"item?batch={batch}&id={key}",
        "item, failed": f"item?batch={batch}&id={failed}",
        "workers": "workers",
        "store": "file",
    }


@contextmanager
def watched(server: Server, count: int) -> Generator[None, None, None]:
    """Keep *count* pages open, as browsers do: a stream each, opened again when the server ends it."""
    batch = quote(BATCH)
    addresses = ("of=overview", f"of=batch&batch={batch}", "of=causes", "of=workers")
    watching = start_child(watch, server.port, [addresses[number % len(addresses)] for number in range(count)])
    try:
        yield
    finally:
        watching.terminate()
        watching.communicate()


def watch(port: int, addresses: Sequence[str]) -> None:
    """Read a stream for each of *addresses* until the process ends."""

    async def read(address: str) -> None:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /live?{address} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
            while await reader.read(65_536):
                pass
            writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*map(read, addresses))

    asyncio.run(all_of_them())


def serve_jobs(db: str) -> None:
    """Run a worker on *db* whose handler gets an item each second, until the process ends."""

    async def serve() -> None:
        runner = Runner(db)
        handler = runner.handler(batch="each second")(no_op)
        async with runner:
            while True:
                await handler.submit(1)
                await asyncio.sleep(1)

    asyncio.run(serve())


def worker_seconds(items: int) -> float:
    """Return the seconds of *items* no-op items in the folder of the environment."""
    return runner_seconds(Path(os.environ["BENCHMARK_FOLDER"]), items, 100)


def with_open_pages(items: int, count: int) -> float:
    """Return the seconds of *items* no-op items while *count* pages of their file are open."""
    with scratch() as folder, ExitStack() as stack:
        db = folder / "runner.db"
        asyncio.run(_create(db))
        if count:
            server = stack.enter_context(served(db))
            stack.enter_context(watched(server, count))
            while server.cpu_seconds == 0.0 or not _is_connected(server.port):
                time.sleep(0.05)
            time.sleep(SPARE_SECONDS)
        os.environ["BENCHMARK_FOLDER"] = str(folder)
        return float(child_result(start_child(worker_seconds, items)))


async def _create(db: Path) -> None:
    runner = Runner(db)
    runner.handler(batch=BATCH)(no_op)
    async with runner:
        pass
    async with Control(db) as control:
        assert await control.batches() == [BATCH]


def _is_connected(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        return True


def measure(size: Size) -> Result:
    """Measure the pages, then open pages, then a worker beside open pages."""
    with scratch() as folder:
        db = folder / "large.db"
        make(db, size.items, completed=951, failed=34)  # three attempts of each failed item
        seconds: dict[str, list[float]] = {name: [] for name in pages(size.items)}
        with served(db) as server:
            first = server.seconds("")
            for _ in range(size.rounds):
                for name, page in pages(size.items).items():
                    seconds[name].append(server.seconds(page))
                    time.sleep(0.05)
            idle = server.cpu_seconds
            time.sleep(size.open_seconds / 4)
            idle = (server.cpu_seconds - idle) / (size.open_seconds / 4)
            jobs = start_child(serve_jobs, str(db))
            with watched(server, size.pages):
                time.sleep(SPARE_SECONDS)
                began, cpu = time.monotonic(), server.cpu_seconds
                time.sleep(size.open_seconds)
                share = (server.cpu_seconds - cpu) / (time.monotonic() - began)
                memory = server.megabytes
            jobs.kill()
            jobs.communicate()
    ratios: list[float] = []
    for number in range(size.worker_rounds):
        counts = (0, size.worker_pages) if number % 2 == 0 else (size.worker_pages, 0)
        taken = {count: with_open_pages(size.worker_items, count) for count in counts}
        ratios.append(taken[0] / taken[size.worker_pages])
    figures: list[Figure] = [figure("the first page after the start", "ms", [1000 * first])]
    for name, values in seconds.items():
        figures.append(figure(f"page {name}", "ms", [1000 * each for each in values], at_most=300 if name == CAUSES else 100))
    asset_kb = sum(len(asset.content) for asset in assets().values()) / 1000
    figures += [
        figure("assets", "kB", [asset_kb], at_most=80),
        figure(f"{size.pages} open pages: CPU of the server, of a core", "%", [100 * share], at_most=5),
        figure(f"{size.pages} open pages: memory of the server", "MB", [memory], at_most=70),
        figure("no open page: CPU of the server, of a core", "%", [100 * idle], lower_is_better=True),
        figure(f"a worker's rate with {size.worker_pages} open pages, of none", RATIO, ratios, at_least=0.95),
    ]
    return Result(figures)


BENCHMARK = Benchmark(
    "How fast are the pages of the dashboard on a large file, and what do open pages cost?",
    Size(),
    Size(20_000, 1, 4, 1.0, 500, 1, 2),
    measure,
)
