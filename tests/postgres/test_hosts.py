"""Workers that die, on one machine or on several: the others notice it and run their items, and a live worker is not robbed."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from tests.support import network
from tests.support.network import Network
from tests.support.postgres_server import MISSING, PostgresServer, wheel_binaries
from tests.support.postgres_state import disagreements
from tests.support.state import rows_of

pytestmark = pytest.mark.skipif(wheel_binaries() is None and "CI" not in os.environ, reason=MISSING)

needs_machines = pytest.mark.skipif(network.missing() is not None, reason=str(network.missing()))

WORKER = """
import asyncio, json, sys, time
from asyncrunner import RetryPolicy, Runner

runner = Runner(sys.argv[1], concurrency=20)

def report(event, n=None):
    print(json.dumps({"event": event, "n": n, "at": time.monotonic()}), flush=True)

@runner.handler(batch="b", max_attempts=9, retry=RetryPolicy(initial=0, jitter="none"))
async def work(n: int) -> int:
    report("start", n)
    await asyncio.sleep(float(sys.argv[2]))
    report("end", n)
    return n

async def main():
    async with runner:
        if len(sys.argv) > 3:
            await work.submit_many(range(int(sys.argv[3])))
        report("up")
        await asyncio.Event().wait()

asyncio.run(main())
"""


class Event(NamedTuple):
    """An event of a worker's process; *at* is on the clock that all processes of this machine share."""

    event: str
    n: int | None
    at: float


class WorkerProcess:
    """A process with a runner, and the events that it prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._events: queue.Queue[Event] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._events.put(Event(**json.loads(line)))

    def end(self) -> None:
        """Kill the process and wait for its end."""
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def wait_for(self, event: str, count: int = 1) -> list[Event]:
        """Return the next events of one name. Raises queue.Empty after 30 s without an event."""
        found: list[Event] = []
        while len(found) < count:
            got = self._events.get(timeout=30)
            if got.event == event:
                found.append(got)
        return found


Start = Callable[..., WorkerProcess]


@pytest.fixture
def worker_file(tmp_path: Path) -> Path:
    file = tmp_path / "worker.py"
    file.write_text(WORKER)
    return file


@pytest.fixture
def start(worker_file: Path) -> Iterator[Start]:
    """``start(db, seconds, items, by=popen)``: start a worker whose handlers take so long; it submits items first."""
    started: list[WorkerProcess] = []

    def run(db: str, seconds: float, *items: int, by: Callable[..., Any] = subprocess.Popen) -> WorkerProcess:
        unmeasured = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}
        command = [sys.executable, str(worker_file), db, str(seconds), *map(str, items)]
        worker = WorkerProcess(by(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **unmeasured}))
        started.append(worker)
        return worker

    yield run
    for worker in started:
        worker.end()


def test_the_items_of_a_killed_process_run_again_within_a_second(start: Start) -> None:
    delays = []
    with PostgresServer() as server:
        for number in range(3):
            db = f"{server.dsn}?schema=round_{number}"
            first = start(db, 600, 10)
            first.wait_for("start", 10)
            second = start(db, 600)
            second.wait_for("up")
            killed_at = time.monotonic()
            first.process.kill()
            again = second.wait_for("start", 10)
            assert {event.n for event in again} == set(range(10))
            delays.append(max(event.at for event in again) - killed_at)
            assert rows_of(db, "SELECT DISTINCT attempts, crashes FROM items") == [(2, 1)]
            assert disagreements(db) == {}
            second.end()
    # A busy machine may delay one of them.
    assert min(delays) <= 1.0, delays
    assert max(delays) <= 10.0, delays


@needs_machines
def test_a_process_that_is_killed_on_another_machine_is_noticed_in_the_same_way(start: Start) -> None:
    with Network() as net, PostgresServer(addresses=[net.address]) as server:
        one, other = net.machines
        db = f"{server.dsn_at(net.address)}?schema=jobs"
        first = start(db, 600, 10, by=one.start)
        first.wait_for("start", 10)
        second = start(db, 600, by=other.start)
        second.wait_for("up")
        killed_at = time.monotonic()
        first.process.kill()
        again = second.wait_for("start", 10)
        assert max(event.at for event in again) - killed_at <= 5.0
        here = f"{server.dsn}?schema=jobs"
        assert rows_of(here, "SELECT DISTINCT attempts, crashes FROM items") == [(2, 1)]


@needs_machines
def test_the_items_of_a_machine_without_network_run_elsewhere_within_ten_seconds(start: Start) -> None:
    with Network() as net, PostgresServer(addresses=[net.address]) as server:
        one, other = net.machines
        db = f"{server.dsn_at(net.address)}?schema=jobs"
        first = start(db, 600, 10, by=one.start)
        first.wait_for("start", 10)
        second = start(db, 600, by=other.start)
        second.wait_for("up")
        one.disconnect()
        cut_at = time.monotonic()
        again = second.wait_for("start", 10)
        delay = max(event.at for event in again) - cut_at
        assert 1.0 < delay <= 10.0
        assert first.process.poll() is None
        assert rows_of(f"{server.dsn}?schema=jobs", "SELECT DISTINCT attempts, crashes FROM items") == [(2, 1)]


def test_terminated_sessions_rob_no_live_worker(start: Start) -> None:
    with PostgresServer() as server:
        db = f"{server.dsn}?schema=jobs"
        first, second = start(db, 2.5, 40), start(db, 2.5)
        terminated = 0
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            first.wait_for("start")
            end_at = time.monotonic() + 20
            while rows_of(db, "SELECT count(*) FROM items WHERE status <> 'completed'") != [(0,)]:
                row = connection.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'asyncrunner'"
                ).fetchone()
                assert row is not None
                terminated += row[0]
                time.sleep(0.7)
                assert time.monotonic() < end_at
        assert terminated >= 6
        assert rows_of(db, "SELECT DISTINCT attempts, crashes FROM items") == [(1, 0)]
        assert rows_of(db, "SELECT count(*) FROM workers WHERE lost") == [(0,)]
        assert disagreements(db) == {}
        assert {first.process.poll(), second.process.poll()} == {None}
