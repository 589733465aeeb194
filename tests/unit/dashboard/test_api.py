"""Answers for programs: the documents that the command line prints, the probes, the metrics and the options of a dashboard."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import Control, run_batch
from asyncrunner.backends import shown_location
from asyncrunner.dashboard import Access, Dashboard, dashboard
from asyncrunner.dashboard.app import TOKEN_VARIABLE
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import json_text
from tests.support.files import lose_workers
from tests.support.state import execute
from tests.unit.dashboard.browser import TOKEN, Visitor, call, scope_of
from tests.unit.dashboard.conftest import Open, Visit
from tests.unit.dashboard.hostile import NASTY, make_hostile


async def returned(item: Any) -> Any:
    return item


def steady(document: Any) -> Any:
    """Return a document without what passes with the time."""
    if isinstance(document, dict):
        passing = ("at", "seconds", "rate", "eta", "oldest", "heartbeat_age", "average", "p95")
        return {name: steady(value) for name, value in document.items() if name not in passing}
    return [steady(each) for each in document] if isinstance(document, list) else document


async def documents_of(control: Control) -> dict[str, Any]:
    """Return what the API should answer, by path."""
    return {
        "status.json": await control.status(),
        "status.json?batch=shop": await control.status("shop"),
        "failures.json": (await control.failures()).to_dict(),
        "failures.json?batch=shop": (await control.failures("shop")).to_dict(),
        "workers.json": {"workers": await control.workers()},
        "stuck.json": {"stuck": await control.stuck(older_than="5m")},
        "stuck.json?batch=shop&older_than=0s": {"stuck": await control.stuck("shop", older_than=0)},
        "items.json": await control.items(limit=50),
        "items.json?batch=shop&limit=2&newest=1": await control.items("shop", limit=2, newest=True),
        "items.json?limit=2&after=refused-1": await control.items(limit=2, after="refused-1"),
        "items.json?status=failed&limit=3": await control.items(status="failed", limit=3),
        "items.json?error=negative*": await control.items(error="negative*", limit=50),
        "items.json?older_than=1d": await control.items(older_than="1d", limit=50),
        "items.json?contains=wrong&newest=1": await control.items(contains="wrong", newest=True, limit=50),
        "item.json?id=wrong-1": await control.show("wrong-1"),
        "item.json?id=fine-1&batch=shop": await control.show("fine-1", "shop"),
        "history.json?batch=shop": await control.history("shop", minutes=60),
        "history.json?batch=shop&span=14d": await control.history("shop", minutes=14 * 24 * 60, step="1h"),
    }


async def test_the_documents_are_those_of_control(made: str, visit: Visit) -> None:
    await lose_workers(made, "lost")
    visitor = visit(made)
    async with Control(made) as control:
        before = await documents_of(control)
        responses = {path: await visitor.get(f"api/{path}") for path in before}
        after = await documents_of(control)  # a minute may end meanwhile
        problems = await control.check()
    for path, response in responses.items():
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json"), path
        expected = [steady(json.loads(json_text(documents[path]))) for documents in (before, after)]
        assert steady(response.json()) in expected, path
        assert response.text.isascii()
    found = (await visitor.get("api/check.json")).json()
    assert (found["ok"], [each["check"] for each in found["problems"]]) == (False, [each.check for each in problems])


async def test_the_documents_of_hostile_texts_are_exact_and_ascii(db: str, visit: Visit) -> None:
    await make_hostile(db, NASTY)
    visitor = visit(db)
    for path in ("status", "check", "failures", "workers", "stuck", "items"):
        response = await visitor.get(f"api/{path}.json")
        assert response.text.isascii()
        assert "\n" not in response.text
    assert (await visitor.get("api/status.json")).json()["batches"][0]["name"] == NASTY
    for path in ("metrics", "readyz"):
        response = await visitor.get(path)
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert not re.search("[\u202e\x1b\r]", response.text)


async def test_a_program_gets_its_errors_as_documents(made: str, visit: Visit) -> None:
    visitor = visit(made)
    for path, status in {
        "api/status.json?batch=x": 404, "api/item.json?id=x": 404, "api/item.json": 400, "api/items.json?limit=x": 400, "api/history.json": 400,
        "raw?batch=shop": 400, "metrics?batch=x": 404, "readyz?batch=x": 404,
    }.items():  # fmt: skip
        response = await visitor.get(path)
        assert (response.status_code, list(response.json())) == (status, ["error"]), path


async def test_the_probes(db: str, visit: Visit) -> None:
    await run_batch(["a"], returned, db=db, batch="b")
    visitor = visit(db)
    for path in ("healthz", "readyz"):
        response = await visitor.get(path)
        assert (response.status_code, response.text) == (200, "ok\n")
    execute(db, "UPDATE items SET status = 'pending', result = NULL, completed_at = NULL")
    response = await visitor.get("readyz?batch=b")
    assert response.status_code == 503
    assert response.text.startswith("b: ")
    assert "no live worker" in response.text or "worker" in response.text
    assert (await visitor.get("healthz")).status_code == 200, "the store can be read"


async def test_the_metrics_are_those_of_the_command(made: str, visit: Visit) -> None:
    visitor = visit(made)
    text = (await visitor.get("metrics")).text
    assert re.search(r'asyncrunner_items\{[^}]*batch="shop"[^}]*status="failed"[^}]*\} 5', text), text
    assert (await visitor.get("metrics?batch=shop")).text.count("\n") >= 5


async def test_a_value_of_an_item_is_downloaded_as_it_is_stored(made: str, visit: Visit) -> None:
    execute(made, "UPDATE items SET checkpoint = ? WHERE id = 'open-1'", '{"b":1, "a" :2.0}')
    visitor = visit(made)
    for value, text in {"payload": '"open-1"', "checkpoint": '{"b":1, "a" :2.0}'}.items():
        response = await visitor.get(f"raw?batch=shop&id=open-1&value={value}")
        assert response.text == text
        assert response.headers["content-disposition"] == f'attachment; filename="{value}.json"'
        assert response.headers["content-type"] == "application/json"
    assert (await visitor.get("raw?batch=shop&id=open-1")).text == '"open-1"'


# --- the options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": "short"}, "a token has at least 16 letters"),
        ({"token": "a token with spaces; Path=/"}, "a token has at least 16 letters"),
        ({"token": "a-token-with-\u00e9-in-it"}, "a token has at least 16 letters"),
        ({"token": " "}, "token is empty"),
        ({"token": TOKEN, "allow": lambda _: Access.ACT}, "give either allow or token"),
        ({"label": ""}, "label is empty"),
        ({"label": "a\0b"}, "label"),
        ({"user_header": " "}, "user_header is empty"),
        ({"hosts": "jobs.example"}, "hosts"),
        ({"read_only": 1}, "read_only=1: give True or False"),
    ],
)
def test_an_invalid_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        dashboard("jobs.db", **options)


def test_a_store_in_memory_cannot_be_shown() -> None:
    with pytest.raises(ConfigurationError, match="only the program that made it can read it"):
        dashboard(":memory:")
    with pytest.raises(ConfigurationError, match="db is empty"):
        dashboard("")


def test_a_token_is_that_of_the_environment_or_random(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "asyncrunner.dashboard")
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    tokens = {dashboard(tmp_path / "jobs.db").token for _ in range(5)}
    assert len(tokens) == 5
    assert all(token is not None and len(token) >= 32 for token in tokens)
    assert caplog.messages[-1].startswith(f"the dashboard of {tmp_path / 'jobs.db'} has neither token nor allow")
    assert {message.partition("?token=")[2].split(" ")[0] for message in caplog.messages} == tokens
    caplog.clear()
    monkeypatch.setenv(TOKEN_VARIABLE, "the-token-of-the-environment")
    assert dashboard("jobs.db").token == "the-token-of-the-environment"
    assert dashboard("jobs.db", token=TOKEN).token == TOKEN
    assert dashboard("jobs.db", allow=lambda _: Access.NONE).token is None
    assert caplog.messages == [], "only a random token is logged"
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    with pytest.raises(ConfigurationError):
        dashboard("jobs.db")


@pytest.mark.parametrize("options", [{}, {"read_only": True}, {"label": "production"}])
async def test_every_page_says_which_store_it_shows(made: str, visit: Visit, options: dict[str, Any]) -> None:
    visitor = visit(made, **options)
    for path in ("", "batch?batch=shop", "items?batch=shop", "item?batch=shop&id=wrong-1", "causes", "workers", "file"):
        page = await visitor.page(path)
        head = page.html.split('<p class="store">')[1].split("</p>")[0]
        assert Path(made).name in head or shown_location(made)[:20] in head
        assert ("production" in head, "read-only" in head) == ("label" in options, "read_only" in options)
        title = page.html.split("<title>")[1].split("</title>")[0]
        assert ("- production" in title) is ("label" in options)


async def test_the_store_is_the_file_of_the_time_of_the_call(
    made: str, open_dashboard: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if made.startswith("postgresql://"):
        return
    monkeypatch.chdir(tmp_path)
    app = open_dashboard("jobs.db")
    monkeypatch.chdir("/")
    assert (await call(app, scope_of("/healthz"))).body == b"ok\n"


async def test_a_user_of_the_program_may_act_as_allow_says(made: str, open_dashboard: Open) -> None:
    roles = {"ann": Access.ACT, "bob": Access.READ}

    def allow(scope: Any) -> Access:
        return roles.get(dict(scope["headers"]).get(b"x-user", b"").decode(), Access.NONE)

    app = open_dashboard(made, allow=allow)
    assert isinstance(app, Dashboard)
    for user, (read, act) in {"ann": (200, 303), "bob": (200, 403), "eve": (401, 401)}.items():
        visitor = Visitor(app, cookies={}, headers={"x-user": user})
        assert (await visitor.get("")).status_code == read
        assert (await visitor.post("pause", {"batch": "shop"})).status_code == act
        await visitor.client.aclose()
