"""Back up a database file while workers use it, and compact a file."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asyncrunner.errors import StoreError
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.file.errors import translated
from asyncrunner.sqlite.file.opening import connect_reader, connect_writer
from asyncrunner.sqlite.large_results import delete_some_pieces
from asyncrunner.sqlite.locks.write_lock import FairWriteLock
from asyncrunner.text.atomic_file import draft_of, publish, remove_draft
from asyncrunner.text.timestamps import to_text

if TYPE_CHECKING:
    from collections.abc import Callable

_BACKUP_PAGES: Final = 2000
_STEPS_PER_CHECK: Final = 100_000  # SQLite instructions between two calls of *is_wanted*: about 1 ms


def back_up(path: Path, target: Path, is_wanted: Callable[[], bool], now: float, *, only: int | None = None) -> int:
    """Copy a snapshot of the file to *target*, while others write to the file; return the size of the copy in bytes.

    The copy has no active workers: items that a worker holds in the file are pending in the copy, with the attempt refunded, as
    if the worker had left. With *only*, the copy has only the batch with that id. *target* appears only when the copy is
    complete; a kill leaves at most a temporary file. The backup often calls *is_wanted*; when that returns False, the backup
    raises StoreError and leaves no file.
    Raises ConfigurationError if *target* exists or cannot be written, StoreError or StoreUnavailable if the file cannot be
    read or the disk is full.
    """
    draft = draft_of(target)
    try:
        source = connect_reader(path)
    except BaseException:
        remove_draft(draft)
        raise

    def progress(status: int, remaining: int, total: int) -> None:
        del status, remaining, total
        if not is_wanted():
            raise StoreError("the backup was stopped; it left no file")

    try:
        with translated(str(path)):
            source.execute(sql.connection.BEGIN)  # one read transaction for the whole copy, so that the copy has no later writes
            source.execute(sql.batches.BATCH_NAMES).fetchone()
        copy = sqlite3.connect(draft, isolation_level=None)
        try:
            source.backup(copy, pages=_BACKUP_PAGES, progress=progress)
            source.execute(sql.connection.ROLLBACK)  # a WAL checkpoint of the file can run again
            copy.set_progress_handler(lambda: not is_wanted(), _STEPS_PER_CHECK)
            _release_all(copy, now)
            if only is not None:
                _delete_other_batches(copy, only)
            copy.execute(sql.connection.USE_JOURNAL)
        except sqlite3.Error as error:
            raise StoreError(f"{target} cannot be written ({error}); check that the disk has room for it") from error
        finally:
            copy.close()
        size = draft.stat().st_size
        publish(draft, target)
    finally:
        source.close()
        remove_draft(draft)
    return size


def _release_all(copy: sqlite3.Connection, now: float) -> None:
    copy.execute(sql.connection.DISTRUST_SCHEMA)
    copy.execute(sql.connection.BEGIN_WRITE)
    copy.execute(sql.claims.RERUN, copy.execute(sql.admin.HELD_RERUNS).fetchone())
    copy.execute(sql.admin.RELEASE_HELD)
    copy.execute(sql.admin.END_WORKERS, (to_text(now),))
    copy.execute(sql.connection.COMMIT)
    _delete_orphaned_pieces(copy)


def _delete_orphaned_pieces(copy: sqlite3.Connection) -> None:
    while delete_some_pieces(copy):
        pass


def _delete_other_batches(copy: sqlite3.Connection, batch_id: int) -> None:
    copy.execute(sql.connection.BEGIN_WRITE)
    for statement in sql.admin.DELETE_OTHER_BATCHES:
        copy.execute(statement, (batch_id,) if "?" in statement else ())
    copy.execute(sql.connection.COMMIT)
    _delete_orphaned_pieces(copy)
    copy.execute(sql.connection.VACUUM)  # otherwise the free pages would still have the deleted data


def vacuum(path: Path) -> None:
    """Rewrite the file without the free pages that deleted items left. No other process can write meanwhile.

    A kill leaves the file unchanged. Raises StoreUnavailable while another process holds the write lock, or if the disk has no
    room for a second copy of the file; StoreError for lasting errors.
    """
    write_lock = FairWriteLock(path)
    try:
        with translated(str(path)), write_lock.pass_through():
            connection = connect_writer(path, "full")
            try:
                connection.execute(sql.connection.VACUUM)
                connection.execute(sql.connection.WAL_CHECKPOINT)
            finally:
                connection.close()
    finally:
        write_lock.close()
