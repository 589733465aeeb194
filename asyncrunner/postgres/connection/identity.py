"""The identities of the databases that stores of this process are open on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from asyncpg import Connection, Record

    from asyncrunner.postgres.connection.address import Address

_known: Final[dict[Address, str]] = {}


async def record_identity(connection: Connection[Record], address: Address) -> None:
    """Record the identity of the database that *address* leads to, see the function server_identity."""
    identity: str | None = await connection.fetchval(f"SELECT {address.schema}.server_identity()")
    if identity is not None:
        _known[address] = identity


def identity_of(address: Address) -> str | None:
    """Return the identity of the database at *address*; None if no store of this process was open on it."""
    return _known.get(address)
