"""The connection: commits in groups, WAL checkpoints, locks, SQLite's limits and errors."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncrunner.domain.item import NewItem
from asyncrunner.errors import StoreError, StoreUnavailable
from asyncrunner.sqlite.file import errors, opening
from asyncrunner.sqlite.file.connection import Connection
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from tests.support.files import opened

NOW = 1_800_000_000.0


async def test_a_locked_file_is_unavailable_and_works_again_afterwards(db: Path) -> None:
    store = await opened(db)
    other = sqlite3.connect(db, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another program holds the write lock"):
        await store.open_batch("b", "h", BatchOptions())
    other.execute("ROLLBACK")
    other.close()
    assert (await store.open_batch("b", "h", BatchOptions())).name == "b"
    await store.close()


async def test_a_write_ahead_log_that_has_grown_is_written_back(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncrunner.sqlite.file.wal.CHECKPOINT_BYTES", 100_000)
    store = SQLiteStore(db)
    await store.open()
    wal = db.with_name("jobs.db-wal")
    batch = await store.open_batch("b", "h", BatchOptions())
    reader = opening.connect_reader(db)
    cursor = reader.execute("SELECT name FROM batches UNION ALL SELECT name FROM batches")
    cursor.fetchone()
    for chunk in range(4):
        await store.add(batch.batch_id, [NewItem(f"{chunk}-{n}", '"x"' * 50) for n in range(500)], on_change="error")
    assert wal.stat().st_size > 100_000, "a reader prevents the WAL checkpoint from emptying the log"
    cursor.close()
    reader.close()
    for chunk in range(8):
        await store.add(batch.batch_id, [NewItem(f"later {chunk}-{n}", '"x"' * 50) for n in range(500)], on_change="error")
    assert wal.stat().st_size < 400_000
    await store.close()


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("normal", 1)])
async def test_only_a_commit_that_must_outlast_a_power_cut_waits_for_the_disk(db: Path, durability: Any, level: int) -> None:
    store = SQLiteStore(db, durability=durability)
    await store.open()
    connection = store._connection
    levels: list[int] = []

    def note(raw: sqlite3.Connection) -> None:
        levels.append(raw.execute("PRAGMA synchronous").fetchone()[0])

    def fail(raw: sqlite3.Connection) -> None:
        note(raw)
        raise ValueError

    await connection.write(note)
    await connection.write(note, is_lasting=False)
    with pytest.raises(ValueError, match=r"^$"):
        await connection.write(fail, is_lasting=False)
    await asyncio.gather(connection.write(note, is_lasting=False), connection.write(note))  # one group
    await connection.write(note)
    assert levels == [level, 1, 1, level, level, level]
    await store.close()


async def test_operations_that_pile_up_share_a_commit(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    commits = 0
    real = Connection._run_in_transaction

    def counted(self: Connection, group: list[object]) -> None:
        nonlocal commits
        commits += 1
        real(self, group)  # type: ignore[arg-type]

    Connection._run_in_transaction = counted  # type: ignore[method-assign,assignment]
    try:
        await asyncio.gather(*(store.add(batch.batch_id, [NewItem(str(n), "1")], on_change="error") for n in range(200)))
    finally:
        Connection._run_in_transaction = real  # type: ignore[method-assign]
    assert commits < 50
    assert (await store.counts(batch.batch_id)).total == 200
    await store.close()


async def written_together(store: SQLiteStore, *operations: Callable[[sqlite3.Connection], object]) -> list[object]:
    """Return the values and the errors of *operations*, which share a group."""
    connection = store._connection
    blocked, go = threading.Event(), threading.Event()

    def block(_: sqlite3.Connection) -> None:
        blocked.set()
        assert go.wait(20)

    blocker = asyncio.ensure_future(connection.read(block))
    writing = [asyncio.ensure_future(connection.write(operation)) for operation in operations]
    await asyncio.to_thread(blocked.wait, 20)
    go.set()
    await blocker
    return list(await asyncio.gather(*writing, return_exceptions=True))


def adding(name: str) -> Callable[[sqlite3.Connection], object]:
    """Return an operation that adds a batch."""
    statement = "INSERT INTO batches (name, handler, options, created_at) VALUES (?, 'h', '{}', '')"
    return lambda raw: raw.execute(statement, (name,)).rowcount


def error_of(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("as SQLite says")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StoreError("batch 1 was deleted"), StoreError),
        (StoreUnavailable("the operation is not possible now"), StoreUnavailable),
        (error_of(sqlite3.SQLITE_ERROR), StoreError),
        (error_of(sqlite3.SQLITE_FULL), StoreUnavailable),
        (error_of(sqlite3.SQLITE_TOOBIG), sqlite3.OperationalError),
        (ValueError("not from SQLite"), ValueError),
    ],
)
async def test_an_operation_that_fails_in_a_group_fails_alone(error: Exception, expected: type[Exception], db: Path) -> None:
    store = await opened(db)

    def fail(raw: sqlite3.Connection) -> None:
        adding("bad")(raw)
        raise error

    before, failed, after = await written_together(store, adding("before"), fail, adding("after"))
    assert (before, type(failed), after) == (1, expected, 1)
    assert sorted(await store.batch_names()) == ["after", "before"]
    await store.close()


class RefusesBig:
    """A raw connection whose COMMIT fails while a batch has the name "big"."""

    def __init__(self, raw: sqlite3.Connection, code: int) -> None:
        self._raw = raw
        self._code = code

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        if statement == "COMMIT" and self._raw.execute("SELECT 1 FROM batches WHERE name = 'big'").fetchone():
            raise error_of(self._code)
        return self._raw.execute(statement, *parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY])
async def test_an_operation_that_makes_the_commit_fail_fails_alone(code: int, db: Path) -> None:
    store = await opened(db)
    raw = store._connection._raw
    assert raw is not None
    store._connection._raw = RefusesBig(raw, code)  # type: ignore[assignment]
    small, big = await written_together(store, adding("small"), adding("big"))
    assert small == 1
    assert isinstance(big, StoreError | sqlite3.OperationalError)
    assert list(await store.batch_names()) == ["small"]
    store._connection._raw = raw
    await store.close()


async def test_an_unreadable_disk_fails_the_whole_group_without_a_second_try(db: Path) -> None:
    store = await opened(db)
    calls = 0

    def fail(raw: sqlite3.Connection) -> None:
        nonlocal calls
        calls += 1
        raise error_of(sqlite3.SQLITE_IOERR_WRITE)

    errors_of_all = await written_together(store, lambda raw: 1, fail, lambda raw: 2)
    assert [type(each) for each in errors_of_all] == [StoreError] * 3
    assert calls == 1
    await store.close()


async def test_two_connections_claim_different_items_and_notice_each_others_changes(db: Path) -> None:
    one, two = await opened(db), await opened(db)
    batch = await one.open_batch("b", "h", BatchOptions())
    await one.join(WorkerInfo("one", "here", 1))
    await two.join(WorkerInfo("two", "here", 1))
    mark = await asyncio.wait_for(two.wait_for_change(None), 10)
    heard = asyncio.ensure_future(two.wait_for_change(mark))
    await one.add(batch.batch_id, [NewItem(str(n), "1") for n in range(4)], on_change="error")
    await asyncio.wait_for(heard, 10)
    first = (await one.turn("one", [], [Want(batch.batch_id, 3, 3)])).claims
    second = (await two.turn("two", [], [Want(batch.batch_id, 3, 3)])).claims
    assert [claim.id for claim in (*first, *second)] == ["0", "1", "2", "3"]
    assert [peer.alive for peer in await one.peers("one")] == [True]
    await one.close()
    await two.close()


async def test_a_wait_for_a_change_reads_the_file_often_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLiteStore(tmp_path / "jobs.db")
    await store.open()
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def recorded(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr("asyncrunner.sqlite.change_watch.asyncio.sleep", recorded)
    for _ in range(2):
        pauses.clear()
        waiting = asyncio.ensure_future(store.wait_for_change(await store.wait_for_change(None)))
        while len(pauses) < 12:
            await sleep(0)
        waiting.cancel()
        assert pauses[0] < 0.005
        assert pauses[:12] == sorted(pauses[:12])
        assert pauses[11] == 0.05
    await store.close()


async def test_payloads_of_more_than_one_text_can_hold_come_row_by_row(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.join(WorkerInfo("w", "here", 1))
    await store.add(batch.batch_id, [NewItem(str(n), f'"{"x" * 3000}"') for n in range(3)], on_change="error")
    await store._connection.read(lambda raw: raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 8000))
    claims = (await store.turn("w", [], [Want(batch.batch_id, 3, 3)])).claims
    assert [(claim.id, len(claim.payload)) for claim in claims] == [("0", 3002), ("1", 3002), ("2", 3002)]
    await store.close()


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        (sqlite3.SQLITE_BUSY, StoreUnavailable, "another program holds the write lock; asyncrunner retries"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StoreUnavailable, "another program holds the write lock"),
        (sqlite3.SQLITE_FULL, StoreUnavailable, "the disk is full; free some space; asyncrunner retries"),
        (sqlite3.SQLITE_NOMEM, StoreUnavailable, "as SQLite says"),
        (sqlite3.SQLITE_IOERR_FSYNC, StoreError, "check the disk"),
        (sqlite3.SQLITE_CANTOPEN, StoreError, "may read and write"),
        (sqlite3.SQLITE_READONLY, StoreError, "check its owner"),
        (sqlite3.SQLITE_CORRUPT, StoreError, "recover it with"),
        (sqlite3.SQLITE_ERROR, StoreError, "does not have asyncrunner's schema"),
        (None, sqlite3.OperationalError, "as SQLite says"),
    ],
)
def test_sqlite_errors_are_translated_and_only_transient_ones_are_retried(
    code: int | None, expected: type[Exception], said: str
) -> None:
    error = sqlite3.OperationalError("as SQLite says")
    if code is not None:
        error.sqlite_errorcode = code
    with pytest.raises(expected, match=said) as caught, errors.translated("jobs.db"):
        raise error
    assert type(caught.value) is expected
