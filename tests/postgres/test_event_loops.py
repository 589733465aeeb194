"""A runner on a server whose event loop was closed while it ran."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from asyncrunner import Runner
from tests.support.kinds import KINDS
from tests.support.state import rows_of


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the closed loop left its connections open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_runner_whose_loop_was_closed_can_be_started_again(server_dsn: str, tmp_path: Path) -> None:
    db = KINDS["postgres"].new_location(tmp_path, "jobs.db")
    runner = Runner(db)
    started: list[int] = []

    @runner.handler(batch="b")
    async def handler(n: int) -> int:
        started.append(n)
        if len(started) == 1:
            await asyncio.Event().wait()
        return n

    async def begin() -> None:
        await runner.start()
        await handler.submit(1, key=1)
        while not started:
            await asyncio.sleep(0)

    async def again() -> tuple[int, int]:
        async with runner:
            return await (await handler.handle(1)).result(30), await (await handler.submit(2, key=2)).result(30)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    assert asyncio.run(again()) == (1, 2)
    gc.collect()
    assert asyncio.run(again()) == (1, 2)
    assert rows_of(db, "SELECT id, status, attempts, crashes FROM items ORDER BY seq") == [
        ("1", "completed", 1, 0),
        ("2", "completed", 1, 0),
    ]
