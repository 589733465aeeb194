"""Several processes that open a store that does not exist: one of them creates it, and the others open what it created."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from asyncrunner.backends import open_engine
from asyncrunner.errors import NotAStore
from asyncrunner.postgres.connection.address import parse_address
from asyncrunner.postgres.connection.schema import VERSION, read_version
from tests.support.kinds import KINDS
from tests.support.postgres_kind import schema_of


class CreatesMeanwhile:
    """A connection after whose first statement another process creates the store."""

    def __init__(self, connection: Any, location: str) -> None:
        self._connection = connection
        self._location = location
        self._statements = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def fetchval(self, *arguments: Any) -> Any:
        found = await self._connection.fetchval(*arguments)
        self._statements += 1
        if self._statements == 1:
            store = open_engine(self._location)
            await store.open()
            await store.close()
        return found


async def test_a_store_that_another_process_creates_meanwhile_is_no_foreign_schema(server_dsn: str, tmp_path: Path) -> None:
    location = KINDS["postgres"].new_location(tmp_path, "jobs.db")
    connection: Any = await asyncpg.connect(server_dsn)
    await connection.execute(f"SET search_path = {schema_of(location)}")
    assert await read_version(CreatesMeanwhile(connection, location), parse_address(location)) == VERSION  # type: ignore[arg-type]
    await connection.close()


async def test_a_schema_with_tables_of_another_program_is_refused(server_dsn: str, tmp_path: Path) -> None:
    location = KINDS["postgres"].new_location(tmp_path, "jobs.db")
    with psycopg.connect(server_dsn) as connection:
        connection.execute(f"CREATE SCHEMA {schema_of(location)} CREATE TABLE items (n int)".encode())
    with pytest.raises(NotAStore, match="tables of another program"):
        await open_engine(location).open()
