"""The FileMaintenance protocol for a schema of a PostgreSQL server, which has its own commands for what a file needs.

Each method opens the sessions that it needs.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from asyncrunner.domain.clock import Clock
from asyncrunner.errors import ConfigurationError
from asyncrunner.postgres import sql
from asyncrunner.postgres.connection.address import parse_address
from asyncrunner.postgres.connection.schema import check_exists
from asyncrunner.postgres.connection.server_clock import ServerClock, store_clock
from asyncrunner.postgres.connection.session import Session
from asyncrunner.postgres.maintenance import checks, repairs
from asyncrunner.store.maintenance import CheckResult, Restored
from asyncrunner.store.retrying import retry_for
from asyncrunner.text.suggestions import no_such_batch

if TYPE_CHECKING:
    from asyncpg import Connection, Record

T = TypeVar("T")


class PostgresMaintenance:
    """The maintenance of one schema of a PostgreSQL server, also while workers use it."""

    def __init__(self, location: str, clock: Clock | None = None) -> None:
        """Prepare the maintenance of the schema at *location*, without a connection. Raises ConfigurationError."""
        self._address = parse_address(location)
        self._clock = store_clock(clock)

    async def backup(self, target: str | os.PathLike[str], *, batch_id: int | None = None) -> int:
        del target, batch_id
        raise ConfigurationError(
            f"{self._address.shown} is on a PostgreSQL server, whose own tools copy it, also while workers run: "
            f"pg_dump -Fc -n {self._address.schema} -f FILE DATABASE, or a backup of the whole server"
        )

    async def restore(self, backup: str | os.PathLike[str]) -> Restored:
        del backup
        raise ConfigurationError(
            f"{self._address.shown} is on a PostgreSQL server, whose own tools restore it: stop the workers, and run "
            f"pg_restore --clean --if-exists -n {self._address.schema} -d DATABASE FILE; then run `asyncrunner doctor`"
        )

    def check_vacuum(self) -> None:
        raise ConfigurationError(
            f"{self._address.shown} is on a PostgreSQL server, which reuses the space of deleted items by its autovacuum; to "
            f"return the space to the disk, run VACUUM FULL {self._address.schema}.items in psql while no worker is alive"
        )

    async def vacuum(self) -> int:
        self.check_vacuum()
        return 0

    async def free_bytes(self) -> int:
        return 0

    async def check(self, *, full: bool, batch: str | None = None) -> Sequence[CheckResult]:
        del full  # pg_amcheck of the server compares indexes with tables

        async def examine(session: Session) -> Sequence[CheckResult]:
            async def operation(connection: Connection[Record]) -> Sequence[CheckResult]:
                names = [name for (name,) in await connection.fetch(sql.batches.BATCH_NAMES)]
                if batch is not None and batch not in names:
                    raise no_such_batch(self._address.shown, batch, names)
                return await checks.examine(connection, self._address, self._clock, batch)

            return await session.call(operation)

        return await self._in_session(examine, read_only=True)

    async def repair(self, *, contents: bool, batch: str | None = None) -> Sequence[str]:
        del contents, batch  # the side tables are shared by all batches
        return await self._in_session(lambda session: repairs.repair(session, self._clock.now()))

    async def _in_session(self, operation: Callable[[Session], Awaitable[T]], *, read_only: bool = False) -> T:
        session = Session(self._address, read_only=read_only)
        await session.open()
        try:
            await session.call(lambda connection: check_exists(connection, self._address))
            if isinstance(self._clock, ServerClock):
                self._clock.measured(session.offset)
            return await retry_for(lambda: operation(session), self._clock)
        finally:
            await session.close()
