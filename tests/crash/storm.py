"""Processes that work on one file while they are killed, stopped and locked out: ``python -m tests.crash.storm --minutes N``.

Two to four processes submit and run items without end. Meanwhile processes are killed, stopped and continued, or asked to end; another
program holds the write lock; an operator changes rows by hand; one handler blocks its loop. At the end of the time, the remaining items
run without faults and the whole history is checked. The seed decides which fault hits which process, but not the progress of a process.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

from tests.crash import load
from tests.crash.history import violations

__all__ = ["Storm"]

OPERATIONS = (
    "UPDATE items SET status = 'pending', attempts = 0, due_at = NULL WHERE status = 'failed' AND seq % 2 = ?",
    """UPDATE items SET status = 'pending', worker_id = NULL WHERE seq IN
    (SELECT seq FROM items WHERE status = 'processing' AND seq % 2 = ? LIMIT 3)""",
    "UPDATE items SET priority = seq % 5 WHERE status = 'pending' AND seq % 2 = ?",
    "UPDATE items SET status = 'cancelled' WHERE seq IN (SELECT seq FROM items WHERE status = 'pending' AND seq % 2 = ? LIMIT 2)",
)


class Storm:
    """One storm in a folder. ``counts``: the number of each kind of fault."""

    def __init__(self, folder: Path, seed: int, *, block_seconds: float) -> None:
        self.db = folder / "jobs.db"
        self.log = folder / "log"
        self.said = folder / "said"
        self.block = folder / "block"
        self.counts: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._block_seconds = block_seconds
        self._note = load.Log(self.log)
        self._living: list[subprocess.Popen[bytes]] = []
        self._stopped: dict[subprocess.Popen[bytes], float] = {}

    def run(self, seconds: float) -> list[str]:
        """Inject faults for *seconds*, then finish the remaining items. Returns the broken invariants."""
        began = time.monotonic()
        block_at = began + seconds / 3
        try:
            while time.monotonic() < began + seconds:
                self._wake_the_stopped()
                self._bury()
                while len(self._living) < 2 or (len(self._living) < 4 and self._rng.random() < 0.2):
                    self._start()
                if block_at is not None and time.monotonic() >= block_at:
                    self.block.write_text(str(self._block_seconds))
                    self.counts["a loop blocked"] += 1
                    block_at = float("inf")
                time.sleep(self._rng.uniform(0.05, 0.8))
                if self.db.exists():  # to others it would be a file to make
                    self._strike()
        finally:
            self._end()
        asyncio.run(asyncio.wait_for(load.work_off(self.db, self._note, 0), 300))
        self._finish()
        return violations(self.db, self.log, is_over=True, deaths_are_logged=True)

    def _start(self) -> None:
        with self.said.open("ab") as said:
            command = [
                sys.executable,
                "-m",
                "tests.crash.load",
                *map(str, (self.db, self.log)),
                "--feed",
                "--block",
                str(self.block),
            ]
            self._living.append(subprocess.Popen(command, stdout=said, stderr=said))
        self.counts["processes"] += 1

    def _strike(self) -> None:
        awake = [process for process in self._living if process not in self._stopped]
        act = self._rng.choice(["kill", "kill", "kill", "stop", "stop", "terminate", "lock", "operate", "operate", "nothing"])
        if act in ("kill", "terminate", "stop") and not awake:
            return
        match act:
            case "kill":
                self._kill(self._rng.choice(awake))
            case "stop":
                process = self._rng.choice(awake)
                process.send_signal(signal.SIGSTOP)
                self._stopped[process] = time.monotonic() + self._rng.choice([0.05, 0.5, 2.0, 8.0])
            case "terminate":
                self._rng.choice(awake).terminate()
            case "lock":
                self._lock(self._rng.choice([0.05, 0.3, 1.0, 4.0]))
            case "operate":
                self._operate()
            case _:
                return
        self.counts[act] += 1

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        # Logged before the kill: a claim that changes hands after this line is a recovery.
        with self.log.open("a") as file:
            file.write(f"killing - {process.pid}\n")
        process.kill()

    def _lock(self, seconds: float) -> None:
        with (
            closing(sqlite3.connect(self.db, isolation_level=None, timeout=5.0)) as connection,
            suppress(sqlite3.OperationalError),
        ):
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            connection.execute("ROLLBACK")

    def _operate(self) -> None:
        with (
            closing(sqlite3.connect(self.db, isolation_level=None, timeout=5.0)) as connection,
            suppress(sqlite3.OperationalError),
        ):
            connection.execute("BEGIN IMMEDIATE")
            statement = self._rng.choice(OPERATIONS)
            changed = connection.execute(f"{statement} RETURNING id", (self._rng.randrange(2),)).fetchall()
            if "worker_id = NULL" in statement:
                self._note("operator", *(key for (key,) in changed))
            connection.execute("COMMIT")

    def _wake_the_stopped(self) -> None:
        for process, until in list(self._stopped.items()):
            if time.monotonic() >= until:
                del self._stopped[process]
                process.send_signal(signal.SIGCONT)

    def _bury(self) -> None:
        self._living = [process for process in self._living if process.poll() is None]
        self._stopped = {process: until for process, until in self._stopped.items() if process.returncode is None}

    def _end(self) -> None:
        for process in self._living:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self._living:
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                self._kill(process)
                process.wait()
        self.block.unlink(missing_ok=True)

    def _finish(self) -> None:
        with closing(sqlite3.connect(self.db)) as connection:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                (left,) = connection.execute("SELECT count(*) FROM items WHERE status IN ('pending', 'processing')").fetchone()
                if not left:
                    break
                asyncio.run(asyncio.wait_for(load.work_off(self.db, self._note, 1), 120))
            self.counts["items"] = connection.execute("SELECT count(*) FROM items").fetchone()[0]
            self.counts["failed items"] = connection.execute("SELECT count(*) FROM items WHERE status = 'failed'").fetchone()[0]
            self.counts["lost attempts"] = connection.execute(
                "SELECT count(*) FROM failures WHERE error_type = 'WorkerLost'"
            ).fetchone()[0]


def main() -> int:
    """Print the faults and the broken invariants; return 1 if one is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.storm", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--block-seconds", type=float, default=80.0)
    parser.add_argument("--keep", type=Path, default=None, help="a folder to keep the files in")
    arguments = parser.parse_args()
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}, SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) if arguments.keep is None else arguments.keep
        folder.mkdir(exist_ok=True)
        storm = Storm(folder, seed, block_seconds=arguments.block_seconds)
        wrong = storm.run(arguments.minutes * 60)
    print(", ".join(f"{count} {what}" for what, count in sorted(storm.counts.items())))
    for each in wrong[:50]:
        print(f"WRONG: {each}")
    print(f"{len(wrong)} violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
