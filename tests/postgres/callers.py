"""Callers of submit_in: a program's connection to the server, in a transaction of the program, with each driver."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

import asyncpg
import django
import psycopg
import sqlalchemy
from django.conf import settings
from django.db import connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio

from asyncrunner import Handle, Handler

if not settings.configured:
    settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
    django.setup()


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


class Caller:
    """A connection with a row factory or a search_path that asyncrunner must not depend on. Sync calls block the test's loop."""

    connection: Any

    async def open(self, dsn: str) -> None:
        raise NotImplementedError

    async def begin(self) -> None:
        """Begin a transaction, where the driver does not do so with the first statement."""

    async def execute(self, statement: str) -> Any:
        """Run a statement, and return the first value of its first row, if it returns rows."""
        raise NotImplementedError

    async def commit(self) -> None:
        await _awaited(self.connection.commit())

    async def rollback(self) -> None:
        await _awaited(self.connection.rollback())

    async def close(self) -> None:
        await _awaited(self.connection.close())

    async def submit(self, handler: Handler[Any, Any], item: Any, **options: Any) -> Handle[Any]:
        handle: Handle[Any] = await _awaited(handler.submit_in(self.connection, item, **options))
        return handle


class Asyncpg(Caller):
    async def open(self, dsn: str) -> None:
        self.connection = await asyncpg.connect(dsn)

    async def begin(self) -> None:
        self.transaction = self.connection.transaction()
        await self.transaction.start()

    async def execute(self, statement: str) -> Any:
        return await self.connection.fetchval(statement)

    async def commit(self) -> None:
        await self.transaction.commit()

    async def rollback(self) -> None:
        await self.transaction.rollback()


class AsyncpgPool(Asyncpg):
    async def open(self, dsn: str) -> None:
        self.pool = await asyncpg.create_pool(dsn, min_size=1, max_size=1)
        self.connection = await self.pool.acquire()

    async def close(self) -> None:
        await self.pool.release(self.connection)
        await self.pool.close()


class Psycopg(Caller):
    async def open(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, row_factory=psycopg.rows.dict_row, cursor_factory=psycopg.RawCursor)

    async def execute(self, statement: str) -> Any:
        with psycopg.ClientCursor(self.connection, row_factory=psycopg.rows.tuple_row) as cursor:
            cursor.execute(statement.encode())
            return cursor.fetchone()[0] if cursor.description else None  # type: ignore[index]


class PsycopgTransaction(Psycopg):
    """A connection in autocommit mode, with a transaction."""

    async def open(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)

    async def begin(self) -> None:
        await self.execute("BEGIN")


class AsyncPsycopg(Caller):
    async def open(self, dsn: str) -> None:
        self.connection = await psycopg.AsyncConnection.connect(dsn, row_factory=psycopg.rows.namedtuple_row)

    async def execute(self, statement: str) -> Any:
        cursor = await self.connection.execute(statement)
        return (await cursor.fetchone())[0] if cursor.description else None


def _url(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


class SqlalchemyConnection(Caller):
    async def open(self, dsn: str) -> None:
        self.engine = sqlalchemy.create_engine(_url(dsn, "psycopg"))
        self.connection = self.made()

    def made(self) -> Any:
        return self.engine.connect()

    async def execute(self, statement: str) -> Any:
        result = self.connection.execute(sqlalchemy.text(statement))
        return result.scalar() if result.returns_rows else None

    async def close(self) -> None:
        await super().close()
        self.engine.dispose()


class SqlalchemySession(SqlalchemyConnection):
    def made(self) -> Any:
        return orm.Session(self.engine)


class AsyncSqlalchemyConnection(Caller):
    driver = "asyncpg"

    async def open(self, dsn: str) -> None:
        self.engine = sqlalchemy_asyncio.create_async_engine(_url(dsn, self.driver))
        self.connection = await self.made()

    async def made(self) -> Any:
        return await self.engine.connect()

    async def execute(self, statement: str) -> Any:
        result = await self.connection.execute(sqlalchemy.text(statement))
        return result.scalar() if result.returns_rows else None

    async def close(self) -> None:
        await super().close()
        await self.engine.dispose()


class AsyncSqlalchemySession(AsyncSqlalchemyConnection):
    driver = "psycopg"

    async def made(self) -> Any:
        return sqlalchemy_asyncio.AsyncSession(self.engine)


class Django(Caller):
    async def open(self, dsn: str) -> None:
        parameters = psycopg.conninfo.conninfo_to_dict(dsn)
        names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
        database = {django: str(parameters.get(name, "")) for django, name in names.items()}
        engine = {"ENGINE": "django.db.backends.postgresql", **database}
        self.connection = DatabaseWrapper({**connections.databases["default"], **engine}, "server")
        connections["server"] = self.connection

    async def begin(self) -> None:
        self.atomic = transaction.atomic(using="server")
        self.atomic.__enter__()

    async def execute(self, statement: str) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None

    async def commit(self) -> None:
        self.atomic.__exit__(None, None, None)

    async def rollback(self) -> None:
        transaction.set_rollback(True, using="server")
        self.atomic.__exit__(None, None, None)

    async def close(self) -> None:
        self.connection.close()
        del connections["server"]


CALLERS: Final[dict[str, Callable[[], Caller]]] = {
    "asyncpg": Asyncpg,
    "asyncpg pool": AsyncpgPool,
    "psycopg": Psycopg,
    "psycopg, autocommit": PsycopgTransaction,
    "psycopg, async": AsyncPsycopg,
    "SQLAlchemy": SqlalchemyConnection,
    "SQLAlchemy session": SqlalchemySession,
    "SQLAlchemy, async": AsyncSqlalchemyConnection,
    "SQLAlchemy session, async": AsyncSqlalchemySession,
    "Django": Django,
}
