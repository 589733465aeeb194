"""The proxy that stands for a network with faults, between asyncpg and a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import psycopg
import pytest

from tests.support.kinds import KINDS
from tests.support.postgres_kind import schema_of
from tests.support.tcp_proxy import Fault, TcpProxy

Until = Callable[[Callable[[], object]], Awaitable[None]]

LOST = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)
"""What asyncpg raises when a connection breaks."""


@pytest.fixture
async def table(server_dsn: str, tmp_path: Path) -> str:
    schema = schema_of(KINDS["postgres"].new_location(tmp_path, "proxied"))
    with psycopg.connect(server_dsn) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
        connection.execute(f"CREATE TABLE {schema}.t (n int)".encode())
    return f"{schema}.t"


@pytest.fixture
async def client(proxy: TcpProxy, server_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(proxy.url(server_dsn))
    yield connection
    connection.terminate()


def rows(dsn: str, table: str) -> list[int]:
    with psycopg.connect(dsn) as connection:
        return [n for (n,) in connection.execute(f"SELECT n FROM {table} ORDER BY n".encode()).fetchall()]


async def test_it_forwards_and_cuts_every_connection(proxy: TcpProxy, server_dsn: str, client: asyncpg.Connection) -> None:
    other = await asyncpg.connect(proxy.url(server_dsn))
    big = "x" * 1_000_000
    assert await client.fetchval("SELECT $1::text", big) == big
    assert proxy.cut() == 2
    for connection in (client, other):
        with pytest.raises(LOST):
            await connection.fetchval("SELECT 1")
    again = await asyncpg.connect(proxy.url(server_dsn))
    assert await again.fetchval("SELECT 1") == 1
    await again.close()


async def test_it_refuses_new_connections_and_accepts_them_again(
    proxy: TcpProxy, server_dsn: str, client: asyncpg.Connection
) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncpg.connect(proxy.url(server_dsn))
    assert await client.fetchval("SELECT 1") == 1
    proxy.accept()
    await (await asyncpg.connect(proxy.url(server_dsn))).close()


async def test_a_server_that_is_down_resets_the_connection(proxy: TcpProxy, server_dsn: str) -> None:
    host, _ = proxy.target
    proxy.target = (host, 1)
    with pytest.raises(LOST):
        await asyncpg.connect(proxy.url(server_dsn))


async def test_each_direction_has_its_delay(proxy: TcpProxy, client: asyncpg.Connection) -> None:
    for directions in ({"to_server": 0.2}, {"to_client": 0.2}):
        proxy.delay(**directions)
        start = time.monotonic()
        await client.execute("SELECT 1")
        assert time.monotonic() - start >= 0.2
    proxy.delay()
    # The client's order is kept although the delay became shorter.
    assert [await client.fetchval("SELECT $1::int", n) for n in range(20)] == list(range(20))


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize(
    ("fault", "stored"),
    [(Fault.CUT_BEFORE, [1]), (Fault.CUT_AFTER, [1, 2]), (Fault.NO_ANSWER, [1, 2])],
    ids=lambda value: str(value),
)
async def test_a_fault_at_a_statement_happens_once_before_or_after_its_commit(
    fault: Fault, stored: list[int], prepared: bool, proxy: TcpProxy, server_dsn: str, table: str, client: asyncpg.Connection
) -> None:
    async def insert(n: int, connection: asyncpg.Connection) -> None:
        if prepared:
            await connection.execute(f"INSERT INTO {table} VALUES ($1)", n)
        else:
            await connection.execute(f"INSERT INTO {table} VALUES ({n})")

    await insert(1, client)
    occurrence = proxy.at("INSERT", fault)
    await client.fetchval("SELECT 1")
    assert not occurrence.is_set()
    inserting = asyncio.ensure_future(insert(2, client))
    await occurrence.happened()
    assert rows(server_dsn, table) == stored
    if fault is Fault.NO_ANSWER:
        assert not (await asyncio.wait([inserting], timeout=0.1))[0]
        assert proxy.cut() == 1
    with pytest.raises(LOST):
        await inserting
    again = await asyncpg.connect(proxy.url(server_dsn))
    await insert(3, again)
    await again.close()
    assert rows(server_dsn, table) == [*stored, 3]


async def test_a_black_hole_keeps_connections_and_delivers_later(
    proxy: TcpProxy, server_dsn: str, table: str, client: asyncpg.Connection
) -> None:
    proxy.black_hole()
    inserting = asyncio.ensure_future(client.execute(f"INSERT INTO {table} VALUES (1)"))
    connecting = asyncio.ensure_future(asyncpg.connect(proxy.url(server_dsn)))
    assert not (await asyncio.wait([inserting, connecting], timeout=0.1))[0]
    assert rows(server_dsn, table) == []
    proxy.heal()
    await inserting
    await (await connecting).close()
    assert rows(server_dsn, table) == [1]


async def test_a_black_hole_can_end_in_a_reset(proxy: TcpProxy, server_dsn: str, table: str, client: asyncpg.Connection) -> None:
    proxy.black_hole()
    inserting = asyncio.ensure_future(client.execute(f"INSERT INTO {table} VALUES (1)"))
    assert not (await asyncio.wait([inserting], timeout=0.1))[0]
    proxy.heal(deliver=False)
    with pytest.raises(LOST):
        await inserting
    assert rows(server_dsn, table) == []


async def test_a_connection_that_the_client_closes_is_closed(
    proxy: TcpProxy, server_dsn: str, client: asyncpg.Connection, until: Until
) -> None:
    await client.close()
    await until(lambda: proxy.connections == 0)
