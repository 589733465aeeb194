"""A pooler in front of the server: the real PgBouncer, in each of its modes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest

from asyncrunner import Client, Runner, run_batch
from asyncrunner.errors import ConfigurationError, StoreError
from asyncrunner.postgres.connection.address import parse_address
from asyncrunner.postgres.reader import PostgresReader
from tests.support.kinds import KINDS
from tests.support.pgbouncer import MISSING, PgBouncer, program
from tests.support.postgres_kind import exists, schema_of

pytestmark = pytest.mark.skipif(program() is None, reason=MISSING)

NewPooler = Callable[..., PgBouncer]


@pytest.fixture
def direct(server_dsn: str, tmp_path: Path) -> str:
    """The location of a store that does not exist, without a pooler."""
    return KINDS["postgres"].new_location(tmp_path, "pooled")


@pytest.fixture
def start(server_dsn: str) -> Iterator[NewPooler]:
    with ExitStack() as stack:

        def started(mode: Any, **settings: object) -> PgBouncer:
            user = urlsplit(server_dsn).username or "postgres"
            return stack.enter_context(PgBouncer(server_dsn, mode, users=(user,), settings=settings))

        yield started


async def double(number: int) -> int:
    return 2 * number


def occupy(url: str, count: int) -> None:
    """Make the pooler open *count* connections to the server, and return them to the pool."""
    connections = [psycopg.connect(url) for _ in range(count)]
    for connection in connections:
        connection.execute("SELECT 1")
    for connection in connections:
        connection.rollback()  # otherwise the pooler would not keep its connection
        connection.close()


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("settings", [{}, {"default_pool_size": 1}, {"server_round_robin": 1}], ids=str)
async def test_a_pooler_that_shares_sessions_is_refused_with_what_to_do(
    mode: str, settings: dict[str, object], start: NewPooler, server_dsn: str, direct: str
) -> None:
    pooler = start(mode, **settings)
    if mode == "transaction":
        occupy(pooler.url(server_dsn), 1 if "default_pool_size" in settings else 5)
    began = time.monotonic()
    with pytest.raises(
        ConfigurationError, match=r"pooler in transaction or statement mode.*\?direct=.*pool_mode=session"
    ) as raised:
        await run_batch([1], double, db=pooler.url(direct))
    assert time.monotonic() - began < 5
    assert str(pooler.port) in str(raised.value)
    assert not exists(direct)
    runner = Runner(pooler.url(direct))
    with pytest.raises(ConfigurationError, match="pooler"):
        await runner.start()
    with pytest.raises(ConfigurationError, match="pooler"):
        async with Client(pooler.url(direct)):
            pass


async def test_a_refused_session_leaves_no_setting_for_other_clients(start: NewPooler, server_dsn: str, direct: str) -> None:
    pooler = start("transaction", default_pool_size=1)
    with pytest.raises(ConfigurationError, match="pooler"):
        await PostgresReader(parse_address(pooler.url(direct)), None).batch_names()
    with psycopg.connect(pooler.url(server_dsn), autocommit=True) as connection:
        for setting in ("default_transaction_read_only", "search_path", "plan_cache_mode", "application_name"):
            row = connection.execute("SELECT setting = boot_val FROM pg_settings WHERE name = %s", [setting]).fetchone()
            assert row == (True,), setting
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE '%asyncpg%'").fetchone() == (0,)


async def test_session_mode_works(start: NewPooler, direct: str) -> None:
    url = start("session").url(direct)
    report = await run_batch(range(300), double, db=url)
    assert await report.results() == list(range(0, 600, 2))
    runner = Runner(url)
    handler = runner.handler()(double)
    async with runner, Client(url) as client:
        assert await (await client.submit(handler, 501)).result() == 1002


async def test_session_mode_works_with_a_pool_that_has_no_connection_to_spare(start: NewPooler, direct: str) -> None:
    report = await run_batch([1, 2], double, db=start("session", default_pool_size=3).url(direct))
    assert report.completed == 2


async def test_a_pool_that_is_too_small_is_an_error_and_not_an_endless_wait(
    start: NewPooler, direct: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncrunner.postgres.connection.pooler._ANSWER_SECONDS", 2.0)
    with pytest.raises(StoreError, match="its pool may be full: a process needs 3 connections"):
        await run_batch([1], double, db=start("session", default_pool_size=2).url(direct))


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_with_a_direct_url_every_session_is_direct(mode: str, start: NewPooler, server_dsn: str, direct: str) -> None:
    pooler = start(mode)
    url = f"{pooler.url(direct)}&direct={quote(server_dsn, safe='')}"
    report = await run_batch(range(300), double, db=url)
    assert report.completed == 300
    runner = Runner(url)
    handler = runner.handler()(double)
    async with runner, Client(url) as client:
        assert await (await client.submit(handler, 501)).result() == 1002
    assert "login attempt" not in pooler.log()


async def test_a_direct_url_with_a_pooler_that_shares_sessions_is_refused(start: NewPooler, direct: str, server_dsn: str) -> None:
    pooler = start("transaction")
    with pytest.raises(ConfigurationError, match="pooler in transaction"):
        await run_batch([1], double, db=f"{direct}&direct={quote(pooler.url(server_dsn), safe='')}")


async def test_a_pooler_that_restarts_costs_no_item(start: NewPooler, direct: str) -> None:
    pooler = start("session")
    restarted = False

    async def restart(number: int) -> int:
        nonlocal restarted
        if number == 50 and not restarted:
            restarted = True
            pooler.stop()
            pooler.start()
        return number

    report = await run_batch(range(300), restart, batch="restarts", db=pooler.url(direct))
    assert await report.results() == list(range(300))


async def test_items_are_submitted_in_a_transaction_of_the_program_through_a_pooler_in_transaction_mode(
    start: NewPooler, server_dsn: str, direct: str
) -> None:
    url = start("transaction").url(server_dsn)
    runner = Runner(direct)
    handler = runner.handler()(double)
    async with runner, Client(direct) as client:
        with psycopg.connect(url) as connection:
            connection.execute("SELECT 1")
            handle = handler.submit_in(connection, 21, key="in")
        assert await handle.result() == 42
        with psycopg.connect(url) as connection:
            connection.execute(
                f"INSERT INTO {schema_of(direct)}.items (batch_id, id, payload) "
                f"SELECT batch_id, 'plain', '4' FROM {schema_of(direct)}.batches".encode()
            )
        assert await (await client.handle(handler, "plain")).result() == 8
