"""Log records name the item, the batch and the attempt that they are about."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from asyncrunner import AttemptFilter, Runner
from asyncrunner.runner.runner import run_until_idle
from asyncrunner.testing import FakeClock
from tests.support.handlers import failing_once

if TYPE_CHECKING:
    import pytest

InMemory = Callable[[Runner], Awaitable[FakeClock]]


async def test_log_records_name_their_item_batch_and_attempt(run_in_memory: InMemory, caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner()
    handler = failing_once(runner)
    caplog.handler.addFilter(AttemptFilter())
    logging.getLogger("mine").setLevel(logging.DEBUG)
    with caplog.at_level(logging.DEBUG, logger="asyncrunner"):
        await run_in_memory(runner)
        await handler.submit(13, key=13)
        await run_until_idle(runner)
    logging.getLogger("mine").warning("outside")
    found = [
        (record.name, record.levelname, record.item, record.batch, record.attempt, record.getMessage())  # type: ignore[attr-defined]
        for record in caplog.records
        if record.name in ("asyncrunner.items", "mine")
    ]
    assert found == [
        ("asyncrunner.items", "DEBUG", "13", "b", 1, "item '13' of 'b', attempt 1: started"),
        ("mine", "INFO", "13", "b", 1, "working"),
        (
            "asyncrunner.items",
            "INFO",
            "13",
            "b",
            1,
            "item '13' of 'b', attempt 1: retry in 0 s at the earliest: ValueError: once",
        ),
        ("asyncrunner.items", "DEBUG", "13", "b", 2, "item '13' of 'b', attempt 2: started"),
        ("mine", "INFO", "13", "b", 2, "working"),
        ("asyncrunner.items", "WARNING", "13", "b", 2, "item '13' of 'b', attempt 2: failed: Fail: never"),
        ("mine", "WARNING", None, None, None, "outside"),
    ]
