"""Find out whether a pooler is in front of the server, and refuse one that gives a session's statements to several backends.

A worker needs sessions: its liveness lock, its settings, its notifications and its temporary table belong to one backend. A
pooler in session mode gives a client one backend until the client disconnects. In transaction or statement mode the next
statement may run in another backend. The probe uses only the simple protocol and changes no setting, because what a session
leaves in a shared backend is seen by other clients of the pooler.
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Final

import asyncpg

from asyncrunner.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncpg import Record

    from asyncrunner.postgres.connection.address import Address

_ROUNDS: Final = 10
_SECOND_BACKEND_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 10.0


async def check_pooler(connection: asyncpg.Connection[Record], address: Address, dsn: str) -> None:
    """Raise ConfigurationError if a pooler in transaction or statement mode serves *connection*, a new connection to *dsn*.

    Raises TimeoutError if no backend answers within 10 s, as in a pool that has no free one.
    """
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            is_shared = await has_pooler(connection) and await _shares_backends(connection, dsn)
    except TimeoutError:
        raise TimeoutError(
            f"no statement is answered within {_ANSWER_SECONDS:g} s; where a pooler is in front of the server, its pool may be "
            "full: a process needs 3 connections"
        ) from None
    if is_shared:
        raise ConfigurationError(
            f"{address.shown}: a pooler in transaction or statement mode is in front of the server, but a process needs sessions "
            "of its own, for its lock and its notifications. Give the URL of the server itself, or add it to this one as "
            "?direct=postgresql://user@server:5432/database, or set pool_mode=session for this database"
        )


async def has_pooler(connection: asyncpg.Connection[Record]) -> bool:
    """Return whether another process than the one that the connection was announced to have runs its statements."""
    # Only its status is read: a query with an answer would be prepared under a name, which another client may use too.
    return await connection.execute(f"SELECT WHERE pg_backend_pid() = {connection.get_server_pid()}") != "SELECT 1"


async def _shares_backends(connection: asyncpg.Connection[Record], dsn: str) -> bool:
    """Return whether two connections that are open at the same time are served by one backend, or one by several.

    Where the second connection gets no backend while the first one is answered, the first one keeps its own.
    """
    other: asyncpg.Connection[Record] | None = None
    first = await _backend(connection)
    try:
        async with asyncio.timeout(_SECOND_BACKEND_SECONDS):
            other = await asyncpg.connect(dsn)
            second = await _backend(other)
        for _ in range(_ROUNDS):
            if first == second or await _backend(connection) != first or await _backend(other) != second:
                return True
    except TimeoutError:
        return await _backend(connection) != first
    finally:
        if other is not None:
            other.terminate()
    return False


async def _backend(connection: asyncpg.Connection[Record]) -> int:
    # COPY has an answer without a prepared statement.
    text = io.BytesIO()
    await connection.copy_from_query("SELECT pg_backend_pid()", output=text)
    return int(text.getvalue())
