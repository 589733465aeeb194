"""Checkpoints of a handler for the next attempt, and the error of a save whose claim is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.from_thread
import pytest

from asyncrunner import Attempt, CheckpointNotStorable, ClaimLost, Runner, current_attempt
from asyncrunner.execution.attempt import MAX_CHECKPOINT_BYTES
from asyncrunner.runner.runner import internals_of, run_until_idle
from asyncrunner.testing import FakeClock
from tests.conftest import Until
from tests.support.state import execute, rows_of
from tests.support.stores import Overridden

InMemory = Callable[[Runner], Awaitable[FakeClock]]


async def test_the_next_attempt_reads_the_checkpoint_of_the_last_one(run_in_memory: InMemory) -> None:
    runner = Runner()
    seen: list[Any] = []

    @runner.handler(max_attempts=3, batch="handler")
    async def handler(number: int) -> int:
        attempt = current_attempt()
        seen.append((attempt.number, attempt.checkpoint))
        await attempt.save({"page": attempt.number})
        await attempt.save({"page": attempt.number * 10, "é": None})
        seen.append(attempt.checkpoint)
        if attempt.number < 3:
            raise ValueError("again")
        return 1

    await run_in_memory(runner)
    handle = await handler.submit(1)
    await run_until_idle(runner)
    assert await handle.result() == 1
    assert seen == [
        (1, None), {"page": 10, "é": None}, (2, {"page": 10, "é": None}), {"page": 20, "é": None},
        (3, {"page": 20, "é": None}), {"page": 30, "é": None},
    ]  # fmt: skip


async def test_it_is_durable_when_save_returns_and_survives_a_stop(db: str, until: Until) -> None:
    runner = Runner(db, shutdown_timeout=0)
    saved: list[Any] = []

    @runner.handler(batch="handler")
    async def handler(number: int) -> None:
        attempt = current_attempt()
        saved.append(attempt.checkpoint)
        if attempt.checkpoint is None:
            await attempt.save([1, 2])
            saved.append("done")
            await asyncio.Event().wait()

    async with runner:
        await handler.submit(1)
        await until(lambda: "done" in saved)
        assert rows_of(db, "SELECT checkpoint, status FROM items") == [("[1,2]", "processing")]
    async with runner:
        await run_until_idle(runner)
    assert saved == [None, "done", [1, 2]]


class Counting(Overridden):
    turns = 0

    async def turn(self, worker_id: str, settlements: Any, wants: Any, *, checkpoints: Any = ()) -> Any:
        self.turns += bool(checkpoints)
        return await super().turn(worker_id, settlements, wants, checkpoints=checkpoints)


async def test_handlers_that_save_together_share_transactions(db: str) -> None:
    store = Counting(db)
    runner = Runner(db, store=store, concurrency=50)

    @runner.handler
    async def handler(number: int) -> None:
        for step in range(10):
            await current_attempt().save(step)

    async with runner:
        await handler.submit_many(range(50))
        await run_until_idle(runner)
    assert rows_of(db, "SELECT DISTINCT checkpoint FROM items") == [("9",)]
    assert store.turns < 250  # of 500 saves


async def test_checkpoints_that_wait_for_one_turn_are_one_write_of_the_last(run_in_memory: InMemory) -> None:
    runner = Runner()
    seen: list[Any] = []

    @runner.handler(max_attempts=2, batch="handler")
    async def handler(number: int) -> None:
        attempt = current_attempt()
        seen.append(attempt.checkpoint)
        await asyncio.gather(*(attempt.save(step) for step in range(5)))
        raise ValueError

    await run_in_memory(runner)
    await handler.submit(1)
    await run_until_idle(runner)
    assert seen == [None, 4]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "plain JSON"),
        ({1: 2}, "is not a str"),
        (float("nan"), "NaN"),
        ("x" * (MAX_CHECKPOINT_BYTES + 1), "keep it within 65,536"),
    ],
)
async def test_a_checkpoint_that_cannot_be_stored_is_an_error_of_the_handler(
    value: Any, said: str, run_in_memory: InMemory
) -> None:
    runner = Runner()
    caught: list[str] = []

    @runner.handler(batch="handler")
    async def handler(number: int) -> None:
        try:
            await current_attempt().save(value)
        except CheckpointNotStorable as error:
            caught.append(str(error))

    await run_in_memory(runner)
    await handler.submit(1)
    await run_until_idle(runner)
    assert len(caught) == 1
    assert said in caught[0]


async def test_a_def_handler_saves_from_its_thread(run_in_memory: InMemory) -> None:
    runner = Runner()

    @runner.handler(max_attempts=2)
    def handler(number: int) -> Any:
        attempt = current_attempt()
        if attempt.number == 1:
            anyio.from_thread.run(attempt.save, "half")
            raise ValueError
        return attempt.checkpoint

    await run_in_memory(runner)
    handle = await handler.submit(1)
    await run_until_idle(runner)
    assert await handle.result() == "half"


async def test_after_its_end_an_attempt_saves_no_checkpoint(run_in_memory: InMemory) -> None:
    runner = Runner()
    attempts: list[Attempt] = []

    @runner.handler(batch="handler")
    async def handler(number: int) -> None:
        attempts.append(current_attempt())

    await run_in_memory(runner)
    await handler.submit(1)
    await run_until_idle(runner)
    with pytest.raises(LookupError, match="while the attempt runs"):
        await attempts[0].save(1)


async def test_an_attempt_has_its_key_number_and_batch(run_in_memory: InMemory) -> None:
    runner = Runner()
    seen: list[Any] = []

    @runner.handler(batch="b", max_attempts=2, timeout=30)
    async def handler(number: int) -> None:
        attempt = current_attempt()
        assert attempt.deadline is not None
        seen.append(
            (
                attempt.number,
                attempt.key,
                attempt.idempotency_key,
                attempt.is_last,
                attempt.deadline - internals_of(runner).clock.monotonic(),
            )
        )
        raise ValueError

    await run_in_memory(runner)
    await handler.submit(1, key="k")
    await run_until_idle(runner)
    assert seen == [(1, "k", "b/k", False, 30.0), (2, "k", "b/k", True, 30.0)]


# --- a claim that is lost --------------------------------------------------------------------------------------------


async def test_a_handler_whose_claim_is_lost_is_cancelled_with_the_reason(
    db: str, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Runner(db)
    said: list[str] = []
    running: list[int] = []
    lost: list[ClaimLost] = []
    release = asyncio.Event()

    @runner.handler(batch="b")
    async def handler(number: int) -> str:
        running.append(number)
        if len(running) > 1:
            return "the second"
        try:
            await release.wait()
        except asyncio.CancelledError as error:
            said.append(str(error))
            try:
                await current_attempt().save("too late")
            except ClaimLost as error:
                lost.append(error)
            raise
        return "the first"

    with caplog.at_level(logging.WARNING):
        async with runner:
            handle = await handler.submit(1, key=1)
            await until(lambda: running)
            execute(db, "UPDATE items SET status = 'pending', worker_id = NULL WHERE status = 'processing'")
            assert await handle.result(20) == "the second"
            await until(lambda: said)
    assert said == ["the attempt lost its claim: the item may run again elsewhere, and the result of this attempt is dropped"]
    assert "nothing was saved" in str(lost[0])
    record = next(record for record in caplog.records if "lost its claim" in record.message)
    assert (record.item, record.batch, record.attempt) == ("1", "b", 1)  # type: ignore[attr-defined]
    assert rows_of(db, "SELECT result, checkpoint FROM items") == [('"the second"', None)]


async def test_cancelling_one_of_many_leaves_the_others_alone(db: str, until: Until) -> None:
    runner = Runner(db, concurrency=20)
    running: set[int] = set()
    cancelled: list[int] = []
    release = asyncio.Event()

    @runner.handler(batch="handler")
    async def handler(number: int) -> None:
        running.add(number)
        try:
            await release.wait()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    async with runner:
        handles = await handler.submit_many(range(20))
        await until(lambda: len(running) == 20)
        await handles[7].cancel()
        await until(lambda: cancelled)
        release.set()
        await asyncio.gather(*(handle.result(20) for handle in handles if handle is not handles[7]))
    assert cancelled == [7]


async def test_a_handler_that_swallows_its_cancellation_is_left_behind(run_in_memory: InMemory, until: Until) -> None:
    runner = Runner(concurrency=1)
    running: list[int] = []

    @runner.handler(batch="handler")
    async def handler(number: int) -> None:
        running.append(number)
        while number == 1:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    clock = await run_in_memory(runner)
    first = await handler.submit(1)
    await until(lambda: running)
    assert await first.cancel()
    second = await handler.submit(2)
    for _ in range(100):
        await clock.leap(1)
        if running == [1, 2]:
            break
        await asyncio.sleep(0.01)
    await second.result(20)
