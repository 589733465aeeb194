"""The pages show every text as a text, whatever it contains, and every link and form leads to what it names."""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest

from asyncrunner import Control, run_batch
from asyncrunner.dashboard.rendering import link
from asyncrunner.text.escaping import safe_text
from tests.conftest import NewDb
from tests.unit.dashboard.browser import Page, streaming, unsafe_characters
from tests.unit.dashboard.conftest import Visit
from tests.unit.dashboard.hostile import CORPUS, ITEMS, MARK, NASTY, PLAIN, key_of, make_hostile

ADDRESSES = re.compile(r"\./[a-z_]*(\?[^<>\"'\s\\]*)?|#main|\./static/[A-Za-z.]+\.[0-9a-f]{12}\.(css|js|svg)")


async def returned(item: str) -> str:
    return item


def pages_of(text: str) -> list[str]:
    """Return the addresses of all kinds of pages of a hostile store, with the text in each of their fields."""
    batch = {"batch": text}
    items = [link("item", **batch, id=key_of(text, item)) for item in ITEMS]
    ids = urlencode([("batch", text), *(("ids", key_of(text, item)) for item in ITEMS[1:3])])
    return [
        "", link("batch", **batch), link("batch", **batch, span="24h"), link("items", **batch), link("items", **batch, order="input"),
        link("items", **batch, error=text), link("items", **batch, contains=text), link("items", **batch, id=text),
        link("items", **batch, status="failed", error=f"{text} failed"), link("items", **batch, older_than="0s"), *items,
        "causes", link("causes", **batch), "workers", "file", f"confirm?{ids}", f"confirm?{ids}&verb=cancel&page=items",
        link("confirm", **batch, error=text), link("confirm", **batch, all=True), link("confirm", **batch, all=True, verb="cancel"),
        link("confirm_purge", **batch, older_than="0s"), link("batch", **batch, did="pause"), link("batch", **batch, did=text),
        link("batch", **batch, did="changed", done=2, left=1), link("items", **batch, error="nothing has this"),
    ]  # fmt: skip


def check_page(page: Page) -> None:
    """Check that a page has no characters that hide, only its own addresses, and nothing that runs."""
    assert unsafe_characters(page.html) == set()
    assert page.declarations == ["doctype html"]
    for tag, attributes, within in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc", "formaction")]
        for name in ("href", "src", "action", "data-live"):
            if name in attributes:
                assert ADDRESSES.fullmatch(attributes[name]), (tag, attributes)
        if tag == "script":
            assert set(attributes) == {"src", "defer"}
            assert within == ("html", "head")
        assert tag not in ("iframe", "object", "embed", "base", "img", "style", "b"), (tag, attributes)
        assert tag != "meta" or "http-equiv" not in attributes or within == ("html", "head", "noscript")


def structure(page: Page) -> list[tuple[str, tuple[str, ...]]]:
    """Return the elements of a page without the button that copies an id, which exists only for an id without control characters."""
    return [each for each in page.structure() if "data-copy" not in each[1]]


async def test_no_text_becomes_an_element_or_an_attribute(db: str, new_db: NewDb, visit: Visit) -> None:
    """Each page with a hostile text has the elements of the same page with a harmless one."""
    await make_hostile(db, PLAIN)
    visitor = visit(db, label=PLAIN)
    plain = [structure(await visitor.page(path)) for path in pages_of(PLAIN)]
    for number, (name, text) in enumerate(CORPUS.items()):
        other = new_db(f"{number}.db")
        await make_hostile(other, text)
        visitor = visit(other, label=text)
        for path, expected in zip(pages_of(text), plain, strict=True):
            page = await visitor.page(path)
            # An error is stored on one line, so a text with line breaks is in fewer errors.
            same = set(structure(page)) <= set(expected) if "error=" in path else structure(page) == expected
            assert same, (name, path)
            check_page(page)


async def test_the_pages_show_the_texts_themselves(db: str, visit: Visit) -> None:
    await make_hostile(db, NASTY)
    visitor, shown = visit(db, label=NASTY), " ".join(safe_text(NASTY).split())
    assert MARK in shown
    for path in ("", link("batch", batch=NASTY), "causes", "workers", "file", link("items", batch=NASTY)):
        assert shown in (await visitor.page(path)).text, path
    text = (await visitor.page(link("item", batch=NASTY, id=key_of(NASTY, "failed")))).text
    assert text.count(shown) >= 4, "the label, the batch, the id, the error"
    for name in ("Payload", "Checkpoint"):
        assert name in text
    assert '"\\r\\n ' in (await visitor.page(link("item", batch=NASTY, id=key_of(NASTY, "completed")))).html.replace("&#34;", '"')


async def test_every_link_of_every_page_leads_to_a_page(db: str, visit: Visit) -> None:
    await make_hostile(db, NASTY)
    visitor = visit(db, label=NASTY)
    seen, open_links = set[str](), deque([(path, "") for path in pages_of(NASTY)])
    while open_links:
        path, source = open_links.popleft()
        if path.startswith("#") or path in seen:
            continue
        seen.add(path)
        assert "\r" not in path, source
        if path.startswith("./raw?"):
            response = await visitor.get(path)
            assert (response.status_code, response.headers["content-type"]) == (200, "application/json"), (path, source)
            response.json()
            continue
        page = await visitor.page(path)
        check_page(page)
        open_links.extend((each, path) for each in page.links())
    items = {parse_qs(urlsplit(path).query)["id"][0] for path in seen if path.startswith("./item?")}
    assert items == {key_of(NASTY, item) for item in ITEMS}
    assert len(seen) > 60


async def test_the_link_of_an_item_shows_that_item(db: str, visit: Visit) -> None:
    """Also if two ids differ only in a character that browsers or parsers of forms change."""
    ids = ["a\rb", "a\nb", "a\r\nb", "a b", "a+b", "a%20b", "a&b", "a;b", "a=b", "a#b", "a\u00a0b", "a\tb", " ab", "ab ", "AB", "ab", "a/b", ".", "..",
           "\u202eab", "0", "False", "None", '"', "a\x7fb", "e\u0301", "\u00e9", "x" * 512, "\U0001f600" * 512]  # fmt: skip
    batch = "\U0001f600" * 200
    await run_batch(ids, returned, db=db, batch=batch, key=str)
    visitor = visit(db)
    page = await visitor.page(link("items", batch=batch, order="input"))
    links = [each for each in page.links() if each.startswith("./item?")]
    assert len(links) == len(ids)
    for href, key in zip(links, ids, strict=True):
        answer = await visitor.get(href.replace("./item?", "./api/item.json?"))
        assert answer.json()["id"] == key
        assert safe_text(key) in (await visitor.page(href)).texts, key
        async with streaming(visitor.app, urlsplit(href).query + "&of=item") as stream:
            assert (await stream.event())[0] == "page"


# --- forms ----------------------------------------------------------------------------------------------------------


async def status_of(db: str, batch: str, key: str) -> str:
    async with Control(db) as control:
        return (await control.show(key, batch)).status


async def test_every_form_names_exactly_what_its_page_shows(db: str, visit: Visit) -> None:
    """A browser changes line breaks in a form, so a hostile name has to survive it."""
    await make_hostile(db, NASTY)
    visitor = visit(db)

    async def press(path: str, action: str) -> Page:
        page = await visitor.page(path)
        response = await visitor.send(page.form(action))
        assert response.status_code == 303, response.text
        assert "set-cookie" not in response.headers
        assert not unsafe_characters(response.headers["location"])
        return await visitor.page(response.headers["location"])

    for item, action, after in (
        ("failed", "retry", "pending"),
        ("completed", "rerun", "pending"),
        ("pending", "cancel", "cancelled"),
        ("cancelled", "retry", "pending"),
        ("processing", "cancel", "cancelled"),
    ):
        key = key_of(NASTY, item)
        page = await press(link("item", batch=NASTY, id=key), f"./{action}")
        assert page.notice == "1 item changed."
        assert safe_text(key) in page.texts
        assert await status_of(db, NASTY, key) == after
    assert (await press(link("batch", batch=NASTY), "./resume")).notice == "The batch is resumed."
    assert (
        await press(link("batch", batch=NASTY), "./pause")
    ).notice == "The batch is paused: running handlers finish, and no more items start."
    assert (await press(link("batch", batch=NASTY), "./concurrency")).notice is not None
    assert (await press(link("confirm_stop", batch=NASTY), "./stop")).notice is not None
    async with Control(db) as control:
        assert (await control.status(NASTY)).batches[0].paused


async def test_ticked_items_are_named_on_the_page_that_asks_and_are_the_ones_that_change(db: str, visit: Visit) -> None:
    await make_hostile(db, NASTY)
    visitor = visit(db)
    page = await visitor.page(link("items", batch=NASTY, status="failed"))
    assert len(page.boxes) == 2
    question = await visitor.send(page.form("./confirm"), ticks=page.boxes, button="retry")
    assert question.status_code == 200
    asked = Page(question.text)
    check_page(asked)
    assert "Retry 2 items?" in asked.text
    assert [safe_text(key_of(NASTY, item)) in asked.texts for item in ("failed", "failed too", "pending")] == [True, True, False]
    response = await visitor.send(asked.form("./retry"))
    assert (await visitor.page(response.headers["location"])).notice == "2 items changed."
    assert await status_of(db, NASTY, key_of(NASTY, "failed too")) == "pending"


async def test_a_batch_with_a_hostile_name_is_purged_by_the_name_as_it_is_shown(db: str, visit: Visit) -> None:
    await make_hostile(db, NASTY)
    visitor = visit(db)
    for place in ("file", link("batch", batch=NASTY)):
        counted = await visitor.send((await visitor.page(place)).form("./confirm_purge"), typed={"older_than": "0s"})
        page = Page(counted.text)
        check_page(page)
        assert (counted.status_code, "Delete 1 item?" in page.text) == (200, True)
    wrong = await visitor.send(page.form("./purge"), typed={"name": NASTY.replace("\r", "")})
    assert wrong.status_code == 400
    check_page(Page(wrong.text))
    (typed,) = {text for text in page.texts if text == safe_text(NASTY)}
    response = await visitor.send(page.form("./purge"), typed={"name": typed})
    assert response.status_code == 303
    check_page(await visitor.page(response.headers["location"]))
    async with Control(db) as control:
        assert (await control.status(NASTY)).batches[0].counts.completed == 0


async def test_a_name_and_an_id_of_spaces_have_links_that_a_person_can_see(db: str, visit: Visit) -> None:
    await run_batch([" "], returned, db=db, batch=" ", key=str)
    overview, items = await visit(db).page(""), await visit(db).page(link("items", batch=" "))
    assert '" "' in overview.text
    assert items.text.count('" "') == 3  # the batch in the heading, the id and the payload


async def test_a_filter_stays_in_its_form_and_in_the_links_of_the_list(db: str, visit: Visit) -> None:
    await run_batch([f"a&b{number:03}" for number in range(120)], returned, db=db, batch="b")
    visitor = visit(db)
    page = await visitor.send(
        (await visitor.page("items?batch=b")).form("./items"), typed={"contains": "a&b", "status": "completed"}
    )
    first = Page(page.text)
    (follow,) = (each.attributes["href"] for each in first.elements if each.attributes.get("rel") == "next")
    second = await visitor.page(follow)
    for each in (first, second):
        assert dict(each.form("./items").fields) == {
            "batch": "b", "status": "completed", "error": "", "older_than": "", "id": "", "contains": "a&b", "order": "newest",
        }  # fmt: skip
    assert [len([href for href in each.links() if href.startswith("./item?")]) for each in (first, second)] == [50, 50]
    assert not set(first.links()) & {href for href in second.links() if href.startswith("./item?")}
    back = [each for each in second.links() if each.startswith("./items?") and "after" not in each and "contains" in each]
    assert Page((await visitor.get(back[0])).text).links() == first.links()


# --- streams, problems and logs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [NASTY, *CORPUS.values()], ids=["the worst", *CORPUS])
async def test_a_stream_sends_the_part_of_the_page_on_one_line_of_json(db: str, visit: Visit, text: str) -> None:
    await make_hostile(db, text)
    visitor = visit(db)
    for name, fields in {
        "": {},
        "batch": {"batch": text},
        "item": {"batch": text, "id": key_of(text, "failed")},
        "causes": {},
        "workers": {},
    }.items():
        page = await visitor.page(link(name, **fields))
        (live,) = (each.attributes["data-live"] for each in page.elements if "data-live" in each.attributes)
        async with streaming(visitor.app, urlsplit(live).query) as stream:
            event, data = await stream.event()
        assert event == "page"
        assert data.isascii()
        sent = json.loads(data)
        assert unsafe_characters(sent["html"] + sent["title"]) == set()
        assert len(sent["title"]) <= 100 + 5 * len(text), "control characters are escaped after the cut"
        start = page.html.index('<div id="live">')
        assert normal(sent["html"]) in normal(page.html[start:])
        check_page(Page(f"<!doctype html>{sent['html']}"))


def normal(html: str) -> str:
    """Return a part of a page without the times, which pass."""
    return re.sub(r"<time[^>]*>[^<]*</time>|\d+ (s|min) ago|for \d+[^,<]*", "", html)


@pytest.mark.parametrize(
    "path",
    ["batch?batch=", "items?batch=", "item?batch=b&id=", "causes?batch=", "batch?batch=b&span=", "items?batch=b&order=",
     "items?batch=b&status=", "items?batch=b&older_than=", "items?batch=b&error=*&contains=", "batch?batch=b&did=changed&done=", "batch?batch=b&did=changed&left=", "live?of=", "confirm?batch=b&verb=", "confirm?batch=", "confirm_purge?batch=b&older_than=",
     "confirm_purge?batch=b&older_than=1s&status=", "job?job="],
)  # fmt: skip
async def test_a_problem_page_shows_the_text_of_the_address_as_a_text(db: str, visit: Visit, path: str) -> None:
    await run_batch(["a"], returned, db=db, batch="b")
    visitor = visit(db)
    for text in (NASTY, *CORPUS.values()):
        response = await visitor.get(f"{path}{quote(text)}")
        assert 400 <= response.status_code < 500, text
        page = Page(response.text)
        check_page(page)
        assert [each.tag for each in page.elements if "main" in each.within] in (
            ["h1", "p", "p", "a"],
            ["h1", "p", "p", "a", "a"],
        )
        listed = await visitor.page(f"items?batch=b&after={quote(text)}")
        check_page(listed)
        json_answer = await visitor.get(f"api/item.json?id={quote(text)}&batch=b")
        assert (json_answer.status_code, json_answer.text.isascii()) == (404, True)


async def test_a_stream_of_a_page_that_has_a_problem_says_which(db: str, visit: Visit) -> None:
    await run_batch(["a"], returned, db=db, batch="b")
    visitor = visit(db)
    for text in (NASTY, *CORPUS.values()):
        async with streaming(visitor.app, urlencode({"of": "batch", "batch": text})) as stream:
            event, data = await stream.event()
        assert (event, data.isascii()) == ("problem", True)
        message = json.loads(data)["text"]
        assert unsafe_characters(message) == set()
        assert "there is no batch" in message or "has no batch" in message


async def test_the_log_of_an_action_has_one_line_whatever_the_names_are(
    db: str, visit: Visit, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asyncrunner.dashboard")
    await make_hostile(db, NASTY)
    visitor = visit(db)
    key = key_of(NASTY, "failed")
    actions: dict[str, dict[str, object]] = {
        "pause": {}, "resume": {}, "concurrency": {"concurrency": 3}, "stop": {"now": 1}, "retry": {"ids": key}, "cancel": {"ids": key},
        "rerun": {"ids": key}, "recover": {"worker": NASTY, "name": NASTY}, "purge": {"older_than": "0s", "name": NASTY},
    }  # fmt: skip
    for action, fields in actions.items():
        caplog.clear()
        response = await visitor.post(action, {"batch": NASTY, **fields})
        assert response.status_code == 303, (action, response.text)
        lines = [record.getMessage() for record in caplog.records if record.name == "asyncrunner.dashboard"]
        assert lines, action
        assert unsafe_characters("".join(lines)) == set()
        assert not any("\n" in line for line in lines)


async def test_the_heading_of_an_action_keeps_the_capitals_of_an_id(db: str, visit: Visit) -> None:
    async def fail(item: str) -> None:
        raise ValueError(item)

    await run_batch(["Order-ÄB7"], fail, db=db, batch="Shop", max_attempts=1)
    page = await visit(db).page(link("confirm", batch="Shop", ids="Order-ÄB7"))
    assert "Retry item Order-ÄB7 of Shop: 1 item." in page.text


async def test_an_id_with_control_characters_is_not_offered_for_copying(db: str, visit: Visit) -> None:
    """Pasted into a terminal, a line break in it would run a command."""
    await run_batch(["plain", "a\nrm -rf ."], returned, db=db, batch="b", key=str)
    visitor = visit(db)
    for key, copies in (("plain", ["plain"]), ("a\nrm -rf .", [])):
        page = await visitor.page(link("item", batch="b", id=key))
        assert [each.attributes["data-copy"] for each in page.elements if "data-copy" in each.attributes] == copies


async def test_a_stop_asks_first_and_says_how_many_workers_it_concerns(db: str, visit: Visit) -> None:
    await run_batch(["a"], returned, db=db, batch="b")
    visitor = visit(db)
    for path, sentence in (
        ("workers", "0 live workers serve the store. Running handlers finish"),
        ("batch?batch=b", "0 live workers serve this batch. Running handlers finish"),
    ):
        question = await visitor.send((await visitor.page(path)).form("./confirm_stop"))
        assert question.status_code == 200
        assert sentence in " ".join(Page(question.text).text.split())
        assert (await visitor.send(Page(question.text).form("./stop"))).status_code == 303


async def test_an_action_on_a_filtered_list_leads_back_to_the_filtered_list(db: str, visit: Visit) -> None:
    await make_hostile(db, NASTY)
    visitor = visit(db)
    page = await visitor.page(link("items", batch=NASTY, status="failed", contains=NASTY))
    question = await visitor.send(page.form("./confirm"), ticks=page.boxes[:1], button="retry")
    done = await visitor.send(Page(question.text).form("./retry"))
    back = await visitor.page(done.headers["location"])
    assert back.notice == "1 item changed."
    assert "kept_" not in done.headers["location"]
    assert "status=failed" in done.headers["location"]
    assert len(back.boxes) == 1
