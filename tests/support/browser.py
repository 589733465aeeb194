"""Chromium for tests: the one of the machine, driven by Playwright. Nothing is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

AXE_VARIABLE: Final = "ASYNCRUNNER_TEST_AXE"
"""The environment variable with the path of axe.min.js, the accessibility checks of the npm package axe-core."""


def missing() -> str | None:
    """Return why no test can run in a browser, or None."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return 'Playwright is not installed: pip install -e ".[browser]"'
    return None if _chromium() else "Chromium is not installed: apt-get install chromium"


def axe_source() -> str | None:
    """Return the source of axe-core, or None if the environment does not name it."""
    path = os.environ.get(AXE_VARIABLE)
    return Path(path).read_text() if path else None


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@asynccontextmanager
async def started_browser() -> AsyncIterator[Browser]:
    """Start a browser without a window."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=_chromium(), args=arguments)
        try:
            yield browser
        finally:
            await browser.close()


class Watched:
    """A page of a browser. ``complaints`` has what it writes to the console, its errors and dialogs, and foreign requests."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._origin = urlsplit(origin).netloc
        page.on("console", lambda message: self.complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self._note(request.url))

    def _note(self, url: str) -> None:
        self.requests.append(url)
        if urlsplit(url).netloc != self._origin and not url.startswith("data:"):
            self.complaints.append(f"request to another origin: {url}")

    async def violations(self, axe: str) -> list[Any]:
        """Return what axe-core finds on the page."""
        await self.page.evaluate(axe)  # through the debugger, so the Content-Security-Policy stays as it is
        found = await self.page.evaluate("axe.run()")
        return [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]
