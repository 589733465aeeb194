"""A polite crawler: ``python -m asyncrunner.examples.crawler urls.txt --db crawl.db``, one URL per line.

If the crawler is killed, run it again to continue. A page that is gone (404, 410) fails permanently. A page that
answers 429 or 503, breaks the connection or takes too long is retried, but not before the time in the answer's
Retry-After header. The command line does the same, with a progress bar and its other options::

    asyncrunner run asyncrunner.examples.crawler:fetch urls.txt --setup asyncrunner.examples.crawler:client
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import re
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from asyncrunner import BatchReport, Fail, RetryPolicy, run_batch

__all__ = ["Page", "crawl", "fetch"]
_GONE_STATUSES = (404, 410)


@dataclass
class Page:
    """The stored result of a page."""

    status: int
    size: int
    title: str | None
    sha256: str


@asynccontextmanager
async def client() -> AsyncGenerator[httpx.AsyncClient]:
    """Open the client that all handlers share, so that they reuse connections, and close it after the last handler."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    timeout = httpx.Timeout(10, read=3)
    async with httpx.AsyncClient(timeout=timeout, limits=limits, follow_redirects=True, trust_env=False) as shared:
        yield shared


async def fetch(url: str, client: httpx.AsyncClient) -> Page:
    """Fetch one page. asyncrunner reads the Retry-After of the error that httpx raises."""
    response = await client.get(url)
    if response.status_code in _GONE_STATUSES:
        raise Fail(f"{response.status_code} {response.reason_phrase}")
    response.raise_for_status()
    title = re.search(r"<title>(.*?)</title>", response.text)
    digest = hashlib.sha256(response.content).hexdigest()
    return Page(response.status_code, len(response.content), title[1] if title else None, digest)


async def crawl(urls: str | Path, db: str | Path, concurrency: int, *, progress: bool = True) -> BatchReport[str, Page]:
    """Fetch every URL of a file that has not been fetched yet."""

    def lines() -> Iterator[str]:
        with Path(urls).open() as file:
            yield from filter(None, map(str.strip, file))

    return await run_batch(
        lines(),
        fetch,
        setup=client,
        db=db,
        batch="pages",
        concurrency=concurrency,
        max_attempts=8,
        retry=RetryPolicy(initial=0.2, cap=5),
        timeout=30,
        progress=progress,
    )


def main() -> None:
    """Crawl, then print a summary; the exit code is 1 if pages failed."""
    parser = argparse.ArgumentParser(description="Fetch every URL of a file, and continue after a crash.")
    parser.add_argument("urls")
    parser.add_argument("--db", default="crawl.db")
    parser.add_argument("--concurrency", type=int, default=100)
    options = parser.parse_args()
    report = asyncio.run(crawl(options.urls, options.db, options.concurrency))
    print(f"{report.completed} fetched, {report.skipped} already fetched, {report.failed} failed", file=sys.stderr)  # noqa: T201
    for group in report.failures:
        print(f"  {group.items} x {group.error}, for example {group.example}", file=sys.stderr)  # noqa: T201
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
