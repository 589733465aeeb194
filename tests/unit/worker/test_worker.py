"""The worker and its slots on a real store, with handlers that wait for the test."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from asyncrunner import ItemCancelled, Runner, Status, run_batch
from asyncrunner.backends import open_engine
from asyncrunner.domain.outcome import ErrorInfo
from asyncrunner.events import Settled
from asyncrunner.execution.executor import AttemptExecutor
from asyncrunner.runner.runner import internals_of, run_until_idle
from asyncrunner.store.items import Mark
from asyncrunner.store.turn import Turn, Want
from tests.conftest import Until
from tests.support.state import counts, execute, rows_of
from tests.support.stores import Overridden


class Watching(Overridden):
    """A store that records the arguments and the answer of each turn."""

    def __init__(self, db: str) -> None:
        super().__init__(db)
        self.turns: list[tuple[int, list[Want], int]] = []
        self.hold: asyncio.Event | None = None

    async def turn(self, worker_id: str, settlements: Any, wants: Any, *, checkpoints: Any = ()) -> Turn:
        if self.hold is not None and settlements:
            await self.hold.wait()
        turn = await super().turn(worker_id, settlements, wants, checkpoints=checkpoints)
        self.turns.append((len(settlements), list(wants), len(turn.claims)))
        return turn


@pytest.mark.parametrize("concurrency", [1, 3, 50])
async def test_concurrency_limits_the_handlers_that_run_at_the_same_time_and_is_fully_used(concurrency: int, db: str) -> None:
    running = most = 0
    all_run = asyncio.Event()

    async def handler(item: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if most == concurrency:
            all_run.set()
        await all_run.wait()
        await asyncio.sleep(0)
        running -= 1

    await run_batch(range(200), handler, db=db, concurrency=concurrency, batch="handler")
    assert most == concurrency


async def test_a_timer_that_a_handler_left_on_its_task_does_not_end_the_run(db: str, until: Until) -> None:
    fired: list[int] = []
    ran: list[int] = []
    loop = asyncio.get_running_loop()
    runner = Runner(db, concurrency=1)

    def fire(task: asyncio.Task[Any], item: int) -> None:
        task.cancel()
        fired.append(item)

    @runner.handler(batch="b")
    async def handler(item: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        loop.call_later(0.01, fire, task, item)  # as a self-made timeout does, and the cancellation is not undone
        ran.append(item)

    async with runner:
        for item in range(3):
            await handler.submit(item)
            await until(lambda: item in fired)  # noqa: B023
        await run_until_idle(runner)
    assert ran == [0, 1, 2]
    assert rows_of(db, "SELECT status, attempts FROM items") == [("completed", 1)] * 3


async def test_a_slot_that_fails_ends_the_runner_with_its_error(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(AttemptExecutor, "run", broken)

    async def handler(item: int) -> None: ...

    with pytest.raises(RuntimeError, match="a bug of ours"):
        await asyncio.wait_for(run_batch(range(3), handler, db=db, batch="b"), 20)


async def test_slow_work_is_not_claimed_before_it_can_start(db: str, until: Until) -> None:
    started: list[int] = []
    release = asyncio.Event()

    async def handler(item: int) -> None:
        started.append(item)
        await release.wait()

    task = asyncio.ensure_future(run_batch(range(100), handler, db=db, concurrency=4, batch="handler"))
    await until(lambda: len(started) == 4)
    await asyncio.sleep(0.05)
    assert counts(db)["processing"] == 4
    release.set()
    assert (await task).completed == 100


async def test_claims_that_find_no_slot_are_given_back_with_their_attempt(db: str, until: Until) -> None:
    started: list[int] = []
    release = asyncio.Event()

    async def handler(item: int) -> None:
        started.append(item)
        if item >= 500:  # fast work has made the worker claim ahead; now the work becomes slow
            await release.wait()

    task = asyncio.ensure_future(run_batch(range(3000), handler, db=db, concurrency=2, batch="handler"))
    await until(lambda: {500, 501} <= set(started))
    await until(lambda: counts(db)["processing"] == 2)
    assert rows_of(db, "SELECT DISTINCT attempts FROM items WHERE status = 'pending'") == [(0,)]
    release.set()
    report = await task
    assert (report.completed, report.attempts) == (3000, 3000)


async def test_a_slot_does_not_wait_for_its_commit(db: str, until: Until) -> None:
    store = Watching(db)
    runner = Runner(db, concurrency=1, store=store)
    started: list[int] = []

    @runner.handler(batch="handler")
    async def handler(item: int) -> None:
        started.append(item)

    async with runner:
        for item in range(3):
            await handler.submit(item, key=item)
        await run_until_idle(runner)  # all three are settled, so the next settlement is that of the fourth
        store.hold = asyncio.Event()
        await handler.submit(3, key=3)
        await until(lambda: 3 in started)
        assert rows_of(db, "SELECT status FROM items WHERE id = '3'") == [("processing",)]
        store.hold.set()
        await until(lambda: counts(db)["completed"] == 4)


async def test_accumulated_outcomes_are_settled_in_one_turn(db: str) -> None:
    store = Watching(db)
    runner = Runner(db, concurrency=100, store=store)

    @runner.handler
    async def handler(item: int) -> None: ...

    async with runner:
        await handler.submit_many(range(5000))
        while counts(db)["completed"] != 5000:
            await asyncio.sleep(0.01)
    assert len([settled for settled, _, _ in store.turns if settled]) < 200


async def test_a_worker_that_was_declared_lost_cancels_its_handlers_drops_their_outcomes_and_comes_back(
    db: str, until: Until
) -> None:
    runner = Runner(db)
    started: list[int] = []
    cancelled: list[int] = []

    @runner.handler(batch="handler")
    async def handler(item: int) -> str:
        started.append(item)
        if len(started) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(item)
        return "done"

    async with runner:
        await handler.submit(1)
        await until(lambda: started == [1])
        ((worker_id,),) = rows_of(db, "SELECT worker_id FROM workers WHERE ended_at IS NULL")
        other = open_engine(db)
        await other.open()
        assert await other.recover(worker_id, ErrorInfo("WorkerLost", "by a test")) == 1
        await other.close()
        await until(lambda: rows_of(db, "SELECT status FROM items") == [("completed",)])
    assert (started, cancelled) == ([1, 1], [1])
    assert rows_of(db, "SELECT attempts, crashes, result FROM items") == [(2, 1, '"done"')]


async def test_the_outcome_of_an_item_that_a_person_took_away_is_dropped(
    db: str, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Runner(db)
    release = asyncio.Event()
    started: list[int] = []

    @runner.handler(batch="handler")
    async def handler(item: int) -> int:
        started.append(item)
        if len(started) == 1:
            await release.wait()
        return len(started)

    async with runner:
        await handler.submit(1)
        await until(lambda: started)
        execute(db, "UPDATE items SET status = 'cancelled', worker_id = NULL")
        release.set()
        await until(lambda: "its claim was lost" in caplog.text)
    assert rows_of(db, "SELECT status, result FROM items") == [("cancelled", None)]


async def test_an_item_that_is_cancelled_while_it_runs_is_neither_failed_nor_retried(db: str, until: Until) -> None:
    runner = Runner(db)
    started: list[int] = []
    said: list[str] = []
    seen: list[Status] = []
    internals_of(runner).events.on(Settled, lambda event: seen.append(event.status))

    @runner.handler(batch="handler")
    async def handler(item: int) -> None:
        started.append(item)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            said.append(str(error))
            raise

    async with runner:
        handle = await handler.submit(1, key=1)
        await until(lambda: started)
        assert await handle.cancel()
        await until(lambda: seen)
        assert not await handle.cancel()
        with pytest.raises(ItemCancelled, match=r"item '1' of .* was cancelled"):
            await handle.result()
    assert (started, said, seen) == ([1], ["the item was cancelled"], [Status.CANCELLED])
    assert rows_of(db, "SELECT status, error, worker_id FROM items") == [("cancelled", None, None)]


async def test_handlers_that_never_wait_do_not_block_the_loop(db: str) -> None:
    laps = 0

    async def count_laps() -> None:
        nonlocal laps
        while True:
            laps += 1
            await asyncio.sleep(0)

    async def handler(item: int) -> int:
        return sum(range(200))

    counting = asyncio.ensure_future(count_laps())
    await run_batch(range(20_000), handler, db=db, concurrency=2)
    counting.cancel()
    assert laps > 50


async def test_an_item_that_becomes_due_wakes_an_idle_worker(db: str, until: Until) -> None:
    runner = Runner(db)
    started: list[int] = []

    @runner.handler(batch="handler")
    async def handler(item: int) -> None:
        started.append(item)

    async with runner:
        await handler.submit(1, delay=0.05)
        await until(lambda: started == [1])


class AddsMeanwhile(Overridden):
    """A store to which another task adds an item after an empty turn and before the worker gets its answer."""

    meanwhile: Any = None

    async def turn(self, worker_id: str, settlements: Any, wants: Any, *, checkpoints: Any = ()) -> Turn:
        turn = await super().turn(worker_id, settlements, wants, checkpoints=checkpoints)
        if wants and not turn.claims and self.meanwhile is not None:
            submit, self.meanwhile = self.meanwhile, None
            await submit()
        return turn


async def test_an_item_that_is_added_during_an_empty_turn_is_not_overlooked(db: str, until: Until) -> None:
    store = AddsMeanwhile(db)
    runner = Runner(db, store=store)
    started: list[int] = []

    @runner.handler(batch="handler")
    async def handler(item: int) -> None:
        started.append(item)

    store.meanwhile = lambda: handler.submit(1)
    async with runner:
        await until(lambda: started == [1])


class EndsAHandlerMeanwhile(Overridden):
    """A store in which the running handlers end while a batch is being stopped. It reports no changes of the file."""

    def __init__(self, db: str) -> None:
        super().__init__(db)
        self.release = asyncio.Event()
        self.runner: Runner | None = None

    async def stop_batch(self, batch_id: int, reason: str) -> None:
        await super().stop_batch(batch_id, reason)
        assert self.runner is not None
        worker = internals_of(self.runner).worker
        assert worker is not None
        self.release.set()
        while worker.running:
            await asyncio.sleep(0)

    async def wait_for_items(self, batch_ids: Sequence[int], mark: Mark | None) -> Mark:
        if mark is not None:
            await asyncio.Event().wait()
        return await super().wait_for_items(batch_ids, mark)


async def test_an_outcome_that_comes_while_the_pump_stops_a_batch_is_settled(db: str, until: Until) -> None:
    store = EndsAHandlerMeanwhile(db)
    runner = store.runner = Runner(db, store=store)
    started: list[int] = []

    @runner.handler(batch="b")
    async def handler(item: int) -> None:
        started.append(item)
        await store.release.wait()

    async with runner:
        await handler.submit(1)
        await until(lambda: started)
        engine = internals_of(runner)._engine
        assert engine is not None
        engine._stop_queue(engine.queues["b"], "its deadline passed")
        await until(lambda: rows_of(db, "SELECT status FROM items") == [("completed",)])
