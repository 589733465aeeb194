"""What may be wrong with a file and the place it is in. Looks only; what can be put right safely is in repairing.py.

Each check is a function of what it looks at that yields its findings; none of them trusts what the rows say.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncrunner.clock import from_text
from asyncrunner.sqlite import locks
from asyncrunner.sqlite import statements as sql
from asyncrunner.sqlite.connection import CHECKPOINT_BYTES
from asyncrunner.sqlite.file import connect_memory
from asyncrunner.sqlite.mounts import file_system, is_network
from asyncrunner.sqlite.pieces import STRAY

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Finding", "Level", "examine", "has_wal_reset_bug", "missing_objects", "private_files"]

_CLOCK_SLACK: Final = 5.0
_MOST: Final = 10  # findings of one check; a damaged file has thousands


class Level(StrEnum):
    """How bad it is; only ``wrong`` makes the command fail."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


class Finding(NamedTuple):
    """What a check found. ``can_fix``: ``--fix`` puts it right without touching an item's state or result."""

    check: str
    level: Level
    message: str
    can_fix: bool = False


def examine(connection: sqlite3.Connection, path: Path, *, full: bool, now: float, batch: str | None = None) -> Sequence[Finding]:
    """Every check, in the order of the report. *full* reads every page twice: minutes for a large file.

    With a *batch*, what concerns the batches is asked of that one alone.
    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("sqlite", _sqlite),
        ("file system", lambda: _place(path)),
        ("permissions", lambda: _permissions(path)),
        ("schema", lambda: _schema(connection)),
        ("integrity", lambda: _integrity(connection, full=full)),
        ("counts", lambda: _counts(connection, batch)),
        ("results", lambda: _results(connection)),
        ("write-ahead log", lambda: _wal(path)),
        ("workers", lambda: _workers(connection, path)),
        ("clock", lambda: _clock(connection, now)),
        ("batches", lambda: _batches(connection, batch)),
    ]
    findings: list[Finding] = []
    for name, check in checks:
        try:
            found = list(check())
        except sqlite3.DatabaseError as error:
            found = [Finding(name, Level.WRONG, f"cannot be checked: {error}")]
        findings += found or [Finding(name, Level.OK, "nothing wrong")]
    return findings


def has_wal_reset_bug(version: tuple[int, int, int]) -> bool:
    """Whether that SQLite may lose a commit when two connections checkpoint at once; fixed in 3.51.3, 3.50.7 and 3.44.6."""
    if version >= (3, 51, 0):
        return version < (3, 51, 3)
    if version >= (3, 45, 0):
        return version < (3, 50, 7)
    return version < (3, 44, 6)


def _sqlite() -> Iterator[Finding]:
    if has_wal_reset_bug(sqlite3.sqlite_version_info):
        yield Finding(
            "sqlite",
            Level.NOTE,
            f"SQLite {sqlite3.sqlite_version} has the WAL-reset bug. asyncrunner keeps clear of it: only one process "
            "checkpoints at a time. Let no other program write to the file, or use SQLite 3.51.3, 3.50.7 or 3.44.6",
        )
    else:
        yield Finding("sqlite", Level.OK, f"SQLite {sqlite3.sqlite_version}")


def _place(path: Path) -> Iterator[Finding]:
    kind = file_system(path.parent)
    if is_network(kind):
        yield Finding(
            "file system",
            Level.WRONG,
            f"{kind} is a network file system, where locks and the write-ahead log do not hold; move the file to a disk of "
            "this machine while nothing runs",
        )
    else:
        yield Finding("file system", Level.OK, kind or "unknown here")


def private_files(path: Path) -> Sequence[Path]:
    """Those of the store's files that are there: the database, what SQLite keeps beside it, and the folder of locks."""
    beside = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]
    return [each for each in (*beside, locks.locks_folder(path)) if each.exists()]


def _permissions(path: Path) -> Iterator[Finding]:
    for each in private_files(path):
        found = each.stat()
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077:
            yield Finding(
                "permissions",
                Level.WRONG,
                f"{each.name} may be used by others ({mode:04o}), and payloads may be secret",
                can_fix=True,
            )
        if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
            yield Finding(
                "permissions", Level.WRONG, f"{each.name} belongs to user {found.st_uid}; run as that user, or chown it"
            )


def _objects(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    rows = connection.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'")
    return {(kind, name): " ".join(text.split()) for kind, name, text in rows}


def missing_objects(connection: sqlite3.Connection) -> Sequence[str]:
    """The statements that make the indexes and triggers that somebody has dropped."""
    there = _objects(connection)
    fresh = connect_memory()
    try:
        rows = fresh.execute("SELECT type, name, sql FROM sqlite_schema WHERE type IN ('index', 'trigger') AND sql IS NOT NULL")
        return [text for kind, name, text in rows.fetchall() if (kind, name) not in there]
    finally:
        fresh.close()


def _schema(connection: sqlite3.Connection) -> Iterator[Finding]:
    there = _objects(connection)
    fresh = connect_memory()
    try:
        wanted = _objects(fresh)
    finally:
        fresh.close()
    for kind, name in wanted:
        if (kind, name) not in there:
            yield Finding("schema", Level.WRONG, f"the {kind} {name} is missing", can_fix=kind in ("index", "trigger"))
        elif there[kind, name] != wanted[kind, name]:
            yield Finding("schema", Level.WRONG, f"the {kind} {name} is not as asyncrunner makes it")
    for kind, name in there:
        if (kind, name) not in wanted:
            yield Finding("schema", Level.NOTE, f"the {kind} {name} is not asyncrunner's")


def _integrity(connection: sqlite3.Connection, *, full: bool) -> Iterator[Finding]:
    check = "integrity_check" if full else "quick_check"
    for (message,) in connection.execute(f"PRAGMA {check}({_MOST})"):
        if message != "ok":
            yield Finding(
                "integrity",
                Level.WRONG,
                f"{message}; stop every program that uses the file, keep a copy, recover it with the sqlite3 shell's .recover",
            )
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check").fetchmany(_MOST):
        yield Finding("integrity", Level.WRONG, f"row {row} of {table} belongs to no row of {parent}")


def _counts(connection: sqlite3.Connection, batch: str | None) -> Iterator[Finding]:
    for name, total, counted in connection.execute(sql.RECOUNT, (batch,)).fetchmany(_MOST):
        yield Finding("counts", Level.WRONG, f"batch {name!r} says {total} items and has {counted}", can_fix=True)


def _results(connection: sqlite3.Connection) -> Iterator[Finding]:
    strays = len(connection.execute(STRAY).fetchall())
    if strays:
        message = f"{strays} pieces of large results belong to nobody; the next run deletes them"
        yield Finding("results", Level.NOTE, message, can_fix=True)


def _wal(path: Path) -> Iterator[Finding]:
    wal = path.with_name(path.name + "-wal")
    size = wal.stat().st_size if wal.exists() else 0
    if size > 2 * CHECKPOINT_BYTES:
        yield Finding(
            "write-ahead log",
            Level.WRONG,
            f"it has {size // 1_000_000} MB that are not written back: some program reads without end, or was killed; end it",
            can_fix=True,
        )
    else:
        yield Finding("write-ahead log", Level.OK, f"{size // 1000} kB")


def _workers(connection: sqlite3.Connection, path: Path) -> Iterator[Finding]:
    alive = 0
    rows = connection.execute(sql.WORKERS_AND_HOLDINGS).fetchall()
    for worker_id, host, pid, held in rows:
        is_held = locks.is_held(path, worker_id)
        if is_held:
            alive += 1
            continue
        if is_held is None:
            yield Finding(
                "workers",
                Level.WRONG,
                f"worker {worker_id} (pid {pid} on {host}) has no lock file and holds {held} items. If it is alive it makes the "
                "file again within a second; else the next run takes them over. If this stays, look for what deletes files "
                "beside the database",
            )
            continue
        yield Finding(
            "workers",
            Level.WRONG,
            f"worker {worker_id} (pid {pid} on {host}) is dead and holds {held} items; the next run takes them over",
            can_fix=True,
        )
    orphans = len(connection.execute(sql.ORPHANS).fetchall())
    if orphans:
        yield Finding("workers", Level.WRONG, f"{orphans} items are processing by no worker that is known", can_fix=True)
    known = {row[0] for row in rows}
    left = [name for name in locks.names(path) if name not in known and not locks.is_held(path, name)]
    if left:
        yield Finding("workers", Level.NOTE, f"{len(left)} lock files of workers that are gone", can_fix=True)
    if alive:
        yield Finding("workers", Level.OK, f"{alive} alive")


def _clock(connection: sqlite3.Connection, now: float) -> Iterator[Finding]:
    newest = from_text(connection.execute(sql.NEWEST_BEAT).fetchone()[0])
    if newest is not None and newest - now > _CLOCK_SLACK:
        yield Finding(
            "clock",
            Level.WRONG,
            f"the newest heartbeat is {newest - now:.0f} s in the future: the clock was set back; the next run follows it",
        )
    if abs(time.time() - now) > _CLOCK_SLACK:
        yield Finding("clock", Level.NOTE, "the clock jumps while this looks at it")


def _batches(connection: sqlite3.Connection, batch: str | None) -> Iterator[Finding]:
    for name, paused, stopped in connection.execute(
        "SELECT name, paused, stopped FROM batches WHERE (paused OR stopped IS NOT NULL) AND (?1 IS NULL OR name = ?1)", (batch,)
    ):
        why = (
            "is paused: `asyncrunner resume` lets it go on"
            if paused
            else f"is stopped ({stopped}): it goes on when it is run again"
        )
        yield Finding("batches", Level.NOTE, f"{name!r} {why}")
