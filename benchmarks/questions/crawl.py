"""Does a crawl survive kill -9, and what does that cost?

The example crawler runs against the flaky server and is killed ``--kills`` times. Then its database is compared with the
server's request log: every existing page answered 200 and is completed once, and only pages that were in flight at a kill were
requested again. Exits 1 if this does not hold. ``python -m benchmarks crawl [--pages N] [--kills N]``
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncrunner.examples.flaky_server import url_of
from benchmarks.harness.figures import Benchmark, Result, figure
from benchmarks.harness.measuring import scratch

__all__ = ["BENCHMARK"]

CONCURRENCY = 100


def completed(db: Path) -> int:
    """Return the number of completed pages in the database; 0 if there is no file yet."""
    if not db.exists():
        return 0
    return int(query(db, "SELECT count(*) FROM items WHERE status = 'completed'")[0][0])


def query(db: Path, statement: str) -> list[Any]:
    """Run *statement* on a new read-only connection and return all rows."""
    connection = sqlite3.connect(f"file:{db}?mode=ro", uri=True)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def crawl_with_kills(folder: Path, pages: int, kills: int) -> list[int]:
    """Kill the crawler *kills* times, then let it finish. Returns the number of completed pages at each kill."""
    command = [sys.executable, "-m", "asyncrunner.examples.crawler", "urls.txt", "--concurrency", str(CONCURRENCY)]
    killed_at: list[int] = []
    for kill in range(kills):
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while completed(folder / "crawl.db") < pages * (kill + 1) // (kills + 1):
            if process.poll() is not None:
                raise SystemExit("the crawler ended before it was killed")
            time.sleep(0.05)
        process.kill()
        process.wait()
        killed_at.append(completed(folder / "crawl.db"))
    quiet = subprocess.DEVNULL
    subprocess.run(command, cwd=folder, stdin=quiet, stdout=quiet, stderr=quiet, check=False)
    return killed_at


def compare(folder: Path, pages: int, killed_at: list[int], seconds: float) -> Result:
    """Compare the server's request log with the database."""
    db = folder / "crawl.db"
    lines = [line.split(maxsplit=3) for line in (folder / "requests.log").read_text().splitlines()]
    answers = Counter(answer for *_, answer in lines)
    good = Counter(int(page) for _, page, _, answer in lines if answer == "200")
    existing = {page for page in range(pages) if page % 1000 != 7}
    states: dict[str, int] = dict(query(db, "SELECT status, count(*) FROM items GROUP BY status"))
    titles = query(db, "SELECT id, json_extract(result, '$.title') FROM items WHERE status = 'completed'")
    correct = sum(title == f"Page {url.rpartition('/')[2]}" for url, title in titles)
    extra = sum(good.values()) - len(good)
    checks = {
        "every existing page is completed": states.get("completed") == len(existing) == correct,
        "every missing page failed": states.get("failed", 0) == pages - len(existing),
        "every completed page answered 200": set(good) == existing,
        "pages fetched again: at most those in flight at a kill": extra <= CONCURRENCY * len(killed_at) * 2,
        "integrity_check": query(db, "PRAGMA integrity_check") == [("ok",)],
    }
    crashes = query(db, "SELECT count(*) FROM items WHERE crashes > 0")[0][0]
    notes = [
        f"kill -9 at {', '.join(f'{n:,}' for n in killed_at)} completed; items in flight at a kill: {crashes}",
        f"states: {states}; requests: {len(lines):,}; answers: {dict(answers.most_common())}",
        *(f"{'ok  ' if holds else 'NOT '} {check}" for check, holds in checks.items()),
    ]
    figures = [
        figure("pages fetched again, of all", "%", [100 * extra / len(good)], lower_is_better=True),
        figure("pages, the kills included", "items/s", [pages / seconds]),
    ]
    return Result(figures, notes=notes, broken=[check for check, holds in checks.items() if not holds])


@dataclass(frozen=True)
class Size:
    pages: int = 20_000
    kills: int = 2


def measure(size: Size) -> Result:
    """Start the server, run the crawler with kills, and compare."""
    with scratch() as folder:
        server = subprocess.Popen(
            [sys.executable, "-m", "asyncrunner.examples.flaky_server", "--log", "requests.log"],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert server.stdout is not None
        try:
            base = server.stdout.readline().strip()
            (folder / "urls.txt").write_text("".join(f"{url_of(base, page)}\n" for page in range(size.pages)))
            began = time.monotonic()
            killed_at = crawl_with_kills(folder, size.pages, size.kills)
            return compare(folder, size.pages, killed_at, time.monotonic() - began)
        finally:
            server.kill()
            server.wait()
            server.stdout.close()


BENCHMARK = Benchmark("Does a crawl survive kill -9, and what does that cost?", Size(), Size(pages=300, kills=1), measure)
