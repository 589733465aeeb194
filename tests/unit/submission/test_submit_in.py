"""Submitting in the caller's own transaction: the item exists if and only if the transaction commits."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from asyncrunner import Client, ConfigurationError, Handler, KeyConflict, NotAStore, Runner, StoreError
from tests.conftest import Until
from tests.support.state import rows_of

pytestmark = pytest.mark.sqlite_file


def mailer(db: str) -> tuple[Runner, Handler[int, str], list[int]]:
    runner = Runner(db)
    ran: list[int] = []

    @runner.handler(batch="mails")
    async def mail(user: int) -> str:
        ran.append(user)
        return f"sent to {user}"

    return runner, mail, ran


async def with_users(db: str) -> None:
    async with Client(db):
        pass
    connection = sqlite3.connect(db)
    connection.execute("CREATE TABLE users (name TEXT)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("isolation", ["", "IMMEDIATE", None])
async def test_the_item_shares_the_fate_of_the_transaction(db: str, isolation: Any) -> None:
    await with_users(db)
    _, mail, _ = mailer(db)
    connection = sqlite3.connect(db, isolation_level=isolation)
    connection.row_factory = lambda *_: {"a": "dict"}
    connection.text_factory = bytes
    for number, end in ((1, "rollback"), (2, "commit")):
        if isolation is None:
            connection.execute("BEGIN")
        connection.execute("INSERT INTO users VALUES (?)", (f"user {number}",))
        handle = mail.submit_in(connection, number, key=f"mail-{number}", priority=1)
        assert handle.key == f"mail-{number}"
        assert rows_of(db, "SELECT count(*) FROM items") == [(0,)]
        getattr(connection, end)()
    assert connection.execute("SELECT 1").fetchone() == {"a": "dict"}
    connection.close()
    assert rows_of(db, "SELECT name FROM users") == [("user 2",)]
    assert rows_of(db, "SELECT id, status, priority, claim FROM items") == [("mail-2", "pending", 1, 0)]
    assert rows_of(db, "SELECT name, total FROM batches") == [("mails", 1)]


async def test_workers_see_it_immediately_and_the_handle_waits_for_it(db: str) -> None:
    await with_users(db)
    runner, mail, ran = mailer(db)
    async with runner, aiosqlite.connect(db) as connection:
        await connection.execute("INSERT INTO users VALUES ('u')")
        handle = await mail.submit_in(connection, 7, key=7)
        await asyncio.sleep(0.1)
        assert ran == []
        await connection.commit()
        assert await handle.result(20) == "sent to 7"
        assert await mail.submit_in(connection, 7, key=7) == handle  # it exists
        await connection.rollback()


async def test_a_transaction_of_the_callers_is_begun_where_sqlite3_would_begin_one(db: str) -> None:
    await with_users(db)
    _, mail, _ = mailer(db)
    connection = sqlite3.connect(db)
    mail.submit_in(connection, 1)
    assert connection.in_transaction
    connection.rollback()
    assert connection.execute("SELECT count(*) FROM items").fetchone() == (0,)
    connection.close()


async def test_a_refused_item_leaves_the_transaction_unchanged(db: str) -> None:
    await with_users(db)
    _, mail, _ = mailer(db)
    connection = sqlite3.connect(db)
    mail.submit_in(connection, 1, key="k")
    connection.execute("INSERT INTO users VALUES ('kept')")
    with pytest.raises(KeyConflict):
        mail.submit_in(connection, 2, key="k")
    with pytest.raises(ConfigurationError, match="has no time zone"):
        mail.submit_in(connection, 3, run_at=datetime(2030, 1, 1))  # noqa: DTZ001
    connection.commit()
    connection.close()
    assert rows_of(db, "SELECT name FROM users") == [("kept",)]
    assert rows_of(db, "SELECT id, payload FROM items") == [("k", "1")]


async def test_mistakes_are_named(db: str, tmp_path: Path) -> None:
    _, mail, _ = mailer(db)
    connection = sqlite3.connect(tmp_path / "other.db")
    with pytest.raises(ConfigurationError, match="open the connection on that file"):
        mail.submit_in(connection, 1)
    memory = sqlite3.connect(":memory:")
    with pytest.raises(ConfigurationError, match="a database in memory"):
        mail.submit_in(memory, 1)
    foreign = sqlite3.connect(db)
    foreign.execute("CREATE TABLE mine (x)")
    foreign.commit()
    with pytest.raises(NotAStore):
        mail.submit_in(foreign, 1)
    with pytest.raises(ConfigurationError, match="takes a sqlite3, aiosqlite or Django connection, not str"):
        mail.submit_in("jobs.db", 1)  # type: ignore[call-overload]
    for each in (connection, memory, foreign):
        each.close()
    Path(db).unlink()
    await with_users(db)
    alone = sqlite3.connect(db, isolation_level=None)
    with pytest.raises(ConfigurationError, match="commits each statement automatically"):
        mail.submit_in(alone, 1)
    alone.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 knows autocommit from Python 3.12 on")
async def test_python_3_12s_own_transactions(db: str) -> None:
    await with_users(db)
    _, mail, _ = mailer(db)
    connection = sqlite3.connect(db, autocommit=True)  # type: ignore[call-overload,unused-ignore]
    with pytest.raises(ConfigurationError, match="commits each statement automatically"):
        mail.submit_in(connection, 1)
    connection.close()
    connection = sqlite3.connect(db, autocommit=False)  # type: ignore[call-overload,unused-ignore]
    mail.submit_in(connection, 1)
    connection.rollback()
    mail.submit_in(connection, 2)
    connection.commit()
    connection.close()
    assert rows_of(db, "SELECT payload FROM items") == [("2",)]


async def test_a_lock_of_another_connection_is_reported_and_no_item_is_stored(db: str) -> None:
    await with_users(db)
    _, mail, _ = mailer(db)
    holder = sqlite3.connect(db, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    connection = sqlite3.connect(db, timeout=0.01)
    with pytest.raises(StoreError, match=r"another program holds the write lock.*roll back and try again. Nothing was stored"):
        mail.submit_in(connection, 1)
    assert not connection.in_transaction
    holder.execute("ROLLBACK")
    mail.submit_in(connection, 1)
    connection.commit()
    for each in (holder, connection):
        each.close()
    assert rows_of(db, "SELECT count(*) FROM items") == [(1,)]


async def test_a_transaction_that_began_with_a_read_and_was_overtaken_gets_an_error(db: str) -> None:
    await with_users(db)
    _, mail, _ = mailer(db)
    late, quick = sqlite3.connect(db), sqlite3.connect(db)
    late.execute("BEGIN")
    late.execute("SELECT count(*) FROM users").fetchone()
    mail.submit_in(quick, 1)
    quick.commit()
    with pytest.raises(StoreError, match="another connection has written since your transaction began with a read; roll back"):
        mail.submit_in(late, 2)
    late.rollback()
    for each in (late, quick):
        each.close()


async def test_a_runner_waits_for_the_callers_transaction_and_loses_no_item(db: str, until: Until) -> None:
    await with_users(db)
    runner, mail, ran = mailer(db)
    async with runner:
        connection = sqlite3.connect(db)
        mail.submit_in(connection, 1)
        others = [asyncio.ensure_future(mail.submit(number)) for number in range(2, 6)]
        await asyncio.sleep(0.4)
        connection.commit()
        connection.close()
        await asyncio.gather(*others)
        await until(lambda: sorted(ran) == [1, 2, 3, 4, 5])
