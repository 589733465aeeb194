"""Serve dashboards alone, for the command ``asyncrunner dashboard``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from asyncrunner.backends import shown_location
from asyncrunner.dashboard.addresses import page_path
from asyncrunner.dashboard.app import Dashboard
from asyncrunner.dashboard.door import STORES, App, Door, Receive, Send
from asyncrunner.dashboard.rendering import render
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import safe_text

if TYPE_CHECKING:
    from starlette.requests import Request

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_SHUTDOWN_SECONDS: Final = 2


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises ConfigurationError if the address cannot be used."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or error
        raise ConfigurationError(
            f"cannot listen on {safe_text(host)}, port {port}: {reason}; choose others with --port or --host"
        ) from error


def link_of(server: socket.socket, token: str | None) -> str:
    """Return the link to the first page, with the token."""
    address = server.getsockname()
    host, port = str(address[0]), int(address[1])
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what the user has given
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/?token={token}"


def application(dashboards: Sequence[tuple[str, Dashboard]], root_path: str = "") -> App:
    """Return an application with the *dashboards* of these locations: the only one, or each under its name, and a list.

    *root_path*: a prefix that a proxy may leave in the paths of requests, as in ``/jobs``.
    """
    app: App = dashboards[0][1] if len(dashboards) == 1 else _Stores(dashboards)
    if not root_path:
        return app

    async def under_prefix(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": root_path}, receive, send)

    return under_prefix


class _Stores:
    """Several dashboards with the same options, each under its name, and a list of them at the first page."""

    def __init__(self, dashboards: Sequence[tuple[str, Dashboard]]) -> None:
        names = _names([location for location, _ in dashboards])
        shown = [(name, shown_location(location)) for name, (location, _) in zip(names, dashboards, strict=True)]

        async def index(_: Request) -> Response:
            return HTMLResponse(render("index.html", {"stores": shown}))

        self._apps = dict(zip(names, (app for _, app in dashboards), strict=True))
        self._index = Door(Starlette(routes=[Route("/", index)]), dashboards[0][1].options)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass the request on to the dashboard that its path names, or else to the list."""
        name = page_path(scope).split("/")[1]
        if name in self._apps:
            await self._apps[name]({**scope, "path": page_path(scope), "root_path": f"/{name}", STORES: True}, receive, send)
        else:
            await self._index(scope, receive, send)


def _names(locations: Sequence[str]) -> list[str]:
    """Return a name for each location, for the addresses of its pages."""
    names: list[str] = []
    for number, location in enumerate(locations, 1):
        shown = Path(shown_location(location)).stem  # without a password
        stem = "".join(character for character in shown if character.isascii() and character.isalnum())
        names.append(stem if stem and stem not in names else f"{stem or 'store'}-{number}")
    return names


def log_actions() -> None:
    """Write the log of actions to stderr, with times."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("asyncrunner.dashboard")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


async def serve(app: App, server: socket.socket, dashboards: Sequence[Dashboard], on_ready: Callable[[], None]) -> None:
    """Serve *app* on *server* until SIGINT or SIGTERM; then end the streams of open pages, and return within two seconds.

    Calls *on_ready* when both signals are handled and requests are answered.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # an address may have the token
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    uvicorn_server = _Server(config, on_ready)

    def stop() -> None:
        for each in dashboards:
            each.close_streams()
        if uvicorn_server.should_exit:
            uvicorn_server.end_requests()  # the second signal does not wait
        uvicorn_server.should_exit = True

    with _handling(stop):
        await uvicorn_server.serve([server])
    for each in dashboards:
        await each.close()


class _Server(uvicorn.Server):
    """A server that leaves signals to us: uvicorn would wait for the streams of open pages."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and call ``on_ready``."""
        await super().startup(sockets)
        self._on_ready()

    def end_requests(self) -> None:
        """Close every connection, whatever its request waits for."""
        self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


@contextmanager
def _handling(stop: Callable[[], None]) -> Generator[None, None, None]:
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
