"""Workers on a server while everything breaks: ``python -m tests.postgres.storm --minutes N``.

Four worker processes reach the server, two of them through proxies. Meanwhile processes are killed or asked to end, connections and
sessions are cut, answers are lost, the server crashes twice, and another program submits and changes items with plain SQL. At the end
the remaining items run without faults, and the history is checked: every item has ended and its result is right, no handler has run
to its end more often than crashes explain, no live worker was declared lost, the counts are those of the items, and the lists beside
the items agree with them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

import psycopg

from asyncrunner import Fail, RetryPolicy, Runner
from tests.support.postgres_server import PostgresServer, debian_binaries
from tests.support.postgres_state import disagreements
from tests.support.state import rows_of
from tests.support.tcp_proxy import Fault, TcpProxy

ROBBED = "declared lost"
SUBMIT = """INSERT INTO jobs.items (batch_id, id, payload, priority)
SELECT batch_id, 'sql-' || n, n::text, n %% 3 FROM jobs.batches, generate_series(%s::int, %s::int - 1) AS n WHERE name = 'storm'"""
BY_HAND = (
    "UPDATE jobs.items SET status = 'pending', attempts = 0, due_at = NULL WHERE status = 'failed' AND seq %% 2 = %s",
    "UPDATE jobs.items SET priority = seq %% 5 WHERE status = 'pending' AND seq %% 2 = %s AND seq %% 7 = 0",
    """UPDATE jobs.items SET status = 'cancelled'
    WHERE seq IN (SELECT seq FROM jobs.items WHERE status = 'pending' AND seq %% 2 = %s LIMIT 2)""",
)


def runner_on(db: str, log: IO[str] | None = None) -> Runner:
    runner = Runner(db, concurrency=25)

    @runner.handler(batch="storm", max_attempts=4, retry=RetryPolicy(initial=0.05, cap=0.2))
    async def work(number: int) -> int:
        await asyncio.sleep(random.uniform(0.0, 0.05))
        if number % 997 == 0:
            raise Fail("a number that always fails")
        if number % 89 == 0 and random.random() < 0.5:
            raise ConnectionError("a number that fails half of the time")
        if log is not None:
            os.write(log.fileno(), f"{number}\n".encode())  # one write to a file opened to append
        return 2 * number

    return runner


async def worker(db: str, log: Path) -> None:
    with log.open("a") as ends:
        runner = runner_on(db, ends)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with runner:
            await stop.wait()


class Storm:
    """One storm. ``counts``: the number of each kind of fault."""

    def __init__(self, server: PostgresServer, folder: Path, seed: int) -> None:
        self.server = server
        self.db = f"{server.dsn}?schema=jobs"
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._workers: list[subprocess.Popen[bytes]] = []
        self._proxies: list[TcpProxy] = []
        self._submitted = 0

    def run(self, seconds: float) -> list[str]:
        """Inject faults for *seconds*, then finish the remaining items. Returns the broken invariants."""
        with ExitStack() as stack:
            self._proxies = [stack.enter_context(TcpProxy(("127.0.0.1", self.server.port))) for _ in range(2)]
            asyncio.run(self._create())
            began = time.monotonic()
            crashes_at = [began + seconds / 3, began + 2 * seconds / 3]
            try:
                while time.monotonic() < began + seconds:
                    self._bury()
                    while len(self._workers) < 4:
                        self._start()
                    time.sleep(self._rng.uniform(0.1, 1.0))
                    if crashes_at and time.monotonic() > crashes_at[0]:
                        crashes_at.pop(0)
                        self.server.stop("immediate")
                        time.sleep(self._rng.uniform(0.0, 3.0))
                        self.server.start()
                        self.counts["the server crashed"] += 1
                    self._strike()
            finally:
                for process in self._workers:
                    process.kill()
                for process in self._workers:
                    process.wait()
        asyncio.run(asyncio.wait_for(self._finish(), 300))
        return self._violations()

    async def _create(self) -> None:
        async with runner_on(self.db):
            pass

    def _start(self) -> None:
        number = self.counts["processes"]
        self.counts["processes"] += 1
        db = self._proxies[number % 4].url(self.db) if number % 4 < 2 else self.db
        with (self.folder / "said").open("ab") as said:
            command = [sys.executable, "-m", "tests.postgres.storm", "--worker", db, str(self.folder / "log")]
            self._workers.append(subprocess.Popen(command, stdout=said, stderr=said))

    def _bury(self) -> None:
        for process in list(self._workers):
            code = process.poll()
            if code is not None:
                self._workers.remove(process)
                if code == 1:  # the server was away when it started
                    self.counts["refused at their start"] += 1
                elif code not in (0, -signal.SIGKILL, -signal.SIGTERM):
                    self.counts[f"ended with {code}"] += 1

    def _strike(self) -> None:
        with suppress(psycopg.OperationalError):
            faults = [
                self._submit,
                self._submit,
                self._kill,
                self._end,
                self._cut,
                self._lose,
                self._lose,
                self._terminate,
                self._change,
            ]
            self._rng.choice(faults)()

    def _kill(self) -> None:
        self._rng.choice(self._workers).kill()
        self.counts["killed"] += 1

    def _end(self) -> None:
        self._rng.choice(self._workers).send_signal(signal.SIGTERM)
        self.counts["asked to end"] += 1

    def _cut(self) -> None:
        self.counts["connections cut"] += sum(proxy.cut() for proxy in self._proxies)

    def _lose(self) -> None:
        fault = self._rng.choice([Fault.CUT_BEFORE, Fault.CUT_AFTER])
        self._rng.choice(self._proxies).at("FROM turn(", fault)
        self.counts["answers to turns lost"] += 1

    def _terminate(self) -> None:
        with psycopg.connect(self.server.dsn) as connection:
            row = connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'asyncrunner'"
            ).fetchone()
            self.counts["sessions terminated"] += row[0] if row else 0

    def _submit(self) -> None:
        count = self._rng.randrange(100, 1000)
        with psycopg.connect(self.server.dsn) as connection:
            connection.execute(SUBMIT, (self._submitted, self._submitted + count))
        self._submitted += count

    def _change(self) -> None:
        with psycopg.connect(self.server.dsn) as connection:
            connection.execute(self._rng.choice(BY_HAND), (self._rng.randrange(2),))
        self.counts["changed by hand"] += 1

    async def _finish(self) -> None:
        with (self.folder / "log").open("a") as ends:
            runner = runner_on(self.db, ends)
            async with runner:
                while rows_of(self.db, "SELECT count(*) FROM items WHERE status IN ('pending', 'processing')") != [(0,)]:
                    await asyncio.sleep(0.2)

    def _violations(self) -> list[str]:
        found = [f"{statement}: {rows[:3]}" for statement, rows in disagreements(self.db).items()]
        ends = Counter(int(line) for line in (self.folder / "log").read_text().split())
        items = rows_of(self.db, "SELECT payload::int, status, result, crashes FROM items")
        found += [f"{self._submitted} items were submitted, {len(items)} are there"] if len(items) != self._submitted else []
        for number, status, result, crashes in items:
            if status == "completed" and result != str(2 * number):
                found.append(f"item {number} has the result {result}")
            if status == "completed" and number not in ends:
                found.append(f"item {number} is completed and never ran to its end")
            if ends[number] > 1 + crashes:
                found.append(f"item {number} ran to its end {ends[number]} times, with {crashes} crashes")
            if status == "failed" and number % 997 and number % 89 and crashes < 3:
                found.append(f"item {number} failed with {crashes} crashes")
        said = (self.folder / "said").read_text(errors="replace")
        robbed = [line for line in said.splitlines() if ROBBED in line]
        found += [f"a live worker was declared lost: {line}" for line in robbed]
        self.counts["items"] = len(items)
        self.counts["attempts lost with their worker"] = rows_of(
            self.db, "SELECT count(*) FROM failures WHERE error_type = 'WorkerLost'"
        )[0][0]
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--debian", action="store_true", help="run Debian's server instead of that of the extra")
    parser.add_argument("--worker", nargs=2, metavar=("DB", "LOG"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        asyncio.run(worker(arguments.worker[0], Path(arguments.worker[1])))
        return 0
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    binaries = next(iter(debian_binaries().values())) if arguments.debian else None
    with PostgresServer(binaries=binaries) as server, tempfile.TemporaryDirectory() as folder:
        storm = Storm(server, Path(folder), seed)
        found = storm.run(60 * arguments.minutes)
        said = (Path(folder) / "said").read_text(errors="replace")
    print(f"Python {platform.python_version()}, seed {seed}, {arguments.minutes:g} minutes")
    for name, count in sorted(storm.counts.items()):
        print(f"{count:>8,} {name}")
    print(f"{len(found)} violations")
    for violation in found[:20]:
        print("  ", violation)
    if found:
        print(said[-5000:])
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
