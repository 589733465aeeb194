"""The address of a store: the URL of a server and database, and the name of the schema."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.suggestions import closest

DEFAULT_SCHEMA: Final = "asyncrunner"
SCHEMES: Final = ("postgresql://", "postgres://")

_EXAMPLE: Final = "postgresql://user@host:5432/database"
_ENCODE: Final = "in a user name or password, write / as %2F, @ as %40, ? as %3F, # as %23, : as %3A and % as %25"

_PARTS: Final = re.compile(
    r"(?P<scheme>postgres(?:ql)?://)(?:(?P<user>[^@/?#]*)@)?(?P<hosts>[^@/?#]*)(?P<path>/[^@?#]*)?(?:\?(?P<query>[^#]*))?",
    re.DOTALL,
)
_HOST: Final = re.compile(r"(?:\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[^:]*))?", re.DOTALL)
_PARAMETER: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.]*")
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_MAX_PORT: Final = 65535

_OWN: Final = ("schema", "direct")
_DRIVERS: Final = (
    "host", "port", "dbname", "database", "user", "password", "passfile", "service", "sslmode", "sslcert", "sslkey",
    "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation",
    "ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs",
    "krbsrvname", "gsslib",
)  # fmt: skip
"""The parameters that the driver reads. It sends each other one to the server as a setting."""

_OURS: Final = {
    "default_transaction_read_only": "to forbid writing, give a user who may only read",
    "search_path": "write ?schema=NAME",
    "synchronous_commit": "give the program's durability, full or normal",
}
"""The settings that asyncrunner changes itself, and what to do in place of a parameter."""


class Address(NamedTuple):
    """Where a store is. ``dsn`` is for the driver and may have a password; ``shown`` has none, and is for messages.

    ``direct``: the URL of the same server for every session, where a pooler in transaction mode is behind ``dsn``; None: ``dsn``.
    """

    dsn: str
    schema: str
    shown: str
    direct: str | None = None

    def __repr__(self) -> str:
        return f"<Address {self.shown}>"


def is_address(location: str) -> bool:
    """Return whether *location* is the URL of a PostgreSQL server."""
    return location.startswith(SCHEMES)


def parse_address(location: str) -> Address:
    """Return the address that *location* describes.

    ``?schema=NAME`` names the schema, and ``?direct=URL`` a second URL of the same server that no pooler is in front of; the
    driver gets all other parameters. Raises ConfigurationError for a schema whose name would need quotes, and for a URL with
    a mistake.
    """
    parts, parameters = _parse(location)
    own = {name: value for name, value in parameters if name in _OWN}
    schema = own.get("schema", DEFAULT_SCHEMA)
    if _NAME.fullmatch(schema) is None or schema.startswith("pg_") or schema in ("public", "information_schema"):
        raise ConfigurationError(
            f"schema={safe_text(schema)}: give a name of its own for the schema of asyncrunner, of up to 63 lower-case letters, "
            'digits and "_", such as jobs'
        )
    if (direct := own.get("direct")) is not None:
        _, of_direct = _parse(direct)
        if any(name in _OWN for name, _ in of_direct):
            raise ConfigurationError("direct= has a schema= or a direct= of its own; give these parameters after the first URL")
    rest = urlencode([(name, value) for name, value in parameters if name not in own], quote_via=quote)
    user = f"{parts['user']}@" if parts["user"] is not None else ""
    dsn = f"{parts['scheme']}{user}{parts['hosts']}{parts['path'] or ''}" + (f"?{rest}" if rest else "")
    return Address(dsn, schema, shown(location), direct)


def _parse(location: str) -> tuple[re.Match[str], Sequence[tuple[str, str]]]:
    """Return the parts and the parameters of a URL. Raises ConfigurationError, whose message never has a part of a password."""
    parts = _PARTS.fullmatch(location)
    if parts is None:
        reason = f"; {_ENCODE}" if is_address(location) else ""
        raise ConfigurationError(f"{shown(location)} is not the URL of a PostgreSQL server: write {_EXAMPLE}{reason}")
    if not _has_ports(parts["hosts"]):
        raise ConfigurationError(
            f"{shown(location)}: the port is not a number from 1 to {_MAX_PORT}: write {_EXAMPLE}; {_ENCODE}"
        )
    parameters = _parameters(parts)
    if not all(_PARAMETER.fullmatch(name) for name, _ in parameters) or _hides_user(parts):
        raise ConfigurationError(f"{shown(location)}: what follows the ? are not parameters: write ?schema=jobs; {_ENCODE}")
    names = [name for name, _ in parameters]
    for name, value in parameters:
        if names.count(name) > 1:
            raise ConfigurationError(f"{shown(location)}: the parameter {name!r} is given more than once; give it once")
        if name in _OURS:
            raise ConfigurationError(f"{shown(location)}: asyncrunner sets {name!r} itself: {_OURS[name]}")
        if name == "port" and not _has_ports(f":{value.replace(',', ',:')}"):
            raise ConfigurationError(f"{shown(location)}: port={safe_text(value)} is not a number from 1 to {_MAX_PORT}")
        similar = None if name in (*_OWN, *_DRIVERS) else closest(name, [*_OWN, *_DRIVERS])
        if similar is not None:
            raise ConfigurationError(f"{shown(location)}: the parameter {name!r} is unknown; did you mean {similar!r}?")
        if not value and name in (*_OWN, *_DRIVERS):
            raise ConfigurationError(f"{shown(location)}: the parameter {name!r} is empty; give it a value, or leave it out")
    return parts, parameters


def _parameters(parts: re.Match[str]) -> Sequence[tuple[str, str]]:
    return parse_qsl(parts["query"] or "", keep_blank_values=True)


def _has_ports(hosts: str) -> bool:
    """Return whether each host of a list has no port, or a number that is one."""
    for host in hosts.split(","):
        parts = _HOST.fullmatch(host)
        port = "" if parts is None else parts["port"]
        if parts is None or port == "":
            return False
        if port is not None and not (port.isascii() and port.isdigit() and 0 < int(port) <= _MAX_PORT):
            return False
    return True


def shown(location: str) -> str:
    """Return *location* without its passwords, for messages, logs and reports; of a URL with a mistake, less."""
    parts = _PARTS.fullmatch(location)
    if parts is None or _hides_user(parts):
        return f"{safe_text(location.partition(':')[0], limit=20)}://..."
    user = (parts["user"] or "").partition(":")[0]
    parameters = [
        (name, shown(value) if name == "direct" else value)
        for name, value in _parameters(parts)
        if "password" not in name.lower() and _PARAMETER.fullmatch(name)
    ]
    query = urlencode(parameters, quote_via=quote, safe=":/@")
    text = f"{parts['scheme']}{user + '@' if user else ''}{parts['hosts']}{parts['path'] or ''}" + (f"?{query}" if query else "")
    return safe_text(text, limit=1000)


def _hides_user(parts: re.Match[str]) -> bool:
    """Return whether a / or ? in a password, which should be encoded, may have ended the address before its user."""
    if parts["user"] is not None:
        return False
    parameters = _parameters(parts)
    has_at = any("@" in value for name, value in parameters if name != "direct")
    return has_at or not _has_ports(parts["hosts"]) or not all(_PARAMETER.fullmatch(name) for name, _ in parameters)
