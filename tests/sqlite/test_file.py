"""The database file: made, opened, refused, upgraded, shared."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncrunner.domain.item import NewItem
from asyncrunner.domain.outcome import Completed, ErrorInfo, Settlement
from asyncrunner.errors import NotAStore, SchemaTooNew, StoreClosed, StoreError, StoreNotFound, StoreReplaced, StoreUnavailable
from asyncrunner.sqlite import SQLiteStore
from asyncrunner.sqlite.file import connection, creation, errors, liveness_lock, opening, write_lock
from asyncrunner.sqlite.file.connection import Connection
from asyncrunner.sqlite.sql import schema
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Checkpoint, Want
from asyncrunner.store.workers import Vitals, WorkerInfo
from tests.conftest import rows_of

NOW = 1_800_000_000.0


async def opened(db: Path) -> SQLiteStore:
    store = SQLiteStore(db)
    await store.open()
    return store


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def test_everything_is_readable_by_its_owner_only(db: Path) -> None:
    old = os.umask(0)
    try:
        store = await opened(db)
        await store.join(WorkerInfo("w", "here", 1), now=NOW)
        files = [db, db.with_name("jobs.db-wal"), db.with_name("jobs.db-shm"), *liveness_lock.locks_folder(db).iterdir()]
        assert {path.name: mode(path) for path in files} == dict.fromkeys([path.name for path in files], 0o600)
        assert mode(liveness_lock.locks_folder(db)) == 0o700
        await store.close()
    finally:
        os.umask(old)
    assert [path.name for path in db.parent.iterdir() if path.name.startswith(".")] == []


def a_foreign_database(path: Path) -> None:
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE theirs (x)")
    foreign.commit()
    foreign.close()


def a_newer_schema(path: Path) -> None:
    creation.create_if_missing(path)
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda path: path.write_bytes(b"no database" * 500), NotAStore, "not an intact SQLite database"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + b"\0" * 3), NotAStore, "not an intact SQLite database"),
        (lambda path: path.touch(), NotAStore, "empty file"),
        (lambda path: path.mkdir(), NotAStore, "is a folder"),
        (a_foreign_database, NotAStore, "database of another program"),
        (a_newer_schema, SchemaTooNew, "upgrade asyncrunner"),
    ],
    ids=["garbage", "truncated", "empty", "folder", "foreign", "newer"],
)
async def test_what_is_no_store_of_ours_is_refused_and_left_as_it_was(
    make: Callable[[Path], object], error: type[StoreError], said: str, db: Path
) -> None:
    make(db)
    before = None if db.is_dir() else db.read_bytes()
    with pytest.raises(error, match=said):
        await SQLiteStore(db).open()
    with pytest.raises(error, match=said):
        opening.connect_reader(db)
    assert before is None or db.read_bytes() == before


async def test_a_missing_folder_is_named_and_nothing_is_made(db: Path) -> None:
    with pytest.raises(StoreNotFound, match="there is no folder"):
        await SQLiteStore(db.parent / "no" / "jobs.db").open()
    with pytest.raises(StoreNotFound, match="there is no database at"):
        opening.connect_reader(db)
    assert list(db.parent.iterdir()) == []


async def test_an_old_sqlite_is_refused(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    with pytest.raises(StoreError, match="too old"):
        await SQLiteStore(db).open()


def test_six_processes_may_make_the_file_at_once(db: Path) -> None:
    code = f"""
import asyncio
from asyncrunner import run_batch
async def work(n: int) -> int: return n
print(asyncio.run(run_batch(range(50), work, db={str(db)!r}, batch='b')).total)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    said = [process.communicate(timeout=60) for process in processes]
    assert [out.strip() for out, _ in said] == ["50"] * 6, said
    found = sqlite3.connect(db)
    assert found.execute("SELECT status, count(*), max(attempts) FROM items GROUP BY 1").fetchall() == [("completed", 50, 1)]
    found.close()


async def test_an_older_schema_is_upgraded_whole_or_not_at_all(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    creation.create_if_missing(db)
    newest = schema.MIGRATIONS
    broken = "CREATE TABLE extra (x) STRICT; CREATE TABLE items (x);"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
    monkeypatch.setattr(opening, "MIGRATIONS", schema.MIGRATIONS)
    with pytest.raises((sqlite3.OperationalError, StoreError)):
        await SQLiteStore(db).open()
    with pytest.raises(SchemaTooNew, match=f"older schema {len(newest)}"):
        opening.connect_reader(db)
    monkeypatch.setattr(schema, "MIGRATIONS", (*newest, "CREATE TABLE extra (x INTEGER) STRICT;"))
    for _ in range(2):
        store = await opened(db)
        await store.close()
    found = sqlite3.connect(db)
    assert found.execute("PRAGMA user_version").fetchall() == [(len(newest) + 1,)]
    assert found.execute("SELECT count(*) FROM extra").fetchall() == [(0,)]
    found.close()


async def test_a_file_of_the_first_schema_keeps_its_items_and_goes_on(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = schema.MIGRATIONS
    for module in (schema, opening):
        monkeypatch.setattr(module, "MIGRATIONS", newest[:1])
    creation.create_if_missing(db)
    old = sqlite3.connect(db)
    old.execute("INSERT INTO batches (name, handler, options, created_at) VALUES ('b', 'h', '{}', '2026-11-23 00:00:00.000')")
    old.execute("INSERT INTO items (batch_id, id, payload) VALUES (1, 'a', '1')")
    old.commit()
    old.close()
    for module in (schema, opening):
        monkeypatch.setattr(module, "MIGRATIONS", newest)
    store = await opened(db)
    await store.join(WorkerInfo("w", "here", 1), now=NOW)
    (claim,) = (await store.turn("w", [], [Want(1, 5, 3)], now=NOW)).claims
    assert (claim.id, claim.checkpoint) == ("a", None)
    await store.turn("w", [], [], saved=[Checkpoint(claim, "1")], now=NOW)
    await store.close()


async def test_a_locked_file_is_unavailable_and_works_again_afterwards(db: Path) -> None:
    store = await opened(db)
    other = sqlite3.connect(db, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another program holds the write lock"):
        await store.open_batch("b", "h", BatchOptions(), now=NOW)
    other.execute("ROLLBACK")
    other.close()
    assert (await store.open_batch("b", "h", BatchOptions(), now=NOW)).name == "b"
    await store.close()


async def test_a_write_ahead_log_that_has_grown_is_written_back(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CHECKPOINT_BYTES", 100_000)
    store = SQLiteStore(db)
    await store.open()
    wal = db.with_name("jobs.db-wal")
    batch = await store.open_batch("b", "h", BatchOptions(), now=NOW)
    reader = opening.connect_reader(db)
    cursor = reader.execute("SELECT name FROM batches UNION ALL SELECT name FROM batches")
    cursor.fetchone()
    for chunk in range(4):
        await store.add(batch.batch_id, [NewItem(f"{chunk}-{n}", '"x"' * 50) for n in range(500)], on_change="error", now=NOW)
    assert wal.stat().st_size > 100_000, "a reader keeps the log from being emptied"
    cursor.close()
    reader.close()
    for chunk in range(8):
        await store.add(
            batch.batch_id, [NewItem(f"later {chunk}-{n}", '"x"' * 50) for n in range(500)], on_change="error", now=NOW
        )
    assert wal.stat().st_size < 400_000
    await store.close()


async def test_a_damaged_file_says_what_to_do(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions(), now=NOW)
    await store.add(batch.batch_id, [NewItem(str(n), '"x"' * 100) for n in range(2000)], on_change="error", now=NOW)
    await store.close()
    content = bytearray(db.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    db.write_bytes(bytes(content))
    with pytest.raises(StoreError, match="recover it with"):
        store = await opened(db)
        try:
            await store.add(1, [NewItem("new", "1")], on_change="error", now=NOW)
        finally:
            await store.close()


async def test_a_file_that_may_not_be_written_says_so(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await opened(db)
    await store.close()
    real = opening._uri
    monkeypatch.setattr(opening, "_uri", lambda path, _: real(path, "ro"))
    with pytest.raises(StoreError, match="cannot be written; check its owner and permissions"):
        await SQLiteStore(db).open()


async def test_a_deleted_file_is_noticed_by_the_next_beat(db: Path) -> None:
    store = await opened(db)
    await store.join(WorkerInfo("w", "here", 1), now=NOW)
    db.unlink()
    with pytest.raises(StoreReplaced):
        await store.beat("w", Vitals(), now=NOW)
    await store.close()


async def test_a_worker_whose_row_was_deleted_by_hand_is_back_after_a_beat(db: Path) -> None:
    store = await opened(db)
    await store.join(WorkerInfo("w", "here", 7), now=NOW)
    other = sqlite3.connect(db)
    with other:
        other.execute("DELETE FROM workers")
    assert not (await store.beat("w", Vitals(), now=NOW)).outcast
    assert rows_of(db, "SELECT worker_id, pid, ended_at FROM workers") == [("w", 7, None)]
    assert other.execute("SELECT worker_id, pid FROM workers").fetchall() == [("w", 7)]
    other.close()
    await store.close()


async def test_a_forked_child_cannot_use_the_parents_store_and_does_not_hurt_it(db: Path) -> None:
    store = await opened(db)
    await store.join(WorkerInfo("w", "here", 1), now=NOW)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            coroutine = store.counts(1, now=NOW)
            coroutine.send(None)
        except StoreClosed as error:
            code = 0 if "forked from" in str(error) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert liveness_lock.is_held(db, "w") is True
    await store.open_batch("b", "h", BatchOptions(), now=NOW)
    await store.close()
    assert liveness_lock.is_held(db, "w") is False


async def test_a_forked_child_does_not_keep_the_lock_of_its_parent(db: Path) -> None:
    store = await opened(db)
    await store.join(WorkerInfo("w", "here", 1), now=NOW)
    (waits, goes_on), (heard, says) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(says, b"x")
        os.read(waits, 1)
        os._exit(0)
    try:
        os.read(heard, 1)  # the child runs, so it has let go of what it inherited
        await store.close()
        assert liveness_lock.is_held(db, "w") is False
    finally:
        os.write(goes_on, b"x")
        os.waitpid(child, 0)
        for descriptor in (waits, goes_on, heard, says):
            os.close(descriptor)


HOLDER = """
import sys
import threading
from pathlib import Path
from asyncrunner.sqlite.file.liveness_lock import LivenessLock
lock = LivenessLock(Path(sys.argv[1]), "w")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_proves_life_while_stopped_and_death_at_once(db: Path) -> None:
    assert liveness_lock.is_held(db, "w") is None
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(db)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert liveness_lock.is_held(db, "w") is True
    os.kill(process.pid, signal.SIGSTOP)
    assert liveness_lock.is_held(db, "w") is True
    process.kill()
    process.communicate()
    assert liveness_lock.is_held(db, "w") is False
    liveness_lock.forget(db, "w")
    assert liveness_lock.is_held(db, "w") is None


def test_who_waits_for_the_turnstile_goes_before_who_was_just_through(db: Path) -> None:
    one, two = write_lock.FairWriteLock(db), write_lock.FairWriteLock(db)
    with one.pass_through(), pytest.raises(StoreUnavailable, match="the write lock was not free within"), two.pass_through():
        pass
    with two.pass_through():
        pass
    one.close()
    two.close()


async def test_operations_that_pile_up_share_a_commit(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions(), now=NOW)
    commits = 0
    real = Connection._run_in_transaction

    def counted(self: Connection, group: list[object]) -> None:
        nonlocal commits
        commits += 1
        real(self, group)  # type: ignore[arg-type]

    Connection._run_in_transaction = counted  # type: ignore[method-assign,assignment]
    try:
        await asyncio.gather(*(store.add(batch.batch_id, [NewItem(str(n), "1")], on_change="error", now=NOW) for n in range(200)))
    finally:
        Connection._run_in_transaction = real  # type: ignore[method-assign]
    assert commits < 50
    assert (await store.counts(batch.batch_id, now=NOW)).total == 200
    await store.close()


async def test_two_connections_claim_different_items_and_hear_of_each_other(db: Path) -> None:
    one, two = await opened(db), await opened(db)
    batch = await one.open_batch("b", "h", BatchOptions(), now=NOW)
    await one.join(WorkerInfo("one", "here", 1), now=NOW)
    await two.join(WorkerInfo("two", "here", 1), now=NOW)
    mark = await asyncio.wait_for(two.wait_for_change(None), 10)
    heard = asyncio.ensure_future(two.wait_for_change(mark))
    await one.add(batch.batch_id, [NewItem(str(n), "1") for n in range(4)], on_change="error", now=NOW)
    await asyncio.wait_for(heard, 10)
    first = (await one.turn("one", [], [Want(batch.batch_id, 3, 3)], now=NOW)).claims
    second = (await two.turn("two", [], [Want(batch.batch_id, 3, 3)], now=NOW)).claims
    assert [claim.id for claim in (*first, *second)] == ["0", "1", "2", "3"]
    assert [peer.alive for peer in await one.peers("one")] == [True]
    await one.close()
    await two.close()


async def test_payloads_of_more_than_one_text_can_hold_come_row_by_row(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions(), now=NOW)
    await store.join(WorkerInfo("w", "here", 1), now=NOW)
    await store.add(batch.batch_id, [NewItem(str(n), f'"{"x" * 3000}"') for n in range(3)], on_change="error", now=NOW)
    await store._connection.read(lambda raw: raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 8000))
    claims = (await store.turn("w", [], [Want(batch.batch_id, 3, 3)], now=NOW)).claims
    assert [(claim.id, len(claim.payload)) for claim in claims] == [("0", 3002), ("1", 3002), ("2", 3002)]
    await store.close()


async def test_options_that_a_person_broke_do_not_stop_a_recovery(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions(max_attempts=1), now=NOW)
    await store.join(WorkerInfo("w", "here", 1), now=NOW)
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error", now=NOW)
    await store.turn("w", [], [Want(batch.batch_id, 1, 1)], now=NOW)
    other = sqlite3.connect(db)
    with other:
        other.execute("UPDATE batches SET options = '{'")
        other.execute("UPDATE items SET started_at = 'yesterday'")
    other.close()
    assert await store.recover("w", ErrorInfo("WorkerLost", "gone"), now=NOW) == 1
    assert (await store.counts(batch.batch_id, now=NOW)).pending == 1
    await store.close()


async def test_a_settlement_of_an_item_that_was_deleted_is_lost(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions(), now=NOW)
    await store.join(WorkerInfo("w", "here", 1), now=NOW)
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error", now=NOW)
    (claim,) = (await store.turn("w", [], [Want(batch.batch_id, 1, 3)], now=NOW)).claims
    other = sqlite3.connect(db)
    with other:
        other.execute("DELETE FROM items")
    other.close()
    assert list((await store.turn("w", [Settlement(claim, Completed("1"), NOW, NOW)], [], now=NOW)).lost) == [claim]
    assert (await store.counts(batch.batch_id, now=NOW)).total == 0
    await store.close()


async def test_who_comes_by_a_link_shares_the_locks(db: Path) -> None:
    one = await opened(db)
    await one.join(WorkerInfo("one", "here", 1), now=NOW)
    link = db.with_name("link.db")
    link.symlink_to(db)
    two = await opened(link)
    await two.join(WorkerInfo("two", "here", 1), now=NOW)
    assert [peer.alive for peer in await two.peers("two")] == [True]
    assert two.location == str(link)
    assert not liveness_lock.locks_folder(link).exists()
    await one.close()
    await two.close()
    opening.connect_reader(link).close()


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        (sqlite3.SQLITE_BUSY, StoreUnavailable, "another program holds the write lock; asyncrunner retries"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StoreUnavailable, "another program holds the write lock"),
        (sqlite3.SQLITE_FULL, StoreUnavailable, "the disk is full, free some space; asyncrunner retries"),
        (sqlite3.SQLITE_NOMEM, StoreUnavailable, "as SQLite says"),
        (sqlite3.SQLITE_IOERR_FSYNC, StoreError, "check the disk"),
        (sqlite3.SQLITE_CANTOPEN, StoreError, "may read and write"),
        (sqlite3.SQLITE_READONLY, StoreError, "check its owner"),
        (sqlite3.SQLITE_CORRUPT, StoreError, "recover it with"),
        (sqlite3.SQLITE_ERROR, StoreError, "does not have asyncrunner's schema"),
        (None, sqlite3.OperationalError, "as SQLite says"),
    ],
)
def test_sqlites_errors_become_ours_and_only_what_may_pass_is_tried_again(
    code: int | None, expected: type[Exception], said: str
) -> None:
    error = sqlite3.OperationalError("as SQLite says")
    if code is not None:
        error.sqlite_errorcode = code
    with pytest.raises(expected, match=said) as caught, errors.translated("jobs.db"):
        raise error
    assert type(caught.value) is expected


def test_a_folder_where_nothing_can_be_made_is_an_error_at_once(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, said in (
        (PermissionError(13, "denied"), "check the permissions of"),
        (OSError(28, "full"), "check the disk, or give"),
    ):

        def refuse(*_: object, refusal: OSError = error) -> int:
            raise refusal

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", refuse)
            with pytest.raises(StoreError, match=said):
                creation.create_if_missing(db)
    assert list(db.parent.iterdir()) == []


def test_a_lock_folder_of_somebody_else_is_named(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreError, match="must belong to the user who runs asyncrunner"):
        write_lock.FairWriteLock(db)
    liveness_lock.locks_folder(db).rmdir()
    liveness_lock.locks_folder(db).touch()
    with pytest.raises(StoreError, match="cannot be used"):
        liveness_lock.LivenessLock(db, "w")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks Linux what is open")
async def test_an_open_that_is_cancelled_leaves_nothing_open(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_files() -> list[str]:
        links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return [link for link in links if str(db) in link]

    store = SQLiteStore(db)
    real = store._connection._connect
    connecting, go_on = threading.Event(), threading.Event()

    def connect() -> sqlite3.Connection:
        connecting.set()
        assert go_on.wait(20)
        return real()

    monkeypatch.setattr(store._connection, "_connect", connect)
    opening = asyncio.ensure_future(store.open())
    await asyncio.to_thread(connecting.wait, 20)
    opening.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert open_files() == []
    await store.close()
