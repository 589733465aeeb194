"""Send the changing part of a page to the browsers that show it, once a second, as server-sent events.

All streams of the same page share what is read and rendered. A stream ends after 25 seconds, and the browser opens the next
one: so a server that stops never waits longer than that for an open page.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from asyncrunner.errors import AsyncRunnerError
from asyncrunner.text.escaping import safe_text

log = logging.getLogger("asyncrunner.dashboard")

STREAM_SECONDS: Final = 25.0
_INTERVAL_SECONDS: Final = 1.0
_RETRY_MILLISECONDS: Final = 1000
_MAX_KEPT: Final = 500


class Live:
    """The streams of a dashboard. ``closing``: all of them end."""

    def __init__(self) -> None:
        self._fragments: dict[str, tuple[float, asyncio.Task[str]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tick: asyncio.Future[None] | None = None
        self.closing = False
        self.watchers = 0

    async def stream(self, key: str, fragment: Callable[[], Awaitable[tuple[str, str]]]) -> AsyncGenerator[str, None]:
        """Yield an event whenever the *fragment* of the page with that *key* (its title and HTML) differs from the last one."""
        loop = asyncio.get_running_loop()
        end, last = loop.time() + STREAM_SECONDS, ""
        self.watchers += 1
        try:
            yield f"retry: {_RETRY_MILLISECONDS}\n\n"
            while not self.closing and loop.time() < end:
                event = await self._event(key, fragment)
                yield ":\n\n" if event == last else event  # a comment shows the browser's end that has gone
                last = event
                await self._until_next_second(loop)
        finally:
            self.watchers -= 1

    def close(self) -> None:
        """End all streams now, and those that are opened later immediately."""
        self.closing = True
        if self._tick is not None and not self._tick.get_loop().is_closed():
            self._tick.get_loop().call_soon_threadsafe(_end, self._tick)

    async def _until_next_second(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the next whole second of the loop's clock, so that all streams share one look and one timer."""
        if self._tick is None or self._tick.done() or self._tick.get_loop() is not loop:
            self._tick = loop.create_future()
            loop.call_later(_INTERVAL_SECONDS - loop.time() % _INTERVAL_SECONDS, _end, self._tick)
        if not self.closing:
            await asyncio.shield(self._tick)

    async def _event(self, key: str, fragment: Callable[[], Awaitable[tuple[str, str]]]) -> str:
        loop = asyncio.get_running_loop()
        if self._loop is not loop or len(self._fragments) > _MAX_KEPT:
            self._loop, self._fragments = loop, {}
        second = loop.time() // _INTERVAL_SECONDS
        known = self._fragments.get(key)
        if known is None or known[0] != second:
            known = self._fragments[key] = (second, loop.create_task(_event_of(fragment)))
        return await asyncio.shield(known[1])


def _end(tick: asyncio.Future[None]) -> None:
    if not tick.done():
        tick.set_result(None)


async def _event_of(fragment: Callable[[], Awaitable[tuple[str, str]]]) -> str:
    try:
        title, html = await fragment()
    except AsyncRunnerError as error:
        return _event_text("problem", {"text": safe_text(error, limit=500)})
    except Exception:
        log.exception("the changing part of a page cannot be shown")
        return _event_text("problem", {"text": "The page cannot be shown; the log of the dashboard has the error."})
    return _event_text("page", {"title": title, "html": html})


def _event_text(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
