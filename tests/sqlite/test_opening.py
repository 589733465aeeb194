"""A database file is opened, upgraded, or refused and left unchanged."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncrunner.domain.item import NewItem
from asyncrunner.errors import NotAStore, SchemaTooNew, StoreError, StoreNotFound, StoreReplaced
from asyncrunner.sqlite.file import creation, opening
from asyncrunner.sqlite.locks import lock_file
from asyncrunner.sqlite.sql import schema
from asyncrunner.sqlite.sql.schema import APPLICATION_ID, MIGRATIONS
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Checkpoint, Want
from asyncrunner.store.workers import Vitals, WorkerInfo
from tests.support.files import opened
from tests.support.state import rows_of

NOW = 1_800_000_000.0


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
async def test_a_file_that_is_no_store_is_refused_and_left_unchanged(
    make: Callable[[Path], object], error: type[StoreError], said: str, db: Path
) -> None:
    make(db)
    before = None if db.is_dir() else db.read_bytes()
    with pytest.raises(error, match=said):
        await SQLiteStore(db).open()
    with pytest.raises(error, match=said):
        opening.connect_reader(db)
    assert before is None or db.read_bytes() == before


async def test_an_old_sqlite_is_refused(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    with pytest.raises(StoreError, match="too old"):
        await SQLiteStore(db).open()


async def test_an_older_schema_is_upgraded_completely_or_not_at_all(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_a_file_of_the_first_schema_keeps_its_items_and_is_upgraded(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    await store.join(WorkerInfo("w", "here", 1))
    (claim,) = (await store.turn("w", [], [Want(1, 5, 3)])).claims
    assert (claim.id, claim.checkpoint) == ("a", None)
    await store.turn("w", [], [], checkpoints=[Checkpoint(claim, "1")])
    await store.close()


async def test_the_error_about_a_damaged_file_has_the_next_step(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.add(batch.batch_id, [NewItem(str(n), '"x"' * 100) for n in range(2000)], on_change="error")
    await store.close()
    content = bytearray(db.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    db.write_bytes(bytes(content))
    with pytest.raises(StoreError, match="recover it with"):
        store = await opened(db)
        try:
            await store.add(1, [NewItem("new", "1")], on_change="error")
        finally:
            await store.close()


async def test_a_read_only_file_is_reported_as_read_only(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await opened(db)
    await store.close()
    real = opening._uri
    monkeypatch.setattr(opening, "_uri", lambda path, _: real(path, "ro"))
    with pytest.raises(StoreError, match="cannot be written; check its owner and permissions"):
        await SQLiteStore(db).open()


async def test_a_deleted_file_is_noticed_by_the_next_beat(db: Path) -> None:
    store = await opened(db)
    await store.join(WorkerInfo("w", "here", 1))
    db.unlink()
    with pytest.raises(StoreReplaced):
        await store.beat("w", Vitals())
    await store.close()


async def test_a_path_through_a_link_shares_the_locks(db: Path) -> None:
    one = await opened(db)
    await one.join(WorkerInfo("one", "here", 1))
    link = db.with_name("link.db")
    link.symlink_to(db)
    two = await opened(link)
    await two.join(WorkerInfo("two", "here", 1))
    assert [peer.alive for peer in await two.peers("two")] == [True]
    assert two.location == str(link)
    assert not lock_file.locks_folder(link).exists()
    await one.close()
    await two.close()
    opening.connect_reader(link).close()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks Linux what is open")
async def test_a_cancelled_open_leaves_no_connection_open(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_an_older_file_gets_the_causes_of_its_failed_items(db: Path) -> None:
    connection = sqlite3.connect(db, isolation_level=None)
    for script in MIGRATIONS[:3]:
        connection.executescript(script)
    connection.executescript(
        f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 3;"
        "INSERT INTO batches (name, handler, options, created_at) VALUES ('b', 'h', '{}', '');"
        "INSERT INTO items (batch_id, id, status, payload) VALUES (1, 'a', 'failed', '1'), (1, 'c', 'completed', '1');"
        "INSERT INTO failures (batch_id, id, attempt, claim, failed_at, error_type, message, traceback, fingerprint)"
        "VALUES (1, 'a', 1, 1, '', 'E', '', '', 'first'), (1, 'a', 2, 2, '', 'E', '', '', 'last'), (1, 'c', 1, 1, '', 'E', '', '', 'x');"
    )
    connection.close()
    store = SQLiteStore(db)
    await store.open()
    await store.close()
    assert rows_of(db, "SELECT id, fingerprint FROM items ORDER BY id") == [("a", "last"), ("c", None)]
    assert rows_of(db, "SELECT * FROM causes") == [(1, "first", 1), (1, "last", 1), (1, "x", 1)]


def test_a_mistyped_name_suggests_a_similar_file(tmp_path: Path) -> None:
    (tmp_path / "prices.db").touch()
    with pytest.raises(StoreNotFound, match=rf"there is no database at .*/pricess\.db; did you mean {tmp_path}/prices\.db\?"):
        opening.connect_reader(tmp_path / "pricess.db")
    with pytest.raises(StoreNotFound, match="give the path of an existing one"):
        opening.connect_reader(tmp_path / "other.db")
