"""The door: who is let in, and that no request of anyone else shows or changes anything."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from http.cookies import SimpleCookie
from typing import Any

import httpx
import pytest

from asyncrunner import Control, run_batch
from asyncrunner.dashboard import Access, Dashboard
from asyncrunner.dashboard.door import MAX_BODY_BYTES, MAX_QUERY_BYTES
from asyncrunner.dashboard.rendering import assets
from asyncrunner.dashboard.serve import application
from tests.conftest import NewDb
from tests.support.state import snapshot
from tests.unit.dashboard.browser import BASE, COOKIE, HOST, OWN, TOKEN, Page, Visitor, call, routes_of, scope_of, streaming
from tests.unit.dashboard.conftest import Open, Visit

UNSAFE = ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "X-Y"]
ACTIONS = [
    "pause",
    "resume",
    "concurrency",
    "stop",
    "recover",
    "purge",
    "diagnose",
    "backup",
    "abort",
    "retry",
    "rerun",
    "cancel",
]
BODY = "batch=shop&ids=wrong-1&all=&concurrency=3&older_than=0s&name=shop&page=batch&job=1"
"""A body with which almost every action would change something."""

SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


async def returned(item: str) -> str:
    return item


async def statuses(
    app: Dashboard, methods: list[str], headers: Mapping[str, str] = {}, *, cookies: Mapping[str, str] = COOKIE, query: str = ""
) -> dict[tuple[str, str], int]:
    """Return the status of a request with each of the methods to each route. Every response has the headers of the door."""
    found: dict[tuple[str, str], int] = {}
    given = {"cookie": "; ".join(f"{name}={value}" for name, value in cookies.items()), **headers}
    for path in routes_of(app):
        for method in methods:
            answer = await call(app, scope_of(path, query, method=method, headers=given), BODY.encode())
            response = httpx.Response(answer.status, headers=answer.headers, content=answer.body)
            check_headers(response, is_static=path.startswith("/static/"))
            found[method, path] = response.status_code
    return found


def check_headers(response: httpx.Response, *, is_static: bool = False) -> None:
    expected = dict(SECURITY)
    if response.status_code == 421:  # browsers take this header only over https, and from their own machine
        expected["cross-origin-opener-policy"] = response.headers.get("cross-origin-opener-policy", "")
    assert {name: response.headers.get(name, "") for name in SECURITY} == expected
    cached = is_static and response.status_code == 200
    assert response.headers.get_list("cache-control") == ["public, max-age=31536000, immutable" if cached else "no-store"]
    assert not [name for name in response.headers if name.startswith("access-control-")], "a CORS header"


# --- without access -------------------------------------------------------------------------------------------------

NO_ACCESS: dict[str, dict[str, Any]] = {
    "nothing": {"cookies": {}},
    "a wrong bearer": {"cookies": {}, "headers": {"authorization": f"Bearer {TOKEN}x"}},
    "a part of the bearer": {"cookies": {}, "headers": {"authorization": f"Bearer {TOKEN[:-1]}"}},
    "an empty bearer": {"cookies": {}, "headers": {"authorization": "Bearer "}},
    "another scheme": {"cookies": {}, "headers": {"authorization": f"Basic {TOKEN}"}},
    "a wrong cookie": {"cookies": {"asyncrunner_8585": TOKEN.upper()}},
    "an empty cookie": {"cookies": {"asyncrunner_8585": ""}},
    "the cookie of another port": {"cookies": {"asyncrunner_8586": TOKEN, "asyncrunner_0": TOKEN, "asyncrunner": TOKEN}},
    "a wrong token in the address": {"cookies": {}, "query": f"token={TOKEN}x"},
    "an empty token in the address": {"cookies": {}, "query": "token="},
}


async def test_without_the_token_every_route_answers_401_to_every_method(made: str, open_dashboard: Open) -> None:
    app, before = open_dashboard(made), snapshot(made)
    for way, options in NO_ACCESS.items():
        found = await statuses(app, ["GET", "HEAD", *UNSAFE], **options)
        assert set(found.values()) == {401}, way
        assert len(found) > 30 * len(UNSAFE), "there are more routes"
    assert snapshot(made) == before
    assert not app._pages.reads.is_open, "no visitor with access came"


async def test_a_token_in_the_address_lets_in_only_a_page(made: str, open_dashboard: Open) -> None:
    app, before = open_dashboard(made), snapshot(made)
    assert set((await statuses(app, UNSAFE, OWN, cookies={}, query=f"token={TOKEN}")).values()) == {401}
    assert snapshot(made) == before


async def test_an_unknown_host_is_refused_also_with_the_token(made: str, open_dashboard: Open) -> None:
    app, before = open_dashboard(made), snapshot(made)
    hosts = [
        "evil.example",
        "127.0.0.1.evil.example:8585",
        "localhost.evil.example",
        "evil.example:127.0.0.1",
        "0.0.0.0:8585",
        "",
    ]
    for host in hosts:
        headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin", "authorization": f"Bearer {TOKEN}"}
        assert set((await statuses(app, ["GET", "HEAD", *UNSAFE], headers)).values()) == {421}, host
    assert snapshot(made) == before
    assert not app._pages.reads.is_open


async def test_the_machines_own_names_and_the_given_ones_are_known(made: str, open_dashboard: Open) -> None:
    app = open_dashboard(made, hosts=["Jobs.example"])
    for host in (HOST, "localhost", "LocalHost:1", "127.0.0.1", "[::1]", "[::1]:8585", "jobs.example", "Jobs.Example:443"):
        async with Visitor(app, headers={"host": host, "authorization": f"Bearer {TOKEN}"}).client as client:
            assert (await client.get("/healthz")).status_code == 200, host


async def test_an_unknown_host_is_named_with_what_to_do(made: str, open_dashboard: Open) -> None:
    async with Visitor(open_dashboard(made), headers={"host": b"evil\x85.example"}).client as client:
        response = await client.get("/")
    assert response.text.startswith("421: this dashboard does not know the host evil\\x85.example.\nStart it with --allow-host")
    async with Visitor(open_dashboard(made), headers={"host": f"{'x' * 300}.example"}).client as client:
        assert len((await client.get("/")).text) < 600


async def test_with_allow_any_host_is_known_unless_hosts_are_given(made: str, open_dashboard: Open) -> None:
    for hosts, expected in ((None, 200), ([], 421), (["jobs.example"], 200)):
        app = open_dashboard(made, allow=lambda _: Access.READ, hosts=hosts)
        async with Visitor(app, cookies={}, headers={"host": "jobs.example"}).client as client:
            assert (await client.get("/")).status_code == expected


# --- from another site ----------------------------------------------------------------------------------------------

FOREIGN: dict[str, dict[str, str]] = {
    "no headers": {},
    "an empty origin": {"origin": ""},
    "null": {"origin": "null"},
    "another site": {"origin": "https://evil.example"},
    "another port": {"origin": "http://127.0.0.1:8586"},
    "no port": {"origin": "http://127.0.0.1"},
    "the host as a user": {"origin": f"http://{HOST}@evil.example"},
    "the host as a path": {"origin": f"http://evil.example/{HOST}"},
    "the host without a scheme": {"origin": HOST},
    "no address": {"origin": "http://["},
    "another scheme": {"origin": f"ftp://{HOST}"},
    "no host": {"origin": "http://"},
    "cross-site": {**OWN, "sec-fetch-site": "cross-site"},
    "same-site": {**OWN, "sec-fetch-site": "same-site"},
    "none": {**OWN, "sec-fetch-site": "none"},
    "an empty Sec-Fetch-Site": {**OWN, "sec-fetch-site": ""},
    "a referer": {"referer": BASE},
}


async def test_an_unsafe_request_from_another_site_is_refused(made: str, open_dashboard: Open) -> None:
    app, before = open_dashboard(made, hosts=["jobs.example"]), snapshot(made)
    for way, headers in FOREIGN.items():
        assert set((await statuses(app, UNSAFE, headers)).values()) == {403}, way
    assert snapshot(made) == before


async def test_allow_does_not_replace_the_look_at_the_origin(made: str, open_dashboard: Open) -> None:
    app, before = open_dashboard(made, allow=lambda _: Access.ACT), snapshot(made)
    for way, foreign in FOREIGN.items():
        headers = {**foreign, "authorization": f"Bearer {TOKEN}"}
        assert set((await statuses(app, UNSAFE, headers, cookies={})).values()) == {403}, way
    assert snapshot(made) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-origin"},
        {"origin": f"http://{HOST}"},
        {"origin": "https://127.0.0.1:8585"},
        {"origin": "https://jobs.example"},
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer  {TOKEN} "},
        {"authorization": f"Bearer {TOKEN}", "origin": f"http://{HOST}"},
    ],
)
async def test_the_dashboards_own_pages_and_programs_may_act(made: str, open_dashboard: Open, headers: dict[str, str]) -> None:
    app = open_dashboard(made, hosts=["jobs.example"])
    is_program = "authorization" in headers
    async with Visitor(app, cookies={} if is_program else COOKIE, headers=headers).client as client:
        response = await client.post("/pause", content="batch=shop")
    assert (response.status_code, response.headers["location"]) == (303, "./batch?batch=shop&did=pause")


async def test_a_proxy_that_adds_the_token_to_the_requests_of_browsers_lets_no_other_site_act(
    made: str, open_dashboard: Open
) -> None:
    app, before = open_dashboard(made), snapshot(made)
    for way, foreign in FOREIGN.items():
        if "origin" in foreign:  # browsers send it with each form
            headers = {**foreign, "authorization": f"Bearer {TOKEN}"}
            assert set((await statuses(app, UNSAFE, headers, cookies={})).values()) == {403}, way
    assert snapshot(made) == before


async def test_a_refusal_says_what_to_do(made: str, open_dashboard: Open) -> None:
    async with Visitor(open_dashboard(made)).client as client:
        refused = (await client.post("/pause", content="batch=shop")).text
    assert "does not come from a page of this dashboard, so nothing was changed" in refused
    assert "--allow-host" in refused
    async with Visitor(open_dashboard(made), cookies={}).client as client:
        assert "Open the link that `asyncrunner dashboard` printed" in (await client.get("/")).text


# --- who may only read ----------------------------------------------------------------------------------------------


async def test_in_read_only_mode_no_action_exists(made: str, open_dashboard: Open) -> None:
    app, writable = open_dashboard(made, read_only=True), open_dashboard(made)
    before = snapshot(made)
    gone = set(routes_of(writable)) - set(routes_of(app))
    assert gone == {f"/{name}" for name in [*ACTIONS, "confirm", "confirm_purge", "confirm_stop", "job"]}
    assert set((await statuses(app, UNSAFE, OWN)).values()) == {405}
    async with Visitor(app, headers=OWN).client as client:
        for path in gone:
            for method in ("GET", "HEAD", *UNSAFE):
                assert (await client.request(method, path, content=BODY)).status_code == 404, (method, path)
        assert (await client.get("/live?of=job&job=1")).status_code == 400
    assert snapshot(made) == before


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("access", "reads", "acts"), [(Access.NONE, 401, 401), (Access.READ, 200, 403)])
async def test_allow_decides_about_every_route(
    made: str, open_dashboard: Open, access: Access, reads: int, acts: int, is_async: bool
) -> None:
    async def later(scope: Any) -> Access:
        return access

    asked: list[str] = []

    def now(scope: Any) -> Access:
        asked.append(scope["path"])
        return access

    app, before = open_dashboard(made, allow=later if is_async else now), snapshot(made)
    assert set((await statuses(app, UNSAFE, OWN)).values()) == {acts}
    assert is_async or set(asked) == set(routes_of(app))
    async with Visitor(app).client as client:
        assert (await client.get("/")).status_code == reads
        assert (await client.get("/", headers={"authorization": f"Bearer {TOKEN}"})).status_code == reads
        assert (await client.get(f"/?token={TOKEN}")).status_code in (401, 303)
    assert snapshot(made) == before


async def test_a_visitor_who_may_only_read_sees_no_button(made: str, visit: Visit) -> None:
    for options in ({"read_only": True}, {"allow": lambda _: Access.READ}):
        visitor = visit(made, **options)
        for path in ("", "batch?batch=shop", "items?batch=shop", "item?batch=shop&id=wrong-1", "causes", "workers", "file"):
            page = await visitor.page(path)
            assert [form.method for form in page.forms if form.method != "get"] == []
            assert not [link for link in page.links() if link.startswith("./confirm")]
            assert "read-only" in page.text


async def test_a_visitor_who_may_only_read_gets_no_page_that_offers_an_action(made: str, visit: Visit) -> None:
    visitor = visit(made, allow=lambda _: Access.READ)
    for path in ("confirm?batch=shop&verb=retry&all=1", "confirm_purge?batch=shop&older_than=0s"):
        response = await visitor.get(path)
        assert response.status_code == 403
        assert Page(response.text).forms == []


async def test_an_allow_that_fails_or_returns_nonsense_refuses_everybody(made: str, open_dashboard: Open) -> None:
    before = snapshot(made)
    for answer in (None, "act", 7):
        app = open_dashboard(made, allow=lambda _, answer=answer: answer)
        with pytest.raises(ValueError, match="is not a valid Access"):
            await Visitor(app).post("pause", {"batch": "shop"})
    assert snapshot(made) == before


# --- the token, and its cookie --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "location"),
    [
        (f"/?token={TOKEN}", "./"),
        (f"/batch?token={TOKEN}&batch=a%26b%3D%0D%0Ac&span=1h", "./batch?batch=a%26b%3D%0D%0Ac&span=1h"),
        (f"/item?batch=%E2%80%AE&id=x&token={TOKEN}", "./item?batch=%E2%80%AE&id=x"),
        (f"/items?batch=b&token=wrong&token={TOKEN}", "./items?batch=b"),
        (f"/%0D%0Aset-cookie:x?token={TOKEN}", "./%0D%0Aset-cookie:x"),
        (f"//evil.example?token={TOKEN}", "./evil.example"),
    ],
)
async def test_the_token_leaves_the_address_for_a_cookie(made: str, open_dashboard: Open, address: str, location: str) -> None:
    async with Visitor(open_dashboard(made), cookies={}).client as client:
        response = await client.get(f"http://{HOST}{address}")
    assert (response.status_code, response.headers["location"]) == (303, location)
    assert response.headers["set-cookie"] == f"asyncrunner_8585={TOKEN}; HttpOnly; SameSite=Strict"
    assert "set-cookie" not in response.headers["location"] or "%0D%0A" in response.headers["location"]
    check_headers(response)


async def test_the_cookie_is_secure_on_https_and_named_by_the_port(made: str, open_dashboard: Open) -> None:
    transport = httpx.ASGITransport(app=open_dashboard(made))
    for base, name in (("https://localhost", "asyncrunner_0"), ("https://localhost:9443", "asyncrunner_9443")):
        async with httpx.AsyncClient(transport=transport, base_url=base) as client:
            response = await client.get(f"/?token={TOKEN}")
            cookie = SimpleCookie(response.headers["set-cookie"])[name]
            assert (cookie.value, cookie["secure"], cookie["httponly"]) == (TOKEN, True, True)
            assert (cookie["samesite"], cookie["domain"]) == ("Strict", "")
            assert (await client.get("/healthz")).status_code == 200, "the client has the cookie now"


async def test_other_cookies_of_the_host_do_not_hide_the_dashboards(made: str, open_dashboard: Open) -> None:
    others = ['theirs={"a": "b, c"}', "path=/", "expires", "naïve=1", "a b=c", 'q="', "=", "x=y=z;;"]
    for other in others:
        for cookie in (f"{other}; asyncrunner_8585={TOKEN}", f"asyncrunner_8585={TOKEN}; {other}"):
            headers = {b"cookie": cookie.encode("latin-1")}
            async with Visitor(open_dashboard(made), cookies={}).client as client:
                assert (await client.get("/healthz", headers=headers)).status_code == 200, cookie


async def test_a_visitor_with_the_cookie_also_loses_the_token_of_the_address(made: str, open_dashboard: Open) -> None:
    async with Visitor(open_dashboard(made)).client as client:
        response = await client.get(f"/causes?batch=shop&token={TOKEN}")
    assert (response.status_code, response.headers["location"]) == (303, "./causes?batch=shop")
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    "query", ["", '&batch="><script>alert(1)</script>', "&batch=%22%3E%3Cscript%3E&id='%3Bx", "&batch=%0D%0A&id=%E2%80%AE"]
)
async def test_a_link_on_another_site_leads_to_a_page_and_not_to_a_redirect(made: str, open_dashboard: Open, query: str) -> None:
    """After a redirect from another site, the browser would not send a cookie that is SameSite=Strict."""
    async with Visitor(open_dashboard(made), cookies={}, headers={"sec-fetch-site": "cross-site"}).client as client:
        response = await client.get(f"/batch?token={TOKEN}{query}")
        expected = await client.get(f"/batch?token={TOKEN}{query}", headers={"sec-fetch-site": "none"})
    assert response.status_code == 200
    assert response.headers["set-cookie"] == f"asyncrunner_8585={TOKEN}; HttpOnly; SameSite=Strict"
    assert TOKEN not in response.text
    check_headers(response)
    page = Page(response.text)
    assert [each.tag for each in page.elements] == ["title", "meta", "a"]
    assert page.links() == [expected.headers["location"]]
    assert page.elements[1].attributes == {"http-equiv": "refresh", "content": f"0; url={page.links()[0]}"}
    assert not re.search(r"[<>\"'\r\n]", page.links()[0])


async def test_a_path_that_a_server_leaves_as_it_is_adds_nothing_to_that_page(made: str, open_dashboard: Open) -> None:
    """Browsers and most servers encode such characters."""
    scope = scope_of(query=f"token={TOKEN}", headers={"cookie": "", "sec-fetch-site": "cross-site"})
    path = '/x"><b onclick="alert(1)'
    answer = await call(open_dashboard(made), {**scope, "path": path, "raw_path": path.encode()})
    assert (answer.status, [each.tag for each in Page(answer.body.decode()).elements]) == (200, ["title", "meta", "a"])


# --- headers, sizes, other kinds of request -------------------------------------------------------------------------


async def test_every_kind_of_response_has_the_security_headers_and_none_has_cors(made: str, open_dashboard: Open) -> None:
    app = open_dashboard(made)
    async with Visitor(app, headers=OWN | {"access-control-request-method": "POST"}).client as client:
        for path, status in {
            "/": 200, "/batch?batch=nix": 404, "/batch": 400, "/nowhere": 404, "/static/nothing.js": 404, "/api/status.json": 200,
            "/raw?batch=shop&id=wrong-1": 200, "/pause": 405, f"/?token={TOKEN}": 303, "/metrics": 200, "/readyz": 503,
        }.items():  # fmt: skip
            response = await client.get(path)
            assert response.status_code == status, path
            check_headers(response)
        for asset in assets().values():
            response = await client.get(f"/static/{asset.name}")
            assert (response.status_code, response.content) == (200, asset.content)
            check_headers(response, is_static=True)
        for path, body in (
            ("/pause", "batch=shop"),
            ("/pause", ""),
            ("/backup", ""),
            ("/confirm", "batch=shop&ids=a"),
            ("/nowhere", ""),
        ):
            check_headers(await client.post(path, content=body))
    async with streaming(app) as stream:
        assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert {name: stream.headers[name] for name in SECURITY} == SECURITY
        assert stream.headers["cache-control"] == "no-store"


async def test_an_error_of_the_program_shows_no_traceback(
    made: str, open_dashboard: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    app = open_dashboard(made)
    monkeypatch.setattr(app._pages.reads, "status", fail)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=BASE, cookies=COOKIE) as client:
        response = await client.get("/")
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    check_headers(response)


async def test_the_sizes_of_a_request_are_bounded(made: str, visit: Visit) -> None:
    visitor = visit(made)
    before = snapshot(made)
    for size, status in ((MAX_BODY_BYTES, 400), (MAX_BODY_BYTES + 1, 413), (10 * MAX_BODY_BYTES, 413)):
        response = await visitor.post("pause", "batch=".ljust(size, "x"))
        assert (response.status_code, snapshot(made)) == (status, before)
    assert "65,536 bytes" in (await visitor.post("pause", "x" * (MAX_BODY_BYTES + 1))).text
    for size, status in ((MAX_QUERY_BYTES, 400), (MAX_QUERY_BYTES + 1, 414)):
        assert (await visitor.get(f"batch?{'batch='.ljust(size, 'x')}")).status_code == status
        assert (await visitor.get(f"nowhere?{'batch='.ljust(size, 'x')}")).status_code == (status if status == 414 else 404)
    assert "16,384 bytes" in (await visitor.get(f"?{'x' * 20_000}")).text


async def test_a_body_without_an_end_is_not_kept(made: str, open_dashboard: Open) -> None:
    received = 0

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b"x" * 10_000, "more_body": True}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await open_dashboard(made)(scope_of("/pause", method="POST", headers=OWN), receive, send)
    assert (sent[0]["status"], received) == (413, 7)


async def test_a_body_comes_in_parts_and_a_client_may_leave_before_its_end(made: str, open_dashboard: Open) -> None:
    app = open_dashboard(made)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    def receiving(*messages: dict[str, Any]) -> Any:
        rest = iter(messages)

        async def receive() -> dict[str, Any]:
            return next(rest)

        return receive

    parts: list[dict[str, Any]] = [{"type": "http.request", "body": b"batch=", "more_body": True}, {"type": "http.disconnect"}]
    before = snapshot(made)
    await app(scope_of("/pause", method="POST", headers=OWN), receiving(*parts), send)
    assert (sent, snapshot(made)) == ([], before)
    parts = [{"type": "http.request", "body": b"batch=", "more_body": True}, {"type": "http.request", "body": b"shop"}]
    await app(scope_of("/pause", method="POST", headers=OWN), receiving(*parts), send)
    assert sent[0]["status"] == 303


async def test_a_method_in_small_letters_is_not_get(made: str, open_dashboard: Open) -> None:
    app = open_dashboard(made)
    for method in ("get", "post", "Post", ""):
        assert (await call(app, scope_of("/pause", method=method), b"batch=shop")).status == 403


async def test_a_websocket_is_refused_and_the_lifespan_is_answered(made: str, open_dashboard: Open) -> None:
    app = open_dashboard(made)
    sent: list[Any] = []
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]
    assert not app._pages.reads.is_open
    sent.clear()
    await app({**scope_of("/live"), "type": "websocket"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_no_redirect_names_a_host(made: str, visit: Visit) -> None:
    """Behind a proxy with TLS, the dashboard knows neither the scheme nor the host of its addresses."""
    visitor = visit(made)
    for path in (
        "/batch/?batch=shop",
        "/live/",
        "/api/status.json/",
        "/static/",
        "/pause/",
        "//evil.example/",
        "//evil.example//",
    ):
        response = await visitor.client.get(f"http://{HOST}{path}")
        assert response.status_code == 307, path
        assert re.fullmatch(r"\.\./[a-z.]+(\?batch=shop)?", response.headers["location"])


@pytest.mark.parametrize("path", ["/jobs", "/", ""])
async def test_the_first_page_of_a_mounted_dashboard_has_a_slash_at_its_end(made: str, open_dashboard: Open, path: str) -> None:
    """All links are relative to it. Frameworks differ in the path that they give to what is mounted."""
    scope = {**scope_of(query="x=1"), "path": path, "raw_path": b"/jobs", "root_path": path.rstrip("/")}
    answer = await call(open_dashboard(made), scope)
    assert (answer.status, dict(answer.headers)[b"location"]) == (307, b"./jobs/?x=1")


async def test_an_action_of_one_of_several_dashboards_gets_its_form(made: str, new_db: NewDb, open_dashboard: Open) -> None:
    other = new_db("other.db")
    await run_batch(["a"], returned, db=other, batch="other")
    both = application([(made, open_dashboard(made)), (other, open_dashboard(other))])
    _, place = Page((await call(both, scope_of())).body.decode()).links()
    answer = await call(both, scope_of(f"{place[1:]}pause", method="POST", headers=OWN), b"batch=other")
    assert (answer.status, dict(answer.headers)[b"location"]) == (303, b"./batch?batch=other&did=pause")
    async with Control(other) as control:
        assert (await control.status()).batches[0].paused


async def test_several_dashboards_are_behind_one_door(made: str, new_db: NewDb, open_dashboard: Open) -> None:
    other = new_db("other.db")
    await run_batch(["a"], returned, db=other, batch="other")
    both = application([(made, open_dashboard(made)), (other, open_dashboard(other))])
    visitor, before = Visitor(both), [snapshot(made), snapshot(other)]
    links = (await visitor.page("")).links()
    for link, batch in zip(links, ("shop", "other"), strict=True):
        page = await visitor.page(link)
        assert f"./batch?batch={batch}" in page.links()
    first, second = (link[1:] for link in links)
    for path in ("/", first, f"{second}pause", f"{second}nowhere", "/nowhere"):
        for method in ("GET", *UNSAFE):
            for headers, status in (({"cookie": ""}, 401), ({"host": "evil.example"}, 421)):
                assert (await call(both, scope_of(path, method=method, headers=headers), b"batch=other")).status == status
    for headers in FOREIGN.values():
        assert (await call(both, scope_of(f"{second}pause", method="POST", headers=headers), b"batch=other")).status == 403
    assert [snapshot(made), snapshot(other)] == before
    await visitor.client.aclose()


async def test_the_address_of_one_of_several_dashboards_has_no_password(open_dashboard: Open) -> None:
    servers = [f"postgresql://ann:secret@db{number}.example/jobs?password=secret" for number in (1, 2)]
    both = application([(server, open_dashboard(server)) for server in servers])
    answer = await call(both, scope_of())
    assert answer.status == 200
    assert len(Page(answer.body.decode()).links()) == 2
    assert b"secret" not in answer.body


async def test_an_action_is_logged_with_the_visitors_name(
    made: str, open_dashboard: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asyncrunner.dashboard")

    class User:
        display_name = "Ann\nB"

    class Nameless:
        @property
        def display_name(self) -> str:
            raise NotImplementedError  # as of starlette.authentication.BaseUser

    def with_user(app: Dashboard, user: object) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            await app(scope | {"user": user}, receive, send)

        return wrapped

    def act(_: Any) -> Access:
        return Access.ACT

    cases: list[tuple[Any, dict[str, str], str]] = [
        (open_dashboard(made), {}, "a browser with the token"),
        (open_dashboard(made), {"authorization": f"Bearer {TOKEN}"}, "a program with the token"),
        (open_dashboard(made, user_header="X-User"), {"x-user": "Zoe"}, "Zoe"),
        (open_dashboard(made, user_header="X-User"), {"x-user": "\x1b[31mZoe" + "e" * 200}, "\\x1b[31mZoe" + "e" * 57),
        (open_dashboard(made, user_header="X-User"), {}, "a browser with the token"),
        (open_dashboard(made), {"x-user": "Zoe"}, "a browser with the token"),
        (open_dashboard(made, allow=act), {}, "a user of the program"),
        (with_user(open_dashboard(made, allow=act), User()), {}, "Ann\\nB"),
        (with_user(open_dashboard(made, allow=act), Nameless()), {}, "a user of the program"),
    ]
    for app, headers, name in cases:
        async with Visitor(app, headers={**OWN, **headers}).client as client:
            assert (await client.post("/pause", content="batch=shop")).status_code == 303
        assert caplog.messages[-1].startswith(f"pause shop, by {name}"), caplog.messages[-1]
        assert caplog.messages[-1].endswith(": done")


# --- links of other sites -------------------------------------------------------------------------------------------

FOLLOWED = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}


async def test_a_link_of_another_site_continues_by_itself_to_the_page_which_then_gets_the_cookie(
    made: str, open_dashboard: Open
) -> None:
    """A browser does not send a cookie that is SameSite=Strict when a person follows a link in webmail."""
    async with Visitor(open_dashboard(made), headers=FOLLOWED, cookies={}).client as client:
        response = await client.get("/batch?batch=shop")
        assert (response.status_code, response.headers.get("set-cookie")) == (200, None)
        assert 'content="0; url=./batch?batch=shop"' in response.text
        assert "shop" not in response.text.replace("./batch?batch=shop", "")
        for other in ({"sec-fetch-site": "same-origin"}, {"sec-fetch-mode": "cors"}, {"sec-fetch-site": "none"}):
            assert (await client.get("/batch?batch=shop", headers=other)).status_code == 401
        assert (await client.get("/batch?batch=shop&token=wrong-wrong-wrong")).status_code == 401
        assert (await client.post("/pause", data={"batch": "shop"})).status_code == 401


async def test_a_refused_action_of_an_application_with_users_names_no_token(made: str, open_dashboard: Open) -> None:
    async with Visitor(open_dashboard(made, allow=lambda _: Access.NONE), cookies={}).client as client:
        for response in (await client.get("/"), await client.post("/pause", data={"batch": "shop"})):
            assert (response.status_code, response.text) == (401, "401: you have no access.\n")
