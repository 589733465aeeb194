"""Translate the errors of the driver and of the server into the errors of asyncrunner."""

from __future__ import annotations

import os
import re
import ssl
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
        refused_tls = _refused_tls(error, location)
        if refused_tls is not None:
            raise StoreError(f"{location}: {refused_tls} ({_reason(error)})") from error
        text = f"{location}: the server cannot be reached ({_reason(error)})"
        if starting:
            raise StoreError(f"{text}; check that it runs, and the host and port of the URL") from error
        raise StoreUnavailable(f"{text}; asyncrunner reconnects") from error


def _refused_tls(error: BaseException, location: str) -> str | None:
    """Return what the server and ``sslmode`` disagree about, and what to do; None for another error."""
    is_required = re.search("sslmode=(require|verify)", location) or os.environ.get("PGSSLMODE", "")[:7] in ("require", "verify-")
    if is_required and isinstance(error, ConnectionError) and "rejected SSL upgrade" in str(error):
        return "the server does not offer TLS, which sslmode requires; turn on ssl in its configuration, or give sslmode=prefer"
    if isinstance(error, ssl.SSLError):
        return "TLS failed; check the server's certificate, and sslmode, sslrootcert, sslcert and sslkey of the URL"
    return None


def _reason(error: BaseException) -> str:
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
