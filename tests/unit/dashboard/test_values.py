"""The values of items: exact numbers, the order of keys, large and deeply nested ones, and whole ones as downloads."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from asyncrunner import Fail, run_batch
from asyncrunner.dashboard.rendering import bytes_text, json_lines, lines, link, moment, share, short, spark
from tests.support.state import execute
from tests.unit.dashboard.browser import Page, streaming, unsafe_characters
from tests.unit.dashboard.conftest import Visit
from tests.unit.dashboard.test_pages import check_page

BIG = 123456789012345678901234567890123456789


async def returned(item: Any) -> Any:
    return item


def value_on(page: Page, name: str) -> str:
    """Return the text of a value on the page of an item."""
    start = next(at for at, element in enumerate(page.elements) if element.attributes.get("id") == f"value-{name}")
    assert page.elements[start].tag == "h2"
    return page.html.split(f'id="value-{name}"')[1].split("<pre")[1].partition(">")[2].partition("</pre>")[0]


async def test_numbers_are_exact_and_keys_keep_their_order(db: str, visit: Visit) -> None:
    payload = '{"z": 12345678901234567890, "a": 0.1, "m": [1e100, -0.0, 9007199254740993], "Z": null, "\u00e9": true}'
    await run_batch(["a"], returned, db=db, batch="b", key=str)
    execute(db, "UPDATE items SET payload = ?, result = ?", payload, str(BIG))
    visitor = visit(db)
    page = await visitor.page("item?batch=b&id=a")
    lines = ["{", '  "z": 12345678901234567890,', '  "a": 0.1,', '  "m": [', "    1e+100,", "    -0.0,", "    9007199254740993", "  ],",
             '  "Z": null,', '  "\u00e9": true', "}"]  # fmt: skip
    assert value_on(page, "payload").replace("&#34;", '"').split("\n") == lines
    assert value_on(page, "result") == str(BIG)
    assert (await visitor.get("raw?batch=b&id=a&value=payload")).content.decode() == payload
    assert (await visitor.get("raw?batch=b&id=a&value=result")).text == str(BIG)
    document = json.loads((await visitor.get("api/item.json?id=a")).text)
    assert (document["result"], document["payload"]["z"], list(document["payload"])) == (
        BIG,
        12345678901234567890,
        ["z", "a", "m", "Z", "\u00e9"],
    )


async def test_the_start_of_a_large_value_is_shown_with_its_size_and_the_download_is_whole(db: str, visit: Visit) -> None:
    sizes = {"small": 60_000, "large": 80_000, "huge": 3_000_000}

    async def grow(item: str) -> str:
        return "\u00e9" * (sizes[item] // 2)

    await run_batch([*sizes], grow, db=db, batch="b", key=str)
    execute(db, "UPDATE items SET payload = ? WHERE id = 'large'", json.dumps("y" * 70_000))
    visitor = visit(db)
    for item, size in sizes.items():
        response = await visitor.get(f"item?batch=b&id={item}")
        page = Page(response.text)
        assert len(response.content) < 200_000, "a page is small"
        is_cut = item != "small"
        assert ("The first 65,536 characters" in page.text or "The first " in page.text) is is_cut
        assert (bytes_text(size + 2) in page.text) is is_cut
        shown = value_on(page, "result")
        assert shown.startswith("&#34;\u00e9\u00e9")
        whole = await visitor.get(next(each for each in page.links() if "value=result" in each))
        assert whole.headers["content-disposition"] == 'attachment; filename="result.json"'
        assert whole.json() == "\u00e9" * (size // 2)
        assert len(whole.content) == size + 2
        document = (await visitor.get(f"api/item.json?id={item}")).json()
        assert document["cut"].get("result") == (size + 2 if is_cut else None)
        async with streaming(visitor.app, f"of=item&batch=b&id={item}") as stream:
            event, data = await stream.event()
        assert event == "page"
        assert len(data) < 600_000
    assert (await visitor.get("raw?batch=b&id=large&value=payload")).json() == "y" * 70_000
    listed = await visitor.get("items?batch=b")
    assert len(listed.content) < 20_000, "a list has only the start of a payload"


async def test_a_nul_and_other_characters_of_a_value_are_shown_escaped(db: str, visit: Visit) -> None:
    value = {"a\0b": "\0\x1b[1m\x7f\u0085\u202e\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")}
    await run_batch([value], returned, db=db, batch="b", key=lambda _: "a")
    visitor = visit(db)
    page = await visitor.page("item?batch=b&id=a")
    check_page(page)
    assert (
        value_on(page, "payload").replace("&#34;", '"') == '{\n  "a\\u0000b": "\\u0000\\u001b[1m\\x7f\\x85\\u202e\U0001f600"\n}'
    )
    assert (await visitor.get("api/item.json?id=a")).json()["result"] == value
    assert (await visitor.get("raw?batch=b&id=a")).json() == value
    check_page(await visitor.page("items?batch=b"))


@pytest.mark.sqlite_file
async def test_a_nul_in_a_row_is_shown_escaped(db: str, visit: Visit) -> None:
    async def fail(item: str) -> None:
        raise Fail(item)

    await run_batch(["a"], fail, db=db, batch="b", key=str)
    execute(db, "UPDATE items SET error = ?, payload = ?", "a\0b", '"a\0b"')
    execute(db, "UPDATE failures SET message = ?, traceback = ?, error_type = ?", "a\0b", "a\0b\nc", "a\0b")
    visitor = visit(db)
    for path in ("", "batch?batch=b", "items?batch=b", "item?batch=b&id=a", "causes"):
        page = await visitor.page(path)
        check_page(page)
        assert "a\\x00b" in page.text
        if path.startswith("items"):
            continue
        async with streaming(visitor.app, f"of={path.replace('?', '&') or 'overview'}") as stream:
            _, data = await stream.event()
        assert unsafe_characters(json.loads(data)["html"]) == set()


@pytest.mark.parametrize("depth", [100, 500, 900, 5_000, 30_000])
async def test_a_deeply_nested_value_is_shown_as_a_whole(db: str, visit: Visit, depth: int) -> None:
    await run_batch(["a"], returned, db=db, batch="b", key=str)
    nested = f"{'[' * depth}7{']' * depth}"
    execute(db, "UPDATE items SET payload = ?, result = ?", nested, '{"a":' * 900 + "1" + "}" * 900)
    visitor = visit(db)
    response = await visitor.get("item?batch=b&id=a")
    assert len(response.content) < 500_000
    page = Page(response.text)
    # A text that Python cannot decode is shown as it is, in quotes.
    assert re.sub(r"\s", "", value_on(page, "payload")).strip("&#34;") == nested
    assert value_on(page, "result").count("{") == 900
    assert (await visitor.get("raw?batch=b&id=a&value=payload")).text == nested
    for path in ("api/item.json?id=a", "items?batch=b", "api/items.json"):
        assert (await visitor.get(path)).status_code == 200


def test_a_value_that_python_cannot_nest_is_not_shown() -> None:
    value: list[Any] = []
    for _ in range(200_000):  # each version of Python has another limit
        value = [value]
    assert json_lines(value) == "It is nested too deeply to be shown."


def test_the_lines_of_a_long_text_end_with_dots() -> None:
    assert lines("a\r\nb\n\u202e") == "a\\r\nb\n\\u202e"
    assert lines("x" * 300_000) == "x" * 300_000
    assert lines("x" * 300_001) == "x" * 300_000 + "\n..."


async def test_a_number_with_thousands_of_digits_is_shown(db: str, visit: Visit) -> None:
    """Python converts no text with more than 4,300 digits into a number."""
    await run_batch(["a"], returned, db=db, batch="b", key=str)
    execute(db, "UPDATE items SET payload = ?, result = '[1'", "7" * 5_000)
    visitor = visit(db)
    page = await visitor.page("item?batch=b&id=a")
    assert "7" * 5_000 in value_on(page, "payload")
    assert "[1" in value_on(page, "result")
    assert (await visitor.get("api/item.json?id=a")).json()["payload"] == "7" * 5_000


def test_sizes_durations_and_shares_in_words() -> None:
    assert [bytes_text(size) for size in (0, 999, 1000, 1_500_000, 2e9, 3e12, 4e15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.5 MB",
        "2.0 GB",
        "3.0 TB",
        "4,000.0 TB",
    ]
    assert [short(seconds) for seconds in (0.9, 59.9, 60, 3_599, 3_600)] == ["0 s", "59 s", "1 min", "59 min", "1 h 00 min"]
    assert [share(*each) for each in ((0, 0), (0, 3), (2, 3), (2_999_999, 3_000_000), (3, 3))] == [
        "0.0 %",
        "0.0 %",
        "66.6 %",
        "99.9 %",
        "100.0 %",
    ]


def test_a_time_is_relative_with_the_time_in_utc_as_its_title() -> None:
    now = "2026-01-02 03:04:05.000"
    for text, shown in {
        "2026-01-02 03:04:04.500": "now", "2026-01-02 03:04:00.000": "5 s ago", "2026-01-02 03:06:05.000": "in 2 min", "2026-01-02 01:04:05.000": "2 h 00 min ago",
    }.items():  # fmt: skip
        assert str(moment(text, now)) == f'<time datetime="{text[:19].replace(" ", "T")}Z" title="{text[:19]} UTC">{shown}</time>'
    assert str(moment(None, now)) == "-"
    assert str(moment("<b>", now)) == "&lt;b&gt;"


def test_a_link_has_only_fields_with_a_value_and_a_drawing_says_its_label() -> None:
    assert link("") == "./"
    assert (
        link("items", batch="a&b", status=None, all=False, newest=True, id="", after="0")
        == "./items?batch=a%26b&newest=1&after=0"
    )
    assert str(spark([0, 0], "<b>")) == ""
    drawing = Page(str(spark([0, 1, 4], '"><b>')))
    assert [element.tag for element in drawing.elements] == ["svg", "rect", "rect"]
    assert drawing.elements[0].attributes["aria-label"] == '"><b>'
