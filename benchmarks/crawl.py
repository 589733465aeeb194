"""Does a crawl survive kill -9, and what does that cost?

``python -m benchmarks.crawl [--pages 20000] [--kills 2]`` runs the crawler of the examples against its flaky server, kills it
in the middle as often as asked, and compares the server's own log with the database: every page that is there answered 200 and
is completed once, and only what was in flight at a kill was asked for again. Exits 1 if that does not hold.
"""

from __future__ import annotations

import argparse
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from asyncrunner.examples.flaky_server import url_of
from benchmarks.machine import describe_machine

CONCURRENCY = 100


def completed(db: Path) -> int:
    """How many pages the database says are completed."""
    if not db.exists():
        return 0
    return int(query(db, "SELECT count(*) FROM items WHERE status = 'completed'")[0][0])


def query(db: Path, statement: str) -> list[Any]:
    """Ask the file with a connection of its own."""
    connection = sqlite3.connect(f"file:{db}?mode=ro", uri=True)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def crawl_with_kills(folder: Path, pages: int, kills: int) -> list[int]:
    """Run the crawler to its end, killed *kills* times; returns how many pages were completed at each kill."""
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
    subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, check=False)
    return killed_at


def report(folder: Path, pages: int, killed_at: list[int], seconds: float) -> bool:
    """Compare and print; returns whether everything held."""
    db = folder / "crawl.db"
    lines = [line.split(maxsplit=3) for line in (folder / "requests.log").read_text().splitlines()]
    answers = Counter(answer for *_, answer in lines)
    good = Counter(int(page) for _, page, _, answer in lines if answer == "200")
    there = {page for page in range(pages) if page % 1000 != 7}
    states: dict[str, int] = dict(query(db, "SELECT status, count(*) FROM items GROUP BY status"))
    right = query(db, "SELECT count(*) FROM items WHERE json_extract(result, '$.title') = 'Page ' || (seq - 1)")[0][0]
    extra = sum(good.values()) - len(good)
    checks = {
        "every page that is there is completed": states.get("completed") == len(there) == right,
        "every page that is not there failed": states.get("failed", 0) == pages - len(there),
        "every completed page answered 200": set(good) == there,
        "pages fetched again: at most what was in flight at a kill": extra <= CONCURRENCY * len(killed_at) * 2,
        "integrity_check": query(db, "PRAGMA integrity_check") == [("ok",)],
    }
    crashes = query(db, "SELECT count(*) FROM items WHERE crashes > 0")[0][0]
    print(describe_machine())
    print(
        f"{pages:,} pages, {CONCURRENCY} at once, {seconds:.0f} s; kill -9 at {', '.join(f'{n:,}' for n in killed_at)} completed"
    )
    print(f"states: {states}; items in flight at a kill: {crashes}")
    print(f"requests: {len(lines):,}; answers: {dict(answers.most_common())}")
    print(f"200 answers: {sum(good.values()):,} for {len(good):,} pages: {extra} extra")
    for check, held in checks.items():
        print(f"{'ok  ' if held else 'NOT '} {check}")
    return all(checks.values())


def main() -> None:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = subprocess.Popen(
            [sys.executable, "-m", "asyncrunner.examples.flaky_server", "--log", "requests.log"],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert server.stdout is not None
        try:
            base = server.stdout.readline().strip()
            (folder / "urls.txt").write_text("".join(f"{url_of(base, page)}\n" for page in range(options.pages)))
            began = time.monotonic()
            killed_at = crawl_with_kills(folder, options.pages, options.kills)
            held = report(folder, options.pages, killed_at, time.monotonic() - began)
        finally:
            server.kill()
            server.wait()
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
