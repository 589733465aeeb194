"""Stores on a PostgreSQL server for the tests: each one is a schema of its own, which is dropped after the test."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit, urlunsplit

import psycopg
from psycopg import sql
from psycopg.types.datetime import TimestamptzLoader

from tests.support.postgres_server import shared_dsn

_TOKEN: Final = re.compile(r"'[^']*'|\"[^\"]*\"|\?")
"""A quoted text or name, in which a question mark stays what it is, or a question mark."""

_LOCK_TIMEOUT: Final = "10s"

TOTALS: Final = """
SELECT name, coalesce(sum(pending + processing + completed + failed + cancelled), 0)::integer
FROM batches LEFT JOIN tallies USING (batch_id) GROUP BY name ORDER BY name"""
"""The query for the stored number of items of each batch."""

_given: Final[set[str]] = set()
"""The schemas of the locations that ``new_location`` returned since the last ``drop_schemas``."""


class _TimestampAsText(TimestamptzLoader):
    """Gives a time as the SQLite file has it, so that a test compares rows in the same way for each kind of store."""

    def load(self, data: Any) -> Any:
        return super().load(data).astimezone(UTC).isoformat(" ", "milliseconds").removesuffix("+00:00")


class ServerConnection:
    """A connection to one schema, as another program has; ``?`` stands for a parameter, and a row is a tuple."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> psycopg.Cursor[Any]:
        cursor = psycopg.RawCursor(self._connection)
        cursor.execute(_numbered(statement).encode(), parameters or None)
        return cursor

    def executemany(self, statement: str, parameters: Sequence[Sequence[Any]], /) -> psycopg.Cursor[Any]:
        cursor = psycopg.RawCursor(self._connection)
        cursor.executemany(_numbered(statement).encode(), parameters)
        return cursor


def new_location(folder: Path, name: str) -> str:
    """Return the URL of a schema that does not exist, the same one for the same folder and name."""
    schema = f"t_{hashlib.sha256(f'{folder}/{name}'.encode()).hexdigest()[:20]}"
    _given.add(schema)
    return f"{shared_dsn()}?schema={schema}"


def schema_of(location: str) -> str:
    """Return the schema that the URL of a store names."""
    return parse_qs(urlsplit(location).query).get("schema", ["asyncrunner"])[0]


def server_of(location: str) -> str:
    """Return the URL of the server's database, without the parameters of the store."""
    return urlunsplit(urlsplit(location)._replace(query=""))


@contextmanager
def connect(location: str, read_only: bool) -> Iterator[ServerConnection]:
    """Connect to the schema of a store that exists; commit at the end of the ``with`` block.

    Every statement of a connection that only reads has the same snapshot.
    """
    with psycopg.connect(server_of(location)) as connection:
        if read_only:
            connection.read_only = True
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        if not _has_schema(connection, location):
            raise psycopg.errors.InvalidSchemaName(f"there is no schema {schema_of(location)}")
        connection.adapters.register_loader("timestamptz", _TimestampAsText)
        connection.execute(
            "SELECT set_config('search_path', %s, false), set_config('TimeZone', 'UTC', false)", [schema_of(location)]
        )
        yield ServerConnection(connection)


def exists(location: str) -> bool:
    """Return whether the server has the schema."""
    with psycopg.connect(server_of(location)) as connection:
        return _has_schema(connection, location)


def _has_schema(connection: psycopg.Connection[Any], location: str) -> bool:
    return connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema_of(location)]).fetchone() is not None


def drop_schemas() -> None:
    """Drop the schemas of the locations that ``new_location`` returned.

    A session that holds a lock on one for 10 s makes this fail: a test left a transaction open.
    """
    if not _given:
        return
    with psycopg.connect(shared_dsn(), autocommit=True) as connection:
        connection.execute("SELECT set_config('lock_timeout', %s, false)", [_LOCK_TIMEOUT])
        for schema in sorted(_given):
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
            _given.discard(schema)


def _numbered(statement: str) -> str:
    """Return the statement with ``$1``, ``$2``... for its question marks."""
    count = 0

    def replacement(match: re.Match[str]) -> str:
        nonlocal count
        if match[0] != "?":
            return match[0]
        count += 1
        return f"${count}"

    return _TOKEN.sub(replacement, statement)
