"""Create, check and migrate the schema of the store. All scripts run in one transaction under a lock, so one process runs them.

After a crash a database has the old schema or the new one, never a mixture. A released script is never edited. A script adds
tables, columns and functions, and takes none away that the version before it uses: while programs are replaced one after the
other, workers of both versions share the schema.
"""

from __future__ import annotations

import logging
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from asyncrunner.errors import ConfigurationError, NotAStore, SchemaTooNew, StoreNotFound, StoreReplaced
from asyncrunner.text.escaping import counted, safe_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg
    from asyncpg import Record

    from asyncrunner.postgres.connection.address import Address

log = logging.getLogger("asyncrunner")

SCRIPTS: Final = (("tables.sql", "changes_by_hand.sql", "adding.sql", "settling.sql", "claiming.sql", "workers.sql"),)
"""The scripts of each version of the schema, in the folder ``sql/version_N``."""

VERSION: Final = len(SCRIPTS)

_LOCK: Final = "SELECT pg_advisory_xact_lock(7240, hashtext($1))"
_TABLES: Final = (
    "SELECT count(*) FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace AS n ON n.oid = relnamespace WHERE nspname = $1"
)
_HAS_SCHEMA: Final = "SELECT to_regnamespace($1) IS NOT NULL"
_HAS_META: Final = "SELECT to_regclass($1 || '.meta') IS NOT NULL"
_READ_VERSION: Final = "SELECT version FROM meta WHERE product = 'asyncrunner'"

SET_PATH: Final = 'SET LOCAL search_path = {}, pg_temp, "asyncrunner.writer"'
"""Set the search_path of the functions, which tells their changes from those by hand; no schema has the last name."""

_MAX_NAME_BYTES: Final = 63


def script_text(version: int) -> str:
    """Return the statements that bring a schema of the version before to *version*, in a transaction of the caller."""
    folder = files("asyncrunner.postgres.sql") / f"version_{version}"
    return "\n".join(folder.joinpath(name).read_text("utf-8") for name in SCRIPTS[version - 1])


def creation_text(address: Address, *, workers: Sequence[str] = (), readers: Sequence[str] = ()) -> str:
    """Return a script for psql with which the owner of the database creates the schema, or migrates it, and grants the rights.

    *workers*: the names of roles that run and submit items and operate batches; *readers*: of roles that only read. A script
    that runs again changes nothing but adds the roles.
    """
    schema = address.schema
    parts = [
        f"-- The schema {schema} of asyncrunner, version {VERSION}. The script may run again: it adds what is missing.",
        "\\set ON_ERROR_STOP on",
        "BEGIN;",
        "SET LOCAL client_min_messages = warning;",
        f"DO $lock$ BEGIN PERFORM pg_advisory_xact_lock(7240, hashtext('{schema}')); END $lock$;",
        f"CREATE SCHEMA IF NOT EXISTS {schema};",
        f"{SET_PATH.format(schema)};",
    ]
    for version in range(1, VERSION + 1):
        # Of a schema without tables no version can be read.
        is_missing = "to_regclass('meta') IS NULL" if version == 1 else f"version < {version} FROM meta"
        parts += [
            f"DO $version$ BEGIN IF {is_missing} THEN EXECUTE $script$",
            script_text(version),
            "$script$; END IF; END $version$;",
        ]
    parts += [_worker_rights(schema, _quoted(name)) for name in workers]
    parts += [_reader_rights(schema, _quoted(name)) for name in readers]
    return "\n".join([*parts, "COMMIT;"])


def _worker_rights(schema: str, role: str) -> str:
    # TEMPORARY: a run with leftovers="leave" has a temporary table. PUBLIC has the right by default.
    return f"""
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role};
REVOKE INSERT, UPDATE, DELETE ON meta, history FROM {role};
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role};
ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role};
ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT EXECUTE ON FUNCTIONS TO {role};
DO $grant$ BEGIN EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO %s', current_database(), $role${role}$role$); END $grant$;"""


def _reader_rights(schema: str, role: str) -> str:
    return f"""
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};
ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO {role};"""


def _quoted(role: str) -> str:
    """Return the name of a role as SQL. Raises ConfigurationError."""
    if not role or "\0" in role or "$role$" in role or len(role.encode()) > _MAX_NAME_BYTES:
        raise ConfigurationError(
            f"{safe_text(role)!r} is not the name of a role; give a name of at most {counted(_MAX_NAME_BYTES, 'byte')}"
        )
    escaped = role.replace('"', '""')
    return f'"{escaped}"'


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
        raise other_version(address, version)
    return version


def other_version(address: Address, version: int) -> NotAStore | SchemaTooNew:
    """Return the error for a schema of a *version* that is not VERSION."""
    if version > VERSION:
        return SchemaTooNew(
            f"{address.shown} has schema {version}, but this asyncrunner supports schemas up to {VERSION}; upgrade asyncrunner"
        )
    return NotAStore(f"{address.shown} has schema {version}, an older one; start a worker or a client of this version on it once")


async def create_or_migrate(connection: asyncpg.Connection[Record], address: Address) -> None:
    """Bring the schema to the newest version; create it if it does not exist."""
    if await read_version(connection, address) == VERSION:
        return
    async with connection.transaction():
        await connection.fetch(_LOCK, address.schema)
        version = await read_version(connection, address) or 0
        if not await connection.fetchval(_HAS_SCHEMA, address.schema):  # without the right, IF NOT EXISTS is an error too
            await connection.execute(f"CREATE SCHEMA {address.schema}")
        await connection.execute(SET_PATH.format(address.schema))
        for number in range(version + 1, VERSION + 1):
            await connection.execute(script_text(number))
    if version == 0:
        log.info("created the schema %s in %s", address.schema, address.shown)


async def check_not_dropped(connection: asyncpg.Connection[Record], address: Address) -> None:
    """Raise StoreReplaced if the schema, which this program has used, does not exist any more."""
    if not await connection.fetchval(_HAS_SCHEMA, address.schema):
        raise StoreReplaced(
            f"{address.shown}: the schema {address.schema!r} was dropped while this program used it. Restore it, as with "
            "pg_restore, and run again; without one, the next run or worker creates an empty schema"
        )


async def check_exists(connection: asyncpg.Connection[Record], address: Address) -> None:
    """Raise StoreNotFound if the schema does not exist, and NotAStore if it is older than this asyncrunner needs."""
    version = await read_version(connection, address)
    if version is None:
        raise StoreNotFound(
            f"{address.shown}: the database has no schema {address.schema!r}; check the URL, or start a run or a worker on it"
        )
    if version < VERSION:
        raise other_version(address, version)
