"""Make the repairs of ``doctor --fix``, which cannot lose an item, its state or its result."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from asyncrunner.errors import WorkerLost
from asyncrunner.serialization.error_info import describe
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.claims.recovery import adopt_orphans, lose_worker
from asyncrunner.sqlite.file.errors import translated
from asyncrunner.sqlite.file.opening import connect_writer
from asyncrunner.sqlite.large_results import delete_some_pieces
from asyncrunner.sqlite.locks import liveness_lock, slot_journal
from asyncrunner.sqlite.locks.write_lock import FairWriteLock
from asyncrunner.sqlite.maintenance.checks import missing_objects, private_files
from asyncrunner.store.liveness import ORPHANED, worker_lost
from asyncrunner.text.escaping import counted

if TYPE_CHECKING:
    from collections.abc import Iterator


def make_private(path: Path) -> Iterator[str]:
    """Make the store's files accessible only to their owner; yield a line for each changed file."""
    for file in private_files(path):
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
            file.chmod(mode & 0o700)
            yield f"{file.name} is now accessible only to its owner"


def repair(path: Path, *, now: float, batch: str | None = None) -> Iterator[str]:
    """Make every safe repair, and yield a line for each.

    Makes the files private, corrects the counts of items and of failed attempts of *batch* (None: of all batches), creates
    missing indexes and triggers, recovers the items of dead workers and orphaned items, deletes orphaned pieces of large
    results, runs a WAL checkpoint, and deletes the lock files of dead workers. Each change of the database is a separate
    transaction, so earlier changes survive a kill.
    *now* is in seconds since the epoch. Raises StoreUnavailable while another program holds the write lock.
    """
    yield from make_private(path)
    write_lock = FairWriteLock(path)
    try:
        with translated(str(path)), write_lock.pass_through():
            connection = connect_writer(path, "full")
            try:
                yield from _correct_totals(connection, batch)
                yield from _restore_objects(connection)
                yield from _count_causes(connection, batch)
                yield from _recover_items(connection, path, now)
                yield from _delete_orphaned_pieces(connection)
                connection.execute(sql.connection.WAL_CHECKPOINT)
                registered = {row[0] for row in connection.execute(sql.admin.WORKERS_AND_HOLDINGS)}
            finally:
                connection.close()
    finally:
        write_lock.close()
    for name in liveness_lock.names(path):
        if name not in registered and not liveness_lock.is_held(path, name):
            liveness_lock.forget(path, name)
            slot_journal.forget(path, name)


def _correct_totals(connection: sqlite3.Connection, batch: str | None) -> Iterator[str]:
    for name, total, count in connection.execute(sql.admin.WRONG_TOTALS, (batch,)).fetchall():
        connection.execute(sql.admin.CORRECT_TOTAL, (name,))
        yield f"corrected the item count of batch {name!r} from {total:,} to {count:,}"


def _count_causes(connection: sqlite3.Connection, batch: str | None) -> Iterator[str]:
    """Count failed attempts by cause again where they differ; missing triggers must have been created before."""
    for batch_id, name, wrong in connection.execute(sql.admin.WRONG_CAUSES, (batch,)).fetchall():
        connection.execute(sql.connection.BEGIN_WRITE)
        connection.execute(sql.admin.CLEAR_CAUSES, (batch_id,))
        connection.execute(sql.admin.COUNT_CAUSES, (batch_id,))
        connection.execute(sql.connection.COMMIT)
        yield f"counted the failed attempts of batch {name!r} again: {counted(wrong, 'cause')} had a wrong number"


def _delete_orphaned_pieces(connection: sqlite3.Connection) -> Iterator[str]:
    before = connection.total_changes
    while delete_some_pieces(connection):
        pass
    if connection.total_changes > before:
        yield f"deleted {counted(connection.total_changes - before, 'orphaned piece')} of large results"


def _restore_objects(connection: sqlite3.Connection) -> Iterator[str]:
    for statement in missing_objects(connection):
        connection.execute(statement)
        yield f"restored: {statement.split('(')[0].split('AFTER')[0].strip()}"


def _recover_items(connection: sqlite3.Connection, path: Path, now: float) -> Iterator[str]:
    for worker_id, host, pid, _ in connection.execute(sql.admin.WORKERS_AND_HOLDINGS).fetchall():
        if liveness_lock.is_held(path, worker_id) is not False:
            continue  # alive, or unproven without a lock file; watchdogs then compare its heartbeats
        error = describe(worker_lost(worker_id, pid, host, "doctor found it dead"))
        connection.execute(sql.connection.BEGIN_WRITE)
        recovered = lose_worker(connection, worker_id, error, now, running=slot_journal.running(path, worker_id))
        connection.execute(sql.connection.COMMIT)
        yield f"recovered {counted(recovered, 'item')} of the dead worker {worker_id}"
    if connection.execute(sql.workers.ORPHANS).fetchone() is not None:
        connection.execute(sql.connection.BEGIN_WRITE)
        recovered = adopt_orphans(connection, describe(WorkerLost(ORPHANED)), now)
        connection.execute(sql.connection.COMMIT)
        yield f"recovered {counted(recovered, 'item')} that no known worker held"
