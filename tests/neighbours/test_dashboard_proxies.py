"""The dashboard behind a reverse proxy that cuts off or keeps a prefix, and that keeps or changes the Host header."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from asyncrunner import Control, Fail, run_batch
from asyncrunner.dashboard import Dashboard, dashboard
from asyncrunner.dashboard.serve import application
from tests.support.http_proxy import ReverseProxy, proxying
from tests.support.web import Visitor, uvicorn_serving

TOKEN = "a-token-of-the-tests"
PUBLIC = "jobs.example.com"


async def fail_for_odd(item: int) -> int:
    if item % 2:
        raise Fail("odd")
    return item


@pytest.fixture
async def store(db: str) -> str:
    await run_batch(range(3), fail_for_odd, db=db, batch="b", max_attempts=1)
    return db


def alone(app: Dashboard) -> object:
    """The command's own application."""
    return application([("jobs.db", app)])


def with_root_path(app: Dashboard) -> object:
    """The command's own application with --root-path."""
    return application([("jobs.db", app)], "/ops/jobs")


def mounted(app: Dashboard) -> object:
    return Starlette(routes=[Mount("/ops/jobs", app)])


@asynccontextmanager
async def behind(app: object, proxy: ReverseProxy) -> AsyncGenerator[httpx.AsyncClient]:
    """A client that reaches *app* through *proxy*, under any name."""
    async with uvicorn_serving(app) as server:
        proxy.backend = server.port
        async with proxying(proxy), httpx.AsyncClient(proxy=proxy.url) as client:
            yield client


SETUPS = {
    "cuts off the prefix and changes the host": (alone, ReverseProxy(0, "/ops/jobs", "127.0.0.1:8585")),
    "cuts off the prefix and keeps the host": (alone, ReverseProxy(0, "/ops/jobs")),
    "keeps the prefix and changes the host": (with_root_path, ReverseProxy(0, "", "127.0.0.1:8585")),
    "keeps the prefix and the host, mounted": (mounted, ReverseProxy(0)),
    "keeps the prefix and changes the host, mounted": (mounted, ReverseProxy(0, "", "localhost:8000")),
}


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("has_fetch_metadata", [True, False], ids=["https", "http"])
async def test_pages_links_actions_and_streams_work(setup: str, has_fetch_metadata: bool, store: str) -> None:
    make, proxy = SETUPS[setup]
    async with behind(make(dashboard(store, token=TOKEN, hosts=[PUBLIC])), proxy) as client:
        visitor = Visitor(client, f"http://{PUBLIC}/ops/jobs/", has_fetch_metadata=has_fetch_metadata)
        first = await visitor.get(f"{visitor.start}?token={TOKEN}")
        assert (first.status_code, str(first.url)) == (200, visitor.start)
        pages = await visitor.crawl()
        assert {f"{visitor.start}{page}" for page in ("causes", "workers", "file")} <= set(pages)
        page = await visitor.press(f"{visitor.start}batch?batch=b", "/pause")
        assert "The batch is paused" in page.text
        assert "odd" in (await visitor.first_event(visitor.start))["html"]
    async with Control(store) as control:
        assert (await control.status()).batches[0].paused


@pytest.mark.parametrize("setup", SETUPS)
async def test_a_form_of_another_site_is_refused(setup: str, store: str) -> None:
    make, proxy = SETUPS[setup]
    async with behind(make(dashboard(store, token=TOKEN, hosts=[PUBLIC])), proxy) as client:
        start = f"http://{PUBLIC}/ops/jobs/"
        await Visitor(client, start).get(f"{start}?token={TOKEN}")
        for headers in (
            {},
            {"origin": "http://evil.example.com"},
            {"origin": f"http://{PUBLIC}:8080"},
            {"origin": f"http://{PUBLIC}", "sec-fetch-site": "same-site"},
        ):
            refused = await client.post(f"{start}pause", data={"batch": "b"}, headers=headers)
            assert refused.status_code == 403, headers
    async with Control(store) as control:
        assert not (await control.status()).batches[0].paused


async def test_a_public_name_with_a_port_is_named_with_it(store: str) -> None:
    proxy = ReverseProxy(0, "", "127.0.0.1:8585")
    async with behind(dashboard(store, token=TOKEN, hosts=[f"{PUBLIC}:8443"]), proxy) as client:
        visitor = Visitor(client, f"http://{PUBLIC}:8443/", has_fetch_metadata=False)
        await visitor.get(f"{visitor.start}?token={TOKEN}")
        assert "The batch is paused" in (await visitor.press(f"{visitor.start}batch?batch=b", "/pause")).text


@pytest.mark.parametrize(("sent", "named"), [(None, PUBLIC), ("backend:8585", "backend")])
async def test_an_unknown_host_is_refused_with_the_name_to_allow(sent: str | None, named: str, store: str) -> None:
    async with behind(dashboard(store, token=TOKEN), ReverseProxy(0, host=sent)) as client:
        refused = await client.get(f"http://{PUBLIC}/?token={TOKEN}")
        assert refused.status_code == 421
        assert f"--allow-host {named}" in refused.text
        assert "set-cookie" not in refused.headers


@pytest.mark.parametrize(("scheme", "is_secure"), [("https", True), ("http", False)])
async def test_behind_tls_the_cookie_is_sent_over_tls_only(scheme: str, is_secure: bool, store: str) -> None:
    proxy = ReverseProxy(0, headers={"X-Forwarded-Proto": scheme})
    async with behind(dashboard(store, token=TOKEN, hosts=[PUBLIC]), proxy) as client:
        response = await client.get(f"http://{PUBLIC}/?token={TOKEN}")
        assert response.status_code == 303
        assert ("; Secure" in response.headers["set-cookie"]) is is_secure
        assert response.headers["location"] == "./", "no scheme and no host, which would be those behind the proxy"
