"""Changes by operators, as functions of the writer's connection, and the backup and vacuum of the whole file."""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from asyncrunner.clock import to_text
from asyncrunner.errors import ConfigurationError, StoreError
from asyncrunner.sqlite import operating_statements as sql
from asyncrunner.sqlite import statements
from asyncrunner.sqlite.connection import translated
from asyncrunner.sqlite.file import connect_reader, connect_writer
from asyncrunner.sqlite.locks import Turnstile
from asyncrunner.sqlite.pieces import sweep
from asyncrunner.sqlite.turn import recover

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncrunner.item import ErrorInfo

__all__ = [
    "adopt_orphans",
    "back_up",
    "cancel",
    "draft_of",
    "lose_worker",
    "pause",
    "publish",
    "resume",
    "retry",
    "set_concurrency",
    "vacuum",
]

_BACKUP_PAGES: Final = 2000
_STEPS_PER_CHECK: Final = 100_000  # SQLite instructions between two checks whether the backup continues: about 1 ms


def retry(connection: sqlite3.Connection, seqs: Sequence[int]) -> int:
    """Reset failed and cancelled items to pending with no attempts; return how many were failed or cancelled."""
    return connection.execute(sql.RETRY, (_json(seqs),)).rowcount


def cancel(connection: sqlite3.Connection, seqs: Sequence[int], now: float, *, pending_only: bool) -> int:
    """Cancel pending and processing items, also those that a worker holds; return how many were cancelled.

    With *pending_only*, processing items are not cancelled. *now* is in seconds since the epoch, here and below.
    """
    statement = sql.CANCEL_PENDING if pending_only else sql.CANCEL
    return connection.execute(statement, (to_text(now), _json(seqs))).rowcount


def pause(connection: sqlite3.Connection, batch_id: int) -> int:
    """Pause a batch, so that no worker starts more of its items; return 1, or 0 if it was already paused."""
    return connection.execute(sql.PAUSE, (batch_id,)).rowcount


def resume(connection: sqlite3.Connection, batch_id: int, now: float) -> int:
    """End a batch's pause, its stop by a limit and its cool-down; return 1, or 0 if it had none of them."""
    return connection.execute(sql.RESUME, (batch_id, to_text(now))).rowcount


def set_concurrency(connection: sqlite3.Connection, batch_id: int, concurrency: int | None) -> int:
    """Set how many handlers of the batch run at the same time in one worker; None restores the program's own setting.

    Returns 0 if the batch is gone.
    """
    return connection.execute(sql.SET_CONCURRENCY, (concurrency, batch_id)).rowcount


def lose_worker(connection: sqlite3.Connection, worker_id: str, error: ErrorInfo, now: float, pulse: str | None = None) -> int:
    """Mark a worker as lost and recover the items that it held; return how many were recovered.

    Returns 0 if the worker was already lost or has left. *pulse* is the last heartbeat that the caller saw; if the worker has
    sent another one since, it is not marked and the result is 0.
    """
    if not connection.execute(statements.LOSE_WORKER, (to_text(now), worker_id, pulse)).rowcount:
        return 0
    held = connection.execute(statements.HELD_BY, (worker_id,)).fetchall()
    other_workers: int = connection.execute(statements.BESIDE, (worker_id,)).fetchone()[0]
    return len(recover(connection, held, error, now, other_workers=other_workers))


def adopt_orphans(connection: sqlite3.Connection, error: ErrorInfo, now: float) -> int:
    """Recover the orphaned items, which no known worker holds; return how many were recovered."""
    return len(recover(connection, connection.execute(statements.ORPHANS).fetchall(), error, now))


def _json(seqs: Sequence[int]) -> str:
    return msgspec.json.encode(list(seqs)).decode()


# --- the whole file ----------------------------------------------------------------------------------------------------


def draft_of(target: Path) -> Path:
    """Create an empty temporary file beside *target*, with mode 0600; ``publish()`` gives it its name. Return its path.

    Raises ConfigurationError if *target* exists or the temporary file cannot be created.
    """
    if os.path.lexists(target):
        raise ConfigurationError(f"{target} already exists; give another path, or remove it first")
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.new")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except (OSError, ValueError) as error:  # a NUL is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"{str(target)!r} cannot be written ({reason}); give another path") from error
    return draft


def publish(draft: Path, target: Path) -> None:
    """Rename the finished *draft* to *target*, and never replace a file.

    Raises ConfigurationError if another program created *target* meanwhile, or if it cannot be written. The draft's own name is
    removed in every case.
    """
    try:
        try:
            os.link(draft, target)
        except PermissionError:  # a file system without links: reserve the name first, so that no file is replaced
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            draft.replace(target)
    except FileExistsError:
        raise ConfigurationError(f"{target} was created by another program meanwhile; give another path") from None
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written ({error.strerror}); give another path") from error
    finally:
        draft.unlink(missing_ok=True)


def back_up(path: Path, target: Path, goes_on: Callable[[], bool], now: float, *, only: int | None = None) -> int:
    """Copy a snapshot of the file to *target*, while others write to the file; return the size of the copy in bytes.

    The copy has no active workers: items that a worker holds are pending there, with the attempt refunded, as if the worker had
    left. With *only*, the copy has that batch id alone. *target* appears only when the copy is complete; a kill leaves at most a
    temporary file. *goes_on* is called often; when it returns False, the backup ends with StoreError and leaves no file.
    Raises ConfigurationError if *target* exists or cannot be written, StoreError or StoreUnavailable if the file cannot be
    read or the disk is full.
    """
    draft = draft_of(target)
    source = connect_reader(path)

    def progress(status: int, remaining: int, total: int) -> None:
        del status, remaining, total
        if not goes_on():
            raise StoreError("the backup was stopped; no file was left behind")

    try:
        with translated(str(path)):
            source.execute("BEGIN")  # one read transaction for the whole copy, so that it has no later writes
            source.execute(statements.BATCH_NAMES).fetchone()
        copy = sqlite3.connect(draft, isolation_level=None)
        try:
            source.backup(copy, pages=_BACKUP_PAGES, progress=progress)
            source.execute("ROLLBACK")  # from here on the file's WAL can be checkpointed again
            copy.set_progress_handler(lambda: not goes_on(), _STEPS_PER_CHECK)
            _release_all(copy, now)
            if only is not None:
                _forget_others(copy, only)
        except sqlite3.Error as error:
            raise StoreError(f"{target} cannot be written ({error}); check that the disk has room for it") from error
        finally:
            copy.close()
        size = draft.stat().st_size
        publish(draft, target)
    finally:
        source.close()
        for suffix in ("", "-wal", "-shm", "-journal"):
            with suppress(OSError):
                draft.with_name(draft.name + suffix).unlink(missing_ok=True)
    return size


def _release_all(copy: sqlite3.Connection, now: float) -> None:
    copy.execute("PRAGMA trusted_schema = OFF")
    copy.execute("BEGIN IMMEDIATE")
    copy.execute(sql.RELEASE_HELD)
    copy.execute(sql.END_WORKERS, (to_text(now),))
    copy.execute("COMMIT")
    _delete_orphaned_pieces(copy)


def _delete_orphaned_pieces(copy: sqlite3.Connection) -> None:
    while sweep(copy):
        pass


def _forget_others(copy: sqlite3.Connection, batch_id: int) -> None:
    copy.execute("BEGIN IMMEDIATE")
    for statement in sql.FORGET_OTHERS:
        copy.execute(statement, (batch_id,) if "?" in statement else ())
    copy.execute("COMMIT")
    _delete_orphaned_pieces(copy)
    copy.execute("VACUUM")  # otherwise deleted data could still be read in the free pages


def vacuum(path: Path) -> None:
    """Rewrite the file without the free pages that deleted items left. No other process can write meanwhile.

    A kill leaves the file as it was. Raises StoreUnavailable while another process holds the write lock, or if the disk has no
    room for a second copy of the file; StoreError for lasting errors.
    """
    write_lock = Turnstile(path)
    try:
        with translated(str(path)), write_lock.pass_through():
            connection = connect_writer(path, "full")
            try:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.close()
    finally:
        write_lock.close()
