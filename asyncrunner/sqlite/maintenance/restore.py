"""Put a backup in place of a database file.

The order of the steps keeps both states after a kill. The backup is first copied to a draft and checked. Then the old file and
its log get a second name. Then the draft replaces the file in one step, and then the old log is deleted. After a kill before
the last step the old log is still beside the new file; asyncrunner refuses to open that pair, and the same command completes the
restore.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from asyncrunner.errors import ConfigurationError, NotAStore, StoreError, StoreNotFound, StoreUnavailable
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.file.identity import REPLACED, second_name, shm_of
from asyncrunner.sqlite.file.wal import wal_of, wal_size
from asyncrunner.sqlite.file.wal_owner import check_wal_belongs, is_open_here, opening, wal_belongs
from asyncrunner.sqlite.locks import liveness_lock
from asyncrunner.sqlite.locks.write_lock import FairWriteLock
from asyncrunner.sqlite.sql.schema import APPLICATION_ID, verify
from asyncrunner.store.maintenance import Restored
from asyncrunner.text.atomic_file import create_draft, remove_draft
from asyncrunner.text.timestamps import to_text

try:
    import fcntl
except ImportError:  # Windows replaces no file that another process has open
    fcntl = None  # type: ignore[assignment]

_COPIED_PAGES: Final = 2000
_STEPS_PER_CHECK: Final = 100_000  # SQLite instructions between two calls of *is_wanted*: about 1 ms
_HEADER: Final = struct.Struct(">16s52xI")  # of a database: a mark, and the id of the program that created it
_MAGIC: Final = b"SQLite format 3\0"
_LOCK_BYTES: Final = (0x40000000, 512)  # position and number of the bytes that SQLite locks


def restore(backup: Path, database: Path, is_wanted: Callable[[], bool], now: float) -> Restored:
    """Put a copy of *backup* in place of *database*, and keep the replaced file and its log under another name.

    The backup stays as it is. The copy has the items of the backup; the next run upgrades an older schema. A kill leaves the
    old file or the new one. While the backup is copied and checked, *is_wanted* is called; when it returns False, StoreError
    is raised and nothing has changed.
    Raises StoreNotFound, NotAStore, SchemaTooNew or StoreError for a backup that is not an intact file of asyncrunner, and
    StoreError if a worker or another program uses *database*, or if the disk has no room.
    """
    if not backup.is_file():
        raise StoreNotFound(f"there is no file {backup}; give the path of a backup")
    if database.exists() and backup.samefile(database):
        raise ConfigurationError(f"{backup} is the database itself; give the path of a backup")
    if database.exists() and not database.is_file():
        raise NotAStore(f"{database} is not a file; give another path")
    _reject_live_workers(database)
    try:
        draft = create_draft(database)
    except OSError as error:
        raise StoreError(f"{database} cannot be restored ({error.strerror}); check the permissions of its folder") from error
    try:
        _copy(backup, draft, is_wanted)
        write_lock = FairWriteLock(database)
        try:
            with write_lock.pass_through():
                _reject_live_workers(database)
                log_belongs = wal_belongs(database)
                if not is_wanted():
                    raise StoreError("the restore was stopped; nothing has changed")
                with _unused(database):
                    size = draft.stat().st_size
                    replaced = _swap(draft, database, now, log_belongs=log_belongs)
                return Restored(size, None if replaced is None else str(replaced))
        finally:
            write_lock.close()
    except StoreUnavailable as error:  # of the write lock; its message promises a retry
        raise _in_use(database) from error
    except OSError as error:
        raise StoreError(f"{database} cannot be restored ({error}); check the disk and its permissions") from error
    finally:
        remove_draft(draft)


def _copy(backup: Path, draft: Path, is_wanted: Callable[[], bool]) -> None:
    check_wal_belongs(backup)
    uri = f"file:{quote(os.fsencode(backup.absolute()))}?mode=ro"
    if wal_size(backup) == 0 and not shm_of(backup).exists():
        uri += "&immutable=1"  # the backup is complete without a log, and stays readable in a folder without write permission

    def progress(status: int, remaining: int, total: int) -> None:
        del status, remaining, total
        if not is_wanted():
            raise StoreError("the restore was stopped; nothing has changed")

    source = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=2.0)
    try:
        verify(source, str(backup))
        copy = sqlite3.connect(draft, isolation_level=None)
        try:
            source.backup(copy, pages=_COPIED_PAGES, progress=progress)
            copy.execute(sql.connection.DISTRUST_SCHEMA)
            copy.set_progress_handler(lambda: not is_wanted(), _STEPS_PER_CHECK)
            problems = [line for (line,) in copy.execute(sql.admin.INTEGRITY_CHECK) if line != "ok"]
            if problems:
                raise StoreError(f"{backup} is damaged ({problems[0]}); nothing has changed. Restore another backup")
            copy.execute(sql.connection.USE_JOURNAL)
        finally:
            copy.close()
    except sqlite3.Error as error:
        raise StoreError(f"{backup} cannot be copied ({error}); nothing has changed") from error
    finally:
        source.close()


def _reject_live_workers(database: Path) -> None:
    alive = [name for name in liveness_lock.names(database) if liveness_lock.is_held(database, name)]
    if alive:
        raise StoreError(
            f"{database} is in use by worker {alive[0]}; stop every program that uses it (`asyncrunner stop`), then restore again"
        )


def _in_use(database: Path) -> StoreError:
    return StoreError(f"{database} is in use by another program; stop every program that uses it, then restore again")


@contextmanager
def _unused(database: Path) -> Generator[None, None, None]:
    """Raise StoreError if a program has the database open, for example a client; no program can open it during the block.

    Raises NotAStore if the file is a database of another program.
    """
    if not database.exists():
        yield
        return
    with opening():
        if is_open_here(database.stat()):
            raise _in_use(database)
        with database.open("r+b") as file:
            header = file.read(_HEADER.size)
            if len(header) == _HEADER.size:
                magic, application_id = _HEADER.unpack(header)
                if magic == _MAGIC and application_id != APPLICATION_ID:
                    raise NotAStore(f"{database} is a database of another program; give another path")
            if fcntl is not None:
                # SQLite holds a shared lock on these bytes as long as it has a database with a write-ahead log open.
                position, number = _LOCK_BYTES
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, number, position)
                except BlockingIOError:
                    raise _in_use(database) from None
            yield


def _swap(draft: Path, database: Path, now: float, *, log_belongs: bool) -> Path | None:
    """Replace *database* with *draft*; return the second name of the replaced file, if there was one.

    A log that does not belong to the replaced file is worthless without its database, and is deleted.
    """
    replaced = None
    if database.exists():
        old = database.stat()
        draft.chmod(old.st_mode & 0o777)
        if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
            with suppress(OSError):
                os.chown(draft, old.st_uid, old.st_gid)
        replaced = second_name(database) or _free_name(database, now)
        if log_belongs:
            _add_name(wal_of(database), wal_of(replaced))
        _add_name(database, replaced)
    _sync(draft)
    _sync(database.parent)
    draft.replace(database)
    _sync(database.parent)
    wal_of(database).unlink(missing_ok=True)
    shm_of(database).unlink(missing_ok=True)
    _sync(database.parent)
    return replaced


def _free_name(database: Path, now: float) -> Path:
    moment = to_text(now)[:19].replace("-", "").replace(":", "").replace(" ", "-")
    name = candidate = database.with_name(f"{database.name}{REPLACED}{moment}")
    number = 1
    while os.path.lexists(candidate) or os.path.lexists(wal_of(candidate)):
        number += 1
        candidate = name.with_name(f"{name.name}-{number}")
    return candidate


def _add_name(path: Path, name: Path) -> None:
    """Give the file a second name, or copy it where the file system has no hard links. An existing *name* stays."""
    if not path.exists() or name.exists():
        return
    try:
        os.link(path, name)
    except OSError:
        shutil.copy2(path, name)
        _sync(name)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # Windows opens no folders
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
