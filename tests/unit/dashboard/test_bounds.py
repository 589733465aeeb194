"""Every number and text of a request has a bound; what is out of it gets a page that says what to do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_from_bytes, urlencode

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.state import snapshot
from tests.unit.dashboard.browser import OWN, Page, call, routes_of, scope_of, unsafe_characters
from tests.unit.dashboard.conftest import Open, Visit
from tests.unit.dashboard.test_door import ACTIONS
from tests.unit.dashboard.test_pages import check_page

if TYPE_CHECKING:
    import httpx

BAD_NUMBERS: Final = [
    "-1", "1.5", "1e3", "x", "0x10", "+1", " 1", "1 ", "1_000", "9" * 11, "9" * 1500, "\u0661", "\u00b2", "\uff11", "NaN", "inf", "\0",
]  # fmt: skip
TOO_LONG: Final = "x" * 2_001
NUL: Final = "a\0b"
NUMBERS: Final = {
    "batch?batch=shop&did=changed&done=": 400,
    "batch?batch=shop&did=changed&left=": 400,
    "job?job=": 400,
    "live?of=job&job=": 200,  # a stream that says it
    "api/items.json?batch=shop&limit=": 400,
}
TEXTS: Final = [
    "batch?batch=", "batch?batch=shop&span=", "batch?batch=shop&did=", "items?batch=", "items?batch=shop&status=", "items?batch=shop&error=",
    "items?batch=shop&older_than=", "items?batch=shop&contains=", "items?batch=shop&id=", "items?batch=shop&after=",
    "items?batch=shop&order=", "item?id=a&batch=", "item?batch=shop&id=", "causes?batch=", "live?of=", "confirm?batch=", "confirm?batch=shop&ids=",
    "confirm?batch=shop&error=", "confirm?batch=shop&all=1&verb=", "confirm?batch=shop&all=1&page=", "confirm_purge?older_than=1s&batch=",
    "confirm_purge?batch=shop&older_than=", "confirm_purge?batch=shop&older_than=1s&status=", "raw?batch=shop&id=", "raw?batch=shop&id=a&value=",
    "raw?id=a&batch=", "metrics?batch=", "readyz?batch=", "api/status.json?batch=", "api/failures.json?batch=", "api/workers.json?batch=",
    "api/stuck.json?batch=", "api/stuck.json?older_than=", "api/items.json?batch=", "api/items.json?status=", "api/items.json?error=",
    "api/items.json?older_than=", "api/items.json?contains=", "api/items.json?after=", "api/item.json?id=", "api/item.json?id=a&batch=",
    "api/history.json?batch=", "api/history.json?batch=shop&span=",
]  # fmt: skip
FORMS: Final[list[tuple[str, dict[str, str], str]]] = [
    ("pause", {}, "batch"), ("pause", {"batch": "shop"}, "page"), ("resume", {}, "batch"), ("concurrency", {"batch": "shop"}, "concurrency"),
    ("concurrency", {}, "batch"), ("stop", {}, "batch"), ("stop", {}, "now"), ("recover", {"name": "x"}, "worker"), ("recover", {"worker": "x"}, "name"),
    ("purge", {"batch": "shop", "older_than": "1s"}, "name"), ("purge", {"batch": "shop", "name": "shop"}, "older_than"),
    ("purge", {"batch": "shop", "name": "shop", "older_than": "1s"}, "status"), ("abort", {}, "job"), ("pause", {"batch": "shop"}, "ids"), ("pause", {"batch": "shop"}, "unknown"), ("retry", {"ids": "wrong-1"}, "batch"),
    ("retry", {"batch": "shop"}, "ids"), ("retry", {"batch": "shop"}, "error"), ("retry", {"batch": "shop"}, "all"), ("rerun", {"batch": "shop"}, "ids"),
    ("cancel", {"batch": "shop"}, "ids"), ("cancel", {"batch": "shop"}, "all"), ("confirm", {"batch": "shop", "ids": "a"}, "verb"),
    ("confirm", {"batch": "shop"}, "ids"),
]  # fmt: skip


def message_of(response: httpx.Response) -> str:
    """Return what a refusal says; it is a page or a document, and shows no traceback."""
    assert "Traceback" not in response.text
    if response.headers["content-type"] == "application/json":
        (message,) = response.json().values()
        return str(message)
    page = Page(response.text)
    check_page(page)
    found = page.html.split('<p class="warning">')[1].split("</p>")[0]
    assert len(found) < 3_000
    return found


async def test_a_number_out_of_its_bounds_is_refused(made: str, visit: Visit) -> None:
    visitor = visit(made)
    for path in NUMBERS:
        if path.startswith("live"):
            continue
        for number in BAD_NUMBERS:
            response = await visitor.get(f"{path}{quote(number)}")
            assert response.status_code == 400, (path, number)
            assert "whole number" in message_of(response) or "UTF-8" in message_of(response)
    before = snapshot(made)
    for number in [*BAD_NUMBERS, "0", "100001", "9999999999"]:
        response = await visitor.post("concurrency", {"batch": "shop", "concurrency": number})
        assert response.status_code == 400, number
        assert "give" in message_of(response)
        response = await visitor.post("abort", {"job": number})
        assert response.status_code == 400
    assert snapshot(made) == before
    for path, hint in {"api/items.json?batch=shop&limit=1001": "at most 1,000", "job?job=9999999999": "not known"}.items():
        assert hint in message_of(await visitor.get(path))
    assert len((await visitor.get("api/items.json?batch=shop&limit=1000")).json()["items"]) == 13


async def test_an_age_out_of_its_bounds_is_refused(made: str, visit: Visit) -> None:
    visitor, before = visit(made), snapshot(made)
    ages = ["-1s", "1", "x", "1000001d", "9" * 400 + "d", "1e300d", "nan", "inf", "1y", "1d-1h", "0x1s", " "]
    for path in (
        "items?batch=shop&older_than=",
        "confirm_purge?batch=shop&older_than=",
        "api/items.json?older_than=",
        "api/stuck.json?older_than=",
    ):
        for age in ages:
            response = await visitor.get(f"{path}{quote(age)}")
            if age == "1":  # seconds
                assert response.status_code == 200
                continue
            assert response.status_code == 400, (path, age)
            assert "older_than" in message_of(response)
    for age in ages[:-1]:
        response = await visitor.post("purge", {"batch": "shop", "older_than": age, "name": "nothing"})
        assert response.status_code == 400
    assert snapshot(made) == before


async def test_a_text_out_of_its_bounds_is_refused(made: str, visit: Visit) -> None:
    visitor = visit(made)
    for path in TEXTS:
        field = path.rpartition("&")[2].rpartition("?")[2].rstrip("=")
        for name, value in {
            "too long": TOO_LONG,
            "NUL": quote(NUL),
            "a surrogate": "%ED%A0%80",
            "not UTF-8": "%ff",
            "Latin-1": "%E9",
        }.items():
            response = await visitor.get(f"{path}{value}")
            assert response.status_code == 400, (path, name, response.status_code)
            message = message_of(response)
            assert field in message or "UTF-8" in message, (path, name, message)
            assert len(message) < 600
        for value in (
            "%ED%A0%80",
            "%ff",
            "\\ud800",
            '["a"]',
            "7",
            "null",
            "{",
            "[" * 5_000,
            '"\\ud800"',
            '"a\\u0000"',
            "9" * 5_000,
        ):
            response = await visitor.get(f"{path.rstrip('=')}.json={quote(value, safe='%')}")
            assert response.status_code == 400, (path, value[:20])
            assert len(message_of(response)) < 600


async def test_a_text_of_a_form_out_of_its_bounds_changes_nothing(made: str, visit: Visit) -> None:
    visitor, before = visit(made), snapshot(made)
    for action, others, field in FORMS:
        for name, value in {"too long": TOO_LONG, "NUL": quote(NUL), "a surrogate": "%ED%A0%80", "not UTF-8": "%ff"}.items():
            response = await visitor.post(action, f"{urlencode(others)}&{field}={value}")
            assert response.status_code == 400, (action, field, name)
            message = message_of(response)
            assert field in message or "UTF-8" in message or "type the name" in message, (action, field, message)
        response = await visitor.post(action, f"{urlencode(others)}&{field}=".encode().decode() + "\u00e9")
        assert response.status_code == 400, "the bytes of a form are ASCII"
    assert snapshot(made) == before


@pytest.mark.parametrize(
    "fields",
    ["batch=shop&" + "a=b&" * 400, "batch=shop&" + "&" * 10_000, "a&" * 5_000 + "batch=shop", "ids=a&" * 401 + "batch=shop"],
)
async def test_a_request_has_at_most_400_fields(made: str, visit: Visit, fields: str) -> None:
    visitor, before = visit(made), snapshot(made)
    for response in (
        await visitor.get(f"batch?{fields}"),
        await visitor.get(f"api/status.json?{fields}"),
        await visitor.get(f"live?{fields}"),
    ):
        assert response.status_code == 400
        assert "at most 400 fields" in message_of(response)
    for action in (*ACTIONS, "confirm"):
        if action in ("diagnose", "backup"):
            continue
        response = await visitor.post(action, fields)
        assert (response.status_code, "at most 400 fields" in message_of(response)) == (400, True)
    assert snapshot(made) == before


async def test_400_fields_are_read_and_the_first_of_equal_ones_counts(made: str, visit: Visit) -> None:
    visitor = visit(made)
    assert (await visitor.get("batch?batch=shop&" + "a=b&" * 398 + "a=b")).status_code == 200
    page = await visitor.page("batch?batch=shop&batch=other&batch=&span=24h&span=x")
    assert "the last 24 hours" in page.text
    assert (await visitor.get("batch?batch=other&batch=shop")).status_code == 404
    assert (await visitor.get("batch?batch=&batch=shop")).status_code == 200, "an empty field is as none"


async def test_what_is_missing_or_unknown_is_named(made: str, visit: Visit) -> None:
    visitor = visit(made)
    for path, status, message in (
        ("batch", 400, "batch is missing"),
        ("items", 400, "batch is missing"),
        ("item?batch=shop", 400, "id is missing"),
        ("item?id=wrong-1", 400, "batch is missing"),
        ("batch?batch=Shop", 404, "did you mean &#39;shop&#39;?"),
        ("item?batch=shop&id=wrong-3", 404, "there is no item &#39;wrong-3&#39; in &#39;shop&#39;"),
        ("batch?batch=shop&span=2h", 400, "give one of &#39;1h&#39;, &#39;24h&#39;, &#39;14d&#39;"),
        ("items?batch=shop&status=done", 400, "give one of &#39;pending&#39;"),
        ("items?batch=shop&error=**", 400, "would match everything"),
        ("items?batch=shop&contains=*", 400, "would match everything"),
        ("items?batch=shop&error=" + "x" * 1_001, 400, "at most 1,000 characters"),
        ("confirm?batch=shop", 400, "no items are chosen"),
        ("confirm?batch=shop&all=1&ids=a", 400, "no items are chosen"),
        ("confirm?batch=shop&verb=cancel&error=x", 400, "nothing to cancel"),
        ("confirm?batch=shop&verb=rerun&all=1", 400, "only if each is chosen"),
        ("confirm?batch=shop&verb=purge&all=1", 400, "give one of &#39;retry&#39;"),
        ("confirm_purge?batch=shop&older_than=1s&status=pending", 400, "cancel those first"),
        ("raw?batch=shop&id=open-1&value=result", 404, "item 'open-1' has no result"),
        ("raw?batch=shop&id=open-1&value=error", 400, "give one of"),
        ("raw?batch=shop&id=nothing", 404, "there is no item"),
        ("live?of=items", 400, "give one of"),
    ):
        response = await visitor.get(path)
        assert response.status_code == status, path
        assert message in message_of(response), (path, message_of(response))


# --- any request ----------------------------------------------------------------------------------------------------

NAMES: Final = [
    "batch", "id", "ids", "error", "all", "verb", "page", "status", "older_than", "contains", "order", "after", "span", "did", "done", "left",
    "job", "of", "worker", "name", "now", "concurrency", "limit", "newest", "value", "token", "batch.json", "ids.json", "kept_did", "kept_id", "kept_order", "",
]  # fmt: skip
VALUES: Final = [
    "shop", "wrong-1", "fine-1", "open-1", "held-1", "1", "0", "-1", "9" * 11, "1s", "0s", "1000000d", "1e300d", "failed", "pending", "*", "a*b", "%",
    "changed", "recovered", "pause", "retry", "cancel", "rerun", "overview", "item", "items", "causes", "workers", "file", "job", "newest", "input",
    "payload", "result", "1h", "24h", "14d", "gone", "\0", "\u202e", "\r\n", '"shop"', "[" * 3_000, "x" * 2_001, "<script>", "{{7*7}}", "%ff", "\u0661",
]  # fmt: skip
FIELDS: Final = st.lists(
    st.tuples(
        st.sampled_from(NAMES) | st.text(max_size=8), st.sampled_from(VALUES) | st.text(max_size=30) | st.binary(max_size=9)
    ),
    max_size=6,
)
FUZZED: Final = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def encoded(fields: list[tuple[str, str | bytes]]) -> str:
    """Return the fields as a client may send them: any bytes, percent-encoded."""
    parts = [
        (name.encode("utf-8", "surrogatepass"), value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))
        for name, value in fields
    ]
    return "&".join(f"{quote_from_bytes(name)}={quote_from_bytes(value)}" for name, value in parts)


def check_answer(status: int, headers: list[tuple[bytes, bytes]], body: bytes, path: str) -> None:
    assert status < 500 or (status == 503 and path == "/readyz"), (status, body[-500:])
    assert b"Traceback" not in body
    given = {name.decode(): value.decode() for name, value in headers}
    assert not unsafe_characters("".join(given.values()))
    kind = given.get("content-type", "")
    if kind.startswith("text/html"):
        text = body.decode()
        if "<html" in text:
            check_page(Page(text))
    elif kind == "application/json":
        json.loads(body)


@FUZZED
@given(data=st.data(), fields=FIELDS)
@example(data=None, fields=[("batch", "shop"), ("batch", "shop")])
async def test_no_query_makes_a_page_fail(
    made: str, open_dashboard: Open, data: Any, fields: list[tuple[str, str | bytes]]
) -> None:
    app = open_dashboard(made)
    for path in routes_of(app) if data is None else [data.draw(st.sampled_from(sorted(routes_of(app))))]:
        answer = await call(app, scope_of(path, encoded(fields)))
        check_answer(answer.status, answer.headers, answer.body, path)
    await app.close()


@FUZZED
@given(data=st.data(), fields=FIELDS)
@example(data=None, fields=[("batch", "shop"), ("ids", "wrong-1")])
async def test_no_form_makes_an_action_fail(
    made: str, open_dashboard: Open, data: Any, fields: list[tuple[str, str | bytes]]
) -> None:
    app = open_dashboard(made)
    paths = [f"/{name}" for name in (*ACTIONS, "confirm")]
    for path in paths if data is None else [data.draw(st.sampled_from(paths))]:
        answer = await call(app, scope_of(path, method="POST", headers=OWN), encoded(fields).encode())
        check_answer(answer.status, answer.headers, answer.body, path)
    await app.close()


async def test_control_characters_that_a_server_leaves_in_a_query_are_not_in_the_page(made: str, open_dashboard: Open) -> None:
    app = open_dashboard(made)
    for query in ('batch=shop&x=\x1b[1m"><b>', "batch=shop&x=\x07\x01", "batch=shop&x=a b\tc"):
        answer = await call(app, scope_of("/batch", query))
        assert answer.status == 200
        page = Page(answer.body.decode())
        check_page(page)
        (live,) = (each.attributes["data-live"] for each in page.elements if "data-live" in each.attributes)
        assert (await call(app, scope_of("/live", live.partition("?")[2]))).status == 200


@settings(FUZZED, max_examples=60)
@given(query=st.binary(max_size=60), body=st.binary(max_size=60))
async def test_no_bytes_make_a_request_fail(made: str, open_dashboard: Open, query: bytes, body: bytes) -> None:
    app = open_dashboard(made)
    for path in ("/batch", "/items", "/live", "/api/items.json"):
        answer = await call(app, {**scope_of(path), "query_string": query})
        check_answer(answer.status, answer.headers, answer.body, path)
    for path in ("/retry", "/confirm", "/abort"):
        answer = await call(app, scope_of(path, method="POST", headers=OWN), body)
        check_answer(answer.status, answer.headers, answer.body, path)
    await app.close()
