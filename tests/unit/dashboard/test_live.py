"""The streams of open pages: one rendering a second for all of them, an end after a while, and no watcher that stays."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from asyncrunner import Control
from asyncrunner.admin.inspection.inspection import Inspection
from asyncrunner.dashboard import Access, app, live
from asyncrunner.dashboard.live import Live
from asyncrunner.dashboard.rendering import render
from asyncrunner.errors import StoreError
from tests.conftest import Until
from tests.unit.dashboard.browser import OWN, Stream, call, scope_of, streaming
from tests.unit.dashboard.conftest import Open

RETRY = "retry: 1000\n\n"
UNCHANGED = ":\n\n"


class Seconds:
    """The clock of the event loop, which stands still until a test lets a time pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time() // 1 + 0.25
        monkeypatch.setattr(loop, "time", lambda: self.now)

    async def pass_by(self, seconds: float = 1.0) -> None:
        """Let a time pass when all that could run has run, so that the streams wait for it."""
        for _ in range(50):
            await asyncio.sleep(0)
        self.now += seconds

    async def next_of(self, stream: AsyncIterator[str]) -> str:
        """Return the next chunk of a stream that waits for the next second."""
        task = asyncio.ensure_future(anext(stream))
        await self.pass_by()
        return await task


@pytest.fixture
async def seconds(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Seconds]:
    with monkeypatch.context() as patched:
        yield Seconds(patched)


class Pages:
    """A page that counts how often it is rendered."""

    def __init__(self) -> None:
        self.rendered = 0
        self.error: Exception | None = None
        self.is_changing = True

    async def fragment(self) -> tuple[str, str]:
        self.rendered += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return "title", f"<p>{self.rendered if self.is_changing else ''}</p>"


async def next_of(*streams: AsyncIterator[str]) -> list[str]:
    """Return the next chunk of each stream."""
    return list(await asyncio.gather(*(anext(stream) for stream in streams)))


# --- what is sent ---------------------------------------------------------------------------------------------------


async def test_twenty_streams_of_a_page_render_it_once_a_second(seconds: Seconds) -> None:
    shown, page = Live(), Pages()
    async with AsyncExitStack() as stack:
        streams: list[AsyncIterator[str]]
        streams = [await stack.enter_async_context(aclosing(shown.stream("key", page.fragment))) for _ in range(20)]
        assert set(await next_of(*streams)) == {RETRY}
        for second in (1, 2, 3):
            assert set(await next_of(*streams)) == {f'event: page\ndata: {{"title": "title", "html": "<p>{second}</p>"}}\n\n'}
            assert (page.rendered, shown.watchers) == (second, 20)
            waiting: list[asyncio.Future[str]] = [asyncio.ensure_future(anext(stream)) for stream in streams]
            await seconds.pass_by(0)
            assert not any(task.done() for task in waiting), "the next second has not begun"
            await seconds.pass_by()
            streams = [_after(task, stream) for task, stream in zip(waiting, streams, strict=True)]
        await next_of(*streams)
    assert page.rendered == 4


async def _after(task: asyncio.Future[str], stream: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield what a task has begun to read from a stream, and then the rest of the stream."""
    yield await task
    async for chunk in stream:
        yield chunk


async def test_streams_of_other_pages_are_rendered_for_themselves(seconds: Seconds) -> None:
    shown, one, two = Live(), Pages(), Pages()
    async with aclosing(shown.stream("one", one.fragment)) as first, aclosing(shown.stream("two", two.fragment)) as second:
        for _ in range(2):
            await next_of(first, second)
    assert (one.rendered, two.rendered) == (1, 1)


async def test_a_page_that_does_not_change_is_not_sent_again(seconds: Seconds) -> None:
    shown, page = Live(), Pages()
    page.is_changing = False
    async with aclosing(shown.stream("key", page.fragment)) as stream:
        chunks = [await anext(stream), await anext(stream)]
        for change in (False, False, True):
            page.is_changing = change
            chunks.append(await seconds.next_of(stream))
    assert [chunk.split("\n")[0] for chunk in chunks] == ["retry: 1000", "event: page", ":", ":", "event: page"]


async def test_only_the_newest_pages_are_kept(seconds: Seconds) -> None:
    shown, page = Live(), Pages()
    for number in range(1_200):
        async with aclosing(shown.stream(str(number), page.fragment)) as stream:
            await anext(stream)
            await anext(stream)
        assert len(shown._fragments) <= 501
    assert (page.rendered, shown.watchers) == (1_200, 0)


async def test_the_streams_of_an_open_dashboard_share_what_is_read_and_rendered(
    made: str, open_dashboard: Open, seconds: Seconds, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[str] = []
    read = Inspection.status_and_problems

    def counting(template: str, values: Any) -> str:
        rendered.append(template)
        return render(template, values)

    reads = 0

    async def counted(self: Inspection, *args: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(self, *args, **options)

    monkeypatch.setattr(app, "render", counting)
    monkeypatch.setattr(Inspection, "status_and_problems", counted)
    monkeypatch.setattr(live, "STREAM_SECONDS", 10_000.0)
    dashboard = open_dashboard(made)
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(streaming(dashboard)) for _ in range(20)]
        events = await asyncio.gather(*(stream.event() for stream in streams))
        assert len({data for _, data in events}) == 1
        assert (rendered, reads, dashboard.watchers) == (["live/overview.html"], 1, 20)
        async with Control(made) as control:
            await control.pause("shop")
        await seconds.pass_by(1_000)  # the read is old, however long it took
        later = await asyncio.gather(*(_page_with(stream, "Resume") for stream in streams))
        assert set(later) == {later[0]}
        assert len(rendered) == reads == 2
    assert dashboard.watchers == 0


async def _page_with(stream: Stream, text: str) -> str:
    name, data = await stream.event()
    assert name == "page"
    html = json.loads(data)["html"]
    assert text in html
    return str(html)


async def test_a_visitor_who_may_only_read_gets_no_buttons_from_the_stream_of_another(made: str, open_dashboard: Open) -> None:
    def allow(scope: Any) -> Access:
        return Access.ACT if (b"x-role", b"act") in scope["headers"] else Access.READ

    dashboard = open_dashboard(made, allow=allow)

    async def as_actor(scope: Any, receive: Any, send: Any) -> None:
        await dashboard({**scope, "headers": [*scope["headers"], (b"x-role", b"act")]}, receive, send)

    async with streaming(as_actor, "of=batch&batch=shop") as acting, streaming(dashboard, "of=batch&batch=shop") as reading:
        (_, with_buttons), (_, without) = await acting.event(), await reading.event()
    assert "<form" in with_buttons
    assert "<form" not in without


@pytest.mark.parametrize("page", ["overview", "batch&batch=shop", "causes", "workers", "item&batch=shop&id=wrong-1"])
async def test_a_stream_of_each_live_page_can_be_read(made: str, open_dashboard: Open, page: str) -> None:
    async with streaming(open_dashboard(made), f"of={page}") as stream:
        name, data = await stream.event()
    assert (name, sorted(json.loads(data))) == ("page", ["html", "title"])
    assert stream.headers["x-accel-buffering"] == "no"


# --- problems -------------------------------------------------------------------------------------------------------


async def test_a_read_that_fails_sends_a_problem_and_the_stream_goes_on(
    seconds: Seconds, caplog: pytest.LogCaptureFixture
) -> None:
    shown, page = Live(), Pages()
    page.is_changing = False
    errors = [StoreError("gone\u202e\n"), ValueError("a secret"), None]
    chunks: list[str] = []
    async with aclosing(shown.stream("key", page.fragment)) as stream:
        await anext(stream)
        await anext(stream)
        for error in errors:
            page.error = error
            chunks.append(await seconds.next_of(stream))
    fault = "The page cannot be shown; the log of the dashboard has the error."
    expected = [("problem", "gone\\u202e\\n"), ("problem", fault), ("page", None)]
    found = [chunk.removeprefix("event: ").removesuffix("\n\n").split("\ndata: ") for chunk in chunks]
    assert [(name, json.loads(data).get("text")) for name, data in found] == expected
    assert "a secret" in caplog.text, "an error of the dashboard itself is logged"
    assert "gone" not in caplog.text


async def test_a_store_that_goes_and_comes_is_said_in_an_open_page(
    made: str, open_dashboard: Open, seconds: Seconds, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: Inspection, *_: object) -> None:
        raise StoreError("the server went away")

    monkeypatch.setattr(live, "STREAM_SECONDS", 10_000.0)
    async with streaming(open_dashboard(made)) as stream:
        assert (await stream.event())[0] == "page"
        with monkeypatch.context() as patched:
            patched.setattr(Inspection, "status_and_problems", broken)
            await seconds.pass_by(1_000)
            assert await stream.event() == ("problem", '{"text": "the server went away"}')
        await seconds.pass_by()
        assert (await stream.event())[0] == "page"


# --- the end --------------------------------------------------------------------------------------------------------


async def test_a_stream_ends_after_a_while(seconds: Seconds) -> None:
    assert live.STREAM_SECONDS == 25
    shown, page = Live(), Pages()
    stream = shown.stream("key", page.fragment)
    await next_of(stream)
    await next_of(stream)
    for _ in range(24):
        assert shown.watchers == 1
        await seconds.next_of(stream)
    with pytest.raises(StopAsyncIteration):
        await seconds.next_of(stream)
    assert (page.rendered, shown.watchers) == (25, 0)


async def test_a_stream_of_a_dashboard_ends_by_itself(
    made: str, open_dashboard: Open, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    monkeypatch.setattr(live, "STREAM_SECONDS", 0.0)
    dashboard = open_dashboard(made)
    async with streaming(dashboard) as stream:
        assert [chunk async for chunk in stream.chunks()] == [RETRY]
        assert stream.is_ended
        await until(lambda: dashboard.watchers == 0)


async def test_closing_ends_all_streams_in_the_middle_of_a_second(made: str, open_dashboard: Open, seconds: Seconds) -> None:
    dashboard = open_dashboard(made)
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(streaming(dashboard, f"of={of}")) for of in ("overview", "overview", "causes")]
        await asyncio.gather(*(stream.event() for stream in streams))
        assert dashboard.watchers == 3
        dashboard.close_streams()
        for stream in streams:
            assert [chunk async for chunk in stream.chunks()] == []
        async with streaming(dashboard) as late:
            assert [chunk async for chunk in late.chunks()] == [RETRY]
    assert dashboard.watchers == 0
    assert (await call(dashboard, scope_of())).status == 200, "pages are shown until the end"


async def test_a_client_that_leaves_is_no_watcher_any_more(made: str, open_dashboard: Open, until: Until) -> None:
    dashboard = open_dashboard(made)
    async with AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(streaming(dashboard))
        async with streaming(dashboard) as stream:
            await stream.event()
            assert dashboard.watchers == 21
        await until(lambda: dashboard.watchers == 20)
    await until(lambda: dashboard.watchers == 0)


async def test_a_client_that_breaks_off_is_no_watcher_any_more(made: str, open_dashboard: Open, until: Until) -> None:
    """Newer servers raise OSError in ``send`` when the client has gone."""
    dashboard = open_dashboard(made)
    sent = 0

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        nonlocal sent
        sent += 1
        if sent == 3:
            raise OSError("the client has gone")

    scope = {**scope_of("/live", "of=overview"), "asgi": {"version": "3.0", "spec_version": "2.4"}}
    with pytest.raises(ClientDisconnect):
        await dashboard(scope, receive, send)
    await until(lambda: dashboard.watchers == 0)
    assert sent == 3


async def test_a_client_that_leaves_during_a_read_leaves_no_error(
    made: str, open_dashboard: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, until: Until
) -> None:
    waiting, released, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(self: Inspection, *_: object) -> None:
        waiting.set()
        await released.wait()
        ended.set()
        raise StoreError("too late")

    monkeypatch.setattr(Inspection, "status_and_problems", slow)
    caplog.set_level(logging.DEBUG, "asyncio")
    dashboard = open_dashboard(made)
    async with streaming(dashboard):
        await waiting.wait()
    released.set()
    await ended.wait()
    await dashboard.close()
    await until(lambda: dashboard.watchers == 0)
    dashboard._pages.live._fragments.clear()
    assert "never retrieved" not in caplog.text


async def test_the_page_of_an_action_that_takes_long_is_live(made: str, open_dashboard: Open) -> None:
    dashboard = open_dashboard(made)
    answer = await call(dashboard, scope_of("/diagnose", method="POST", headers=OWN))
    place = dict(answer.headers)[b"location"].decode()
    assert (answer.status, place.partition("=")[0]) == (303, "./job?job")
    async with streaming(dashboard, f"of=job&job={place.partition('=')[2]}") as stream:
        name, data = await stream.event()
    assert name == "page"
    assert "started by a browser with the token" in json.loads(data)["html"]
