"""The AdminStore protocol, implemented on a schema of a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from asyncrunner.domain.clock import Clock
from asyncrunner.domain.item import NewItem
from asyncrunner.errors import StoreClosed
from asyncrunner.postgres import sql
from asyncrunner.postgres.admin import changes, plan, queries
from asyncrunner.postgres.admin.inspection import PostgresInspectionStore
from asyncrunner.postgres.connection.session import Session
from asyncrunner.postgres.recovery import recover_items
from asyncrunner.store.admin_protocol import UNSET, Change, ItemSet, Unset
from asyncrunner.store.retrying import RETRY_SECONDS
from asyncrunner.store.snapshot import KnownItem
from asyncrunner.store.workers import Stop

if TYPE_CHECKING:
    from asyncpg import Connection, Record

    from asyncrunner.domain.outcome import ErrorInfo

T = TypeVar("T")


class PostgresAdminStore(PostgresInspectionStore):
    """An operator's view of a store on a PostgreSQL server, with or without running workers. It never creates a schema.

    Reads use a session that only reads. The first change opens a second session, which waits for a lock no longer than
    *retry_seconds*.
    """

    def __init__(self, location: str, clock: Clock | None = None, *, retry_seconds: float = RETRY_SECONDS) -> None:
        """Prepare an operator's view of the schema at *location*; ``open()`` opens it. Raises ConfigurationError.

        *retry_seconds*: seconds for which a call is repeated while the server is unavailable.
        """
        super().__init__(location, clock, retry_seconds=retry_seconds)
        self._writer: Session | None = None
        self._is_open = False

    async def open(self) -> None:
        await super().open()
        self._is_open = True

    async def close(self) -> None:
        self._is_open = False
        writer, self._writer = self._writer, None
        await super().close()
        if writer is not None:
            await writer.close()

    async def _write(self, operation: Callable[[Connection[Record]], Awaitable[T]]) -> T:
        writer = await self._open_writer()
        return await self._retry(lambda: writer.call(operation))

    async def _open_writer(self) -> Session:
        if not self._is_open:
            raise StoreClosed(f"{self.location} is not open; call open() first")
        if self._writer is None:
            writer = Session(self._address, on_connect=self._limit_waits)
            await self._retry(writer.reopen)
            self._writer = writer
        return self._writer

    async def _limit_waits(self, connection: Connection[Record]) -> None:
        milliseconds = max(1, int(self._retry_seconds * 1000))
        await connection.execute("SELECT set_config('lock_timeout', $1, false)", str(milliseconds))

    # --- reading -----------------------------------------------------------------------------------------------------

    async def pulses(self) -> Mapping[str, str]:
        return await self._write(queries.pulses)

    async def match_input(
        self, batch_id: int, entries: Sequence[NewItem], *, version: str | None = None
    ) -> Mapping[str, KnownItem]:
        return await self._read(lambda connection: plan.match_input(connection, batch_id, entries, version))

    async def count_other_version(self, batch_id: int, version: str) -> int:
        return await self._read(lambda connection: plan.count_other_version(connection, batch_id, version))

    async def count_reopenable(self, batch_id: int, *, max_attempts: int) -> int:
        return await self._read(lambda connection: plan.count_reopenable(connection, batch_id, max_attempts))

    # --- changing ----------------------------------------------------------------------------------------------------

    async def change(self, items: ItemSet, change: Change) -> int:
        now = self._clock.now()
        return await self._write(lambda connection: changes.change(connection, items, change, now))

    async def set_controls(self, batch_id: int, *, paused: bool | None = None, concurrency: int | Unset | None = UNSET) -> bool:
        now = self._clock.now()
        return await self._write(lambda connection: changes.set_controls(connection, batch_id, paused, concurrency, now))

    async def request_stop(self, worker_ids: Sequence[str], how: Stop) -> int:
        if not worker_ids:
            return 0
        writer = await self._open_writer()
        return await self._retry(lambda: writer.change(sql.admin.REQUEST_STOP, int(how), list(worker_ids)))

    async def recover(
        self, worker_id: str | None, error: ErrorInfo, *, pulse: str | None = None, batch_id: int | None = None
    ) -> int:
        writer = await self._open_writer()
        now = self._clock.now()
        return await self._retry(lambda: recover_items(writer, worker_id, error, now, pulse, batch_id))
