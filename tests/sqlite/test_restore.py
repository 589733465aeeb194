"""A backup replaces a file completely or not at all, and a log is never applied to another state of its database."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncrunner.domain.item import NewItem
from asyncrunner.errors import ConfigurationError, NotAStore, SchemaTooNew, StoreError, StoreNotFound
from asyncrunner.sqlite.file import opening, wal_owner
from asyncrunner.sqlite.file.wal import wal_of
from asyncrunner.sqlite.locks.write_lock import FairWriteLock
from asyncrunner.sqlite.maintenance.maintenance import SQLiteMaintenance
from asyncrunner.sqlite.sql.schema import APPLICATION_ID, MIGRATIONS
from asyncrunner.store.batches import BatchOptions
from tests.support.files import opened
from tests.support.state import rows_of

KEYS = "SELECT id FROM items ORDER BY seq"

CRASH = """
import asyncio, os, sys
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.sqlite.file.wal import WalCheckpoints
from asyncrunner.domain.item import NewItem

async def main(db, prefix, count):
    store = SQLiteStore(db)
    await store.open()
    await store.add(1, [NewItem(f"{prefix}{n}", '"x"') for n in range(count)], on_change="error")
    os._exit(9)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def make(db: Path, *keys: str) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.add(batch.batch_id, [NewItem(key, "1") for key in keys], on_change="error")
    await store.close()


def crash(db: Path, prefix: str = "new-", count: int = 200) -> None:
    """Add items in a process that dies, so that they are only in the log."""
    assert subprocess.run([sys.executable, "-c", CRASH, str(db), prefix, str(count)], check=False).returncode == 9
    assert wal_of(db).stat().st_size > 0


def keys_of(path: Path) -> list[str]:
    return [key for (key,) in rows_of(path, KEYS)]


def names(db: Path) -> list[str]:
    return sorted(path.name for path in db.parent.glob("*jobs.db*") if path.is_file())


@pytest.fixture
async def backup(db: Path, tmp_path: Path) -> Path:
    """Return a backup with the items a and b. Since then the database has received 200 more items, which are in its log."""
    await make(db, "a", "b")
    copy = tmp_path / "monday.db"
    await SQLiteMaintenance(db).backup(copy)
    crash(db)
    return copy


async def test_a_backup_replaces_the_file_and_its_log_and_the_old_file_stays_whole(db: Path, backup: Path) -> None:
    restored = await SQLiteMaintenance(db).restore(backup)
    assert names(db) == ["jobs.db", Path(str(restored.replaced)).name, f"{Path(str(restored.replaced)).name}-wal"]
    assert restored.size == db.stat().st_size
    assert db.stat().st_mode & 0o777 == 0o600
    await make(db, "c")
    assert keys_of(db) == ["a", "b", "c"]
    assert keys_of(backup) == ["a", "b"]
    assert len(keys_of(Path(str(restored.replaced)))) == 202


async def test_a_missing_or_damaged_file_is_restored(db: Path, backup: Path) -> None:
    wal_of(db).unlink()
    db.write_bytes(b"damaged" * 1000)
    assert (await SQLiteMaintenance(db).restore(backup)).replaced is not None
    assert keys_of(db) == ["a", "b"]
    db.unlink()
    assert (await SQLiteMaintenance(db).restore(backup)).replaced is None
    assert keys_of(db) == ["a", "b"]


async def test_a_backup_of_an_older_schema_or_with_a_log_is_restored(db: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.db"
    connection = sqlite3.connect(older, isolation_level=None)
    connection.executescript(MIGRATIONS[0] + f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;")
    connection.close()
    await SQLiteMaintenance(db).restore(older)
    await make(db, "a")
    raw = tmp_path / "raw.db"
    await make(raw, "first")
    crash(raw, count=3)
    await SQLiteMaintenance(db).restore(raw)
    assert keys_of(db) == ["first", "new-0", "new-1", "new-2"]


def no_file(path: Path) -> None:
    path.unlink()


def another_program(path: Path) -> None:
    path.unlink()
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE theirs (x)")
    foreign.close()


def newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def torn(path: Path) -> None:
    ((page,),) = rows_of(path, "SELECT rootpage FROM sqlite_schema WHERE name = 'failures_of_item'")
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096  # only the check of the whole file reads this page
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (no_file, StoreNotFound, "give the path of a backup"),
        (another_program, NotAStore, "another program"),
        (newer, SchemaTooNew, "upgrade asyncrunner"),
        (torn, StoreError, "nothing has changed"),
    ],
)
async def test_only_an_intact_file_of_ours_replaces_the_file(
    spoil: Callable[[Path], None], error: type[Exception], said: str, db: Path, backup: Path
) -> None:
    spoil(backup)
    before = names(db)
    with pytest.raises(error, match=said):
        await SQLiteMaintenance(db).restore(backup)
    assert names(db) == before
    assert len(keys_of(db)) == 202
    with pytest.raises(ConfigurationError, match="the database itself"):
        await SQLiteMaintenance(db).restore(db)


@pytest.mark.parametrize("user", ["worker", "client", "shell"])
async def test_a_file_in_use_is_not_replaced(user: str, db: Path, backup: Path) -> None:
    """A worker is recognized by its lock, any other program by the lock of SQLite."""
    code = {
        "worker": "from asyncrunner.sqlite.locks.liveness_lock import LivenessLock; from pathlib import Path;"
        "lock = LivenessLock(Path(db), 'w')",
        "client": "from asyncrunner import BlockingClient; client = BlockingClient(db); client.__enter__();client.submit('b', 1)",
        "shell": "import sqlite3; shell = sqlite3.connect(db); shell.execute('SELECT * FROM items').fetchall()",
    }[user]
    program = f"import sys; db = sys.argv[1]; {code}; print('open', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", program, str(db)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    with pytest.raises(StoreError, match=r"is in use by .*; stop every program that uses it"):
        await SQLiteMaintenance(db).restore(backup)
    process.communicate()
    assert len(keys_of(db)) >= 202


async def test_a_file_that_a_program_writes_is_not_replaced(db: Path, backup: Path) -> None:
    before = keys_of(db)
    write_lock = FairWriteLock(db)
    with write_lock.pass_through(), pytest.raises(StoreError, match="is in use by another program; stop every program") as caught:
        await SQLiteMaintenance(str(db)).restore(backup)
    write_lock.close()
    assert (type(caught.value), keys_of(db)) == (StoreError, before), "the command does not repeat the restore"


async def test_a_file_that_this_process_uses_is_not_replaced(db: Path, backup: Path) -> None:
    store = await opened(db)
    with pytest.raises(StoreError, match="in use by another program"):
        await SQLiteMaintenance(db).restore(backup)
    await store.close()
    await SQLiteMaintenance(db).restore(backup)
    assert keys_of(db) == ["a", "b"]


RESTORES = """
import asyncio, os, signal, sys
from pathlib import Path
from asyncrunner.sqlite.maintenance.maintenance import SQLiteMaintenance

left = 0

def around(owner, name):
    real = getattr(owner, name)
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(owner, name, call)

for owner, name in ((os, "link"), (os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "chmod")):
    around(owner, name)
for line in sys.stdin:
    left = int(line)
    child = os.fork()
    if child == 0:
        asyncio.run(SQLiteMaintenance(sys.argv[1]).restore(sys.argv[2]))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


async def test_a_restore_that_is_killed_at_any_step_leaves_one_of_both_states_or_is_refused(
    db: Path, backup: Path, tmp_path: Path
) -> None:
    for path in (db, wal_of(db)):
        shutil.copyfile(path, tmp_path / f"old-{path.name}")
    program = [sys.executable, "-c", RESTORES, str(db), str(backup)]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    states: set[str] = set()
    for step in range(1, 40):
        for path in [*db.parent.glob("jobs.db*"), *db.parent.glob(".jobs.db*")]:
            if path.is_file():
                path.unlink()
        for path in (db, wal_of(db)):
            shutil.copyfile(tmp_path / f"old-{path.name}", path)
        print(step, file=process.stdin, flush=True)
        code = int(process.stdout.readline())
        try:
            store = await opened(db)
        except StoreError as error:
            assert "asyncrunner restore" in str(error)
            states.add("refused")
        else:
            await store.close()
            states.add({2: "new", 202: "old"}[len(keys_of(db))])
        await SQLiteMaintenance(db).restore(backup)
        assert keys_of(db) == ["a", "b"]
        kept = [path for path in db.parent.glob("jobs.db.replaced-*") if not path.name.endswith(("-wal", "-shm"))]
        assert max(len(keys_of(path)) for path in kept) == 202
        if code == 0:
            break
        assert code == -signal.SIGKILL
    process.communicate()
    assert code == 0
    assert states == {"old", "new", "refused"}


# --- a log of another state ------------------------------------------------------------------------------------------


async def refuses(db: Path) -> bool:
    """Return whether a program that writes and one that reads both refuse the file, and leave it unchanged."""
    before = db.read_bytes(), wal_of(db).read_bytes()
    said = []
    for attempt in ("write", "read"):
        try:
            if attempt == "read":
                opening.connect_reader(db).close()
            else:
                await (await opened(db)).close()
        except StoreError as error:
            assert "belongs to another state" in str(error)
            said.append(attempt)
        else:
            break
    if said:
        assert (db.read_bytes(), wal_of(db).read_bytes()) == before
    return said == ["write", "read"]


@pytest.mark.parametrize("keeps_time", [False, True])
async def test_a_backup_that_was_copied_over_the_file_beside_its_log_is_refused(keeps_time: bool, db: Path, backup: Path) -> None:
    (shutil.copy2 if keeps_time else shutil.copyfile)(backup, db)
    assert await refuses(db)
    await SQLiteMaintenance(db).restore(backup)
    assert keys_of(db) == ["a", "b"]


async def test_a_raw_copy_that_was_put_back_beside_a_newer_log_is_refused(db: Path, tmp_path: Path) -> None:
    await make(db, "a", "b")
    raw = tmp_path / "raw.db"
    shutil.copyfile(db, raw)
    crash(db)
    time.sleep(0.02)
    shutil.copyfile(raw, db)
    assert await refuses(db)
    os.utime(wal_of(db))
    assert not await refuses(db), "the error names touch for files that were copied together"


async def test_the_log_of_a_killed_process_is_applied(db: Path) -> None:
    await make(db, "a")
    crash(db)
    assert not await refuses(db)
    assert len(keys_of(db)) == 201


@pytest.mark.parametrize("written", [1, 2, 1000])
async def test_the_log_of_a_killed_wal_checkpoint_is_applied(written: int, db: Path) -> None:
    """A WAL checkpoint writes the pages of the log in ascending order, so the database is newer than its log."""
    await make(db, "a")
    crash(db, count=2000)
    complete = db.with_name("complete.db")
    shutil.copyfile(db, complete)
    shutil.copyfile(wal_of(db), wal_of(complete))
    connection = sqlite3.connect(complete)
    connection.execute("PRAGMA wal_checkpoint(FULL)")
    pages = complete.read_bytes()
    connection.close()
    with wal_of(db).open("rb") as frames:
        frames.seek(32)
        numbers = sorted({number for number, _ in wal_owner._committed(frames, 4096, wal_of(db).read_bytes()[16:24])})
    assert len(numbers) > 10
    time.sleep(0.02)
    with db.open("r+b") as file:
        for number in numbers[:written]:
            file.seek((number - 1) * 4096)
            file.write(pages[(number - 1) * 4096 : number * 4096])
    assert db.stat().st_mtime_ns > wal_of(db).stat().st_mtime_ns
    assert not await refuses(db)
    assert len(keys_of(db)) == 2001
    assert rows_of(db, "PRAGMA integrity_check") == [("ok",)]
