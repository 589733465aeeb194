"""Translate the errors of the driver and of the server into the errors of asyncrunner."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import asyncpg

from asyncrunner.errors import StoreError, StoreUnavailable


class KeyExists(Exception):
    """A key exists, so nothing of the chunk was added; see the function add_items."""


LOST_CONNECTION: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""Errors after which a connection is not used again. The call in progress has taken effect, or it has not."""

READ_ONLY: Final = "25006"
_TEMPORARY_CLASSES: Final = ("08", "53", "57", "58")
_TEMPORARY_CODES: Final = frozenset({"40001", "40P01", "55P03", READ_ONLY, "AR002", "AR003"})

_TEMPORARY_MESSAGES: Final = {
    "53100": "the server's disk is full; free some space",
    "53300": "the server has no free connection; close some, or raise max_connections",
    "57P01": "the server ended the session",
    "57P03": "the server is starting or stopping",
    READ_ONLY: "the server only reads, as a replica does; connect to the primary server",
}
_LASTING_MESSAGES: Final = {
    "28P01": "the server refused the password; check the user and the password, PGPASSWORD or ~/.pgpass",
    "28000": "the server refused the user; check the user, and pg_hba.conf of the server",
    "3D000": "the database does not exist; create it with createdb, or correct the URL",
    "3F000": "the schema does not exist; start a worker once with the right to create it, or run `asyncrunner schema | psql`",
    "42501": "the user lacks a right; `asyncrunner schema --role worker=NAME | psql` grants what is needed",
    "42P01": "a table of asyncrunner's schema is missing; run `asyncrunner doctor`",
    "42883": "a function of asyncrunner's schema is missing; run `asyncrunner doctor`",
    "42703": "a column of asyncrunner's schema is missing; run `asyncrunner doctor`",
    "54000": "a text is too long for the server, whose limit is 1 GB",
}


@contextmanager
def translated(location: str, *, starting: bool = False) -> Generator[None, None, None]:
    """Replace the errors of the driver with StoreUnavailable, if the call may be repeated, and StoreError otherwise.

    With *starting*, raise StoreError also for a server that cannot be reached: a program that starts reports it instead of
    waiting.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        code = error.sqlstate or ""
        if code == "AR001":
            raise KeyExists from error
        if code[:2] in _TEMPORARY_CLASSES or code in _TEMPORARY_CODES:
            text = f"{location}: {_TEMPORARY_MESSAGES.get(code, str(error))}"
            if starting:
                raise StoreError(f"{text} ({error})" if code in _TEMPORARY_MESSAGES else text) from error
            raise StoreUnavailable(f"{text}; asyncrunner retries") from error
        if code in _LASTING_MESSAGES:
            raise StoreError(f"{location}: {_LASTING_MESSAGES[code]} ({error})") from error
        if code[:2] in ("22", "23"):
            raise StoreError(
                f"{location}: the database rejected a change, so a row or the schema is not as asyncrunner made it; run "
                f"`asyncrunner doctor` to find the difference ({error})"
            ) from error
        raise StoreError(f"{location}: {error}") from error
    except LOST_CONNECTION as error:
        text = f"{location}: the server cannot be reached ({_reason(error)})"
        if starting:
            raise StoreError(f"{text}; check that it runs, and the host and port of the URL") from error
        raise StoreUnavailable(f"{text}; asyncrunner reconnects") from error


def _reason(error: BaseException) -> str:
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
