"""The actions: each has its effect, says what it did on the page and in the log, and a large one is a job."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from asyncrunner import Control
from asyncrunner.backends import open_engine
from asyncrunner.dashboard.rendering import link
from asyncrunner.store.workers import WorkerInfo
from tests.conftest import Until
from tests.support.files import lose_workers
from tests.support.state import counts, execute, rows_of, snapshot
from tests.unit.dashboard.browser import OWN, Page, Visitor, scope_of
from tests.unit.dashboard.conftest import Open, Visit

BROWSER = "by a browser with the token"


@pytest.fixture
def visitor(made: str, visit: Visit) -> Visitor:
    return visit(made)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the lines that the dashboard has logged since the last call."""
    caplog.set_level(logging.INFO, "asyncrunner.dashboard")

    def take() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name == "asyncrunner.dashboard"]
        caplog.clear()
        return found

    return take


Lines = Callable[[], list[str]]


async def batch_of(db: str, name: str = "shop") -> Any:
    async with Control(db) as control:
        return (await control.status(name)).batches[0]


async def statuses(db: str, *ids: str) -> list[str]:
    async with Control(db) as control:
        return [(await control.show(key, "shop")).status for key in ids]


async def fingerprint_of(db: str, text: str) -> str:
    async with Control(db) as control:
        (found,) = (cause.fingerprint for cause in await control.failures() if text in cause.error)
    return str(found)


async def location(visitor: Visitor, action: str, fields: Any) -> str:
    response = await visitor.post(action, fields)
    assert response.status_code == 303, response.text
    return str(response.headers["location"])


def buttons(page: Page) -> set[str]:
    """Return the names of the buttons that pause and resume a batch."""
    forms = {"./pause", "./resume"} & {form.action for form in page.forms}
    names = {each.attributes["aria-label"] for each in page.elements if each.tag == "button" and "aria-label" in each.attributes}
    assert len(forms) == len(names) == 1
    return names


def stops(db: str) -> dict[str, int]:
    """Return what was requested of each worker that a test made."""
    return {
        name: stop for name, stop in rows_of(db, "SELECT worker_id, stop FROM workers") if name in ("runs", "serves", "other")
    }


# --- batches --------------------------------------------------------------------------------------------------------


async def test_a_batch_is_paused_and_resumed(made: str, visitor: Visitor, lines: Lines) -> None:
    assert buttons(await visitor.page("batch?batch=shop")) == {"Pause shop"}
    assert await location(visitor, "pause", {"batch": "shop"}) == "./batch?batch=shop&did=pause"
    assert (await batch_of(made)).paused
    page = await visitor.page("./batch?batch=shop&did=pause")
    assert page.notice == "The batch is paused: running handlers finish, and no more items start."
    assert buttons(page) == {"Resume shop"}
    assert lines() == [f"pause shop, {BROWSER}: done"]
    assert await location(visitor, "resume", {"batch": "shop", "page": "overview"}) == "./?batch=shop&did=resume"
    page = await visitor.page("./?batch=shop&did=resume")
    assert (page.notice, buttons(page)) == ("The batch is resumed.", {"Pause shop"})
    assert not (await batch_of(made)).paused
    assert lines() == [f"resume shop, {BROWSER}: done"]


async def test_the_page_after_an_action_shows_the_state_after_it(visitor: Visitor) -> None:
    """Not an answer that was read before it."""
    for _ in range(3):
        await visitor.page("")
        assert buttons(await visitor.act("pause", {"batch": "shop", "page": "overview"})) == {"Resume shop"}
        assert buttons(await visitor.act("resume", {"batch": "shop", "page": "overview"})) == {"Pause shop"}


async def test_the_concurrency_is_set_and_reset(made: str, visitor: Visitor, lines: Lines) -> None:
    page = await visitor.act("concurrency", {"batch": "shop", "concurrency": "7"})
    assert page.notice == "The concurrency is set; workers apply it within a second."
    assert "Concurrency is set to 7 in each worker." in page.text
    assert dict(page.form("./concurrency").fields)["concurrency"] == "7"
    assert (await batch_of(made)).concurrency == 7
    await visitor.act("concurrency", {"batch": "shop", "concurrency": ""})
    assert (await batch_of(made)).concurrency is None
    assert lines() == [f"set the concurrency of shop, {BROWSER}: 7", f"set the concurrency of shop, {BROWSER}: the program's"]


@pytest.mark.parametrize("page", ["overview", "batch", "items", "item", "causes", "workers", "file"])
async def test_an_action_leads_back_to_the_page_that_had_its_button(visitor: Visitor, page: str) -> None:
    back = await location(visitor, "retry", {"batch": "shop", "ids": "wrong-1", "page": page})
    assert back == link(
        "" if page == "overview" else page, batch="shop", id="wrong-1" if page == "item" else None, did="changed", done=1
    )
    assert (await visitor.page(back)).notice == "1 item changed."


# --- items ----------------------------------------------------------------------------------------------------------


async def test_items_are_retried_by_their_ids(made: str, visitor: Visitor, lines: Lines) -> None:
    page = await visitor.act("retry", {"batch": "shop", "ids": "wrong-1"})
    assert page.notice == "1 item changed."
    assert await statuses(made, "wrong-1", "wrong-2") == ["pending", "failed"]
    page = await visitor.act(
        "retry",
        [("batch", "shop"), ("ids", "wrong-2"), ("ids", "refused-1"), ("ids", "off-1"), ("ids", "open-1"), ("ids", "wrong-2")],
    )
    assert page.notice == "3 items changed, 1 were not to be changed."
    assert await statuses(made, "wrong-2", "refused-1", "off-1", "open-1", "refused-2") == ["pending"] * 4 + ["failed"]
    assert lines() == [
        f"retry item wrong-1 of shop, {BROWSER}: done, 1 item changed.",
        f"retry 5 items of shop, {BROWSER}: done, 3 items changed, 1 were not to be changed.",
    ]


async def test_the_failed_items_with_a_cause_are_retried(made: str, visitor: Visitor, lines: Lines) -> None:
    cause = await fingerprint_of(made, "cannot reach")
    for place in ("causes", "", "batch?batch=shop"):
        page = await visitor.page(place)
        (question,) = (each for each in page.links() if each.startswith("./confirm?") and cause in each)
    asked = await visitor.page(question)
    assert "Retry 3 items?" in asked.text
    assert counts(made)["failed"] == 5, "a question changes nothing"
    page = Page((await visitor.get((await visitor.send(asked.form("./retry"))).headers["location"])).text)
    assert page.notice == "3 items changed."
    assert (counts(made)["failed"], counts(made)["pending"]) == (2, 5)
    assert lines() == [f"retry the failed items with the cause {cause} of shop, {BROWSER}: done, 3 items changed."]
    response = await visitor.post("retry", {"batch": "shop", "error": cause})
    assert (response.status_code, "has" in response.text) == (404, True), "no item has this cause any more"
    page = await visitor.act("retry", {"batch": "shop", "error": "negative*order"})
    assert page.notice == "2 items changed."


async def test_all_failed_items_are_retried_and_all_pending_ones_cancelled(made: str, visitor: Visitor, lines: Lines) -> None:
    page = await visitor.page("batch?batch=shop")
    retry, cancel = (each for each in page.links() if each.startswith("./confirm?") and "all=1" in each)
    asked = await visitor.page(retry)
    assert "Retry 5 items?" in asked.text
    assert "Cancel 2 items?" in (await visitor.page(cancel)).text
    done = await visitor.send(asked.form("./retry"))
    assert done.headers["location"] == "./batch?batch=shop&did=changed&done=5"
    assert (counts(made)["failed"], counts(made)["pending"]) == (0, 7)
    asked = await visitor.page(cancel)
    assert "Cancel 7 items?" in asked.text
    page = await visitor.page((await visitor.send(asked.form("./cancel"))).headers["location"])
    assert page.notice == "7 items changed."
    assert (counts(made)["pending"], counts(made)["cancelled"], counts(made)["processing"]) == (0, 8, 1)
    assert lines() == [
        f"retry all failed items of shop, {BROWSER}: done, 5 items changed.", f"cancel all pending items of shop, {BROWSER}: done, 7 items changed.",
    ]  # fmt: skip
    asked = await visitor.page(retry)
    assert "Retry 0 items?" in asked.text
    assert [each for each in asked.elements if each.tag == "button" and "disabled" in each.attributes]


async def test_completed_items_run_again_and_unfinished_ones_are_cancelled_by_id(
    made: str, visitor: Visitor, lines: Lines
) -> None:
    page = await visitor.act("rerun", {"batch": "shop", "ids": "fine-1", "page": "item"})
    assert page.notice == "1 item changed."
    assert "fine-1" in page.text
    page = await visitor.act(
        "cancel", [("batch", "shop"), ("ids", "fine-1"), ("ids", "open-1"), ("ids", "held-1"), ("ids", "fine-2")]
    )
    assert page.notice == "3 items changed, 1 were not to be changed."
    assert await statuses(made, "fine-1", "open-1", "held-1", "fine-2") == ["cancelled"] * 3 + ["completed"]
    assert [line.partition(", by")[0] for line in lines()] == ["rerun item fine-1 of shop", "cancel 4 items of shop"]


async def test_the_buttons_of_an_item_are_those_that_fit_its_state(visitor: Visitor) -> None:
    for item, actions in {
        "wrong-1": ["./retry"], "off-1": ["./retry"], "fine-1": ["./rerun"], "open-1": ["./cancel"], "held-1": ["./cancel"],
    }.items():  # fmt: skip
        page = await visitor.page(f"item?batch=shop&id={item}")
        assert [form.action for form in page.forms] == actions


@pytest.mark.parametrize(
    ("action", "fields", "status", "message"),
    [
        ("pause", {"batch": "nothing"}, 404, "nothing"),
        ("resume", {"batch": "Shop"}, 404, "did you mean &#39;shop&#39;?"),
        ("concurrency", {"batch": "nothing", "concurrency": "1"}, 404, "nothing"),
        ("stop", {"batch": "nothing"}, 404, "nothing"),
        ("retry", {"batch": "nothing", "all": "1"}, 404, "nothing"),
        ("retry", {"batch": "shop", "ids": "wrong-9"}, 404, "there is no item &#39;wrong-9&#39; in &#39;shop&#39;"),
        ("retry", {"batch": "shop", "ids": "fine-1"}, 400, "1 is completed; only failed and cancelled items can"),
        ("retry", {"batch": "shop", "ids": "held-1"}, 400, "1 is processing"),
        ("retry", {"batch": "shop", "error": "no such error"}, 404, "asyncrunner failures"),
        ("retry", {"batch": "shop"}, 400, "no items are chosen"),
        ("retry", {"ids": "wrong-1"}, 400, "batch is missing"),
        ("rerun", {"batch": "shop", "all": "1"}, 400, "only if each is chosen"),
        ("cancel", {"batch": "shop", "ids": "nothing"}, 404, "there is no item"),
        ("cancel", {"batch": "shop", "error": "x"}, 400, "nothing to cancel"),
        ("purge", {"batch": "nothing", "older_than": "0s", "name": "nothing"}, 404, "nothing"),
        ("purge", {"batch": "shop", "older_than": "0s", "name": "Shop"}, 400, "type the name &#39;shop&#39; to confirm; nothing was changed"),
        ("purge", {"batch": "shop", "older_than": "0s"}, 400, "type the name"),
        ("purge", {"batch": "shop", "name": "shop"}, 400, "older_than is missing"),
        ("purge", {"batch": "shop", "older_than": "0s", "name": "shop", "status": "pending"}, 400, "cancel those first"),
        ("recover", {"worker": "unknown", "name": "unknown"}, 400, "there is no worker &#39;unknown&#39;"),
        ("recover", {"worker": "gone"}, 400, "type the name &#39;gone&#39; to confirm; nothing was changed"),
        ("abort", {"job": "7"}, 400, "not known"),
        ("pause", {"batch": "shop", "page": "elsewhere"}, 400, "give one of"),
    ],
)  # fmt: skip
async def test_an_action_that_cannot_be_done_says_why_and_changes_nothing(
    made: str, visitor: Visitor, action: str, fields: dict[str, str], status: int, message: str
) -> None:
    before = snapshot(made)
    response = await visitor.post(action, fields)
    assert response.status_code == status
    Page(response.text)
    assert message in response.text, response.text.split("<main")[1]
    assert snapshot(made) == before


async def test_an_action_leads_back_to_the_filtered_list_and_takes_nothing_else_along(made: str, visitor: Visitor) -> None:
    listed = await visitor.page("items?batch=shop&status=failed&error=negative*&order=input")
    asked = Page((await visitor.send(listed.form("./confirm"), ticks=listed.boxes, button="retry")).text)
    done = await visitor.send(asked.form("./retry"))
    assert done.headers["location"] == "./items?batch=shop&status=failed&error=negative%2A&order=input&did=changed&done=2"
    odd = {"kept_did": "x", "kept_done": "7", "kept_batch": "other", "kept_a\x1b": "y", "kept_": "z", "kept_order": "input"}
    asked = await visitor.page(f"confirm?{urlencode({'batch': 'shop', 'ids': 'refused-1', 'page': 'items', **odd})}")
    assert [name for name, _ in asked.form("./retry").fields] == ["batch", "ids", "page", "kept_order"]
    back = await location(visitor, "retry", {"batch": "shop", "ids": "refused-1", "page": "items", **odd})
    assert back == "./items?batch=shop&order=input&did=changed&done=1"


# --- what deletes or stops -------------------------------------------------------------------------------------------


async def test_items_are_purged_after_a_dry_run_and_with_the_name_typed(made: str, visitor: Visitor, lines: Lines) -> None:
    before = snapshot(made)
    page = await visitor.page("batch?batch=shop")
    asked = await visitor.page(
        f"confirm_purge?{page.form('./confirm_purge').encoded(typed={'older_than': '0s'})}&status=failed&status=cancelled"
    )
    assert "Delete 10 items?" in asked.text
    assert "10 items (4 completed, 5 failed, 1 cancelled) ended more than 0s ago" in asked.text
    assert snapshot(made) == before
    assert (await visitor.send(asked.form("./purge"), typed={"name": "Shop"})).status_code == 400
    assert snapshot(made) == before
    asked = await visitor.page("confirm_purge?batch=shop&older_than=0s&status=failed")
    response = await visitor.send(asked.form("./purge"), typed={"name": "shop"})
    page = await visitor.page(response.headers["location"])
    assert "Done" in page.text
    assert "5 items (5 failed) deleted." in page.text
    assert (counts(made)["failed"], counts(made)["completed"]) == (0, 4)
    assert lines() == [f"purge items of shop that ended more than 0s ago, {BROWSER}: done, 5 items (5 failed) deleted."]
    assert "Delete 0 items?" in (await visitor.page("confirm_purge?batch=shop&older_than=30d")).text
    assert [form.action for form in (await visitor.page("confirm_purge?batch=shop&older_than=30d")).forms] == []


async def test_only_completed_items_are_purged_if_no_state_is_given(made: str, visitor: Visitor) -> None:
    assert "Delete 4 items?" in (await visitor.page("confirm_purge?batch=shop&older_than=0s")).text
    await visitor.act("purge", {"batch": "shop", "older_than": "0s", "name": "shop"})
    assert (counts(made)["completed"], counts(made)["failed"]) == (0, 5)


async def test_the_workers_of_a_batch_are_asked_to_stop(made: str, visitor: Visitor, lines: Lines) -> None:
    stores = []
    for name, role, batches in (("runs", "run", ["shop"]), ("serves", "service", ["shop"]), ("other", "run", ["other"])):
        stores.append(open_engine(made))
        await stores[-1].open()
        await stores[-1].join(WorkerInfo(name, "h", os.getpid(), role, batches))
    try:
        page = await visitor.page("workers")
        assert page.text.count("alive") >= 3
        page = await visitor.act("stop", {"batch": "shop"})
        assert page.notice == "The workers are asked to stop: running handlers finish."
        assert stops(made) == {"runs": 1, "serves": 0, "other": 0}
        page = await visitor.act("stop", {"now": "1", "page": "workers"})
        assert page.notice == "The workers are asked to stop now: running handlers are cancelled."
        assert stops(made) == {"runs": 2, "serves": 0, "other": 2}
        assert lines() == [f"stop the workers of shop, {BROWSER}: 1 asked", f"stop the workers now, {BROWSER}: 2 asked"]
    finally:
        for store in stores:
            await store.close()


async def test_a_stop_does_not_wait_for_the_end_of_the_workers(
    made: str, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[object] = []
    stop = Control.stop

    async def recorded(self: Control, *args: Any, wait: float = 60.0, **options: Any) -> Any:
        waits.append(wait)
        return await stop(self, *args, wait=wait, **options)

    monkeypatch.setattr(Control, "stop", recorded)
    await visitor.act("stop", {"batch": "shop"})
    assert waits == [0]


async def test_dead_workers_are_recovered_and_a_worker_by_its_id(made: str, visitor: Visitor, lines: Lines) -> None:
    await lose_workers(made, "dead", "lost")
    execute(
        made,
        "UPDATE items SET status = 'processing', worker_id = 'dead', started_at = '2026-01-02 03:04:05.678' WHERE id = 'open-1'",
    )
    execute(
        made,
        "UPDATE items SET status = 'processing', worker_id = 'lost', started_at = '2026-01-02 03:04:05.678' WHERE id = 'open-2'",
    )
    page = await visitor.page("workers")
    assert page.text.count("dead") >= 2
    assert "open-1" in page.text
    page = await visitor.act("recover", {"worker": "lost", "name": "lost", "page": "workers"})
    assert page.notice == "1 item recovered."
    assert await statuses(made, "open-1", "open-2", "held-1") == ["processing", "pending", "processing"]
    page = await visitor.act("recover", {"page": "workers"})
    assert page.notice == "2 items recovered."
    assert counts(made)["processing"] == 0
    assert lines() == [f"recover worker lost, {BROWSER}: 1 item", f"recover dead workers, {BROWSER}: 2 items"]


# --- the store -------------------------------------------------------------------------------------------------------


async def test_the_store_is_checked(visitor: Visitor, lines: Lines, until: Until) -> None:
    place = await location(visitor, "diagnose", "")
    logged: list[str] = []

    def is_logged() -> bool:
        logged.extend(lines())
        return bool(logged)

    await until(is_logged)
    page = await visitor.page(place)
    assert "Check the store" in page.text
    assert "Nothing is wrong." in page.text or "Something is wrong" in page.text
    assert re.search(r"(good|ok|note|wrong): [a-z ]+: ", page.text, re.IGNORECASE), page.text
    assert logged[0].startswith(f"check the store, {BROWSER}: done")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of this test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.sqlite_file
async def test_a_backup_is_the_file_and_leaves_nothing_behind(
    made: str, visitor: Visitor, lines: Lines, temporary: Path, tmp_path: Path
) -> None:
    response = await visitor.post("backup")
    assert response.status_code == 200
    assert response.headers["content-disposition"] == 'attachment; filename="jobs-backup.db"'
    assert response.headers["cache-control"] == "no-store"
    copy = tmp_path / "copy.db"
    copy.write_bytes(response.content)
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM items").fetchone() == (13,)
    assert lines() == [f"download a backup, {BROWSER}: {len(response.content):,} bytes"]
    assert list(temporary.iterdir()) == []


@pytest.mark.sqlite_file
@pytest.mark.parametrize("way", ["a range that is none", "a range", "a client that leaves", "a disk error"])
async def test_a_backup_that_is_not_fetched_leaves_nothing_behind(
    made: str, open_dashboard: Open, temporary: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    incoming = iter([{"type": "http.request", "body": b""}])

    async def receive() -> Any:
        message = next(incoming, None)
        return message or await asyncio.get_running_loop().create_future()  # the client stays

    async def send(message: Any) -> None:
        if way == "a client that leaves" and message["type"] == "http.response.body":
            raise OSError("the client has gone")

    headers = OWN | {"range": {"a range that is none": "bytes=x", "a range": "bytes=0-99"}.get(way, "")}
    if way == "a disk error":

        async def full(*_: object) -> None:
            raise OSError("the disk is full")

        monkeypatch.setattr(Control, "backup", full)
    request = open_dashboard(made)(scope_of("/backup", method="POST", headers=headers), receive, send)
    if way in ("a client that leaves", "a disk error"):
        with pytest.raises(OSError, match=r"gone|full"):
            await request
    else:
        await request
    assert list(temporary.iterdir()) == []


async def test_a_server_is_backed_up_by_its_own_program(made: str, visitor: Visitor, temporary: Path) -> None:
    page = await visitor.page("file")
    if not made.startswith("postgresql://"):
        assert [form.action for form in page.forms if form.action == "./backup"] == ["./backup"]
        return
    assert "pg_dump" in page.text
    assert "./backup" not in [form.action for form in page.forms]
    response = await visitor.post("backup")
    assert (response.status_code, "pg_dump" in response.text) == (400, True)
    assert list(temporary.iterdir()) == []
