"""What ``doctor --fix`` puts right: nothing that could lose an item, its state or its result."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from asyncrunner.errors import WorkerLost
from asyncrunner.failure import describe
from asyncrunner.sqlite import locks
from asyncrunner.sqlite import statements as sql
from asyncrunner.sqlite.connection import translated
from asyncrunner.sqlite.examining import missing_objects, private_files
from asyncrunner.sqlite.file import connect_writer
from asyncrunner.sqlite.locks import Turnstile
from asyncrunner.sqlite.operating import lose_worker
from asyncrunner.sqlite.pieces import sweep
from asyncrunner.sqlite.turn import recover

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["make_private", "repair"]


def make_private(path: Path) -> Iterator[str]:
    """Take the others' permissions on the store's files away; yields what was done."""
    for each in private_files(path):
        mode = stat.S_IMODE(each.stat().st_mode)
        if mode & 0o077:
            each.chmod(mode & 0o700)
            yield f"{each.name} is for its owner only"


def repair(path: Path, *, now: float, batch: str | None = None) -> Iterator[str]:
    """Recount (that *batch*, or all), make what is missing, recover what the dead hold, write the log back; yields what was done.

    Each in a transaction of its own. Raises StoreUnavailable while another program holds the write lock.
    """
    yield from make_private(path)
    turnstile = Turnstile(path)
    try:
        with translated(str(path)), turnstile.pass_through():
            connection = connect_writer(path, "full")
            try:
                yield from _recount(connection, batch)
                yield from _remake(connection)
                yield from _recover(connection, path, now)
                yield from _sweep(connection)
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.close()
    finally:
        turnstile.close()
    for name in locks.names(path):
        if locks.is_held(path, name) is False:
            locks.forget(path, name)


def _recount(connection: sqlite3.Connection, batch: str | None) -> Iterator[str]:
    for name, total, counted in connection.execute(sql.RECOUNT, (batch,)).fetchall():
        connection.execute(sql.SET_TOTAL, (name,))
        yield f"batch {name!r} counts {counted} items, not {total}"


def _sweep(connection: sqlite3.Connection) -> Iterator[str]:
    before = connection.total_changes
    while sweep(connection):
        pass
    if connection.total_changes > before:
        yield f"deleted {connection.total_changes - before} pieces of large results that belonged to nobody"


def _remake(connection: sqlite3.Connection) -> Iterator[str]:
    for statement in missing_objects(connection):
        connection.execute(statement)
        yield f"made again: {statement.split('(')[0].split('AFTER')[0].strip()}"


def _recover(connection: sqlite3.Connection, path: Path, now: float) -> Iterator[str]:
    for worker_id, host, pid, _ in connection.execute(sql.WORKERS_AND_HOLDINGS).fetchall():
        if locks.is_held(path, worker_id) is not False:
            continue  # alive, or without a lock file, which proves nothing: the watchdogs judge it by its heartbeat
        error = describe(WorkerLost(f"worker {worker_id} (pid {pid} on {host}) was lost: doctor found it dead"))
        connection.execute("BEGIN IMMEDIATE")
        recovered = lose_worker(connection, worker_id, error, now)
        connection.execute("COMMIT")
        yield f"recovered {recovered} items of the dead worker {worker_id}"
    orphans = connection.execute(sql.ORPHANS).fetchall()
    if orphans:
        error = describe(WorkerLost("its worker is not known to the file; it runs again"))
        connection.execute("BEGIN IMMEDIATE")
        recover(connection, orphans, error, now)
        connection.execute("COMMIT")
        yield f"recovered {len(orphans)} items that no known worker held"
