"""Submitting in the caller's own transaction: the item exists if and only if the transaction commits."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy

from asyncrunner import Client, ConfigurationError, Handler, KeyConflict, NotAStore, Runner, SchemaTooNew, StoreUnavailable
from asyncrunner.postgres.connection import identity
from tests.postgres.callers import CALLERS, Caller
from tests.support.kinds import KINDS
from tests.support.postgres_kind import schema_of
from tests.support.postgres_state import disagreements
from tests.support.state import counts, execute, rows_of

EVERY_DRIVER = pytest.mark.parametrize("caller", CALLERS, indirect=True)
ONE_OF_EACH_KIND = pytest.mark.parametrize("caller", ["asyncpg", "psycopg"], indirect=True)


class Mails:
    """A runner on the server with a handler, and a table of the caller's own."""

    def __init__(self, db: str) -> None:
        self.db = db
        self.schema = schema_of(db)
        self.runner = Runner(db)
        self.ran: list[Any] = []

        @self.runner.handler(batch="mails")
        async def mail(user: Any) -> str:
            self.ran.append(user)
            return f"sent to {user}"

        self.mail: Handler[Any, str] = mail

    def users(self) -> list[int]:
        return [n for (n,) in rows_of(self.db, "SELECT n FROM users ORDER BY n")]

    def stored(self) -> list[str]:
        return [key for (key,) in rows_of(self.db, "SELECT id FROM items ORDER BY seq")]


@pytest.fixture
async def mails(server_dsn: str, tmp_path: Path) -> Mails:
    db = KINDS["postgres"].new_location(tmp_path, "jobs.db")
    async with Client(db):
        pass
    execute(db, "CREATE TABLE users (n int)")
    return Mails(db)


@pytest.fixture
async def caller(
    request: pytest.FixtureRequest, mails: Mails, server_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Caller]:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # Django refuses calls where an event loop runs
    made = CALLERS[request.param]()
    await made.open(server_dsn)
    yield made
    await made.close()


@EVERY_DRIVER
async def test_the_item_shares_the_fate_of_the_transaction(caller: Caller, mails: Mails) -> None:
    for number, end in ((1, caller.rollback), (2, caller.commit), (3, caller.commit)):
        await caller.begin()
        await caller.execute(f"INSERT INTO {mails.schema}.users VALUES ({number})")
        handle = await caller.submit(mails.mail, {"user": number}, key=f"mail-{number}", priority=number)
        assert handle.key == f"mail-{number}"
        assert handle.created
        assert f"mail-{number}" not in mails.stored(), "not before the commit"
        await end()
    assert mails.users() == [2, 3]
    assert rows_of(mails.db, "SELECT id, status, priority, payload, claim FROM items ORDER BY seq") == [
        ("mail-2", "pending", 2, '{"user":2}', 0),
        ("mail-3", "pending", 3, '{"user":3}', 0),
    ]
    assert rows_of(mails.db, "SELECT name FROM batches") == [("mails",)]
    assert disagreements(mails.db) == {}


@EVERY_DRIVER
async def test_a_running_worker_starts_it_after_the_commit_and_never_before(caller: Caller, mails: Mails) -> None:
    async with mails.runner:
        await (await mails.mail.submit("warm", key="warm")).result(20)
        await caller.begin()
        handle = await caller.submit(mails.mail, 7, key=7)
        # A round of the worker passes, which takes what is there.
        await (await mails.mail.submit("later", key="later")).result(20)
        assert mails.ran == ["warm", "later"]
        committed = asyncio.get_running_loop().time()
        await caller.commit()
        assert await handle.result(20) == "sent to 7"
        seconds = asyncio.get_running_loop().time() - committed
        assert seconds < 0.9, "a worker looks each second without a notification"
        await caller.begin()
        assert not (await caller.submit(mails.mail, 7, key=7)).created
        await caller.rollback()
    assert disagreements(mails.db) == {}


@EVERY_DRIVER
async def test_a_conflict_leaves_the_transaction_usable(caller: Caller, mails: Mails) -> None:
    await caller.begin()
    await caller.submit(mails.mail, 1, key="k")
    await caller.execute(f"INSERT INTO {mails.schema}.users VALUES (1)")
    with pytest.raises(KeyConflict, match="key 'k' is already in the batch with another payload"):
        await caller.submit(mails.mail, 2, key="k")
    with pytest.raises(KeyConflict, match='if_exists is "error"'):
        await caller.submit(mails.mail, 1, key="k", if_exists="error")
    await caller.submit(mails.mail, 3, key="other")
    await caller.commit()
    assert mails.users() == [1]
    assert rows_of(mails.db, "SELECT id, payload FROM items ORDER BY seq") == [("k", "1"), ("other", "3")]
    assert counts(mails.db) == {"pending": 2}
    assert disagreements(mails.db) == {}


@EVERY_DRIVER
async def test_the_search_path_does_not_matter_and_is_not_changed(caller: Caller, mails: Mails) -> None:
    hidden = f"{mails.schema}_x"
    await caller.begin()
    await caller.execute(f"CREATE SCHEMA {hidden}")
    for name in ("items (a int)", "batches (a int)", "meta (a int)", "tallies (a int)"):
        await caller.execute(f"CREATE TABLE {hidden}.{name}")
    await caller.execute(f"SET LOCAL search_path = {hidden}")
    settings = "SELECT string_agg(name || setting, ',' ORDER BY name) FROM pg_settings WHERE position('plpgsql.' IN name) = 0"
    before = await caller.execute(settings)
    await caller.submit(mails.mail, 1, key="k")
    with pytest.raises(KeyConflict):
        await caller.submit(mails.mail, 2, key="k")
    await caller.submit(mails.mail, 2, key="k", if_exists="rerun")
    assert await caller.execute("SHOW search_path") == hidden
    assert await caller.execute(settings) == before
    assert not await caller.execute("SELECT current_setting('asyncrunner.writer', true)")
    await caller.execute(f"DROP SCHEMA {hidden} CASCADE")
    await caller.commit()
    assert rows_of(mails.db, "SELECT id, payload FROM items") == [("k", "2")]
    assert disagreements(mails.db) == {}


@pytest.mark.parametrize("caller", ["asyncpg", "psycopg", "psycopg, async", "SQLAlchemy", "Django"], indirect=True)
async def test_a_connection_that_commits_each_statement_is_refused(caller: Caller, mails: Mails) -> None:
    match caller.connection:
        case sqlalchemy.Connection():
            caller.connection = caller.connection.execution_options(isolation_level="AUTOCOMMIT")
        case psycopg.Connection():
            caller.connection.autocommit = True
        case psycopg.AsyncConnection():
            await caller.connection.set_autocommit(True)
    with pytest.raises(ConfigurationError, match="commits each statement automatically"):
        await caller.submit(mails.mail, 1)
    assert mails.stored() == []


@ONE_OF_EACH_KIND
@pytest.mark.parametrize("if_exists", ["keep", "rerun"])
async def test_a_known_key_is_kept_or_runs_again(caller: Caller, mails: Mails, if_exists: Any) -> None:
    async with mails.runner:
        await (await mails.mail.submit(1, key="k")).result(20)
        await caller.begin()
        handle = await caller.submit(mails.mail, 2, key="k", if_exists=if_exists)
        await caller.submit(mails.mail, "new", key="new")
        await caller.commit()
        await (await mails.mail.handle("new")).result(20)
        assert await handle.result(20) == ("sent to 1" if if_exists == "keep" else "sent to 2")
    assert not handle.created
    assert sorted(map(str, mails.ran)) == sorted(["1", "new"] if if_exists == "keep" else ["1", "2", "new"])
    assert disagreements(mails.db) == {}


@ONE_OF_EACH_KIND
async def test_times_and_priorities_are_those_of_submit(caller: Caller, mails: Mails) -> None:
    await caller.begin()
    await caller.submit(mails.mail, 1, key="later", delay=3600, priority=-3)
    await caller.commit()
    query = "SELECT priority, due_at > now() + interval '59 minutes', abs(extract(epoch FROM now() - created_at)) < 60 FROM items"
    assert rows_of(mails.db, query) == [(-3, True, True)]
    assert disagreements(mails.db) == {}


async def test_a_new_batch_of_two_transactions_is_created_once(mails: Mails, server_dsn: str) -> None:
    first, second = await asyncpg.connect(server_dsn), await asyncpg.connect(server_dsn)
    begun = first.transaction(), second.transaction()
    for each in begun:
        await each.start()
    await mails.mail.submit_in(first, 1, key="k")
    waiting = asyncio.ensure_future(mails.mail.submit_in(second, 1, key="k"))
    while not await first.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid = $1)", second.get_server_pid()
    ):
        await asyncio.sleep(0.01)
    await begun[0].commit()
    assert not (await waiting).created, "it waited for the other transaction, and found its item"
    await begun[1].commit()
    assert rows_of(mails.db, "SELECT count(*) FROM batches") == [(1,)]
    assert mails.stored() == ["k"]
    assert disagreements(mails.db) == {}
    for connection in (first, second):
        await connection.close()


async def test_an_open_transaction_does_not_delay_the_workers(mails: Mails, server_dsn: str) -> None:
    @mails.runner.handler(batch="limited", rate_limit="1000/s")
    async def limited(number: int) -> int:
        return number

    async with mails.runner:
        for handler in (mails.mail, limited):
            connection = await asyncpg.connect(server_dsn)
            async with connection.transaction():
                await handler.submit_in(connection, 1)
                # The batch has a row, which the rate limit locks, and the submit refers to.
                await (await handler.submit(2)).result(20)
            await connection.close()


async def test_a_cancelled_submit_leaves_the_transaction_usable(mails: Mails, server_dsn: str) -> None:
    blocker, caller = await asyncpg.connect(server_dsn), await asyncpg.connect(server_dsn)
    blocking, own = blocker.transaction(), caller.transaction()
    await blocking.start()
    await mails.mail.submit_in(blocker, 1, key="k")
    await own.start()
    await caller.execute(f"INSERT INTO {mails.schema}.users VALUES (1)")
    submitting = asyncio.ensure_future(mails.mail.submit_in(caller, 1, key="k"))
    while not await blocker.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid = $1)", caller.get_server_pid()
    ):
        await asyncio.sleep(0.01)
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submitting
    await blocking.rollback()
    await mails.mail.submit_in(caller, 2, key="k")
    await own.commit()
    assert mails.users() == [1]
    assert rows_of(mails.db, "SELECT id, payload FROM items") == [("k", "2")]
    assert disagreements(mails.db) == {}
    for connection in (blocker, caller):
        await connection.close()


async def test_a_transaction_that_cannot_be_serialized_is_told_to_try_again(mails: Mails, server_dsn: str) -> None:
    snapshot = psycopg.connect(server_dsn)
    snapshot.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    snapshot.execute("SELECT 1")
    with psycopg.connect(server_dsn) as other:
        mails.mail.submit_in(other, 1, key="k")
    with pytest.raises(StoreUnavailable, match=r"roll back and try again\. Nothing was stored"):
        mails.mail.submit_in(snapshot, 1, key="k")
    snapshot.close()


async def test_an_aborted_transaction_is_named(mails: Mails, server_dsn: str) -> None:
    with psycopg.connect(server_dsn) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")
        with pytest.raises(StoreUnavailable, match="an earlier error has aborted your transaction; roll back and try again"):
            mails.mail.submit_in(connection, 1)


async def test_a_lost_connection_is_named(mails: Mails, server_dsn: str) -> None:
    connection = psycopg.connect(server_dsn)
    connection.execute("SELECT 1")
    with psycopg.connect(server_dsn) as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", [connection.info.backend_pid])
    with pytest.raises(StoreUnavailable, match="Nothing was stored"):
        mails.mail.submit_in(connection, 1)
    connection.close()


async def test_mistakes_are_named(mails: Mails, server_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection: Any
    with pytest.raises(ConfigurationError, match="takes a connection of asyncpg, psycopg, SQLAlchemy or Django, not str"):
        mails.mail.submit_in(server_dsn, 1)  # type: ignore[call-overload]
    engine = sqlalchemy.create_engine("sqlite://")
    with pytest.raises(ConfigurationError, match="not Engine"):
        mails.mail.submit_in(engine, 1)  # type: ignore[call-overload]
    with engine.connect() as connection, pytest.raises(ConfigurationError, match="is open on sqlite"):
        mails.mail.submit_in(connection, 1)
    with psycopg.connect(server_dsn) as connection:
        nowhere = Mails(KINDS["postgres"].new_location(tmp_path, "nowhere"))
        with pytest.raises(
            ConfigurationError, match=r"on the database '\w+', which has no such schema of asyncrunner, but the items are in"
        ):
            nowhere.mail.submit_in(connection, 1)
        execute(mails.db, "UPDATE meta SET version = 99")
        with pytest.raises(SchemaTooNew, match="has schema 99"):
            mails.mail.submit_in(connection, 1)
        execute(mails.db, "UPDATE meta SET version = 0")
        with pytest.raises(NotAStore, match="has schema 0, an older one"):
            mails.mail.submit_in(connection, 1)
        execute(mails.db, "UPDATE meta SET version = 1")
        monkeypatch.setattr(identity, "_known", dict.fromkeys(identity._known, "1/2"))
        with pytest.raises(ConfigurationError, match="on the database 'postgres' of another server"):
            mails.mail.submit_in(connection, 1)
        monkeypatch.setattr(identity, "_known", {})
        elsewhere = Mails(mails.db.replace("?", "x?"))
        with pytest.raises(ConfigurationError, match=r"on the database 'postgres', but the items are in .*/postgresx"):
            elsewhere.mail.submit_in(connection, 1)
        assert connection.execute("SELECT 1").fetchone() == (1,), "the transaction is usable"
        mails.mail.submit_in(connection, 1, key="k")
    assert mails.stored() == ["k"]


def test_no_other_driver_is_imported(mails: Mails, server_dsn: str) -> None:
    program = f"""if True:
        import sys
        import psycopg
        from asyncrunner.backends import open_transactional_insert
        from asyncrunner.domain.item import NewItem
        from asyncrunner.store.batches import BatchOptions
        with psycopg.connect({server_dsn!r}) as connection:
            inserter = open_transactional_insert({mails.db!r})
            inserter.insert_in(connection, "mails", "m:h", BatchOptions(), [NewItem("k", "1")], on_change="error")
        drivers = {{"asyncpg", "sqlalchemy", "django", "psycopg2"}}
        assert drivers.isdisjoint(sys.modules), drivers & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", program], check=True)
    assert mails.stored() == ["k"]
