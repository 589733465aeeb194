"""The dashboard under a prefix of FastAPI, Starlette, Litestar, Quart and Django, each on a real server."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

import django
import httpx
import pytest
from django.conf import settings
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest, HttpResponse, parse_cookie
from django.test import override_settings
from django.urls import path
from fastapi import FastAPI
from hypercorn.middleware import DispatcherMiddleware
from litestar import Litestar
from litestar import Request as LitestarRequest
from litestar import get as litestar_get
from litestar.handlers import asgi as litestar_asgi
from litestar.middleware.session.server_side import ServerSideSessionConfig
from quart import Quart
from quart import request as quart_request
from quart import session as quart_session
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from asyncrunner import Control, Fail, run_batch
from asyncrunner.dashboard import Access, Dashboard, dashboard
from asyncrunner.dashboard import live as live_streams
from asyncrunner.dashboard.access import Allow
from tests.conftest import NewDb
from tests.support.web import Addresses, Server, Visitor, hypercorn_serving, uvicorn_serving

if not settings.configured:
    settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}, SECRET_KEY="x" * 50)
    django.setup()

TOKEN = "a-token-of-the-tests"
BATCH = "b / c"
KEYS = ["plain", "a/b c?d=e&f#g%41", "../../batch", "\u00fc <b>"]
RIGHTS = {"ann": Access.ACT, "bob": Access.READ}
SECRET = "x" * 50

Make: TypeAlias = Callable[[Allow], Dashboard]
"""A function that makes the dashboard; it gets the framework's own ``allow``, which looks at who has logged in."""


async def fail_for_some(item: str) -> str:
    if item.startswith(".."):
        raise Fail("it leads <outside>")
    return item


@pytest.fixture
async def store(db: str) -> str:
    await run_batch(KEYS, fail_for_some, db=db, batch=BATCH, max_attempts=1)
    return db


class Host(NamedTuple):
    """An application of a framework with a dashboard at /jobs. ``events``: what its lifespan has done, None without one.

    ``/login?name=NAME`` lets the client in by the framework's own means.
    """

    app: Any
    events: list[str] | None
    serving: Callable[[Any], AbstractAsyncContextManager[Server]] = uvicorn_serving


def lifespan_of(events: list[str]) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[None]:
        events.append("started")
        yield
        events.append("stopped")

    return lifespan


def by_session(scope: Mapping[str, Any]) -> tuple[Access, str]:
    name = scope["session"].get("name", "")
    return RIGHTS.get(name, Access.NONE), name


def in_fastapi(make: Make) -> Host:
    events: list[str] = []
    app = FastAPI(lifespan=lifespan_of(events))
    app.add_middleware(SessionMiddleware, secret_key=SECRET)
    app.mount("/jobs", make(by_session))

    @app.get("/")
    async def home() -> str:
        return "the application"

    @app.get("/login")
    async def login(request: Request, name: str) -> str:
        request.session["name"] = name
        return name

    return Host(app, events)


class CookieBackend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        name = conn.cookies.get("name")
        return None if name is None else (AuthCredentials(), SimpleUser(name))


def in_starlette(make: Make) -> Host:
    def by_user(scope: Mapping[str, Any]) -> Access:
        return RIGHTS.get(scope["user"].display_name, Access.NONE)

    async def home(_: Request) -> Response:
        return PlainTextResponse("the application")

    async def login(request: Request) -> Response:
        response = PlainTextResponse("welcome")
        response.set_cookie("name", request.query_params["name"])
        return response

    events: list[str] = []
    routes = [Mount("/jobs", make(by_user)), Route("/", home), Route("/login", login)]
    middleware = [Middleware(AuthenticationMiddleware, backend=CookieBackend())]
    return Host(Starlette(routes=routes, middleware=middleware, lifespan=lifespan_of(events)), events)


def in_litestar(make: Make) -> Host:
    @litestar_get("/")
    async def home() -> str:
        return "the application"

    @litestar_get("/login")
    async def login(request: LitestarRequest[Any, Any, Any]) -> str:
        request.session["name"] = request.query_params["name"]
        return "welcome"

    events: list[str] = []
    mounted = litestar_asgi("/jobs", is_mount=True, copy_scope=True)(make(by_session))
    middleware = [ServerSideSessionConfig().middleware]
    return Host(
        Litestar([home, login, mounted], lifespan=[lifespan_of(events)], middleware=middleware, logging_config=None), events
    )


def in_quart(make: Make) -> Host:
    events: list[str] = []
    app = Quart(__name__)
    app.secret_key = SECRET

    @app.while_serving
    async def serving() -> AsyncGenerator[None]:
        events.append("started")
        yield
        events.append("stopped")

    @app.get("/")
    async def home() -> str:
        return "the application"

    @app.get("/login")
    async def login() -> str:
        quart_session["name"] = quart_request.args["name"]
        return "welcome"

    async def by_quarts_session(scope: Mapping[str, Any]) -> tuple[Access, str]:
        session: Any = await app.session_interface.open_session(app, HTTPConnection(scope))  # type: ignore[arg-type]
        return RIGHTS.get(session.get("name"), Access.NONE), session.get("name", "")

    mounts: Any = {"/jobs": make(by_quarts_session), "": app}
    return Host(DispatcherMiddleware(mounts), events, hypercorn_serving)


async def django_home(_: HttpRequest) -> HttpResponse:
    return HttpResponse("the application")


async def django_login(request: Any) -> HttpResponse:
    request.session["name"] = request.GET["name"]
    return HttpResponse("welcome")


urlpatterns = [path("", django_home), path("login", django_login)]


def in_django(make: Make) -> Host:
    def by_djangos_session(scope: Mapping[str, Any]) -> tuple[Access, str]:
        cookies = parse_cookie(dict(scope["headers"]).get(b"cookie", b"").decode())
        name = SessionStore(cookies.get(settings.SESSION_COOKIE_NAME)).get("name", "")
        return RIGHTS.get(name, Access.NONE), name

    django_app = ASGIHandler()
    jobs = make(by_djangos_session)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/jobs"):
            await jobs({**scope, "root_path": "/jobs"}, receive, send)
        else:
            await django_app(scope, receive, send)

    return Host(application, None)


FRAMEWORKS = {"fastapi": in_fastapi, "starlette": in_starlette, "litestar": in_litestar, "quart": in_quart, "django": in_django}


@pytest.fixture(params=FRAMEWORKS)
def mount(request: pytest.FixtureRequest) -> Iterator[Callable[[Make], Host]]:
    """A function that mounts a dashboard at /jobs of an application of each framework."""
    site = {
        "ROOT_URLCONF": __name__,
        "ALLOWED_HOSTS": ["*"],
        "MIDDLEWARE": ["django.contrib.sessions.middleware.SessionMiddleware"],
        "SESSION_ENGINE": SessionStore.__module__,
    }
    with override_settings(**site):
        yield FRAMEWORKS[request.param]


@asynccontextmanager
async def entered(server: Server) -> AsyncGenerator[Visitor]:
    """A browser that has used the link with the token."""
    async with httpx.AsyncClient() as client:
        visitor = Visitor(client, f"{server.url}jobs/")
        first = await visitor.get(f"{server.url}jobs/?token={TOKEN}")
        assert str(first.url) == visitor.start, "the token has left the address"
        yield visitor


Mounting: TypeAlias = Callable[[Make], Host]


async def test_every_page_link_and_asset_stays_under_the_prefix_and_answers(mount: Mounting, store: str) -> None:
    host = mount(lambda _: dashboard(store, token=TOKEN))
    async with host.serving(host.app) as server, entered(server) as visitor:
        assert "the application" in (await visitor.client.get(server.url)).text
        pages = await visitor.crawl()
    names = {url.removeprefix(visitor.start).partition("?")[0] for url in pages}
    assert {"", "batch", "items", "item", "causes", "workers", "file", "confirm", "confirm_purge"} <= names
    assert len([name for name in names if name.startswith("static/")]) >= 5
    shown = {httpx.URL(url).params["id"] for url in pages if url.startswith(f"{visitor.start}item?")}
    assert shown == set(KEYS)
    assert host.events in (None, ["started", "stopped"])


async def test_an_address_with_a_slash_too_few_or_too_many_leads_to_the_page(mount: Mounting, store: str) -> None:
    host = mount(lambda _: dashboard(store, token=TOKEN))
    async with host.serving(host.app) as server, httpx.AsyncClient() as client:
        visitor = Visitor(client, f"{server.url}jobs/")
        first = await visitor.get(f"{server.url}jobs?token={TOKEN}")
        assert (first.status_code, str(first.url)) == (200, visitor.start)
        for wrong, right in (("jobs?did=pause", "jobs/?did=pause"), ("jobs/items/?batch=b+%2F+c", "jobs/items?batch=b+%2F+c")):
            page = await visitor.get(server.url + wrong)
            assert (page.status_code, str(page.url)) == (200, server.url + right)
        assert (await client.get(f"{visitor.start}unknown")).status_code == 404


async def test_a_form_pauses_a_batch_and_one_of_another_site_does_not(mount: Mounting, store: str) -> None:
    host = mount(lambda _: dashboard(store, token=TOKEN))
    async with host.serving(host.app) as server, entered(server) as visitor, Control(store) as control:
        url = f"{visitor.start}pause"
        for headers in ({}, {"origin": "http://evil.example.com"}, {"origin": server.url[:-1], "sec-fetch-site": "cross-site"}):
            refused = await visitor.client.post(url, data={"batch": BATCH}, headers=headers)
            assert refused.status_code == 403
        assert (await control.status(BATCH)).batches[0].paused is False
        page = await visitor.press(f"{visitor.start}batch?batch=b+%2F+c", "/pause")
        assert page.status_code == 200
        assert "The batch is paused" in page.text
        assert (await control.status(BATCH)).batches[0].paused is True


async def test_the_stream_of_each_live_page_sends_its_content(mount: Mounting, store: str) -> None:
    host = mount(lambda _: dashboard(store, token=TOKEN))
    async with host.serving(host.app) as server, entered(server) as visitor:
        assert "b / c" in (await visitor.first_event(visitor.start))["html"]
        assert (await visitor.first_event(f"{visitor.start}batch?batch=b+%2F+c"))["title"].endswith(BATCH)
        assert "leads &lt;outside&gt;" in (await visitor.first_event(f"{visitor.start}causes"))["html"]


async def test_the_frameworks_own_users_may_read_or_act_or_nothing(
    mount: Mounting, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = mount(lambda allow: dashboard(store, allow=allow))
    async with host.serving(host.app) as server, httpx.AsyncClient() as client:
        visitor = Visitor(client, f"{server.url}jobs/")
        for url in ("", "batch?batch=b+%2F+c", "live?of=overview", "api/status.json", "raw", "healthz"):
            assert (await client.get(visitor.start + url)).status_code == 401, url
        await client.get(f"{server.url}login?name=bob")
        for url in ("", "batch?batch=b+%2F+c", "items?batch=b+%2F+c", "causes", "workers", "file"):
            page = await visitor.get(visitor.start + url)
            assert page.status_code == 200
            assert Addresses(page.text).forms == [] or url.startswith("items"), "a reader has no buttons"
        refused = await client.post(f"{visitor.start}pause", data={"batch": BATCH}, headers={"sec-fetch-site": "same-origin"})
        assert refused.status_code == 403
        await client.get(f"{server.url}login?name=ann")
        with caplog.at_level(logging.INFO, "asyncrunner.dashboard"):
            assert "The batch is paused" in (await visitor.press(f"{visitor.start}batch?batch=b+%2F+c", "/pause")).text
        (line,) = [record.getMessage() for record in caplog.records if record.name == "asyncrunner.dashboard"]
        assert line == f"pause {BATCH}, by ann: done"


async def test_a_server_stops_when_its_streams_have_ended(mount: Mounting, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert live_streams.STREAM_SECONDS == 25
    monkeypatch.setattr(live_streams, "STREAM_SECONDS", 1.2)
    host = mount(lambda _: dashboard(store, token=TOKEN))
    async with (
        host.serving(host.app) as server,
        entered(server) as visitor,
        visitor.events(f"{visitor.start}live?of=overview") as events,
    ):
        await anext(events)
        server.stop()
        async for _ in events:  # its end is the usual one: httpx raises an error for a stream that is cut off
            pass


async def test_dashboards_under_two_prefixes_of_a_host_each_keep_their_token(db: str, new_db: NewDb) -> None:
    other = new_db("other.db")
    for location in (db, other):
        await run_batch([1], str, db=location, batch="b")
    tokens = {"jobs": TOKEN, "jobs/more": TOKEN[::-1], "": "the-token-of-the-root"}
    mounts = [Mount(f"/{name}", dashboard(db, token=tokens[name], label=name or "root")) for name in ("jobs/more", "jobs", "")]
    async with uvicorn_serving(Starlette(routes=mounts)) as server, httpx.AsyncClient(follow_redirects=True) as client:
        urls = {name: f"{server.url}{name}/".replace("//", "/").replace(":/", "://") for name in tokens}
        for name in ("", "jobs", "jobs/more"):
            assert (await client.get(urls[name])).status_code == 401
            assert (await client.get(urls[name], params={"token": tokens[name]})).status_code == 200
        for name, url in urls.items():
            page = await client.get(url)
            assert page.status_code == 200
            assert (name or "root") in page.text


async def test_a_random_token_is_logged_so_that_it_is_seen_without_any_configuration(
    db: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASYNCRUNNER_DASHBOARD_TOKEN", raising=False)
    made = dashboard(db)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING, "Python shows warnings of programs that have not configured logging"
    assert f"add ?token={made.token} to the address" in record.getMessage()
    caplog.clear()
    monkeypatch.setenv("ASYNCRUNNER_DASHBOARD_TOKEN", TOKEN)
    for known in (dashboard(db), dashboard(db, token=TOKEN)):
        assert known.token == TOKEN
    assert dashboard(db, allow=lambda _: Access.NONE).token is None
    assert caplog.records == []
