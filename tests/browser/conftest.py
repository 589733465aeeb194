"""A dashboard on a free port, a browser, and a store with batches to look at."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
import uvicorn

from asyncrunner import Fail, RetryPolicy, run_batch
from asyncrunner.dashboard import Dashboard, dashboard
from tests.support.browser import Watched, missing, started_browser

TOKEN = "a-token-of-the-tests"
HOSTILE = "<img src=x onerror=alert(1)>\u202eabc<script>alert(2)</script>"

NewPage = Callable[..., Awaitable[Watched]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this folder, with the reason, if there is no browser."""
    reason = missing()
    for item in items:
        if reason is not None and item.path.is_relative_to(__file__.rpartition("/")[0]):
            item.add_marker(pytest.mark.skip(reason))


@dataclass
class Served:
    """A dashboard that is served by this process."""

    db: str
    app: Dashboard
    url: str


@pytest.fixture
async def served(db: str) -> AsyncIterator[Served]:
    app = dashboard(db, token=TOKEN)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server.serve([listening]))
        yield Served(db, app, f"http://127.0.0.1:{listening.getsockname()[1]}/")
        app.close_streams()
        server.should_exit = True
        await task
        await app.close()


@pytest.fixture
async def new_page(served: Served) -> AsyncIterator[NewPage]:
    """``await new_page(color_scheme="dark")``: a page of a new browser window, with an empty cache, that has the token."""
    async with started_browser() as browser:
        pages: list[Watched] = []

        async def make(*, enter: bool = True, **options: object) -> Watched:
            context = await browser.new_context(**options)  # type: ignore[arg-type]
            watched = Watched(await context.new_page(), served.url)
            pages.append(watched)
            if enter:
                await watched.page.goto(f"{served.url}?token={TOKEN}")
            return watched

        yield make
        assert [complaint for each in pages for complaint in each.complaints] == []


async def fails_by_kind(item: dict[str, object]) -> int:
    n = int(str(item["n"]))
    if n % 10 == 1:
        raise TimeoutError(f"shop-{n} did not answer within 10 s")
    if n % 10 == 2:
        raise Fail(HOSTILE)
    return n


@pytest.fixture
async def shop(db: str) -> str:
    """Fill the store with batches that have causes of failure and hostile texts; return the name of the first one."""
    items: list[dict[str, object]] = [{"n": n, "text": HOSTILE} for n in range(100)]
    retry = RetryPolicy(initial=0)
    await run_batch(
        items, fails_by_kind, db=db, batch="prices:fetch", key=lambda item: f"sku-{item['n']}", max_attempts=2, retry=retry
    )
    await run_batch(items[2:3], fails_by_kind, db=db, batch=HOSTILE, key=lambda _: HOSTILE, max_attempts=1)
    return "prices:fetch"
