"""The server that a benchmark measures: one with default settings that it starts, or a given one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg

from tests.support.postgres_server import PostgresServer, wheel_binaries

__all__ = ["MISSING", "Server", "running_server"]

T = TypeVar("T")

MISSING: Final = "no PostgreSQL server: it is not installed (extra server), and --server names none"

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_LOCAL: Final = ("127.0.0.1", "localhost", "::1")


class Server:
    """A PostgreSQL server with the URL *url*. Each measurement uses a schema that is new or empty."""

    def __init__(self, url: str) -> None:
        self.url = url
        version, self._main_pid, self.settings = self.run(_facts)
        self.version = str(version)

    def run(self, operation: Callable[[asyncpg.Connection[Any]], Awaitable[T]]) -> T:
        """Run *operation* with a connection and return its value."""

        async def run() -> T:
            connection = await asyncpg.connect(self.url)
            try:
                return await operation(connection)
            finally:
                await connection.close()

        return asyncio.run(run())

    def value(self, statement: str, *arguments: object) -> Any:
        """Return the first value of *statement*."""
        return self.run(lambda connection: connection.fetchval(statement, *arguments))

    def schema(self, name: str) -> str:
        """Delete the schema *name*, and return the URL for asyncrunner that names it. The run creates it."""
        self.run(lambda connection: connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE"))
        return f"{self.url}{'&' if '?' in self.url else '?'}schema={name}"

    def write_checkpoint(self) -> None:
        """Let the server write what earlier runs left behind, so that the next run does not pay for it."""
        self.run(lambda connection: connection.execute("CHECKPOINT"))

    def cpu_seconds(self) -> float | None:
        """Return the CPU seconds of all processes of the server since it started; None if it is on another machine."""
        if self._main_pid is None:
            return None
        ticks = 0
        for place in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = place.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            if int(place.parent.name) == self._main_pid:
                ticks += sum(map(int, fields[11:15]))  # with its children that have ended
            elif int(fields[1]) == self._main_pid:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / _TICKS

    def wal_position(self) -> int:
        """Return how many bytes of WAL the server has written."""
        return int(self.value("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))

    def hot_share(self, schema: str) -> float:
        """Return the share of HOT updates of the table items: those that wrote no index entry."""
        share: float = self.value(
            "SELECT n_tup_hot_upd::double precision / greatest(n_tup_upd, 1) FROM pg_stat_user_tables "
            "WHERE schemaname = $1 AND relname = 'items'",
            schema,
        )
        return share

    def megabytes(self, schema: str, table: str) -> tuple[float, float]:
        """Return the size of a table, and of its indexes together."""
        size = "SELECT {}(format('%I.%I', $1::text, $2::text)::regclass) / 1e6::double precision"
        return (
            self.value(size.format("pg_table_size"), schema, table),
            self.value(size.format("pg_indexes_size"), schema, table),
        )


async def _facts(connection: asyncpg.Connection[Any]) -> tuple[str, int | None, str]:
    version = await connection.fetchval("SHOW server_version")
    names = ("fsync", "synchronous_commit", "shared_buffers", "max_wal_size")
    settings = ", ".join([f"{name} {await connection.fetchval(f'SHOW {name}')}" for name in names])
    host = str(await connection.fetchval("SELECT host(inet_server_addr())") or "")
    stat = Path(f"/proc/{await connection.fetchval('SELECT pg_backend_pid()')}/stat")
    if host not in _LOCAL or not stat.exists() or "postgres" not in stat.read_text().partition(")")[0]:
        return version, None, settings
    return version, int(stat.read_text().rpartition(")")[2].split()[1]), settings


@contextmanager
def running_server(url: str) -> Generator[Server | None, None, None]:
    """Provide the server at *url*; without one, start a server with default settings; None if there are no binaries."""
    if url:
        yield Server(url)
    elif wheel_binaries() is None:
        yield None
    else:
        with PostgresServer(durable=True, settings={"max_connections": 100}) as started:
            yield Server(started.dsn)
