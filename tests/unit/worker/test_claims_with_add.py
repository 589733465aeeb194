"""When a worker requests to claim the items of an add, and what becomes of the claims, also of an add that is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from asyncrunner import Runner, run_batch
from asyncrunner.domain.item import Suspicion
from asyncrunner.domain.rate_limit import Rate
from asyncrunner.runner.runner import run_until_idle
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.batches import Added, BatchState
from asyncrunner.worker.admission import want_new
from asyncrunner.worker.batch_queue import BatchQueue
from asyncrunner.worker.isolation import Isolation
from tests.conftest import Until

EMPTY = BatchState(unfinished=True, next_due=None, resting_until=None, concurrency=None)
SLOTS = 10


def a_queue(batch_id: int = 1, *, limit: int = SLOTS, rate: Rate | None = None) -> BatchQueue:
    executor = cast("Any", SimpleNamespace(max_attempts=3))
    return BatchQueue(batch_id, "b", executor, limit=limit, rate=rate)


def exhaust(queue: BatchQueue) -> None:
    queue.answer.begin_turn()
    queue.answer.record(EMPTY, is_complete=False, only_suspect=False)


def quick(queue: BatchQueue) -> BatchQueue:
    """Let the handlers of the queue take less time than a turn."""
    queue.has_to_itself = lambda: True
    queue.prefetch.record_turn(0.1)
    queue.prefetch.record_items(0.0, 1)
    return queue


def requested(queue: BatchQueue, *others: BatchQueue, isolation: Isolation | None = None) -> int:
    want = want_new([queue, *others], queue, SLOTS, isolation or Isolation(), 0.0)
    return 0 if want is None else want.limit


def test_an_add_claims_as_many_items_as_slots_are_free() -> None:
    queue = a_queue()
    assert requested(queue) == SLOTS
    queue.requested = 4
    assert requested(queue) == SLOTS - 4
    queue.requested = SLOTS
    assert requested(queue) == 0
    assert requested(a_queue(limit=3)) == 3


def test_an_add_leaves_the_slots_to_a_turn_in_progress_that_may_fill_them() -> None:
    queue = a_queue()
    queue.begin_turn(SLOTS - 1)
    assert requested(queue) == 1
    queue.begin_turn(SLOTS)
    assert requested(queue) == 0


def test_batches_that_have_items_keep_their_share_of_the_slots() -> None:
    queue, other = a_queue(), a_queue(2)
    assert requested(queue, other) == SLOTS // 2
    exhaust(other)
    assert requested(queue, other) == SLOTS


def test_quick_handlers_get_what_they_finish_during_a_turn() -> None:
    queue = quick(a_queue())
    assert requested(queue) == SLOTS + queue.ahead > 1000
    queue.requested = SLOTS + queue.ahead
    assert requested(queue) == 0


def a_paused(queue: BatchQueue) -> None:
    queue.set_paused(True)


def a_suspect(queue: BatchQueue) -> None:
    queue.answer.record(EMPTY._replace(suspicion=Suspicion.SUSPECT), is_complete=False, only_suspect=False)


def a_stop(queue: BatchQueue) -> None:
    queue.record_stop("3 items failed")


def a_rest(queue: BatchQueue) -> None:
    queue.answer.begin_turn()
    queue.answer.record(EMPTY._replace(resting_until=1e12), is_complete=False, only_suspect=False)


def only_given(queue: BatchQueue) -> None:
    queue.only_given = True


def children(queue: BatchQueue) -> None:
    queue.runs_in_children = True


@pytest.mark.parametrize("state", [a_paused, a_suspect, a_stop, a_rest, only_given, children])
def test_an_add_claims_nothing_while_the_batch_is_held_back(state: Callable[[BatchQueue], None]) -> None:
    queue = a_queue()
    state(queue)
    assert requested(queue) == 0


def test_an_add_claims_nothing_with_a_rate_limit_and_while_an_isolated_item_waits() -> None:
    assert requested(a_queue(rate=Rate(5, 1))) == 0
    isolation = Isolation()
    isolation.waiting_since = 0.0
    assert requested(a_queue(), isolation=isolation) == 0


def test_a_source_waits_for_room_only_if_the_handlers_are_quick_and_no_other_worker_wants_items() -> None:
    assert a_queue().room_for_source is None, "the handlers are not known to be quick"
    queue = quick(a_queue())
    most = SLOTS + queue.ahead
    assert queue.room_for_source == most
    queue.requested = most // 2
    assert queue.room_for_source == most - most // 2
    queue.requested = most // 2 + 1
    assert queue.room_for_source == 0
    queue.requested, queue.has_backlog = 0, True
    assert queue.room_for_source == 0, "a turn claims what an earlier add left, before an add claims newer items"
    queue.has_to_itself = lambda: False
    assert queue.room_for_source is None


@pytest.mark.sqlite_file
async def test_the_item_of_a_cancelled_submit_runs(db: str, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    began, may_end = asyncio.Event(), asyncio.Event()
    add = SQLiteStore.add
    claimed: list[int] = []

    async def slow(self: SQLiteStore, *arguments: Any, **options: Any) -> Added:
        began.set()
        await may_end.wait()
        added = await add(self, *arguments, **options)
        claimed.append(len(added.claims))
        return added

    monkeypatch.setattr(SQLiteStore, "add", slow)
    runner, ran = Runner(db), asyncio.Event()

    @runner.handler(batch="b")
    async def handler(item: int) -> None:
        ran.set()

    async with runner:
        await run_until_idle(runner)  # a turn in progress would claim the item
        submit = asyncio.ensure_future(handler.submit(1))
        await began.wait()
        submit.cancel()
        await asyncio.wait({submit})
        may_end.set()
        await asyncio.wait_for(ran.wait(), 20)
    assert claimed == [1]


@pytest.mark.sqlite_file
async def test_most_items_of_a_quick_batch_are_claimed_by_their_adds(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add = SQLiteStore.add
    claimed = 0

    async def counted(self: SQLiteStore, *arguments: Any, **options: Any) -> Added:
        nonlocal claimed
        added = await add(self, *arguments, **options)
        claimed += len(added.claims)
        return added

    async def handler(item: int) -> int:
        return item

    monkeypatch.setattr(SQLiteStore, "add", counted)
    report = await run_batch(range(30_000), handler, db=db, batch="b", concurrency=100)
    assert (report.completed, report.attempts) == (30_000, 30_000)
    assert claimed > 15_000
