"""Decide what the sender of a request may do: nothing, read, or act."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from inspect import isawaitable
from typing import Any, Final, NamedTuple, TypeAlias, cast

from starlette.datastructures import Headers

from asyncrunner.text.escaping import safe_text

Scope: TypeAlias = Mapping[str, Any]
"""The ASGI scope of a request."""

_MAX_NAME: Final = 100  # characters of a name in the log


class Access(IntEnum):
    """What a visitor of the dashboard may do: nothing, only read, or also change batches and items."""

    NONE = 0
    READ = 1
    ACT = 2


Decision: TypeAlias = "Access | tuple[Access, str]"
"""What the sender of a request may do, and perhaps the sender's name, for the log of actions."""

Allow: TypeAlias = Callable[[Scope], "Decision | Awaitable[Decision]"]
"""A function of the ASGI scope of a request that returns what its sender may do."""


class Visitor(NamedTuple):
    """The sender of a request. ``name`` is for the log; ``is_program``: the token came in a header, which no page can send."""

    access: Access
    name: str
    is_program: bool = False


class Token:
    """The secret of a dashboard. A browser gets it once in a link and keeps it in a cookie; a program sends it in a header."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def is_in_header(self, headers: Headers) -> bool:
        """Return whether the request has the header ``Authorization: Bearer`` with the secret."""
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.matches(secret.strip())

    def is_in_cookie(self, headers: Headers) -> bool:
        """Return whether the request has the cookie with the secret."""
        name = cookie_name(headers)
        pairs = [pair.strip().partition("=") for line in headers.getlist("cookie") for pair in line.split(";")]
        # Dashboards under several prefixes of a host have cookies of the same name, and a browser may send more than one.
        return any(self.matches(value) for key, _, value in pairs if key == name)

    def matches(self, given: str) -> bool:
        """Return whether *given* is the secret; the comparison takes the same time wherever they differ."""
        return hmac.compare_digest(given.encode(errors="replace"), self._secret)

    def set_cookie(self, headers: Headers, *, is_secure: bool) -> str:
        """Return the value of the header Set-Cookie that keeps the secret in the browser until it is closed.

        Without a path in it, the browser sends the cookie only to the addresses beside the page: to this dashboard, and
        not to another one of the same host.
        """
        secure = "; Secure" if is_secure else ""
        return f"{cookie_name(headers)}={self._secret.decode()}; HttpOnly; SameSite=Strict{secure}"


def cookie_name(headers: Headers) -> str:
    """Return the name of the cookie for the port of the request: browsers send cookies to all ports of a host."""
    _, _, port = headers.get("host", "").rpartition(":")
    return f"asyncrunner_{port if port.isascii() and port.isdigit() else '0'}"


async def visitor_of(scope: Scope, token: Token | None, allow: Allow | None, user_header: str | None) -> Visitor:
    """Return who sent the request and what the sender may do: what *allow* returns, or all with the *token*."""
    headers = Headers(scope=cast("Any", scope))
    name = _name_of(scope, headers, user_header)
    if allow is not None:
        allowed = allow(scope)
        decision = await allowed if isawaitable(allowed) else allowed
        access, given = decision if isinstance(decision, tuple) else (decision, "")
        return Visitor(Access(access), safe_text(given, limit=_MAX_NAME) or name or "a user of the program")
    if token is not None and token.is_in_header(headers):
        return Visitor(Access.ACT, name or "a program with the token", is_program=True)
    if token is not None and token.is_in_cookie(headers):
        return Visitor(Access.ACT, name or "a browser with the token")
    return Visitor(Access.NONE, name)


def _name_of(scope: Scope, headers: Headers, user_header: str | None) -> str:
    """Return the name of the user that a proxy's header or an authentication middleware gives, or an empty text."""
    name = headers.get(user_header, "") if user_header else ""
    return safe_text(name or _display_name(scope.get("user")), limit=_MAX_NAME)


def _display_name(user: object) -> object:
    try:
        return getattr(user, "display_name", None) or ""
    except NotImplementedError:  # starlette's BaseUser without a name
        return ""
