"""The crawler against the flaky server, as real processes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from asyncrunner.examples.crawler import crawl
from asyncrunner.examples.flaky_server import url_of

PAGES = 300


class Server:
    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "asyncrunner.examples.flaky_server", "--log", "requests.log", *options],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        (folder / "urls.txt").write_text("".join(f"{url_of(self.url, page)}\n" for page in range(PAGES)))

    def requests(self) -> list[tuple[float, int, str]]:
        lines = (line.split(maxsplit=3) for line in (self.folder / "requests.log").read_text().splitlines())
        return [(float(at), int(page), answer) for at, page, _, answer in lines]

    def query(self, query: str) -> list[Any]:
        connection = sqlite3.connect(self.folder / "crawl.db")
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, *getattr(request, "param", ()))
    yield made
    made.process.terminate()
    made.process.communicate()


def check(server: Server) -> Counter[int]:
    """Check that every page except the missing one is completed; return how often each answered 200."""
    assert server.query("SELECT status, count(*) FROM items GROUP BY status") == [("completed", PAGES - 1), ("failed", 1)]
    assert server.query("SELECT error, attempts, permanent FROM items WHERE status = 'failed'") == [("Fail: 404 Not Found", 1, 1)]
    assert server.query("SELECT count(*) FROM items WHERE json_extract(result, '$.title') = 'Page ' || (seq - 1)") == [
        (PAGES - 1,)
    ]
    answered = Counter(page for _, page, answer in server.requests() if answer == "200")
    assert set(answered) == set(range(PAGES)) - {7}
    return answered


@pytest.mark.parametrize("server", [("--trouble", "0.5")], indirect=True)
async def test_every_page_is_fetched_once_and_a_retry_after_is_obeyed(server: Server) -> None:
    report = await crawl(server.folder / "urls.txt", server.folder / "crawl.db", 50, progress=False)
    assert (report.completed, report.failed) == (PAGES - 1, 1)
    assert max(check(server).values()) == 1
    by_page: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for at, page, answer in server.requests():
        by_page[page].append((at, answer))
    waits = [(answer, again - at) for requests in by_page.values() for (at, answer), (again, _) in pairwise(requests)]
    obeyed = [(answer, wait) for answer, wait in waits if answer.startswith("429")]
    assert len(obeyed) > 20
    assert {answer for answer, _ in obeyed} == {"429 in seconds", "429 as a date"}
    assert min(wait for _, wait in obeyed) >= 0.99
    assert {"503", "dropped", "silent"} <= {answer for answer, _ in waits}


def test_a_killed_crawler_continues_at_its_next_start(server: Server) -> None:
    command = [sys.executable, "-m", "asyncrunner.examples.crawler", "urls.txt", "--concurrency", "20"]
    process = subprocess.Popen(
        command, cwd=server.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=dict(os.environ),
    )  # fmt: skip
    give_up_at = time.monotonic() + 30
    while not _completed(server) >= PAGES // 3:
        assert time.monotonic() < give_up_at
        time.sleep(0.005)
    process.kill()
    process.wait()
    before = {key for (key,) in server.query("SELECT id FROM items WHERE status = 'completed'")}
    killed_at = time.monotonic()
    done = subprocess.run(command, cwd=server.folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr  # one page is missing
    assert f"{PAGES - 1 - len(before)} fetched, {len(before)} already fetched, 1 failed" in done.stderr
    assert "1 x Fail: 404 Not Found, for example " in done.stderr
    check(server)
    again = {url_of(server.url, page) for at, page, _ in server.requests() if at > killed_at}
    assert again & before == set()


def _completed(server: Server) -> int:
    if not (server.folder / "crawl.db").exists():
        return 0
    return int(server.query("SELECT count(*) FROM items WHERE status = 'completed'")[0][0])
