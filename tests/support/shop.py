"""A shop with a past: batches that failed for several causes, one that runs, and two weeks of history, for pictures."""

from __future__ import annotations

import asyncio
import math
import random
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Final

from asyncrunner import Fail, RetryPolicy, Runner, run_batch

SHOP_PAGES: Final = {
    "overview": "",
    "batch": "batch?batch=prices%3Afetch&span=24h",
    "causes": "causes",
    "item": "item?batch=prices%3Afetch&id=sku-1035",
}
"""The pages worth a picture, by name."""

_MINUTES: Final = 14 * 24 * 60


async def fetch_price(item: dict[str, object]) -> dict[str, object]:
    number = int(str(item["sku"]))
    if number % 23 == 0:
        raise TimeoutError(f"shop-{number % 3}.example.com did not answer within 10 s")
    if number % 41 == 0:
        raise Fail("404 Not Found: the product does not exist")
    if number % 97 == 0:
        raise KeyError("price")
    return {"sku": number, "price": number * 3.5, "currency": "EUR"}


# The pictures show the names of the shop's own module and file.
fetch_price.__module__ = "prices"
fetch_price.__code__ = fetch_price.__code__.replace(co_filename="/srv/shop/prices.py")


async def send_mail(item: dict[str, object]) -> None:
    """Send nothing."""


async def write_report(number: int) -> int:
    await asyncio.Event().wait()
    return number


@asynccontextmanager
async def open_shop(db: str) -> AsyncIterator[None]:
    """Fill *db*, and keep a worker alive that runs reports until the end of the ``async with`` block."""
    prices: list[dict[str, object]] = [
        {"sku": number, "url": f"https://shop-{number % 3}.example.com/products/{number}"} for number in range(1, 2401)
    ]
    retry = RetryPolicy(initial=0)
    await run_batch(
        prices, fetch_price, db=db, batch="prices:fetch", key=lambda item: f"sku-{item['sku']}", max_attempts=2, retry=retry
    )
    mails: list[dict[str, object]] = [{"to": f"customer-{number}@example.com"} for number in range(180)]
    await run_batch(mails, send_mail, db=db, batch="mails:welcome", key="to")
    runner = Runner(db, concurrency=8, shutdown_timeout=0)
    reports = runner.handler(batch="reports:nightly")(write_report)
    async with runner:
        await reports.submit_many(range(40))
        await asyncio.to_thread(_write_past, db)
        yield


def _write_past(db: str) -> None:
    now = int(time.time() // 60 * 60)
    chance = random.Random(7)
    with closing(sqlite3.connect(db)) as connection, connection:
        for batch_id, most in ((1, 1_400), (2, 300)):
            rows: list[tuple[int, int, int, int, int, float]] = []
            for ago in range(1, _MINUTES):
                day = 1.2 + math.sin(ago / 1440 * 2 * math.pi)
                completed = int(most * day * chance.uniform(0.7, 1.1))
                failed = int(completed * max(0.0, 0.1 * math.sin(ago / 17)))
                seconds = completed * (0.3 + 0.08 * math.sin(ago / 60)) if batch_id == 1 else completed * 0.05
                rows.append((batch_id, now - 60 * ago, completed, failed, failed // 2, seconds))
            statement = (
                "INSERT OR REPLACE INTO minutes (batch_id, minute, completed, failed, retried, seconds) VALUES (?, ?, ?, ?, ?, ?)"
            )
            connection.executemany(statement, rows)
