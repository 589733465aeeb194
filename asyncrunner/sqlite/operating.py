"""What those who operate change, as functions of the writer's connection, and what is done to the file as a whole."""

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
_STEPS_A_LOOK: Final = 100_000  # of SQLite's machine, between two looks whether the backup goes on: about a millisecond


def retry(connection: sqlite3.Connection, seqs: Sequence[int]) -> int:
    """Give failed and cancelled items a fresh start; returns how many were one of these."""
    return connection.execute(sql.RETRY, (_json(seqs),)).rowcount


def cancel(connection: sqlite3.Connection, seqs: Sequence[int], now: float, *, pending_only: bool) -> int:
    """Cancel items, whoever holds them; returns how many there were to cancel."""
    statement = sql.CANCEL_PENDING if pending_only else sql.CANCEL
    return connection.execute(statement, (to_text(now), _json(seqs))).rowcount


def pause(connection: sqlite3.Connection, batch_id: int) -> int:
    """Let nobody start more of the batch; returns whether that is new."""
    return connection.execute(sql.PAUSE, (batch_id,)).rowcount


def resume(connection: sqlite3.Connection, batch_id: int, now: float) -> int:
    """Lift a pause, a guardrail's stop and a cool-down; returns whether there was one."""
    return connection.execute(sql.RESUME, (batch_id, to_text(now))).rowcount


def set_concurrency(connection: sqlite3.Connection, batch_id: int, concurrency: int | None) -> int:
    """How many handlers of the batch run at once in a worker; None: as the program says."""
    return connection.execute(sql.SET_CONCURRENCY, (concurrency, batch_id)).rowcount


def lose_worker(connection: sqlite3.Connection, worker_id: str, error: ErrorInfo, now: float, pulse: str | None = None) -> int:
    """Declare a worker lost and settle what it held; returns how many items that was.

    0 if it was lost or gone already, or, with *pulse*, if it has beaten again.
    """
    if not connection.execute(statements.LOSE_WORKER, (to_text(now), worker_id, pulse)).rowcount:
        return 0
    held = connection.execute(statements.HELD_BY, (worker_id,)).fetchall()
    beside: int = connection.execute(statements.BESIDE, (worker_id,)).fetchone()[0]
    return len(recover(connection, held, error, now, other_workers=beside))


def adopt_orphans(connection: sqlite3.Connection, error: ErrorInfo, now: float) -> int:
    """The same for what no known worker holds."""
    return len(recover(connection, connection.execute(statements.ORPHANS).fetchall(), error, now))


def _json(seqs: Sequence[int]) -> str:
    return msgspec.json.encode(list(seqs)).decode()


# --- the file as a whole -----------------------------------------------------------------------------------------------


def draft_of(target: Path) -> Path:
    """A new, empty file beside *target*, for its owner only, that becomes it with ``publish()``.

    Raises ConfigurationError if there is something at *target*, or no folder for it.
    """
    if os.path.lexists(target):
        raise ConfigurationError(f"{target} exists already; give another path, or remove it first")
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.new")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except (OSError, ValueError) as error:  # a NUL is a ValueError
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"{str(target)!r} cannot be written ({why}); give another path") from error
    return draft


def publish(draft: Path, target: Path) -> None:
    """Give the finished *draft* its name. Raises ConfigurationError if that was taken meanwhile; then the draft is gone."""
    try:
        try:
            os.link(draft, target)
        except PermissionError:  # a file system without links: take the name first, so that nothing is replaced
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            draft.replace(target)
    except FileExistsError:
        raise ConfigurationError(f"{target} was made by somebody else meanwhile; give another path") from None
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written ({error.strerror}); give another path") from error
    finally:
        draft.unlink(missing_ok=True)


def back_up(path: Path, target: Path, goes_on: Callable[[], bool], now: float, *, only: int | None = None) -> int:
    """Copy the file as it is at this moment, while others write to it; returns the bytes of the copy. *only*: that batch alone.

    No worker is in the copy: what they hold is pending there, with the attempt refunded, as if they had left. Nothing is at
    *target* until the copy is whole. Stops when *goes_on* says no. Raises ConfigurationError, StoreError.
    """
    draft = draft_of(target)
    source = connect_reader(path)

    def progress(status: int, remaining: int, total: int) -> None:
        del status, remaining, total
        if not goes_on():
            raise StoreError("the backup was stopped; nothing was left behind")

    try:
        with translated(str(path)):
            source.execute("BEGIN")  # held throughout: pages that others write meanwhile are not in this picture
            source.execute(statements.BATCH_NAMES).fetchone()
        copy = sqlite3.connect(draft, isolation_level=None)
        try:
            source.backup(copy, pages=_BACKUP_PAGES, progress=progress)
            source.execute("ROLLBACK")  # the log of the file may be written back again
            copy.set_progress_handler(lambda: not goes_on(), _STEPS_A_LOOK)
            _leave_all(copy, now)
            if only is not None:
                _forget_others(copy, only)
        except sqlite3.Error as error:
            raise StoreError(f"{target} cannot be written ({error}); is there room for it?") from error
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


def _leave_all(copy: sqlite3.Connection, now: float) -> None:
    copy.execute("PRAGMA trusted_schema = OFF")
    copy.execute("BEGIN IMMEDIATE")
    copy.execute(sql.RELEASE_HELD)
    copy.execute(sql.END_WORKERS, (to_text(now),))
    copy.execute("COMMIT")
    _sweep(copy)


def _sweep(copy: sqlite3.Connection) -> None:
    while sweep(copy):
        pass


def _forget_others(copy: sqlite3.Connection, batch_id: int) -> None:
    copy.execute("BEGIN IMMEDIATE")
    for statement in sql.FORGET_OTHERS:
        copy.execute(statement, (batch_id,) if "?" in statement else ())
    copy.execute("COMMIT")
    _sweep(copy)
    copy.execute("VACUUM")  # else what was deleted could still be read in the free pages


def vacuum(path: Path) -> None:
    """Write the file anew, without the room that deleted items left. Nobody can write meanwhile.

    Raises StoreUnavailable while somebody writes, StoreError, for example where the disk has no room for a second copy.
    """
    turnstile = Turnstile(path)
    try:
        with translated(str(path)), turnstile.pass_through():
            connection = connect_writer(path, "full")
            try:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.close()
    finally:
        turnstile.close()
