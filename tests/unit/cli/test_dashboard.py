"""``asyncrunner dashboard`` as a real process: its link, its options, its refusals, its log and its end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from asyncrunner import Control
from asyncrunner.dashboard import dashboard
from asyncrunner.dashboard import serve as serving
from tests.conftest import NewDb, Until
from tests.support.files import make_store
from tests.support.web import Visitor
from tests.unit.cli.conftest import Call

TOKEN = "a-token-of-the-tests"
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


class Served:
    """A running ``asyncrunner dashboard``. ``link`` is the first line that it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.link = process.stdout.readline().strip()
        parts = urlsplit(self.link)
        self.url = f"{parts.scheme}://{parts.netloc}/"
        self.token = httpx.URL(self.link).params.get("token", "")

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal and return the exit code, the rest of stdout, and stderr."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str, str]:
        """Wait for the end, at most 30 s, and return the exit code, the rest of stdout, and stderr."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A function that starts the command on a free port; none of the processes outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> Served:
        port = () if "--port" in arguments else ("--port", "0")
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncrunner", "dashboard", *arguments, *port],
            cwd=tmp_path, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return Served(process)

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()  # so that it writes its coverage
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
        process.communicate()


# --- the link and the pages ------------------------------------------------------------------------------------------


async def test_it_prints_one_line_with_a_link_that_works_and_ends_with_0(shop: str, serve: Serve) -> None:
    served = serve(shop)
    async with httpx.AsyncClient() as client:
        assert (await client.get(served.url)).status_code == 401
        visitor = Visitor(client, served.url)
        first = await visitor.get(served.link)
        assert (first.status_code, str(first.url)) == (200, served.url)
        assert "shop" in first.text
        assert len(await visitor.crawl()) > 20
    code, out, err = served.end()
    assert (code, out) == (0, "")
    assert err == "Open this link in a browser. Ctrl-C ends the dashboard; batches and workers continue without it.\n"


async def test_the_store_is_that_of_the_environment_or_the_option(shop: str, serve: Serve) -> None:
    for arguments, environment in ((["--db", shop], {}), ([], {"ASYNCRUNNER_DB": shop})):
        served = serve(*arguments, **environment)
        async with httpx.AsyncClient(follow_redirects=True) as client:
            assert "shop" in (await client.get(served.link)).text


async def test_each_option_does_what_its_help_says(shop: str, serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    served = serve(
        shop, "--host", "0.0.0.0", "--port", str(port), "--allow-host", "jobs.example.com", "--allow-host", "x.example.com",
        "--label", "production <1>", "--user-header", "X-Remote-User", ASYNCRUNNER_DASHBOARD_TOKEN=TOKEN,
    )  # fmt: skip
    assert served.link == f"http://127.0.0.1:{port}/?token={TOKEN}"
    bearer = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(headers=bearer) as client:
        for host, status in (("jobs.example.com", 200), ("x.example.com:8080", 200), ("evil.example.com", 421)):
            response = await client.get(served.url, headers={"host": host})
            assert response.status_code == status, host
        assert "--allow-host evil.example.com" in response.text
        assert "production &lt;1&gt;" in (await client.get(served.url)).text
        for headers in ({"x-remote-user": "ann"}, {}):
            assert (await client.post(f"{served.url}pause", data={"batch": "shop"}, headers=headers)).status_code == 303
    _, _, err = served.end()
    lines = err.splitlines()[1:]
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "TIME ", line) for line in lines] == [
        "TIME pause shop, by ann: done",
        "TIME pause shop, by a program with the token: done",
    ]


async def test_a_read_only_dashboard_has_no_actions(shop: str, serve: Serve) -> None:
    served = serve(shop, "--read-only")
    async with httpx.AsyncClient(follow_redirects=True) as client:
        assert "read-only" in (await client.get(served.link)).text
        for action in ("pause", "retry", "purge", "stop", "backup"):
            refused = await client.post(served.url + action, data={"batch": "shop", "all": "1"}, headers=SAME_ORIGIN)
            assert refused.status_code in (404, 405), action
    async with Control(shop) as control:
        assert not (await control.status("shop")).batches[0].paused


async def test_several_stores_are_listed_and_each_has_its_pages_actions_and_streams(
    shop: str, new_db: NewDb, serve: Serve
) -> None:
    other = new_db("other.db")
    await asyncio.to_thread(make_store, other, "second <batch>")
    served = serve(shop, other)
    async with httpx.AsyncClient() as client:
        visitor = Visitor(client, served.url)
        first = await visitor.get(served.link)
        assert str(first.url) == served.url
        pages = await visitor.crawl()
        stores = {"/".join(url.split("/")[:4]) + "/" for url in pages if url.count("/") > 3}
        assert len(stores) == 2
        (mine,) = (each for each in stores if "second &lt;batch&gt;" in pages[each].text)
        assert [url for url in pages if "batch=second" in url and not url.startswith(mine)] == []
        assert "second &lt;batch&gt;" in (await visitor.first_event(mine))["html"]
        page = await visitor.press(f"{mine}batch?batch=second+%3Cbatch%3E", "/pause")
        assert "The batch is paused" in page.text
        assert (await visitor.get(mine.rstrip("/"))).url == mine
        assert (await client.get(f"{served.url}unknown")).status_code == 404
    async with httpx.AsyncClient() as stranger:
        for url in ("", *stores):
            assert (await stranger.get(httpx.URL(served.url).join(url))).status_code == 401
    async with Control(other) as control:
        assert (await control.status()).batches[0].paused
    async with Control(shop) as control:
        assert not (await control.status()).batches[0].paused


async def test_a_proxy_may_leave_the_prefix_in_the_paths_or_remove_it(shop: str, serve: Serve) -> None:
    served = serve(shop, "--root-path", "/ops/jobs")
    async with httpx.AsyncClient() as client:
        for start in (f"{served.url}ops/jobs/", served.url):
            visitor = Visitor(client, start)
            first = await visitor.get(f"{start}?token={served.token}")
            assert (first.status_code, str(first.url)) == (200, start)
            assert (await visitor.get(f"{start}batch?batch=shop")).status_code == 200
        assert (await Visitor(client, served.url).get(f"{served.url}ops/jobs")).url == f"{served.url}ops/jobs/"


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
async def test_the_link_to_an_ipv6_address_is_in_brackets(shop: str, serve: Serve) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    served = serve(shop, "--host", "::1")
    assert served.link.startswith("http://[::1]:")
    async with httpx.AsyncClient(follow_redirects=True) as client:
        assert (await client.get(served.link)).status_code == 200


async def test_open_opens_the_link_in_the_browser_and_does_not_wait_for_it(
    shop: str, tmp_path: Path, serve: Serve, until: Until
) -> None:
    program, opened, end = (tmp_path / name for name in ("browser.py", "opened", "end"))
    program.write_text(
        "import pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).with_suffix('.new').write_text(sys.argv[3])\n"
        "pathlib.Path(sys.argv[1]).with_suffix('.new').rename(sys.argv[1])\n"
        "while not pathlib.Path(sys.argv[2]).exists():\n    time.sleep(0.01)\n"
    )
    served = serve(shop, "--open", BROWSER=f"{sys.executable} {program} {opened} {end} %s")
    await until(opened.exists)
    assert opened.read_text() == served.link
    async with httpx.AsyncClient() as client:
        assert (await client.get(served.url)).status_code == 401, "it answers while the browser runs"
    served.process.terminate()
    assert served.process.wait(30) == 0
    end.touch()  # the browser has the streams of the command


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in: give the name under which they reach this one with --allow-host"),
        (["--host", "no such host", "--allow-host", "x"], "cannot listen on no such host, port 8585"),
        (["--port", "70000"], "--port 70000: give at most 65,535"),
        (["--root-path", "jobs"], "--root-path jobs: start it with a slash and end it without one, as in /jobs"),
        (["--root-path", "/jobs/"], "--root-path /jobs/: start it with a slash"),
        (["--label", " "], "label is empty"),
        (["--allow-host", "https://jobs.example.com/"], "give the name of a host, as in 'jobs.example.com'"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line_that_says_what_to_give(arguments: list[str], expected: str, shop: str, call: Call) -> None:
    printed = call("dashboard", shop, *arguments)
    assert (printed.code, printed.out) == (2, "")
    assert expected in printed.err
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("token", ["short", "fifteen-letters", "a token with spaces in it", "t\u00f6ken-with-an-umlaut"])
def test_a_token_that_is_easy_to_guess_or_not_for_a_link_is_refused_and_not_shown(token: str, shop: str, call: Call) -> None:
    printed = call("dashboard", shop, ASYNCRUNNER_DASHBOARD_TOKEN=token)
    assert (printed.code, printed.out) == (2, "")
    assert "a token has at least 16 letters, digits and -._~" in printed.err
    assert token not in printed.err


def test_a_port_in_use_is_named_with_what_to_do(shop: str, call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        printed = call("dashboard", shop, "--port", str(port))
    assert (printed.code, printed.out) == (2, "")
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use; choose others with --port or --host" in printed.err


def test_a_missing_file_is_not_created_and_a_similar_one_is_suggested(file: Path, call: Call) -> None:
    before = sorted(file.parent.iterdir())
    printed = call("dashboard", "job.db")
    assert (printed.code, printed.out) == (2, "")
    assert "job.db" in printed.err.replace("jobs.db", "")
    assert "jobs.db" in printed.err, "the suggestion"
    assert sorted(file.parent.iterdir()) == before


@pytest.mark.parametrize("missing", ["starlette", "jinja2", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(missing: str, shop: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncrunner.cli.commands.dashboard.find_spec", lambda name: None if name == missing else object())
    printed = call("dashboard", shop)
    assert (printed.code, printed.out) == (2, "")
    assert 'the dashboard needs starlette, jinja2 and uvicorn: pip install "asyncrunner[dashboard]"' in printed.err
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("missing", ["starlette", "jinja2"])
def test_the_import_without_the_extra_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom asyncrunner.dashboard import dashboard"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        'ImportError: the dashboard needs starlette and jinja2: pip install "asyncrunner[dashboard]"'
    )


# --- the log and the end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_with_open_streams_within_3_seconds_and_without_an_error(
    number: signal.Signals, shop: str, serve: Serve
) -> None:
    served = serve(shop)
    loop = asyncio.get_running_loop()
    async with httpx.AsyncClient() as client, AsyncExitStack() as stack:
        visitor = Visitor(client, served.url)
        await visitor.get(served.link)
        streams = [
            await stack.enter_async_context(visitor.events(f"{served.url}live?{query}"))
            for query in ("of=overview", "of=batch&batch=shop", "of=overview")
        ]
        for stream in streams:
            await anext(stream)
        began = loop.time()
        code, out, err = await asyncio.to_thread(served.end, number)
        assert loop.time() - began < 3
        for stream in streams:
            async for _ in stream:  # each ends in order; httpx raises an error for one that is cut off
                pass
    assert (code, out) == (0, "")
    assert len(err.splitlines()) == 1, "only the note of the start"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_follows_the_link_immediately_ends_it_with_0(number: signal.Signals, shop: str, serve: Serve) -> None:
    code, out, err = serve(shop).end(number)
    assert (code, out) == (0, "")
    assert len(err.splitlines()) <= 1


async def test_the_second_signal_does_not_wait_for_a_request(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_SHUTDOWN_SECONDS", 3600)
    app = dashboard(db, token=TOKEN)
    ready = asyncio.Event()
    with serving.listen("127.0.0.1", 0) as server:
        port = server.getsockname()[1]
        task = asyncio.create_task(serving.serve(app, server, [app], ready.set))
        await ready.wait()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /pause HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nExpect: 100-continue\r\n"
        writer.write(f"{head}Content-Length: 100\r\n\r\n".encode())
        assert b"100 Continue" in await reader.readline(), "the request waits for its body"
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            try:
                _, other = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                break  # the first signal was handled: the server takes no more connections
            other.close()
            await asyncio.sleep(0.01)
        assert not task.done()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 20)
        writer.close()


async def test_actions_are_logged_with_the_time_and_who_and_the_token_never(shop: str, serve: Serve) -> None:
    served = serve(shop)
    async with httpx.AsyncClient() as client:
        visitor = Visitor(client, served.url)
        await visitor.get(served.link)
        await visitor.press(f"{served.url}batch?batch=shop", "/pause")
        await visitor.press(f"{served.url}item?batch=shop&id=wrong-1", "/retry")
        await visitor.get(f"{served.url}items?token={served.token}&status=nonsense")
        await client.get(f"{served.url}%00?token={served.token}")
        refused = await client.post(f"{served.url}resume?token={served.token}", data={"batch": "shop"})
        assert refused.status_code == 403
    code, out, err = served.end()
    assert (code, out) == (0, "")
    assert len(served.token) >= 32
    assert served.token not in err
    lines = err.splitlines()[1:]
    assert len(lines) == 2, err
    for line, what in zip(
        lines, ("pause shop, by a browser with the token: done", "retry item wrong-1 of shop, by a browser"), strict=True
    ):
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", line)
        assert what in line
