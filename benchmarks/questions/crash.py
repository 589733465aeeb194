"""Does one crash hold anything up?

A run is killed with ``kill -9`` in the middle and started again, with ``max_attempts`` 1, 2, 3 and 5. The rate of the second
run, from the start of its first handler, is compared with that of an undisturbed run. Then a run is killed twice while one of
its items hangs: measures the time until all other items are completed. Then a service is killed with three long reports:
measures the time from the restart to the start of a mail that is submitted after it, once after one kill and once after three.

``python -m benchmarks crash [--items N] [--item-ms N] [--slots N] [--report-seconds N] [--rounds N]``
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.harness.figures import RATIO, Benchmark, Figure, Result, figure
from benchmarks.harness.measuring import scratch

__all__ = ["BENCHMARK"]

MAX_ATTEMPTS: Final = (1, 2, 3, 5)

HANDLERS: Final = """
import asyncio, os, time
from asyncrunner import Runner
LOG = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
SECONDS = float(os.environ["SECONDS"])
runner = Runner("jobs.db", concurrency=10)

def log(what: str, name: object) -> None:
    os.write(LOG, f"{what} {name} {os.getpid()} {time.monotonic()}\\n".encode())

async def work(n: int) -> None:
    log("start", n)
    await asyncio.sleep(SECONDS)
    log("end", n)

async def one_hangs(n: int) -> None:
    log("start", n)
    await (asyncio.Event().wait() if n == 0 else asyncio.sleep(SECONDS))
    log("end", n)

@runner.handler(batch="reports")
async def report(n: int) -> None:
    log("start", f"report-{n}")
    await asyncio.sleep(SECONDS)
    log("end", f"report-{n}")

@runner.handler(batch="mails")
async def mail(n: int) -> None:
    log("start", f"mail-{n}")

async def serve() -> None:
    async with runner:
        await asyncio.Event().wait()

async def submit(count: int) -> None:
    from asyncrunner import Client
    async with Client("jobs.db") as client:
        await client.submit_many(report if count > 1 else mail, range(count))
"""


class Line:
    """A line of the handlers' log: the start or the end of an item in a process, at a monotonic time."""

    def __init__(self, line: str) -> None:
        self.what, self.item, pid, at = line.split()
        self.pid = int(pid)
        self.at = float(at)


class Program:
    """The handlers in *folder*; each of their sleeps takes *seconds*."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder = folder
        self._environment = {**os.environ, "SECONDS": str(seconds)}
        (folder / "h.py").write_text(HANDLERS)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL)

    def run(self, handler: str, items: int, slots: int, max_attempts: int) -> subprocess.Popen[bytes]:
        (self._folder / "items.txt").write_text("".join(f"{n}\n" for n in range(items)))
        command = ("run", f"h.py:{handler}", "items.txt", "--db", "jobs.db", "-c", str(slots), "--quiet")
        return self.start("-m", "asyncrunner", *command, "--max-attempts", str(max_attempts))

    def call(self, call: str) -> subprocess.Popen[bytes]:
        return self.start("-c", f"import asyncio, h; asyncio.run(h.{call})")

    def log(self, what: str, pid: int | None = None) -> list[Line]:
        path = self._folder / "log"
        lines = [Line(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line.what == what and pid in (None, line.pid)]

    def count(self, *statuses: str) -> int:
        with closing(sqlite3.connect(self._folder / "jobs.db")) as connection:
            marks = ", ".join("?" * len(statuses))
            (count,) = connection.execute(f"SELECT count(*) FROM items WHERE status IN ({marks})", statuses).fetchone()
        return int(count)


def rate_of(starts: Sequence[float], ends: Sequence[float]) -> float:
    """Return the items that ended per second between the first start and the last start.

    The last items do not count: while they end, most slots are empty.
    """
    first, last = min(starts), max(starts)
    return sum(end <= last for end in ends) / (last - first)


def wait_until(condition: Callable[[], object], seconds: float = 300) -> float:
    """Return the monotonic time at which the condition holds; raise TimeoutError after *seconds*."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"the condition did not become true within {seconds:g} s")
        time.sleep(0.01)
    return time.monotonic()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def undisturbed(folder: Path, size: Size) -> float:
    """Return the items per second of a run that is not killed."""
    program = Program(folder, size.item_ms / 1000)
    program.run("work", size.items, size.slots, 3).wait()
    return rate_of([line.at for line in program.log("start")], [line.at for line in program.log("end")])


def resumed(folder: Path, size: Size, max_attempts: int) -> float:
    """Return the items per second of the run that follows a run that is killed in the middle."""
    program = Program(folder, size.item_ms / 1000)
    first = program.run("work", size.items, size.slots, max_attempts)
    wait_until(lambda: len(program.log("end")) >= size.items // 2)
    kill(first)
    second = program.run("work", size.items, size.slots, max_attempts)
    second.wait()
    # If just one item runs at the kill, the crash is its fault as far as anyone can know; with one attempt, it fails.
    ended = program.count("completed", "failed")
    assert ended == size.items, f"{ended} of {size.items} items ended"
    assert program.count("failed") <= 1, f"{program.count('failed')} items failed"
    return rate_of([line.at for line in program.log("start", second.pid)], [line.at for line in program.log("end", second.pid)])


def beside_a_hanging_item(folder: Path, size: Size) -> tuple[int, float]:
    """Return how many of the others completed beside an item that hangs, after two kills, and in how many seconds."""
    program = Program(folder, size.item_ms / 1000)
    for share in (0.25, 0.5):
        process = program.run("one_hangs", size.items, size.slots, 3)
        wait_until(lambda share=share: len({line.item for line in program.log("end")}) >= share * size.items)  # type: ignore[misc]
        kill(process)
    process = program.run("one_hangs", size.items, size.slots, 3)
    try:
        began = wait_until(lambda: program.log("start", process.pid))
        ended = wait_until(lambda: program.count("completed") >= size.items - 1)
        return program.count("completed"), ended - began
    finally:
        kill(process)


def mail_after(folder: Path, size: Size, kills: int) -> float:
    """Return the seconds from the restart of a service to the start of a mail, after *kills* during three reports."""
    program = Program(folder, size.report_seconds)
    program.call("submit(3)").wait()
    for number in range(kills):
        service = program.call("serve()")
        expected = 3 if number < 2 else 1  # after two losses, the reports are suspects, which start one at a time
        wait_until(lambda pid=service.pid, count=expected: len(program.log("start", pid)) >= count)  # type: ignore[misc]
        kill(service)
    service = program.call("serve()")
    try:
        began = time.monotonic()
        program.call("submit(1)").wait()
        wait_until(lambda: [line for line in program.log("start", service.pid) if line.item == "mail-0"])
        (mail,) = [line for line in program.log("start", service.pid) if line.item == "mail-0"]
        return mail.at - began
    finally:
        kill(service)


@dataclass(frozen=True)
class Size:
    items: int = 400
    item_ms: int = 200
    slots: int = 40
    report_seconds: float = 15.0
    rounds: int = 3


def measure(size: Size) -> Result:
    """Measure the runs in turns, then the item that hangs, then the mails."""
    rates: dict[int, list[float]] = {max_attempts: [] for max_attempts in MAX_ATTEMPTS}
    undisturbed_rates: list[float] = []
    hanging: list[tuple[int, float]] = []
    mails: dict[int, list[float]] = {1: [], 3: []}
    for _ in range(size.rounds):
        with scratch() as folder:
            undisturbed_rates.append(undisturbed(folder, size))
        for max_attempts in MAX_ATTEMPTS:
            with scratch() as folder:
                rates[max_attempts].append(resumed(folder, size, max_attempts))
        with scratch() as folder:
            hanging.append(beside_a_hanging_item(folder, size))
        for kills, seconds in mails.items():
            with scratch() as folder:
                seconds.append(mail_after(folder, size, kills))
    figures: list[Figure] = [figure("undisturbed", "items/s", undisturbed_rates)]
    for max_attempts in MAX_ATTEMPTS:
        shares = [rate / whole for rate, whole in zip(rates[max_attempts], undisturbed_rates, strict=True)]
        figures.append(figure(f"after kill -9, max_attempts {max_attempts}: of undisturbed", RATIO, shares, at_least=0.9))
    figures += [
        figure("one item hangs: others completed", "items", [done for done, _ in hanging], at_least=size.items - 1),
        figure("one item hangs: time", "s", [seconds for _, seconds in hanging]),
    ]
    figures += [figure(f"restart to mail, reports killed {kills}x", "s", seconds, at_most=2) for kills, seconds in mails.items()]
    return Result(figures)


BENCHMARK = Benchmark("Does one crash hold anything up?", Size(), Size(40, 50, 10, 2.0, 1), measure)
