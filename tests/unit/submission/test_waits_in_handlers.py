"""A handler that waits for an item, or runs a batch: an error if that would never end, and only then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncrunner import BlockingClient, Client, ItemFailed, Runner, run_batch
from asyncrunner.runner.runner import internals_of
from tests.conftest import Until

TIMEOUT = 60


async def test_row_58_run_batch_in_a_handler_of_its_own_batch_is_an_error(db: str) -> None:
    async def inner(n: int) -> Any:
        report = await run_batch([n + 10], outer, db=db, batch="outer", max_attempts=1)
        return report.completed

    async def outer(n: int) -> Any:
        if n == 1:
            await run_batch([2], outer, db=db, batch="outer")
        if n == 3:
            report = await run_batch([n], inner, db=db, batch="inner", max_attempts=1)
            report.raise_for_failures()
        report = await run_batch([n], other, db=db, batch="other")  # another batch works
        return report.completed

    async def other(n: int) -> int:
        return n

    async with asyncio.timeout(TIMEOUT):
        report = await run_batch([1, 2, 3], outer, db=db, batch="outer", max_attempts=1)
    outcomes = {outcome.item: outcome async for outcome in report.outcomes()}
    assert "a handler of 'outer' cannot run the batch 'outer'" in str(outcomes[1].error)
    assert outcomes[2].result == 1
    assert "BatchFailed" in str(outcomes[3].error)  # through a run of another batch


@pytest.mark.parametrize("client", ["client", "blocking"])
async def test_row_58_a_wait_through_a_client_is_checked(client: str, db: str) -> None:
    runner = Runner(db, concurrency=1)

    if client == "client":

        @runner.handler(batch="b", max_attempts=1)
        async def handler(n: int) -> int:
            async with Client(db) as client:
                return int(await (await client.submit("b", n + 1)).result())
    else:

        @runner.handler(batch="b", max_attempts=1)
        def handler(n: int) -> int:
            with BlockingClient(db) as client:
                return int(client.submit("b", n + 1).result())

    async with runner:
        with pytest.raises(ItemFailed, match="would never end"):
            await (await handler.submit(1)).result(TIMEOUT)
        runner.request_cancel()


async def test_row_58_an_item_that_another_worker_runs_may_be_awaited(db: str, until: Until) -> None:
    first, second = Runner(db, concurrency=1), Runner(db, concurrency=1)
    started: list[int] = []
    release = asyncio.Event()

    @first.handler(batch="b", max_attempts=1)
    async def elsewhere(n: int) -> int:
        started.append(n)
        await release.wait()
        return n

    @second.handler(batch="b", max_attempts=1)
    async def waits(n: int) -> int:
        waiting = asyncio.ensure_future((await waits.handle("first")).result())
        worker = internals_of(second).worker
        await until(lambda: waiting.done() or (worker is not None and len(worker.result_waits) == 1))
        release.set()
        return await waiting + n

    async with first:
        await elsewhere.submit(1, key="first")
        await until(lambda: started == [1])
        async with second:
            assert await (await waits.submit(2)).result(TIMEOUT) == 3
