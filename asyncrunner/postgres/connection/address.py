"""The address of a store: the URL of a server and database, and the name of the schema."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import safe_text

DEFAULT_SCHEMA: Final = "asyncrunner"
SCHEMES: Final = ("postgresql://", "postgres://")

_PARTS: Final = re.compile(
    r"(?P<scheme>[a-z]+://)(?:(?P<user>[^@/?]*)@)?(?P<hosts>[^/?]*)(?P<path>/[^?]*)?(?:\?(?P<query>.*))?", re.DOTALL
)
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class Address(NamedTuple):
    """Where a store is. ``dsn`` is for the driver and may have a password; ``shown`` has none, and is for messages.

    ``direct``: the URL for the sessions that a pooler in transaction mode cannot serve; None: ``dsn`` serves them too.
    """

    dsn: str
    schema: str
    shown: str
    direct: str | None = None


def is_address(location: str) -> bool:
    """Return whether *location* is the URL of a PostgreSQL server."""
    return location.startswith(SCHEMES)


def parse_address(location: str) -> Address:
    """Return the address that *location* describes.

    ``?schema=NAME`` names the schema, and ``?direct=URL`` a second URL of the same server that no pooler is in front of; the
    driver gets all other parameters. Raises ConfigurationError for a schema whose name would need quotes, and for an unknown
    form of URL.
    """
    parts = _PARTS.fullmatch(location)
    if parts is None or not is_address(location):
        raise ConfigurationError(
            f"{safe_text(shown(location))} is not the URL of a PostgreSQL server; give postgresql://user@host:5432/database"
        )
    parameters = parse_qsl(parts["query"] or "", keep_blank_values=True)
    own = {name: value for name, value in parameters if name in ("schema", "direct")}
    schema = own.get("schema", DEFAULT_SCHEMA)
    if _NAME.fullmatch(schema) is None or schema.startswith("pg_") or schema == "public":
        raise ConfigurationError(
            f"schema={safe_text(schema)}: give a name of its own for the schema of asyncrunner, of up to 63 lower-case letters, "
            'digits and "_", such as jobs'
        )
    rest = urlencode([(name, value) for name, value in parameters if name not in own], quote_via=quote)
    user = f"{parts['user']}@" if parts["user"] is not None else ""
    dsn = f"{parts['scheme']}{user}{parts['hosts']}{parts['path'] or ''}" + (f"?{rest}" if rest else "")
    return Address(dsn, schema, shown(location), own.get("direct"))


def shown(location: str) -> str:
    """Return *location* without its passwords, for messages, logs and reports."""
    parts = _PARTS.fullmatch(location)
    if parts is None:
        return re.sub(r"(://[^:/@?]*):[^@]*@", r"\1@", location)
    user, separator, _ = (parts["user"] or "").partition(":")
    parameters = [
        (name, shown(value) if name == "direct" else value)
        for name, value in parse_qsl(parts["query"] or "", keep_blank_values=True)
        if "password" not in name
    ]
    query = urlencode(parameters, quote_via=quote, safe=":/@")
    del separator
    return f"{parts['scheme']}{unquote(user) + '@' if user else ''}{parts['hosts']}{parts['path'] or ''}" + (
        f"?{query}" if query else ""
    )
