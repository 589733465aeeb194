"""A browser as far as the tests of the dashboard need one: it parses pages, follows links, sends forms and reads streams."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from typing import Any, NamedTuple
from urllib.parse import urlencode, urljoin

import httpx

from asyncrunner.dashboard import Dashboard
from asyncrunner.dashboard.door import App

HOST = "127.0.0.1:8585"
BASE = f"http://{HOST}/"
TOKEN = "the-token-of-the-tests"
COOKIE = {"asyncrunner_8585": TOKEN}
OWN = {"origin": f"http://{HOST}", "sec-fetch-site": "same-origin"}
"""The headers that a browser sends with a form of a page of the dashboard."""

_VOID = frozenset({"meta", "link", "input", "br"})


class Element(NamedTuple):
    """A start tag. ``within``: the tags around it, the outermost first."""

    tag: str
    attributes: dict[str, str]
    within: tuple[str, ...]


class Form(NamedTuple):
    """A form with its fields as a browser sends them; ``buttons``: the names and values of those of its buttons that have any."""

    method: str
    action: str
    fields: list[tuple[str, str]]
    buttons: list[tuple[str, str]]
    text: str

    def encoded(
        self, button: str | None = None, typed: Mapping[str, str] | None = None, ticks: Sequence[tuple[str, str]] = ()
    ) -> str:
        """Return the fields as a browser sends them. *ticks*: the names and values of boxes that a person ticks."""
        values = typed or {}
        fields = [(name, values.get(name, value)) for name, value in self.fields]
        fields += ticks
        fields += [(name, value) for name, value in self.buttons if value == button]
        return urlencode([(name, re.sub("\r\n|\r|\n", "\r\n", value)) for name, value in fields])


class Page(HTMLParser):
    """A page that is parsed; the tags must match. Read as a browser reads it, which turns CR into LF."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = re.sub("\r\n?", "\n", html)
        self.elements: list[Element] = []
        self.forms: list[Form] = []
        self.boxes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.declarations: list[str] = []
        self._open: list[str] = []
        self._select: str | None = None
        self._option: str | None = None
        self._is_chosen = False
        self.feed(self.html)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_decl(self, decl: str) -> None:
        self.declarations.append(decl)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"a processing instruction: {data!r}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data!r}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"an attribute twice: {attrs}"
        given = {name: value or "" for name, value in attrs}
        self.elements.append(Element(tag, given, tuple(self._open)))
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "form":
            self.forms.append(Form(given["method"], given["action"], [], [], ""))
        elif tag == "select" and "form" in self._open:
            self._select = given["name"]
        elif tag == "option" and self._select is not None:
            self._option = given.get("value")
            self._is_chosen = "selected" in given or self._select not in dict(self.forms[-1].fields)
        elif tag == "input" and "form" in self._open:
            if given.get("type") == "checkbox":
                self.boxes.append((given["name"], given["value"]))
            if given.get("type") != "checkbox" or "checked" in given:
                self.forms[-1].fields.append((given["name"], given.get("value", "")))
        elif tag == "button" and "form" in self._open and "name" in given:
            self.forms[-1].buttons.append((given["name"], given["value"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "rect", f"<{tag}/> ends only in a drawing"
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}, tuple(self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag
        if tag == "select":
            self._select = None
        elif tag == "option" and self._select is not None and self._is_chosen:
            fields = [each for each in self.forms[-1].fields if each[0] != self._select]
            value = self.texts[-1] if self._option is None else self._option
            self.forms[-1].fields[:] = [*fields, (self._select, value)]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "form" in self._open:
            self.forms[-1] = self.forms[-1]._replace(text=self.forms[-1].text + data)

    @property
    def text(self) -> str:
        """The text that a person reads, with single spaces."""
        return " ".join("".join(self.texts).split())

    @property
    def notice(self) -> str | None:
        """The text of the notice that says what an action did."""
        found = re.search(r'<p class="notice" role="status">([^<]*)</p>', self.html)
        return None if found is None else found[1]

    def links(self) -> list[str]:
        """Return the addresses that a person can follow."""
        return [each.attributes["href"] for each in self.elements if each.tag == "a"]

    def structure(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return the tags with the names of their attributes: all of a page that is not text."""
        return [(each.tag, tuple(each.attributes)) for each in self.elements]

    def form(self, action: str) -> Form:
        """Return the only form with that action."""
        (form,) = (each for each in self.forms if each.action == action)
        return form


def unsafe_characters(text: str) -> set[str]:
    """Return the control, bidirectional and other invisible characters of a text, without line ends."""
    return {each for each in text if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}


class Visitor:
    """A browser that has the token of a dashboard, or not."""

    def __init__(self, app: App, *, cookies: Mapping[str, str] | None = None, headers: Mapping[str, Any] | None = None) -> None:
        self.app = app
        transport = httpx.ASGITransport(app=app)
        self.app = app
        self.client = httpx.AsyncClient(
            transport=transport, base_url=BASE, cookies=dict(COOKIE if cookies is None else cookies), headers=headers
        )

    async def get(self, path: str) -> httpx.Response:
        """Return the response to a request of an address, which may be relative."""
        return await self.client.get(urljoin(BASE, path))

    async def page(self, path: str) -> Page:
        """Return the page at an address, which must exist."""
        response = await self.get(path)
        assert response.status_code == 200, f"{path}: {response.status_code} {response.text[-600:]}"
        return Page(response.text)

    async def post(self, action: str, fields: str | Mapping[str, Any] | Iterable[tuple[str, str]] = "") -> httpx.Response:
        """Send a form of a page of the dashboard, and return the response."""
        body = fields if isinstance(fields, str) else urlencode(list(fields.items() if isinstance(fields, Mapping) else fields))
        headers = {**OWN, "content-type": "application/x-www-form-urlencoded"}
        return await self.client.post(urljoin(BASE, action), content=body, headers=headers)

    async def act(self, action: str, fields: str | Mapping[str, Any] | Iterable[tuple[str, str]] = "") -> Page:
        """Send a form, and return the page to which the dashboard sends the browser."""
        response = await self.post(action, fields)
        assert response.status_code == 303, f"{response.status_code}: {response.text[-600:]}"
        return await self.page(response.headers["location"])

    async def send(self, form: Form, **options: Any) -> httpx.Response:
        """Send a form that a page has."""
        if form.method == "get":
            return await self.get(f"{form.action}?{form.encoded(**options)}")
        return await self.post(form.action, form.encoded(**options))


class Stream:
    """An open stream of server-sent events."""

    def __init__(self, start: Mapping[str, Any], messages: asyncio.Queue[Mapping[str, Any]]) -> None:
        self.status: int = start["status"]
        self.headers = httpx.Headers(start["headers"])
        self._messages = messages
        self.is_ended = False

    async def chunks(self) -> AsyncIterator[str]:
        """Yield the events and comments until the stream ends."""
        while not self.is_ended:
            message = await self._messages.get()
            self.is_ended = not message.get("more_body", False)
            if message["body"]:
                yield message["body"].decode()

    async def event(self) -> tuple[str, str]:
        """Return the name and the data of the next event."""
        async for chunk in self.chunks():
            if found := re.fullmatch(r"event: (\w+)\ndata: ([^\r\n]*)\n\n", chunk):
                return found[1], found[2]
            assert chunk in ("retry: 1000\n\n", ":\n\n"), chunk
        raise AssertionError("the stream has ended")


def scope_of(
    path: str = "/", query: str = "", *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the scope of a request, as a server makes it; *headers* replace those of a browser with the token."""
    given = {"host": HOST, "cookie": f"asyncrunner_8585={TOKEN}"} | dict(headers or {})
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8585),
    }


class Answer(NamedTuple):
    """The response of an application that was called without a client."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


async def call(app: Any, scope: dict[str, Any], body: bytes = b"") -> Answer:
    """Call an application as a server does, and return its response. The client leaves after it."""
    incoming = iter([{"type": "http.request", "body": body}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return Answer(sent[0]["status"], sent[0]["headers"], b"".join(each["body"] for each in sent[1:]))


@asynccontextmanager
async def streaming(app: App, query: str = "of=overview", path: str = "/live") -> AsyncIterator[Stream]:
    """Open a stream; at the end of the block the browser leaves, and the application has ended the request."""
    messages: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        messages.put_nowait(message)

    request = asyncio.ensure_future(app(scope_of(path, query), receive, send))
    try:
        yield Stream(await messages.get(), messages)
    finally:
        left.set()
        await request


def routes_of(app: Dashboard) -> Iterator[str]:
    """Yield the path of each route, once; that of the static files as the path of one."""
    from asyncrunner.dashboard.rendering import assets

    routes: Any = app._app
    for path in dict.fromkeys(route.path for route in routes.routes):
        yield path.replace("{name}", assets()["page.js"].name)
