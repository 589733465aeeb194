"""Real web servers on free ports, and a client that follows every link of the pages of a dashboard as a browser does."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from html.parser import HTMLParser
from typing import Any, NamedTuple
from urllib.parse import urldefrag, urlencode, urljoin, urlsplit

import httpx
import uvicorn
from hypercorn.asyncio import serve as serve_hypercorn
from hypercorn.config import Config as HypercornConfig

_ATTRIBUTES = {"href", "src", "action", "formaction", "data-live", "poster", "srcset", "data", "background", "cite", "ping"}
_MAX_PAGES = 300


class Server:
    """A running server. ``url`` is its address with a slash at the end."""

    def __init__(self, port: int, server: uvicorn.Server | None = None) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"
        self._server = server
        self.stopped = asyncio.Event()

    def stop(self) -> None:
        """Request the end of the server, as SIGTERM does."""
        if self._server is not None:
            self._server.should_exit = True
        self.stopped.set()


def _listening() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


@asynccontextmanager
async def uvicorn_serving(app: Any, **options: Any) -> AsyncGenerator[Server]:
    """Serve *app* with uvicorn on a free port until the block ends."""
    with _listening() as listener:
        uvicorn_server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, **options))
        server = Server(listener.getsockname()[1], uvicorn_server)
        task = asyncio.create_task(uvicorn_server.serve([listener]))
        while not uvicorn_server.started and not task.done():
            await asyncio.sleep(0.002)
        try:
            yield server
        finally:
            server.stop()
            await task


@asynccontextmanager
async def hypercorn_serving(app: Any) -> AsyncGenerator[Server]:
    """Serve *app* with hypercorn on a free port until the block ends."""
    with _listening() as listener:
        config = HypercornConfig()
        server = Server(listener.getsockname()[1])
        config.bind = [f"fd://{listener.detach()}"]  # hypercorn closes it
        config.errorlog = config.accesslog = None

        async def trigger() -> None:
            await server.stopped.wait()

        task = asyncio.create_task(serve_hypercorn(app, config, shutdown_trigger=trigger))
        try:
            yield server
        finally:
            server.stop()
            await asyncio.wait({task})
            if not task.cancelled():  # with Python 3.13.0, hypercorn cancels its own task at the end
                task.result()


class Address(NamedTuple):
    """An address in a page, and the attribute of an element that has it."""

    attribute: str
    value: str


class Form(NamedTuple):
    """A form of a page, with the fields that a browser sends if a person changes nothing."""

    method: str
    action: str
    fields: dict[str, str]


class Addresses(HTMLParser):
    """All addresses of a page, and its forms."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[Address] = []
        self.inline: list[str] = []
        """Elements and attributes with styles or scripts in the page, which its Content-Security-Policy forbids."""
        self.forms: list[Form] = []
        self._select = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the addresses of an element."""
        values = {name: value or "" for name, value in attrs}
        for name, value in values.items():
            if name in _ATTRIBUTES:
                self.found.append(Address(name, value))
            if name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")
        if tag == "style" or (tag == "script" and "src" not in values):
            self.inline.append(tag)
        if tag == "meta" and values.get("http-equiv", "").lower() == "refresh" and "url=" in values["content"]:
            self.found.append(Address("content", values["content"].partition("url=")[2]))
        if tag == "form":
            self.forms.append(Form(values.get("method", "get").upper(), values.get("action", ""), {}))
        if tag == "select" and self.forms:
            self._select = values.get("name", "")
        if tag == "option" and self.forms:
            self.forms[-1].fields.setdefault(self._select, values.get("value", ""))
        is_sent = values.get("type") not in ("checkbox", "radio") or "checked" in values
        if tag == "input" and self.forms and "name" in values and is_sent:
            self.forms[-1].fields.setdefault(values["name"], values.get("value", ""))


class Visitor:
    """A browser at *start*, the address of the first page. Every address that it requests has to be below *start*.

    *has_fetch_metadata*: whether it sends ``Sec-Fetch-Site``; without TLS browsers do so only to the machine itself.
    """

    def __init__(self, client: httpx.AsyncClient, start: str, *, has_fetch_metadata: bool = True) -> None:
        self._fetch_metadata = {"sec-fetch-site": "same-origin"} if has_fetch_metadata else {}
        self.client = client
        self.start = start
        self.pages: dict[str, httpx.Response] = {}

    def resolved(self, page: str, address: str) -> str:
        """Return the absolute address of a link of a page. It fails the test unless it stays below the first page."""
        url = urldefrag(urljoin(page, address)).url
        assert url.startswith(self.start), f"{page} has the link {address!r}, which leads to {url}"
        return url

    async def get(self, url: str) -> httpx.Response:
        """Request a page and follow redirects, which have to stay below the first page."""
        response = await self.client.get(url)
        while response.has_redirect_location:
            url = self.resolved(str(response.url), response.headers["location"])
            response = await self.client.get(url)
        return response

    async def crawl(self) -> dict[str, httpx.Response]:
        """Request the first page and all that it leads to. Each has to answer 200. Returns them by address."""
        waiting = [self.start]
        while waiting:
            url = waiting.pop()
            if url in self.pages:
                continue
            response = self.pages[url] = await self.get(url)
            assert response.status_code == 200, (url, response.status_code, response.text[:300])
            assert len(self.pages) < _MAX_PAGES
            waiting += self._links(url, response)
        return self.pages

    def _links(self, url: str, response: httpx.Response) -> Iterator[str]:
        if not response.headers.get("content-type", "").startswith("text/html"):
            return
        addresses = Addresses(response.text)
        assert addresses.inline == [], url
        for address in addresses.found:
            target = self.resolved(url, address.value)
            if address.attribute not in ("data-live", "action"):
                yield target
        for form in addresses.forms:
            if form.method == "GET":
                yield f"{self.resolved(url, form.action).partition('?')[0]}?{urlencode(form.fields)}"

    async def press(self, page: str, path: str, **fields: str) -> httpx.Response:
        """Send the form of a page whose action ends with *path*, as a browser does, and return the page it leads to."""
        shown = await self.get(page)
        forms = [form for form in Addresses(shown.text).forms if form.method == "POST" and form.action.endswith(path)]
        assert forms, f"{page} has no form for {path}"
        parts = urlsplit(str(shown.url))
        headers = {"origin": f"{parts.scheme}://{parts.netloc}", **self._fetch_metadata}
        response = await self.client.post(
            self.resolved(str(shown.url), forms[0].action), data={**forms[0].fields, **fields}, headers=headers
        )
        if response.has_redirect_location:
            return await self.get(self.resolved(str(response.url), response.headers["location"]))
        return response

    async def first_event(self, page: str) -> dict[str, Any]:
        """Return the data of the first event of the live stream of a page."""
        shown = await self.get(page)
        (live,) = [each.value for each in Addresses(shown.text).found if each.attribute == "data-live"]
        async with self.events(self.resolved(str(shown.url), live)) as events:
            return await anext(events)

    @asynccontextmanager
    async def events(self, url: str) -> AsyncGenerator[AsyncIterator[dict[str, Any]]]:
        """Open a stream and yield the data of its events named ``page``."""
        async with self.client.stream("GET", url) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            yield _events(response)


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    name = ""
    with suppress(httpx.StreamClosed):
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                assert name == "page", line
                yield json.loads(line.removeprefix("data: "))
