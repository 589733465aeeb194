"""How long do the operator's commands take on a large file?

Creates a file of N items with plain inserts: 60 % completed, 10 % failed with three causes (three recorded attempts each), 100
processing, some cancelled, the rest pending, one in fifty of those with a due time in the future. Then each command is called in
this process, through ``Control``, and from the shell, ``--rounds`` times each; the median and the longest times are printed.

``python -m benchmarks operate [--items N] [--rounds N] [--folder PATH] [--keep]``. Five million items need 4 GB and some minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from asyncrunner import Control
from asyncrunner.sqlite.file.creation import create_if_missing
from asyncrunner.sqlite.file.opening import connect_writer
from asyncrunner.text.timestamps import to_text
from benchmarks.harness.machine import describe_machine

BATCH = "bench:fetch"
CHUNK = 100_000

# The state depends on the row's number, so that states are spread over the file, and a file of N items is always the same.
INSERT_ITEMS = """
WITH RECURSIVE numbers (n) AS (SELECT ? UNION ALL SELECT n + 1 FROM numbers WHERE n < ?),
     kinds AS (SELECT n, (n * 7919) % 1000 < :completed AS is_completed,
                      (n * 7919) % 1000 BETWEEN :completed AND :completed + :failed - 1 AS is_failed,
                      (n * 7919) % 1000 >= :completed + :failed + 5 AS is_pending, n * 104729 % 10 AS cause FROM numbers)
INSERT INTO items (batch_id, id, status, attempts, claim, worker_id, priority, due_at, created_at, started_at, completed_at,
                   payload, result, error, fingerprint)
SELECT 1, printf('item-%08d', n),
    CASE WHEN is_completed THEN 'completed' WHEN is_failed THEN 'failed' WHEN is_pending THEN 'pending' ELSE 'cancelled' END,
    CASE WHEN is_completed THEN 1 WHEN is_failed THEN 3 ELSE 0 END,
    CASE WHEN is_completed THEN 1 WHEN is_failed THEN 3 ELSE 0 END,
    CASE WHEN is_completed OR is_failed THEN 'w1' END, 0,
    CASE WHEN is_pending AND n % 50 = 0 THEN :later END, :created,
    CASE WHEN is_completed OR is_failed THEN :started END, CASE WHEN NOT is_pending THEN :ended END,
    printf('{"url":"https://example.com/catalogue/%d","tries":3,"tags":["a","b"]}', n),
    CASE WHEN is_completed THEN printf('{"status":200,"bytes":%d,"title":"page %d"}', n % 90000, n) END,
    CASE WHEN NOT is_failed THEN NULL WHEN cause < 6 THEN printf('ConnectionError: cannot reach 10.0.%d.%d:443', n % 250, n % 251)
         WHEN cause < 9 THEN printf('AttemptTimeout: item-%08d ran longer than 30 s', n)
         ELSE printf('ValueError: no price in ''page %d''', n) END,
    CASE WHEN NOT is_failed THEN NULL WHEN cause < 6 THEN 'c0ffee0000000001' WHEN cause < 9 THEN 'c0ffee0000000002'
         ELSE 'c0ffee0000000003' END
FROM kinds ORDER BY n"""

INSERT_FAILURES = """
INSERT INTO failures (batch_id, id, attempt, claim, failed_at, error_type, message, traceback, fingerprint)
SELECT 1, id, attempt, attempt, :ended, substr(error, 1, instr(error, ':') - 1), substr(error, instr(error, ':') + 2),
    'Traceback (most recent call last):' || char(10) || '  File "prices.py", line 12, in fetch' || char(10) || error, fingerprint
FROM items, (SELECT 1 AS attempt UNION ALL SELECT 2 UNION ALL SELECT 3)
WHERE seq BETWEEN ? AND ? AND status = 'failed' ORDER BY seq, attempt"""

START_SOME = """
UPDATE items SET status = 'processing', worker_id = 'w1', attempts = 1, claim = 1, started_at = ?
WHERE seq IN (SELECT seq FROM items
              WHERE batch_id = 1 AND status = 'pending' AND status <> 'completed' AND due_at IS NULL LIMIT 100)"""


def make(path: Path, items: int, *, completed: int = 600, failed: int = 100) -> None:
    """Create a file with *items* items. Of 1,000, *completed* and *failed* are so, 5 are cancelled, the others pending."""
    create_if_missing(path)
    connection = connect_writer(path, "normal")
    now = time.time()
    times = {
        "created": to_text(now - 7200), "started": to_text(now - 3600), "ended": to_text(now - 3599),
        "later": to_text(now + 3600),
    }  # fmt: skip
    connection.execute(
        "INSERT INTO batches (name, handler, options, created_at) VALUES (?, ?, '{}', ?)", (BATCH, BATCH, times["created"])
    )
    connection.execute(
        "INSERT INTO workers (worker_id, host, pid, started_at, last_heartbeat) VALUES ('w1', 'here', 1, ?, ?)",
        (times["started"],) * 2,
    )
    shares = {"completed": completed, "failed": failed}
    for first in range(1, items + 1, CHUNK):
        last = min(first + CHUNK - 1, items)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_named(INSERT_ITEMS), {"1": first, "2": last, **times, **shares})
        connection.execute(_named(INSERT_FAILURES), {"1": first, "2": last, **times})
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute(START_SOME, (to_text(now - 1800),))
    connection.execute("UPDATE batches SET total = (SELECT count(*) FROM items)")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _named(statement: str) -> str:
    first, _, rest = statement.partition("?")
    return f"{first}:1{rest.replace('?', ':2', 1)}"


def verbs(items: int) -> dict[str, tuple[Callable[[Control], Awaitable[Any]], Sequence[str]]]:
    """Return the measured operations: the call of ``Control`` and the arguments of the command, by name."""
    item_id = f"item-{items // 2:08d}"
    return {
        "status": (lambda control: control.status(), ["status"]),
        "list": (lambda control: control.items(), ["list"]),
        "list pending": (lambda control: control.items(status="pending"), ["list", "--status", "pending"]),
        "list pending, deep": (
            lambda control: control.items(status="pending", after=item_id), ["list", "--status", "pending", "--after", item_id],
        ),
        "list completed, deep": (
            lambda control: control.items(status="completed", after=item_id),
            ["list", "--status", "completed", "--after", item_id],
        ),
        "list failed": (lambda control: control.items(status="failed"), ["list", "--status", "failed"]),
        "list --error, common": (lambda control: control.items(error="cannot reach"), ["list", "--error", "cannot reach"]),
        "list --error, none": (
            _expecting_nothing(lambda control: control.items(error="no such thing")), ["list", "--error", "no such thing"],
        ),
        "list failed, old": (
            lambda control: control.items(status="failed", older_than=1800),
            ["list", "--status", "failed", "--older-than", "30m"],
        ),
        "list pending, too old": (
            lambda control: control.items(status="pending", older_than=86400),
            ["list", "--status", "pending", "--older-than", "1d"],
        ),
        "list, too old": (lambda control: control.items(older_than=86400), ["list", "--older-than", "1d"]),
        "show": (lambda control: control.show(item_id), ["show", item_id]),
        "show, no such id": (_expecting_nothing(lambda control: control.show("item-0000x")), ["show", "item-0000x"]),
        "failures": (lambda control: control.failures(), ["failures"]),
        "stuck": (lambda control: control.stuck(), ["stuck"]),
        "workers": (lambda control: control.workers(), ["workers"]),
        "check": (lambda control: control.check(max_pending_age=60), ["check", "--max-pending-age", "1m"]),
    }  # fmt: skip


def _expecting_nothing(call: Callable[[Control], Awaitable[Any]]) -> Callable[[Control], Awaitable[Any]]:
    async def checked(control: Control) -> None:
        try:
            await call(control)
        except LookupError:
            return
        raise AssertionError("an item was found where none should be")

    return checked


async def in_process(path: Path, rounds: int, items: int) -> dict[str, list[tuple[float, float]]]:
    """Return wall-clock and CPU seconds of each operation, without opening the file."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in verbs(items)}
    async with Control(path) as control:
        for _ in range(rounds):
            for name, (call, _) in verbs(items).items():
                began, worked = time.perf_counter(), time.process_time()
                await call(control)
                seconds[name].append((time.perf_counter() - began, time.process_time() - worked))
    return seconds


def as_commands(path: Path, rounds: int, items: int) -> dict[str, list[float]]:
    """Return the seconds of each operation as a command, including the start of Python."""
    seconds: dict[str, list[float]] = {name: [] for name in verbs(items)}
    for _ in range(rounds):
        for name, (_, arguments) in verbs(items).items():
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "asyncrunner", *arguments, "--db", str(path)], capture_output=True, check=False
            )
            seconds[name].append(time.perf_counter() - began)
            assert b"Traceback" not in done.stderr, done.stderr.decode()
    return seconds


def changes(path: Path) -> dict[str, float]:
    """Return the seconds of operations that change or copy many items, called once each. They change the file."""

    async def timed() -> dict[str, float]:
        seconds: dict[str, float] = {}
        async with Control(path) as control:
            calls: dict[str, Callable[[], Awaitable[Any]]] = {
                "retry --error ConnectionError": lambda: control.retry(error="ConnectionError"),
                "cancel --pending": lambda: control.cancel(pending=True),
                "purge --before 30m": lambda: control.purge(timedelta(minutes=30)),
                "export (jsonl, to nowhere)": lambda: _export(control),
                "backup": lambda: control.backup(path.with_name(f"backup-{secrets.token_hex(4)}.db")),
            }
            for name, call in calls.items():
                began = time.perf_counter()
                await call()
                seconds[name] = time.perf_counter() - began
        return seconds

    return asyncio.run(timed())


async def _export(control: Control) -> None:
    from asyncrunner.admin.exports.formats import writer_of

    with Path("/dev/null").open("wb") as nowhere:
        writer = writer_of("jsonl", nowhere)
        async for page in control.export_pages():
            writer.write(page)
        writer.close()


def main() -> None:
    """Parse the options, measure, and print the times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks operate", description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="folder of the file; a temporary folder by default")
    parser.add_argument("--keep", action="store_true", help="keep the file; an existing one is always reused")
    parser.add_argument("--changes", action="store_true", help="also measure operations that change many items")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asyncrunner-bench-") as temporary:
        path = (options.folder or Path(temporary)) / f"operate-{options.items}.db"
        if not path.exists():
            began = time.perf_counter()
            make(path, options.items)
            print(f"created in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        print(describe_machine())
        print(f"{options.items:,} items, {path.stat().st_size / 1e6:,.0f} MB; seconds, median and longest of {options.rounds}\n")
        in_this_process = asyncio.run(in_process(path, options.rounds, options.items))
        from_shell = as_commands(path, options.rounds, options.items)
        print(f"{'':24} {'in process':>20} {'of a core':>11} {'as a command':>22}")
        for name, times in in_this_process.items():
            seconds, cpu_seconds = [wall for wall, _ in times], [cpu for _, cpu in times]
            commands = from_shell[name]
            print(
                f"{name:24} {statistics.median(seconds):10.3f} {max(seconds):9.3f} {statistics.median(cpu_seconds):11.3f} "
                f"{statistics.median(commands):12.3f} {max(commands):9.3f}"
            )
        if options.changes:
            print()
            for name, once in changes(path).items():
                print(f"{name:34} {once:10.1f} s")
        if not options.keep:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
