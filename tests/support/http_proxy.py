"""A reverse proxy for tests: it passes each request on to a server, with another path, Host header and forwarding headers.

A client uses it as an HTTP proxy, so that the client can request any public name without a name server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_CHUNK = 65_536


@dataclass
class ReverseProxy:
    """Where requests go. ``prefix`` is what the proxy cuts off each path; a request without it is answered with 404.

    ``host``: the Host header for the server; None keeps that of the client. ``headers``: more headers.
    """

    backend: int
    prefix: str = ""
    host: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    url: str = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass the first request of a connection on, and its answer back."""
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            method, target, version = lines[0].split(" ")
            parts = urlsplit(target)
            if not parts.path.startswith(self.prefix):
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            path = (parts.path.removeprefix(self.prefix) or "/") + (f"?{parts.query}" if parts.query else "")
            dropped = {"connection", *({"host"} if self.host else ())}
            kept = [line for line in lines[1:] if line.partition(":")[0].lower() not in dropped]
            added = {
                **({"Host": self.host} if self.host else {}),
                "X-Forwarded-For": "192.0.2.1",
                "X-Forwarded-Host": parts.netloc,
                "X-Forwarded-Prefix": self.prefix,
                "Connection": "close",
                **self.headers,
            }
            head = [f"{method} {path} {version}", *kept, *(f"{name}: {value}" for name, value in added.items())]
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.backend)
            try:
                to_writer.write("\r\n".join([*head, "", ""]).encode("latin-1"))
                sending = asyncio.create_task(_copy(reader, to_writer))
                await _copy(to_reader, writer)
                sending.cancel()
            finally:
                to_writer.close()
        finally:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()


@asynccontextmanager
async def proxying(proxy: ReverseProxy) -> AsyncGenerator[ReverseProxy]:
    """Run the proxy on a free port until the block ends; then ``url`` is its address."""
    server = await asyncio.start_server(proxy.answer, "127.0.0.1", 0)
    async with server:
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield proxy
