"""Let in the requests that may enter: from a known host, with access, and unsafe ones only from the dashboard's own pages.

Every page, stream, file and action is behind this door. It also bounds the size of requests, and sends the headers that keep
other sites and injected text out of the pages.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from html import escape
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from asyncrunner.dashboard.access import Access, Allow, Token, visitor_of
from asyncrunner.dashboard.addresses import other_address, own_address, page_path
from asyncrunner.text.escaping import safe_text

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

VISITOR: Final = "asyncrunner.visitor"
"""The key of the ``Visitor`` in the scope of a request that was let in."""

BODY: Final = "asyncrunner.body"
"""The key of the whole body in the scope of an unsafe request that was let in."""

STORES: Final = "asyncrunner.stores"
"""A key that is in the scope if the dashboard is one of several, and the list of them is one level up."""

MAX_QUERY_BYTES: Final = 16_384
"""The longest query: that of an item has 9,000 bytes if the names of its batch and of itself are long, in other scripts."""

MAX_BODY_BYTES: Final = 65_536
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_TOKEN: Final = "token"  # noqa: S105 - the name of the parameter
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer a browser sends the origin "null" with each form
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_UNKNOWN_HOST: Final = (
    "421: this dashboard does not know the host {host}.\n"
    "Start it with --allow-host {host}, or give hosts=[{host!r}] to dashboard(), if you use this name on purpose.\n"
)
_NO_ACCESS: Final = (
    "401: this dashboard needs its token.\nOpen the link that `asyncrunner dashboard` printed, or send the header "
    "Authorization: Bearer TOKEN.\n"
)
_OTHER_ORIGIN: Final = (
    "403: the request does not come from a page of this dashboard, so nothing was changed.\nReload the page and try again. "
    "Behind a proxy that changes the Host header, name the public host with --allow-host or hosts=[...].\n"
)
_TOO_LARGE: Final = (
    f"413: the form has more than {MAX_BODY_BYTES:,} bytes, so nothing was changed.\nChoose fewer items, or all with a cause.\n"
)
_TOO_LONG: Final = f"414: the address has more than {MAX_QUERY_BYTES:,} bytes after its question mark.\nUse a shorter filter.\n"
_READ_ONLY: Final = "403: you may only read here; nothing was changed.\n"
_CONTINUE: Final = (
    '<!doctype html><title>Dashboard</title><meta http-equiv="refresh" content="0; url={url}"><a href="{url}">Continue</a>'
)


@dataclass(frozen=True)
class DoorOptions:
    """Who may enter. ``hosts``: the names under which the dashboard is reached, None for any; the machine's own always are."""

    token: Token | None
    allow: Allow | None
    hosts: Collection[str] | None
    user_header: str | None = None


class Door:
    """An ASGI application that lets requests through to *app*; see the module."""

    def __init__(self, app: App, options: DoorOptions) -> None:
        self._app = app
        self.options = options

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on."""
        if scope["type"] == "lifespan":  # nothing is opened before the first request
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            send = _with_headers(send, _headers_of(scope))
            try:
                refusal = await self._refusal(scope, receive)
            except ClientDisconnect:
                return
            if refusal is not None:
                await refusal(scope, receive, send)
            else:
                await self._app({**scope, "path": page_path(scope), "root_path": ""}, receive, send)

    async def _refusal(self, scope: MutableMapping[str, Any], receive: Receive) -> Response | None:
        """Return the response to a request that may not enter, or None; then the scope has its ``Visitor`` and its body."""
        headers = Headers(scope=scope)
        is_unsafe = scope["method"] not in _SAFE_METHODS
        if not self._knows(headers.get("host", "")):
            host = _host_name(headers.get("host", "")) or "(none)"
            return PlainTextResponse(_UNKNOWN_HOST.format(host=safe_text(host, limit=100)), 421)
        if len(scope["query_string"]) > MAX_QUERY_BYTES:
            return PlainTextResponse(_TOO_LONG, 414)
        if not is_unsafe and (address := other_address(scope)) is not None:
            query = scope["query_string"].decode("latin-1")
            return RedirectResponse(f"{address}?{query}" if query else address, 307)
        visitor = await visitor_of(scope, self.options.token, self.options.allow, self.options.user_header)
        if visitor.access is Access.NONE:
            return self._entry(scope, headers) if not is_unsafe else self._no_access()
        if is_unsafe and not (self._is_own(headers) or (visitor.is_program and not _is_of_browser(headers))):
            return PlainTextResponse(_OTHER_ORIGIN, 403)
        if is_unsafe and visitor.access < Access.ACT:
            return PlainTextResponse(_READ_ONLY, 403)
        if is_unsafe:
            body = await _body(receive)
            if body is None:
                return PlainTextResponse(_TOO_LARGE, 413)
            scope[BODY] = body
        elif _token_in(scope) is not None:
            return _without_token(scope)
        scope[VISITOR] = visitor
        return None

    def _knows(self, host: str) -> bool:
        """Return whether the dashboard is reached under a known name; else another site may have rebound its own name."""
        hosts = self.options.hosts
        name = _host_name(host)
        return hosts is None or name in _LOOPBACK or name in hosts or host.lower() in hosts

    def _entry(self, scope: MutableMapping[str, Any], headers: Headers) -> Response:
        """Exchange the token in the address for a cookie, or refuse."""
        token, given = self.options.token, _token_in(scope)
        if token is None or given is None or not token.matches(given):
            if token is not None and given is None and _is_link_of_another_site(headers):
                return _continue_to(_address(scope))
            return self._no_access()
        response = _without_token(scope)
        response.headers["set-cookie"] = token.set_cookie(headers, is_secure=scope.get("scheme") == "https")
        return response

    def _no_access(self) -> Response:
        return PlainTextResponse(_NO_ACCESS if self.options.allow is None else "401: you have no access.\n", 401)

    def _is_own(self, headers: Headers) -> bool:
        """Return whether a page of the dashboard sent the request; a browser cannot be made to forge these headers."""
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site == "same-origin"
        # Plain http on another host has no Sec-Fetch-Site.
        scheme, _, name = headers.get("origin", "").lower().partition("://")
        known = {headers.get("host", "").lower(), *(self.options.hosts or ())}
        return scheme in ("http", "https") and name != "" and name in known


def _is_of_browser(headers: Headers) -> bool:
    """Return whether a browser sent the request: then a proxy may have added the token, for pages of other sites too."""
    return "origin" in headers or "sec-fetch-site" in headers


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{kind}.complete"})
        if kind == "shutdown":
            return


def _headers_of(scope: MutableMapping[str, Any]) -> Mapping[str, str]:
    """Return the headers of each response. Over plain http, browsers complain about one of them, but for their own machine."""
    is_trustworthy = scope.get("scheme") == "https" or _host_name(Headers(scope=scope).get("host", "")) in _LOOPBACK
    return {name: value for name, value in _HEADERS.items() if is_trustworthy or name != "cross-origin-opener-policy"}


def _with_headers(send: Send, added: Mapping[str, str]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name, value in added.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return send_with_headers


def _host_name(host: str) -> str:
    """Return the host in a Host header without its port, in lower case."""
    name, separator, port = host.lower().rpartition(":")
    return name if separator and port.isdigit() else host.lower()


def _token_in(scope: MutableMapping[str, Any]) -> str | None:
    return dict(parse_qsl(scope["query_string"].decode("latin-1"))).get(_TOKEN)


def _without_token(scope: MutableMapping[str, Any]) -> Response:
    """Send the browser to the same page without the token, which then is in no history, bookmark and log."""
    url = _address(scope)
    return _continue_to(url) if Headers(scope=scope).get("sec-fetch-site") == "cross-site" else RedirectResponse(url, 303)


def _is_link_of_another_site(headers: Headers) -> bool:
    """Return whether a person followed a link on another site, such as webmail: then the browser sends no cookie yet."""
    return headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") == "navigate"


def _continue_to(url: str) -> Response:
    """Answer with a page that continues to *url* by itself. The browser then sends its cookie, which is SameSite=Strict."""
    return Response(_CONTINUE.format(url=escape(url, quote=True)), media_type="text/html")


def _address(scope: MutableMapping[str, Any]) -> str:
    """Return the address of the page without the token."""
    query = [(name, value) for name, value in parse_qsl(scope["query_string"].decode("latin-1")) if name != _TOKEN]
    return f"{own_address(scope)}{'?' if query else ''}{urlencode(query)}"


async def _body(receive: Receive) -> bytes | None:
    """Return the body of a request, or None if it is too large."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        more = message.get("more_body", False)
    return body
