"""Translate the errors of the driver and of the server into the errors of asyncrunner."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import asyncpg

from asyncrunner.errors import StoreError, StoreUnavailable
from asyncrunner.postgres.connection.sqlstates import TEMPORARY_MESSAGES, description, is_temporary


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
        if starting or not is_temporary(code):
            raise StoreError(f"{location}: {description(code, error)}") from error
        raise StoreUnavailable(f"{location}: {TEMPORARY_MESSAGES.get(code, str(error))}; asyncrunner retries") from error
    except LOST_CONNECTION as error:
        text = f"{location}: the server cannot be reached ({_reason(error)})"
        if starting:
            raise StoreError(f"{text}; check that it runs, and the host and port of the URL") from error
        raise StoreUnavailable(f"{text}; asyncrunner reconnects") from error


def _reason(error: BaseException) -> str:
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
