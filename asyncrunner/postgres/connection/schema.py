"""Create, check and migrate the schema of the store. All scripts run in one transaction under a lock, so one process runs them.

After a crash a database has the old schema or the new one, never a mixture. A released script is never edited. A script adds
tables, columns and functions, and takes none away that the version before it uses: while programs are replaced one after the
other, workers of both versions share the schema.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

from asyncrunner.errors import NotAStore, SchemaTooNew, StoreNotFound

if TYPE_CHECKING:
    import asyncpg
    from asyncpg import Record

    from asyncrunner.postgres.connection.address import Address

SCRIPTS: Final = (("schema_1.sql", "functions_1.sql"),)
"""The scripts of each version of the schema."""

VERSION: Final = len(SCRIPTS)

_LOCK: Final = "SELECT pg_advisory_xact_lock(7240, hashtext($1))"
_TABLES: Final = (
    "SELECT count(*) FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace AS n ON n.oid = relnamespace WHERE nspname = $1"
)
_HAS_META: Final = "SELECT to_regclass($1 || '.meta') IS NOT NULL"
_READ_VERSION: Final = "SELECT version FROM meta WHERE product = 'asyncrunner'"


def script_text(version: int) -> str:
    """Return the statements that bring a schema of the version before to *version*, in a transaction of the caller."""
    folder = resources.files("asyncrunner.postgres.sql")
    return "\n".join(folder.joinpath(name).read_text("utf-8") for name in SCRIPTS[version - 1])


def creation_text(address: Address) -> str:
    """Return a script for psql with which the owner of the database creates the schema."""
    parts = [
        "BEGIN;",
        f"CREATE SCHEMA IF NOT EXISTS {address.schema};",
        f"SET LOCAL search_path = {address.schema}, pg_temp;",
        *(script_text(version) for version in range(1, VERSION + 1)),
        "COMMIT;",
    ]
    return "\n".join(parts)


async def read_version(connection: asyncpg.Connection[Record], address: Address) -> int | None:
    """Return the version of the schema; None if it does not exist, or is empty.

    Raises NotAStore if the schema has tables of another program, and SchemaTooNew.
    """
    if not await connection.fetchval(_HAS_META, address.schema):
        if not await connection.fetchval(_TABLES, address.schema):
            return None
        # Another process may have created the schema between the two statements; it commits all tables together.
        if not await connection.fetchval(_HAS_META, address.schema):
            raise NotAStore(
                f"{address.shown}: the schema {address.schema!r} has tables of another program; name another schema, as in "
                "?schema=jobs"
            )
    columns = await connection.fetch(
        "SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass($1 || '.meta') AND attnum > 0", address.schema
    )
    if {"product", "version"} - {column[0] for column in columns}:
        raise NotAStore(f"{address.shown}: the schema {address.schema!r} was not made by asyncrunner; name another schema")
    version: int | None = await connection.fetchval(_READ_VERSION)
    if version is not None and version > VERSION:
        raise SchemaTooNew(
            f"{address.shown} has schema {version}, but this asyncrunner supports schemas up to {VERSION}; upgrade asyncrunner"
        )
    return version


async def create_or_migrate(connection: asyncpg.Connection[Record], address: Address) -> None:
    """Bring the schema to the newest version; create it if it does not exist."""
    if await read_version(connection, address) == VERSION:
        return
    async with connection.transaction():
        await connection.fetch(_LOCK, address.schema)
        version = await read_version(connection, address) or 0
        if version == 0:
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {address.schema}")
        for number in range(version + 1, VERSION + 1):
            await connection.execute(script_text(number))


async def check_exists(connection: asyncpg.Connection[Record], address: Address) -> None:
    """Raise StoreNotFound if the schema does not exist, and NotAStore if it is older than this asyncrunner needs."""
    version = await read_version(connection, address)
    if version is None:
        raise StoreNotFound(
            f"{address.shown}: the database has no schema {address.schema!r}; check the URL, or start a run or a worker on it"
        )
    if version < VERSION:
        raise NotAStore(
            f"{address.shown} has schema {version}, an older one; start a worker or a client of this version on it once"
        )
