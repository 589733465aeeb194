"""Check a database file and its folder for ``asyncrunner doctor``. The checks only read; repairs.py makes the safe repairs.

Each check is a function that yields its findings. No check relies on valid contents of the rows.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asyncrunner.sqlite import sql
from asyncrunner.sqlite.file.filesystem import file_system, is_network
from asyncrunner.sqlite.file.opening import connect_memory
from asyncrunner.sqlite.file.wal import CHECKPOINT_BYTES, wal_size
from asyncrunner.sqlite.insert import MAX_SEQ
from asyncrunner.sqlite.locks import liveness_lock
from asyncrunner.sqlite.locks.lock_file import locks_folder
from asyncrunner.store.maintenance import CheckLevel, CheckResult, resting_batches
from asyncrunner.text.escaping import counted, counted_are, safe_text
from asyncrunner.text.timestamps import from_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from asyncrunner.domain.clock import Clock

_CLOCK_SLACK_SECONDS: Final = 5.0
_MAX_FINDINGS: Final = 10  # findings that one query reports; a damaged file has thousands
_MAX_NAMES: Final = 5  # of tables of other programs
_MAX_NAME: Final = 40  # characters
_MIN_SEQS_LEFT: Final = 1_000_000_000
_MIN_HUGE_CLAIM: Final = 2**62  # asyncrunner adds 1 per claim, so it gives no such number
_QUOTED_OR_COMMENT: Final = re.compile(r"""(?P<quoted>'[^']*'|"[^"]*")|--[^\n]*|/\*.*?\*/""", re.DOTALL)


def examine(
    connection: sqlite3.Connection, path: Path, *, full: bool, clock: Clock, batch: str | None = None
) -> Sequence[CheckResult]:
    """Run every check and return the findings, in the order of the report.

    *full* also checks each index against its table and takes minutes for a large file. With *batch*, only that batch's
    counts and controls are checked. If SQLite cannot run a check, the report has a finding about it.
    """
    started_offset = _offset_of(clock)
    checks: list[tuple[str, Callable[[], Iterator[CheckResult]]]] = [
        ("sqlite", _check_sqlite),
        ("file system", lambda: _check_file_system(path)),
        ("permissions", lambda: _check_permissions(path)),
        ("schema", lambda: _check_schema(connection)),
        ("integrity", lambda: _check_integrity(connection, full=full)),
        ("counts", lambda: _check_counts(connection, batch)),
        ("causes", lambda: _check_causes(connection, batch)),
        ("numbers", lambda: _check_numbers(connection)),
        ("results", lambda: _check_results(connection)),
        ("write-ahead log", lambda: _check_wal(path)),
        ("workers", lambda: _check_workers(connection, path)),
        ("clock", lambda: _check_clock(connection, clock, started_offset)),
        ("batches", lambda: _check_batches(connection, batch)),
    ]
    findings: list[CheckResult] = []
    for name, check in checks:
        try:
            results = list(check())
        except sqlite3.DatabaseError as error:
            results = [CheckResult(name, CheckLevel.WRONG, f"cannot be checked: {error}")]
        findings += results or [CheckResult(name, CheckLevel.OK, "no problems")]
    return findings


def has_wal_reset_bug(version: tuple[int, int, int]) -> bool:
    """Return whether this SQLite version may lose a commit when two connections run a WAL checkpoint at the same time.

    The bug is fixed in 3.51.3, 3.50.7 and 3.44.6.
    """
    if version >= (3, 51, 0):
        return version < (3, 51, 3)
    if version >= (3, 45, 0):
        return version < (3, 50, 7)
    return version < (3, 44, 6)


def _check_sqlite() -> Iterator[CheckResult]:
    if has_wal_reset_bug(sqlite3.sqlite_version_info):
        yield CheckResult(
            "sqlite",
            CheckLevel.NOTE,
            f"SQLite {sqlite3.sqlite_version} has the WAL-reset bug. asyncrunner avoids it: only one process runs a "
            "WAL checkpoint at a time. In another program that writes to the file while workers run, execute PRAGMA "
            "wal_autocheckpoint = 0 first, or use SQLite 3.51.3, 3.50.7 or 3.44.6",
        )
    else:
        yield CheckResult("sqlite", CheckLevel.OK, f"SQLite {sqlite3.sqlite_version}")


def _check_file_system(path: Path) -> Iterator[CheckResult]:
    kind = file_system(path.parent)
    if is_network(kind):
        yield CheckResult(
            "file system",
            CheckLevel.WRONG,
            f"{kind} is a network file system, where locks and the write-ahead log do not work; move the file to a disk of "
            "this machine while no program uses it",
        )
    else:
        yield CheckResult("file system", CheckLevel.OK, kind or "unknown on this system")


def private_files(path: Path) -> Sequence[Path]:
    """Return the store's files that exist: the database, its -wal and -shm files, and the folder of lock files."""
    files = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]
    return [file for file in (*files, locks_folder(path)) if file.exists()]


def _check_permissions(path: Path) -> Iterator[CheckResult]:
    for file in private_files(path):
        status = file.stat()
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            yield CheckResult(
                "permissions",
                CheckLevel.WRONG,
                f"other users can access {file.name} ({mode:04o}), and payloads may be secret",
                can_fix=True,
            )
        if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
            yield CheckResult(
                "permissions",
                CheckLevel.WRONG,
                f"{file.name} belongs to user {status.st_uid}; run as that user, or chown the file",
            )


def _objects(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    rows = connection.execute(sql.admin.SCHEMA_OBJECTS)
    # A SQLite in defensive mode keeps the released text of the foreign key, see sql/schema.py; both texts mean the same.
    return {
        (kind, name): without_comments(text).replace("REFERENCES batches,", "REFERENCES batches (batch_id),")
        for kind, name, text in rows
    }


def without_comments(statement: str) -> str:
    """Return a SQL statement without its comments, each run of spaces and newlines as one space.

    An older version of asyncrunner may have created the file with other comments.
    """
    return " ".join(_QUOTED_OR_COMMENT.sub(lambda match: match["quoted"] or " ", statement).split())


def missing_objects(connection: sqlite3.Connection) -> Sequence[str]:
    """Return the SQL statements that create the indexes and triggers missing from the file."""
    existing = _objects(connection)
    fresh = connect_memory()
    try:
        rows = fresh.execute(sql.admin.INDEXES_AND_TRIGGERS)
        return [text for kind, name, text in rows.fetchall() if (kind, name) not in existing]
    finally:
        fresh.close()


def _check_schema(connection: sqlite3.Connection) -> Iterator[CheckResult]:
    existing = _objects(connection)
    fresh = connect_memory()
    try:
        expected = _objects(fresh)
    finally:
        fresh.close()
    for kind, name in expected:
        if (kind, name) not in existing:
            yield CheckResult("schema", CheckLevel.WRONG, f"the {kind} {name} is missing", can_fix=kind in ("index", "trigger"))
        elif existing[kind, name] != expected[kind, name]:
            yield CheckResult("schema", CheckLevel.WRONG, f"the {kind} {name} differs from asyncrunner's schema")
    yield from _foreign_objects(connection, expected)


def _foreign_objects(connection: sqlite3.Connection, expected: Collection[tuple[str, str]]) -> Iterator[CheckResult]:
    """Yield one note about the tables of other programs, and one about each object that they added to our tables."""
    our_tables = {name for kind, name in expected if kind == "table"}
    tables: list[str] = []
    views: list[str] = []
    for kind, name, table in connection.execute(sql.admin.SCHEMA_NAMES):
        if (kind, name) in expected:
            continue
        if kind == "table":
            tables.append(name)
        elif kind == "view":
            views.append(name)
        elif table in our_tables:
            message = f"the {kind} {safe_text(name)} on {table} is not part of asyncrunner's schema"
            yield CheckResult("schema", CheckLevel.NOTE, message)
    for noun, names in (("table", tables), ("view", views)):
        if names:
            shown = ", ".join(safe_text(name, limit=_MAX_NAME) for name in names[:_MAX_NAMES])
            more = ", ..." if len(names) > _MAX_NAMES else ""
            message = f"the file also has {counted(len(names), noun)} of other programs: {shown}{more}"
            yield CheckResult("schema", CheckLevel.NOTE, message)


def _check_integrity(connection: sqlite3.Connection, *, full: bool) -> Iterator[CheckResult]:
    for (message,) in connection.execute(sql.admin.INTEGRITY_CHECK if full else sql.admin.QUICK_CHECK):
        if message != "ok":
            yield CheckResult(
                "integrity",
                CheckLevel.WRONG,
                f"{message}; stop every program that uses the file, keep a copy, recover it with .recover in the sqlite3 shell",
            )
    for table, row, parent, _ in connection.execute(sql.admin.FOREIGN_KEY_CHECK).fetchmany(_MAX_FINDINGS):
        yield CheckResult("integrity", CheckLevel.WRONG, f"row {row} of {table} refers to a missing row of {parent}")


def _check_counts(connection: sqlite3.Connection, batch: str | None) -> Iterator[CheckResult]:
    for name, total, count in connection.execute(sql.admin.WRONG_TOTALS, (batch,)).fetchmany(_MAX_FINDINGS):
        yield CheckResult(
            "counts", CheckLevel.WRONG, f"batch {name!r} records {counted(total, 'item')} but has {count:,}", can_fix=True
        )


def _check_causes(connection: sqlite3.Connection, batch: str | None) -> Iterator[CheckResult]:
    for _, name, wrong in connection.execute(sql.admin.WRONG_CAUSES, (batch,)).fetchmany(_MAX_FINDINGS):
        yield CheckResult(
            "causes",
            CheckLevel.WRONG,
            f"batch {name!r}: for {counted(wrong, 'cause')}, the table causes has another number of failed attempts than the "
            "table failures, so `asyncrunner failures` shows a wrong number; --fix counts the attempts again",
            can_fix=True,
        )


def _check_numbers(connection: sqlite3.Connection) -> Iterator[CheckResult]:
    last = connection.execute(sql.items.LAST_SEQ).fetchone()[0]
    if last > MAX_SEQ - _MIN_SEQS_LEFT:
        yield CheckResult(
            "numbers",
            CheckLevel.WRONG,
            f"a row of items has or had the seq {last}, so only {MAX_SEQ - last} are left for new items. Give such rows a "
            "smaller seq, and set the seq of items in the table sqlite_sequence to the largest seq in items",
        )
    for name, key, claim in connection.execute(sql.admin.HUGE_CLAIMS, (_MIN_HUGE_CLAIM,)).fetchmany(_MAX_FINDINGS):
        yield CheckResult(
            "numbers",
            CheckLevel.NOTE,
            f"item {key!r} of {name!r} has the claim {claim}, which was written by hand; after {MAX_SEQ} follows 1",
        )


def _check_results(connection: sqlite3.Connection) -> Iterator[CheckResult]:
    for name, key in connection.execute(sql.admin.INCOMPLETE_RESULTS).fetchmany(_MAX_FINDINGS):
        yield CheckResult(
            "results",
            CheckLevel.WRONG,
            f"the result of item {key!r} of {name!r} is incomplete: rows of result_pieces were deleted. To run the item again, "
            "delete its row in items and add it again",
        )
    orphaned = len(connection.execute(sql.large_results.ORPHANED_PIECES).fetchall())
    if orphaned:
        message = f"{counted(orphaned, 'orphaned piece')} of large results; the next run deletes them"
        yield CheckResult("results", CheckLevel.NOTE, message, can_fix=True)


def _check_wal(path: Path) -> Iterator[CheckResult]:
    size = wal_size(path)
    if size > 2 * CHECKPOINT_BYTES:
        yield CheckResult(
            "write-ahead log",
            CheckLevel.WRONG,
            f"the write-ahead log has grown to {size // 1_000_000} MB: end the program that keeps a read transaction open; if a "
            "program was killed, --fix runs the WAL checkpoint",
            can_fix=True,
        )
    else:
        yield CheckResult("write-ahead log", CheckLevel.OK, f"{size // 1000} kB")


def _check_workers(connection: sqlite3.Connection, path: Path) -> Iterator[CheckResult]:
    rows = connection.execute(sql.admin.WORKERS_AND_HOLDINGS).fetchall()
    if rows and (folder := locks_folder(path)).exists() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield CheckResult(
            "workers",
            CheckLevel.NOTE,
            f"you may not open the lock files in {folder}, which show whether workers are alive: run this as the user who runs "
            "the workers",
        )
        return
    yield from _check_locks(connection, path, rows)


def _check_locks(connection: sqlite3.Connection, path: Path, rows: Sequence[tuple[str, str, int, int]]) -> Iterator[CheckResult]:
    alive = 0
    for worker_id, host, pid, items in rows:
        is_held = liveness_lock.is_held(path, worker_id)
        if is_held:
            alive += 1
            continue
        if is_held is None:
            yield CheckResult(
                "workers",
                CheckLevel.WRONG,
                f"worker {worker_id} (pid {pid} on {host}) has no lock file and holds {counted(items, 'item')}. If the worker is "
                "alive, it creates the file again within a second; otherwise the next run recovers the items. If this message "
                "stays, find the program that deletes files beside the database",
            )
            continue
        yield CheckResult(
            "workers",
            CheckLevel.WRONG,
            f"worker {worker_id} (pid {pid} on {host}) is dead and holds {counted(items, 'item')}; the next run recovers them",
            can_fix=True,
        )
    orphaned = len(connection.execute(sql.workers.ORPHANS).fetchall())
    if orphaned:
        yield CheckResult(
            "workers", CheckLevel.WRONG, f"{counted_are(orphaned, 'item')} processing but held by no known worker", can_fix=True
        )
    registered = {row[0] for row in rows}
    leftover = [name for name in liveness_lock.names(path) if name not in registered and not liveness_lock.is_held(path, name)]
    if leftover:
        yield CheckResult("workers", CheckLevel.NOTE, f"{len(leftover)} lock files are left over from dead workers", can_fix=True)
    if alive:
        yield CheckResult("workers", CheckLevel.OK, f"{alive} alive")


def _offset_of(clock: Clock) -> float:
    return clock.now() - clock.monotonic()


def _check_clock(connection: sqlite3.Connection, clock: Clock, started_offset: float) -> Iterator[CheckResult]:
    newest = from_text(connection.execute(sql.workers.NEWEST_BEAT).fetchone()[0])
    now = clock.now()  # read after the heartbeat: the checks before this one may take minutes, while workers write heartbeats
    if newest is not None and newest - now > _CLOCK_SLACK_SECONDS:
        yield CheckResult(
            "clock",
            CheckLevel.WRONG,
            f"the newest heartbeat is {newest - now:.0f} s in the future: the clock was set back; the next run "
            "sets stored times back too",
        )
    if abs(_offset_of(clock) - started_offset) > _CLOCK_SLACK_SECONDS:
        yield CheckResult("clock", CheckLevel.NOTE, f"the clock moved by more than {_CLOCK_SLACK_SECONDS:g} s during the checks")


def _check_batches(connection: sqlite3.Connection, batch: str | None) -> Iterator[CheckResult]:
    yield from resting_batches(connection.execute(sql.admin.PAUSED_OR_STOPPED, (batch,)))
