"""stream_batch: outcomes as they are committed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncrunner import Fail, StoreError, run_batch, stream_batch
from tests.conftest import Until
from tests.support.state import rows_of


async def double(number: int) -> int:
    if number == 3:
        raise Fail("three")
    return 2 * number


async def test_each_outcome_comes_once(db: str) -> None:
    async with stream_batch(range(300), double, db=db) as outcomes:
        got = [(outcome.id, outcome.result) async for outcome in outcomes]
    assert sorted(got) == sorted((str(n), None if n == 3 else 2 * n) for n in range(300))


async def test_earlier_outcomes_come_first_in_input_order(db: str) -> None:
    await run_batch(range(50), double, db=db)
    async with stream_batch(range(60), double, db=db) as outcomes:
        got = [int(outcome.id) async for outcome in outcomes]
    assert got[:50] == list(range(50))
    assert sorted(got[50:]) == list(range(50, 60))


async def test_leaving_early_releases_unfinished_items(db: str) -> None:
    async def slow(number: int) -> int:
        await asyncio.sleep(0 if number == 0 else 60)
        return number

    async with stream_batch(range(20), slow, db=db, shutdown_timeout=0.01) as outcomes:
        assert (await anext(aiter(outcomes))).id == "0"
    assert rows_of(db, "SELECT status, attempts, count(*) FROM items GROUP BY 1, 2 ORDER BY 1") == [
        ("completed", 1, 1),
        ("pending", 0, 19),
    ]


async def test_a_stream_that_ends_with_an_error_leaves_no_handler_running(db: str) -> None:
    async def forever(number: int) -> None:
        await asyncio.Event().wait()

    with pytest.raises(KeyError):
        async with stream_batch(range(20), forever, db=db):
            await asyncio.sleep(0.05)
            raise KeyError
    assert rows_of(db, "SELECT DISTINCT status, attempts FROM items") == [("pending", 0)]


async def test_few_items_run_beyond_a_slow_consumer(db: str, until: Until) -> None:
    ran = 0

    async def handler(number: int) -> None:
        nonlocal ran
        ran += 1

    taken = 0
    async with stream_batch(range(3000), handler, db=db, concurrency=10, batch="handler") as outcomes:
        async for _ in outcomes:
            taken += 1
            if taken == 1:
                await until(lambda: ran >= 20)  # two for each slot
            elif taken == 6:
                assert ran <= 26
            elif taken == 21:  # the consumer took a whole window, so the window is twice as large
                await until(lambda: ran >= 40)
                assert ran <= 61
                break
    rest: list[str] = []
    async with stream_batch(range(3000), handler, db=db, concurrency=10, batch="handler") as outcomes:
        async for outcome in outcomes:
            rest.append(outcome.id)
    assert (len(rest), len(set(rest)), ran) == (3000, 3000, 3000)


async def test_few_items_run_before_the_consumer_takes_the_first_outcome(db: str, until: Until) -> None:
    ran = 0

    async def handler(number: int) -> None:
        nonlocal ran
        ran += 1

    async with stream_batch(range(3000), handler, db=db, concurrency=10, batch="handler") as outcomes:
        await until(lambda: ran >= 20)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert ran == 20
        assert len([outcome async for outcome in outcomes]) == 3000


async def test_a_consumer_that_leaves_early_has_let_few_items_run(db: str) -> None:
    ran = 0

    async def handler(number: int) -> None:
        nonlocal ran
        ran += 1

    taken = 0
    async with stream_batch(range(10_000), handler, db=db, concurrency=10, batch="handler") as outcomes:
        async for _ in outcomes:
            taken += 1
            if taken == 6:
                break
    assert ran <= 26


async def test_an_error_of_the_source_comes_after_the_outcomes_before_it(db: str) -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise OSError("gone")

    got: list[str] = []
    with pytest.raises(OSError, match="gone"):
        async with stream_batch(source(), double, db=db) as outcomes:
            async for outcome in outcomes:
                got.append(outcome.id)
    assert sorted(got) == ["0", "1", "2"]


@pytest.mark.sqlite_file
async def test_the_error_that_ended_the_engine_is_raised(db: str, until: Until) -> None:
    started: list[int] = []

    async def forever(number: int) -> None:
        started.append(number)
        await asyncio.Event().wait()

    with pytest.raises(StoreError, match="deleted, moved or replaced"):
        async with stream_batch([1], forever, db=db, batch="forever") as outcomes:
            await until(lambda: started)
            Path(db).rename(f"{db}.moved")
            async for _ in outcomes:
                pass
