"""A session: one connection to the server, which is replaced after it is lost, with one call at a time."""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg

from asyncrunner.errors import ConfigurationError, StoreClosed
from asyncrunner.postgres.connection.errors import LOST_CONNECTION, translated
from asyncrunner.postgres.connection.pooler import check_pooler
from asyncrunner.postgres.connection.schema import check_not_dropped
from asyncrunner.postgres.connection.sqlstates import MISSING, READ_ONLY

if TYPE_CHECKING:
    from asyncpg import Record

    from asyncrunner.domain.options import Durability
    from asyncrunner.postgres.connection.address import Address

T = TypeVar("T")

_CONNECT_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 1.0  # for calls that wait for a server that cannot be reached
_END_SECONDS: Final = 5.0  # how long a reconnection waits for the end of the former session

KEEPALIVE_SETTINGS: Final = {
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": "5000",
}
"""The settings with which the server ends a session whose machine is gone."""

# The plans must not depend on statistics of tables that were empty a minute ago. Hash joins stay: without them, a join of a
# thousand rows with a thousand is a nested loop. The keepalives of server and client end a session whose machine is gone.
_SETTINGS: Final = {
    "application_name": "asyncrunner",
    "timezone": "UTC",
    "enable_seqscan": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "lock_timeout": "0",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "10000",
    "client_connection_check_interval": "500",
    **KEEPALIVE_SETTINGS,
}
_KEEPALIVES: Final = (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 2), ("TCP_USER_TIMEOUT", 5000))

_FIRST_STATEMENT: Final = """
SELECT pg_backend_pid(), extract(epoch FROM clock_timestamp())::double precision,
    (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()),
    (SELECT count(set_config(name, setting, false)) FROM unnest($1::text[], $2::text[]) AS settings (name, setting)
     WHERE name IN (SELECT pg_settings.name FROM pg_settings))"""

_END_FORMER: Final = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2"

_RECORDED: Final = """
INSERT INTO calls (caller, number, answer, called_at)
SELECT ${caller}, ${number}, row_to_json(answer)::text, now() FROM ({query}) AS answer
ON CONFLICT (caller) DO UPDATE SET number = excluded.number, answer = excluded.answer, called_at = excluded.called_at
RETURNING answer"""


class Session:
    """A connection with asyncrunner's settings. A lost connection is replaced by the next call.

    A cancellation of a caller ends its wait and not the call: a cancellation that reached the server would undo the call.
    """

    def __init__(
        self,
        address: Address,
        *,
        durability: Durability = "full",
        on_connect: Callable[[asyncpg.Connection[Record]], Awaitable[None]] | None = None,
        read_only: bool = False,
        call_seconds: float | None = None,
    ) -> None:
        """*call_seconds*: how long a statement may take until the connection counts as lost; None: as long as it takes."""
        self.address = address
        self.offset: float | None = None
        """The server's time minus ``time.monotonic()``, in seconds, measured at the connection; None before it."""
        self._settings = _SETTINGS | {
            "search_path": f"{address.schema}, pg_temp",
            "synchronous_commit": "on" if durability == "full" else "off",
            "default_transaction_read_only": "on" if read_only else "off",
        }
        self._on_connect = on_connect
        self._call_seconds = call_seconds
        self._connection: asyncpg.Connection[Record] | None = None
        self._lock = asyncio.Lock()
        self._calls: set[asyncio.Task[Any]] = set()
        self._is_open = False
        self._backend: tuple[int, Any] | None = None  # pid and start of the server's process
        self._lost_calls = 0
        self._caller = secrets.token_hex(8)
        self._number = 0
        self._unanswered: object = None  # the recorded call whose answer was lost
        self._late_answer: str | None = None

    @property
    def location(self) -> str:
        """The address without its password, for messages."""
        return self.address.shown

    async def open(self) -> None:
        """Connect. Raises StoreError with the next step if the server refuses, or cannot be reached."""
        self._is_open = True
        try:
            with translated(self.location, starting=True):
                await self._connect()
        except BaseException:
            self._is_open = False
            raise

    async def reopen(self) -> None:
        """Connect, where the program has used the store before. Raises StoreUnavailable while the server cannot be reached."""
        self._is_open = True
        with translated(self.location):
            await self._connect()

    @property
    def lost_calls(self) -> int:
        """How many calls have lost their connection, so that they have taken effect, or have not."""
        return self._lost_calls

    async def close(self) -> None:
        """Finish the calls that have begun, and disconnect. A second call does nothing."""
        while self._calls:
            await asyncio.wait(self._calls, timeout=_CLOSE_SECONDS)
            if self._connection is None:
                for call in self._calls:
                    call.cancel()
        self._is_open = False
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            try:
                await connection.close(timeout=_END_SECONDS)
            except LOST_CONNECTION:
                connection.terminate()

    async def call(self, operation: Callable[[asyncpg.Connection[Record]], Awaitable[T]]) -> T:
        """Run *operation* with the connection, after the calls before it, and return its value.

        Raises StoreUnavailable, StoreError and StoreClosed.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self._run_into(answer, operation))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return await answer  # as with shield(), but the caller continues one step of the loop earlier

    async def fetch(self, statement: str, *arguments: Any) -> list[Record]:
        """Return the rows of *statement*."""
        return await self.call(lambda connection: connection.fetch(statement, *arguments))

    async def row(self, statement: str, *arguments: Any) -> Record | None:
        """Return the first row of *statement*, or None."""
        return await self.call(lambda connection: connection.fetchrow(statement, *arguments))

    async def value(self, statement: str, *arguments: Any) -> Any:
        """Return the first value of the first row of *statement*; None without a row."""
        return await self.call(lambda connection: connection.fetchval(statement, *arguments))

    async def change(self, statement: str, *arguments: Any) -> int:
        """Run *statement*, and return how many rows it changed."""
        status = await self.call(lambda connection: connection.execute(statement, *arguments))
        return int(status.rpartition(" ")[2])

    async def recorded(self, query: str, *arguments: Any, identity: object = None) -> str | None:
        """Run *query*, which changes rows and returns one row, and return that row as JSON; at most once.

        The same transaction records the answer. If the connection is lost before the answer arrives, the call raises
        StoreUnavailable, and the repeated call returns the recorded answer if the transaction was committed. A call is the
        repeated one if it has the same *identity*, by default the query and its arguments.
        """
        if identity is None:
            identity = (query, arguments)
        count = len(arguments)
        statement = _RECORDED.replace("{caller}", f"{count + 1}").replace("{number}", f"{count + 2}").replace("{query}", query)

        async def operation(connection: asyncpg.Connection[Record]) -> str | None:
            if self._unanswered is not None and self._unanswered == identity:
                self._unanswered = None
                if self._late_answer is not None:
                    return self._late_answer
            self._number += 1
            try:
                answer: str | None = await connection.fetchval(statement, *arguments, self._caller, self._number)
            except LOST_CONNECTION:
                self._unanswered, self._late_answer = identity, None
                raise
            return answer

        return await self.call(operation)

    async def _run_into(self, answer: asyncio.Future[T], operation: Callable[[asyncpg.Connection[Record]], Awaitable[T]]) -> None:
        try:
            value = await self._run(operation)
        except BaseException as error:
            if not answer.done():  # it is done if the caller was cancelled
                answer.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            if not answer.done():
                answer.set_result(value)

    async def _run(self, operation: Callable[[asyncpg.Connection[Record]], Awaitable[T]]) -> T:
        async with self._lock:
            if not self._is_open:
                raise StoreClosed(f"{self.location} is not open")
            with translated(self.location):
                connection = self._connection
                if connection is None or connection.is_closed():
                    connection = await self._connect()
                try:
                    return await operation(connection)
                except LOST_CONNECTION:
                    self._lost_calls += 1
                    self._drop()
                    raise
                except asyncpg.PostgresError as error:
                    if error.sqlstate == READ_ONLY:
                        self._drop()
                    if error.sqlstate in MISSING:
                        await check_not_dropped(connection, self.address)
                    raise

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def abandon(self) -> None:
        """End the session, whose event loop was closed, so nothing of that loop can be used; the server frees its locks."""
        connection, self._connection = self._connection, None
        raw = None if connection is None else _socket_of(connection)
        if raw is not None:
            with suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)

    async def _connect(self) -> asyncpg.Connection[Record]:
        dsn = self.address.direct or self.address.dsn
        try:
            connection: asyncpg.Connection[Record] = await asyncpg.connect(
                dsn, statement_cache_size=256, timeout=_CONNECT_SECONDS, command_timeout=self._call_seconds
            )
        except ValueError as error:  # before anything is sent
            raise ConfigurationError(f"{self.location}: the driver cannot use this address: {error}") from error
        try:
            _keep_alive(connection)
            if self._backend is None:  # a worker that reconnects has no time to lose: its liveness lock is free
                await check_pooler(connection, self.address, dsn)
            began = time.monotonic()
            row = await connection.fetchrow(_FIRST_STATEMENT, list(self._settings), list(self._settings.values()))
            assert row is not None
            self.offset = row[1] - (began + time.monotonic()) / 2
            await self._settle_former(connection)
            self._backend = (row[0], row[2])
            if self._on_connect is not None:
                await self._on_connect(connection)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        return connection

    async def _settle_former(self, connection: asyncpg.Connection[Record]) -> None:
        """End the former session, so that its last call has taken effect or never will; then read its recorded answer."""
        if self._backend is None:
            return
        deadline = time.monotonic() + _END_SECONDS
        while await connection.fetch(_END_FORMER, *self._backend):
            if time.monotonic() > deadline:
                raise TimeoutError("the former session has not ended")
            await asyncio.sleep(0.01)
        if self._unanswered is not None:
            self._late_answer = await connection.fetchval(
                "SELECT answer FROM calls WHERE caller = $1 AND number = $2", self._caller, self._number
            )

    def __del__(self) -> None:
        connection = self._connection
        if connection is not None and not connection.is_closed() and not sys.is_finalizing():
            connection.terminate()


def _keep_alive(connection: asyncpg.Connection[Record]) -> None:
    """Let the client's socket notice within seconds that the server's machine is gone."""
    raw = _socket_of(connection)
    if raw is None or raw.family == getattr(socket, "AF_UNIX", None):
        return
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVES:
        if hasattr(socket, name):
            raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _socket_of(connection: asyncpg.Connection[Record]) -> socket.socket | None:
    transport: asyncio.Transport | None = getattr(connection, "_transport", None)
    raw: socket.socket | None = None if transport is None else transport.get_extra_info("socket")
    return raw
