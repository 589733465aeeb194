"""The dashboard in a real browser: what people see, click and type, and what a page must never do."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from asyncrunner import Control, Fail, Runner, run_batch
from tests.browser.conftest import HOSTILE, TOKEN, NewPage, Served
from tests.conftest import Until
from tests.support.browser import axe_source, started_browser
from tests.support.shop import SHOP_PAGES, open_shop

if TYPE_CHECKING:
    from playwright.async_api import Page

PAGES = {
    "overview": "",
    "batch": "batch?batch=prices%3Afetch",
    "day": "batch?batch=prices%3Afetch&span=24h",
    "items": "items?batch=prices%3Afetch&status=failed",
    "item": "item?batch=prices%3Afetch&id=sku-31",
    "causes": "causes",
    "workers": "workers",
    "file": "file",
    "confirm": "confirm?verb=retry&batch=prices%3Afetch&all=1",
    "purge": "confirm_purge?batch=prices%3Afetch&older_than=0s",
    "problem": "batch?batch=unknown",
    "hostile item": f"item?batch={quote(HOSTILE)}&id={quote(HOSTILE)}",
}
WINDOWS: list[dict[str, Any]] = [
    {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    {"color_scheme": "light", "viewport": {"width": 320, "height": 640}},
    {"color_scheme": "dark", "viewport": {"width": 320, "height": 640}},
]


async def live(page: Page) -> None:
    """Wait until the stream of the page has sent something."""
    await page.get_by_text("live", exact=True).wait_for()


# --- looks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", WINDOWS, ids=lambda each: f"{each['color_scheme']}-{each['viewport']['width']}")
async def test_every_page_is_accessible_and_fits_the_window(
    window: dict[str, Any], served: Served, shop: str, new_page: NewPage
) -> None:
    axe = axe_source()
    shown = await new_page(**window)
    found: dict[str, Any] = {}
    for name, path in PAGES.items():
        response = await shown.page.goto(served.url + path)
        assert response is not None
        if name == "problem":  # the browser itself writes to the console that the answer was 404
            assert (response.status, shown.complaints.pop()[:8]) == (404, "console:")
        if await shown.page.locator("[data-live]").count():
            await live(shown.page)
        widths = await shown.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1], (name, widths)
        if axe is not None:
            found[name] = await shown.violations(axe)
    if axe is None:
        pytest.skip("the environment does not name axe-core: set ASYNCRUNNER_TEST_AXE")
    assert {name: each for name, each in found.items() if each} == {}


async def test_hostile_text_is_shown_as_text(served: Served, shop: str, new_page: NewPage) -> None:
    shown = await new_page()
    for path in PAGES.values():
        await shown.page.goto(served.url + path)
        text = await shown.page.inner_text("body")
        assert "\u202e" not in text
        assert await shown.page.locator("img, main script").count() == 0
    await shown.page.goto(served.url + PAGES["hostile item"])
    assert HOSTILE.replace("\u202e", "\\u202e") in await shown.page.inner_text("h1")
    shown.complaints[:] = [each for each in shown.complaints if "404" not in each]  # of the page "problem"


async def test_the_charts_draw_the_numbers_of_the_table(served: Served, shop: str, new_page: NewPage) -> None:
    shown = await new_page()
    await shown.page.goto(served.url + PAGES["batch"])
    await live(shown.page)
    assert await shown.page.locator("figure canvas").count() == 2
    painted = """[...document.querySelectorAll("canvas")].map((canvas) =>
        canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0))"""
    assert await shown.page.evaluate(painted) == [True, True]
    await shown.page.get_by_text("The same numbers as a table").click()
    rows = await shown.page.locator("#history tbody tr").all_inner_texts()
    assert len(rows) == 60
    assert sum(int(row.split("\t")[1]) for row in rows) == 80
    assert sum(int(row.split("\t")[2]) for row in rows) == 20
    assert sum(int(row.split("\t")[3]) for row in rows) == 10


# --- live -----------------------------------------------------------------------------------------------------------


async def quick(n: int) -> int:
    if n % 3 == 0:
        raise Fail("divisible by three")
    return n


async def test_a_page_with_a_cold_cache_shows_a_change_within_three_seconds(served: Served, new_page: NewPage) -> None:
    await run_batch([1], quick, db=served.db, batch="b")
    shown = await new_page()
    await live(shown.page)
    await run_batch(range(1, 9), quick, db=served.db, batch="b", max_attempts=1)
    await shown.page.get_by_role("row", name=re.compile("^b ")).get_by_role("link", name="6", exact=True).wait_for(timeout=3_000)
    assert any("/live" in url for url in shown.requests)


async def test_a_batch_is_paused_in_the_page_and_the_worker_obeys(served: Served, new_page: NewPage, until: Until) -> None:
    runner = Runner(served.db)
    started: list[int] = []

    @runner.handler(batch="b")
    async def handler(n: int) -> None:
        started.append(n)

    async with runner:
        await handler.submit(1)
        await until(lambda: started == [1])
        shown = await new_page()
        await shown.page.goto(f"{served.url}batch?batch=b")
        await shown.page.get_by_role("button", name="Pause b").click()
        await shown.page.get_by_role("button", name="Resume b").wait_for()
        assert "The batch is paused" in await shown.page.locator(".notice").inner_text()
        async with Control(served.db) as control:
            await handler.submit(2)
            await shown.page.get_by_text("It does not move: paused").wait_for(timeout=3_000)
            assert (await control.status("b")).batches[0].counts.pending == 1
        assert started == [1]
        await shown.page.get_by_role("button", name="Resume b").click()
        await until(lambda: started == [1, 2])


async def test_five_thousand_failures_are_retried_by_cause_and_the_counts_move(served: Served, new_page: NewPage) -> None:
    is_fixed = False

    async def handler(n: int) -> int:
        if not is_fixed:
            raise Fail("the service is away" if n % 2 else "no such product")
        return n

    await run_batch(range(10_000), handler, db=served.db, batch="b")
    shown = await new_page()
    await shown.page.goto(f"{served.url}causes")
    row = shown.page.get_by_role("row", name=re.compile("the service is away"))
    await row.get_by_role("link", name="Retry 5,000").click()
    await shown.page.get_by_role("heading", name="Retry 5,000 items?").wait_for()
    await shown.page.get_by_role("button", name="Retry 5,000 items").click()
    await shown.page.get_by_text("5,000 items changed.").wait_for()  # a job with its own page, updated by the stream
    is_fixed = True
    await shown.page.goto(f"{served.url}batch?batch=b")
    await live(shown.page)
    await run_batch([], handler, db=served.db, batch="b")
    completed = shown.page.locator(".counts div").filter(has_text="completed")
    await completed.get_by_text("5,000", exact=True).wait_for(timeout=5_000)
    await shown.page.goto(f"{served.url}causes")
    assert await shown.page.get_by_role("link", name="Retry 5,000").count() == 1
    assert await shown.page.get_by_role("row", name=re.compile("no such product")).count() == 1


async def test_updates_keep_the_focus_what_is_open_and_what_is_typed(served: Served, shop: str, new_page: NewPage) -> None:
    shown = await new_page()
    await shown.page.goto(served.url + PAGES["item"])
    await live(shown.page)
    await shown.page.locator("summary").first.click()
    await shown.page.get_by_role("button", name="Retry").focus()
    async with Control(served.db) as control:
        await control.pause(shop)
        await control.retry(["sku-31"], shop)
    await shown.page.get_by_text("pending", exact=True).wait_for(timeout=3_000)
    assert await shown.page.locator("details").first.get_attribute("open") is not None

    await shown.page.goto(served.url + PAGES["batch"])
    await live(shown.page)
    await shown.page.get_by_label("Concurrent handlers in each worker").fill("12")
    pause = shown.page.get_by_role("button", name="Resume prices:fetch")
    await pause.focus()
    async with Control(served.db) as control:
        await control.retry(["sku-41"], shop)
    await shown.page.locator(".counts div").filter(has_text="pending").get_by_text("2", exact=True).wait_for(timeout=3_000)
    assert await shown.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Resume prices:fetch"
    assert await shown.page.get_by_label("Concurrent handlers in each worker").input_value() == "12"


async def test_a_hidden_tab_closes_its_stream_and_a_shown_one_opens_it(served: Served, new_page: NewPage, until: Until) -> None:
    await run_batch([1], quick, db=served.db, batch="b")
    shown = await new_page()
    await live(shown.page)
    assert served.app.watchers == 1
    hide = "(is) => {Object.defineProperty(document, 'hidden', {value: is, configurable: true}); document.dispatchEvent(new Event('visibilitychange'))}"
    await shown.page.evaluate(hide, True)
    await until(lambda: served.app.watchers == 0)
    await shown.page.evaluate(hide, False)
    await until(lambda: served.app.watchers == 1)


async def test_updates_are_paused_by_the_keyboard(served: Served, new_page: NewPage, until: Until) -> None:
    await run_batch([1], quick, db=served.db, batch="b")
    shown = await new_page()
    await live(shown.page)
    for _ in range(20):
        await shown.page.keyboard.press("Tab")
        if await shown.page.evaluate("document.activeElement.id") == "live-button":
            break
    await shown.page.keyboard.press("Enter")
    await shown.page.get_by_text("updates paused").wait_for()
    await until(lambda: served.app.watchers == 0)
    await shown.page.keyboard.press("Enter")
    await live(shown.page)
    await until(lambda: served.app.watchers == 1)


# --- without JavaScript ---------------------------------------------------------------------------------------------


async def test_everything_works_without_javascript(served: Served, shop: str, new_page: NewPage) -> None:
    shown = await new_page(java_script_enabled=False)
    page = shown.page
    await page.goto(served.url + PAGES["items"])
    await page.get_by_label("Choose sku-1", exact=True).check()
    await page.get_by_label("Choose sku-11").check()
    await page.get_by_role("button", name="Retry the chosen").click()
    await page.get_by_role("button", name="Retry 2 items").click()
    assert "2 items changed" in await page.locator(".notice").inner_text()
    await page.goto(served.url + PAGES["batch"])
    await page.get_by_role("link", name="Cancel all 2 pending").click()
    await page.get_by_role("button", name="Cancel 2 items").click()
    await page.goto(served.url + PAGES["file"])
    await page.get_by_label("that ended more than").fill("0s")
    await page.get_by_label("cancelled").check()
    await page.get_by_role("button", name="Count them").click()
    await page.get_by_label("Type the name of the batch").fill("prices:fetch")
    await page.get_by_role("button", name=re.compile("Delete 8. items")).click()
    assert "82 items (80 completed, 2 cancelled) deleted" in await page.inner_text("main")
    async with Control(served.db) as control:
        assert (await control.status(shop)).batches[0].counts.total == 18


# --- the command ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def command(db: str, port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run ``asyncrunner dashboard``, and yield its process and the link that it prints."""
    arguments = ("-m", "asyncrunner", "dashboard", db, "--port", str(port))
    environment = {**os.environ, "ASYNCRUNNER_DASHBOARD_TOKEN": TOKEN}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment
    )
    try:
        assert process.stdout is not None
        yield process, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def test_a_page_finds_a_restarted_server_again(db: str) -> None:
    await run_batch([1], quick, db=db, batch="b")
    async with started_browser() as browser:
        page = await browser.new_page()
        async with command(db) as (_, link):
            await page.goto(link)
            await live(page)
        port = int(link.split(":")[2].split("/")[0])
        await page.get_by_text("connection lost").wait_for()
        async with command(db, port):
            await live(page)
            await run_batch(range(1, 9), quick, db=db, batch="b", max_attempts=1)
            await page.get_by_role("row", name=re.compile("^b ")).get_by_role("link", name="6", exact=True).wait_for()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_with_three_open_pages_ends_within_three_seconds(number: signal.Signals, db: str) -> None:
    await run_batch([1], quick, db=db, batch="b")
    async with started_browser() as browser, command(db) as (process, link):
        for path in ("", "batch?batch=b", "causes"):
            page = await (await browser.new_context()).new_page()
            await page.goto(link)
            await page.goto(link.partition("?")[0] + path)
            await live(page)
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 3) == 0
        assert process.stderr is not None
        assert (await process.stderr.read()).decode().splitlines()[1:] == []


# --- pictures -------------------------------------------------------------------------------------------------------


@pytest.fixture
def db(request: pytest.FixtureRequest, db: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The location of the store; for pictures the name of a file in the current folder, which the pages show."""
    if request.node.get_closest_marker("sqlite_file") is None:
        return db
    monkeypatch.chdir(Path(db).parent)
    return Path(db).name


@pytest.mark.sqlite_file  # it writes a past into the file
async def test_pictures_of_the_pages(served: Served, new_page: NewPage, tmp_path: Path) -> None:
    """Take the pictures of the documentation; ASYNCRUNNER_PICTURES names the folder to keep them in."""
    folder = Path(os.environ.get("ASYNCRUNNER_PICTURES", tmp_path))
    async with open_shop(served.db):
        for kind, window in (("light", WINDOWS[0]), ("dark", WINDOWS[1]), ("phone", WINDOWS[2])):
            shown = await new_page(**window)
            for name, path in SHOP_PAGES.items():
                await shown.page.goto(served.url + path)
                await live(shown.page)
                for each in await shown.page.locator("details:not(#numbers)").all():
                    await each.locator("summary").first.click()
                await shown.page.screenshot(path=folder / f"dashboard-{name}-{kind}.png", full_page=True)
    taken = {f"dashboard-{name}-{kind}.png" for name in SHOP_PAGES for kind in ("light", "dark", "phone")}
    assert {path.name for path in folder.glob("dashboard-*.png")} >= taken
