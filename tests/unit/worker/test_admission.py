"""Why a batch claims no items now, as a table; and the events that a batch queue reports."""

from __future__ import annotations

import asyncio
import math
from typing import Any, cast

import pytest

from asyncrunner.domain.item import Claim, Suspicion
from asyncrunner.store.batches import BatchState
from asyncrunner.worker.admission import Blocked, ConsumerWindow, why_blocked
from asyncrunner.worker.batch_queue import BatchQueue

EMPTY = BatchState(unfinished=True, next_due=None, resting_until=None, concurrency=None)
DONE = EMPTY._replace(unfinished=False)
PAUSED = EMPTY._replace(resting_until=math.inf)
RESTING = EMPTY._replace(resting_until=10.0)
STOPPED = PAUSED._replace(stopped="3 items failed")
SUSPECT = EMPTY._replace(suspicion=Suspicion.SUSPECT)


@pytest.mark.parametrize(
    ("answer", "is_current", "stop_reason", "backpressure", "expected"),
    [
        # The last turn brought all that was requested, or something has changed since.
        (None, False, None, False, Blocked.NONE),
        (EMPTY, False, None, False, Blocked.NONE),
        (PAUSED, False, None, False, Blocked.NONE),
        (STOPPED, False, None, False, Blocked.NONE),
        # The store has answered, and nothing has changed since.
        (EMPTY, True, None, False, Blocked.EMPTY),
        (DONE, True, None, False, Blocked.EMPTY),
        (RESTING, True, None, False, Blocked.RESTING),
        (PAUSED, True, None, False, Blocked.PAUSED),
        (STOPPED, True, None, False, Blocked.STOPPED),
        # A suspect blocks no other item.
        (SUSPECT, False, None, False, Blocked.NONE),
        (SUSPECT, True, None, False, Blocked.EMPTY),
        # The worker's own reasons come first, whatever the store has answered.
        (None, False, None, True, Blocked.BACKPRESSURE),
        (EMPTY, True, None, True, Blocked.BACKPRESSURE),
        (SUSPECT, False, None, True, Blocked.BACKPRESSURE),
        (None, False, "3 items failed", False, Blocked.STOPPED),
        (None, False, "3 items failed", True, Blocked.STOPPED),
        (SUSPECT, False, "3 items failed", True, Blocked.STOPPED),
    ],
)
def test_why_a_batch_claims_nothing(
    answer: BatchState | None, is_current: bool, stop_reason: str | None, backpressure: bool, expected: Blocked
) -> None:
    blocked = why_blocked(answer, is_current=is_current, stop_reason=stop_reason, backpressure=backpressure, throttled=False)
    assert blocked is expected
    throttled = why_blocked(answer, is_current=is_current, stop_reason=stop_reason, backpressure=backpressure, throttled=True)
    assert throttled is (
        expected
        if expected in (Blocked.STOPPED, Blocked.BACKPRESSURE) and (stop_reason is not None or backpressure)
        else Blocked.THROTTLED
    )


def a_queue() -> BatchQueue:
    return BatchQueue(1, "b", cast("Any", None), limit=2)


def answer(queue: BatchQueue, state: BatchState | None, *, is_complete: bool = False, only_suspect: bool = False) -> None:
    queue.answer.begin_turn()
    queue.answer.record(state, is_complete=is_complete, only_suspect=only_suspect)


async def test_a_batch_is_idle_from_the_end_of_its_last_item_until_a_change() -> None:
    queue = a_queue()
    answer(queue, EMPTY)
    assert (queue.blocked, queue.answer.idle.is_set()) == (Blocked.EMPTY, False), "another worker has an item"
    answer(queue, DONE)
    assert queue.answer.idle.is_set()
    queue.answer.mark_changed()
    assert (queue.blocked, queue.answer.idle.is_set()) == (Blocked.NONE, False)


async def test_an_answer_that_a_change_overtook_does_not_make_the_batch_idle() -> None:
    queue = a_queue()
    queue.answer.begin_turn()
    queue.answer.mark_changed()  # an item was added while the turn was on its way
    queue.answer.record(DONE, is_complete=False, only_suspect=False)
    assert (queue.answer.exhausted, queue.answer.idle.is_set()) == (False, False)


async def test_an_answer_about_suspects_does_not_make_the_other_items_idle() -> None:
    queue = a_queue()
    answer(queue, SUSPECT)
    assert (queue.blocked, queue.answer.suspicion) == (Blocked.EMPTY, Suspicion.SUSPECT)
    answer(queue, DONE, only_suspect=True)
    assert (queue.blocked, queue.answer.idle.is_set()) == (Blocked.NONE, False)
    answer(queue, SUSPECT, is_complete=True)
    assert (queue.blocked, queue.answer.suspicion) == (Blocked.NONE, Suspicion.SUSPECT)


async def test_a_batch_that_this_worker_stopped_claims_and_starts_nothing_until_it_is_resumed() -> None:
    queue = a_queue()
    queue.take_in([Claim(seq=1, batch_id=1, id="k", payload="1", number=1, attempt=1, crashes=0)], 0.0)
    queue.failures.trip("its deadline of 1 s passed")
    assert queue.blocked is Blocked.STOPPED
    queue.record_stop("its deadline of 1 s passed")
    assert (queue.blocked, queue.answer.stop_reason, queue.has_work) == (Blocked.STOPPED, "its deadline of 1 s passed", False)
    assert (queue.answer.stopped.is_set(), queue.answer.idle.is_set()) == (True, False)
    answer(queue, None)
    queue.set_paused(False)
    assert (queue.blocked, queue.answer.stopped.is_set(), queue.has_work) == (Blocked.NONE, False, True)


async def test_claims_that_wait_stand_still_until_the_first_of_them_starts() -> None:
    queue = a_queue()
    claims = [Claim(seq=seq, batch_id=1, id=str(seq), payload="1", number=1, attempt=1, crashes=0) for seq in range(3)]
    queue.take_in(claims, 10.0)
    assert not queue.has_stood_still(10.5, 1.0)
    assert queue.has_stood_still(11.0, 1.0)
    queue.ready.popleft()
    assert not queue.has_stood_still(11.0, 1.0)
    queue.take_in(claims[:1], 11.9)
    assert queue.has_stood_still(12.0, 1.0), "later claims do not count"


async def test_a_turn_wakes_every_task_that_waits_for_one() -> None:
    queue = a_queue()
    waiting = [asyncio.ensure_future(queue.wait_for_turn()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.notify_turn()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    later = asyncio.ensure_future(queue.wait_for_turn())
    await asyncio.sleep(0)
    assert not later.done(), "only a later turn counts"
    later.cancel()


def test_a_consumer_window_doubles_for_a_consumer_that_takes_whole_windows_up_to_its_maximum() -> None:
    window, sizes = ConsumerWindow(10), [20]
    for _ in range(20 + 40 + 80):
        if window.record_held(0.0):
            sizes.append(window.size)
    assert sizes == [20, 40, 80, 160]
    for _ in range(20_000):
        window.record_held(0.0)
    assert window.size == ConsumerWindow.MAX_ITEMS


def test_a_consumer_window_shrinks_to_what_a_slow_consumer_takes_in_half_a_second_and_not_below_two_per_slot() -> None:
    window = ConsumerWindow(10)
    for _ in range(20 + 40 + 80):
        window.record_held(0.0)
    for _ in range(50):
        window.record_held(0.01)
    assert window.size == 50
    window.record_held(60.0)
    assert window.size == 20
    window.set_limit(30)
    window.record_held(60.0)
    assert window.size == 60


def test_a_consumer_window_has_room_for_what_is_neither_claimed_nor_waits() -> None:
    window = ConsumerWindow(10)
    window.waiting = 12
    window.settling = 2
    assert (window.room(5), window.is_full) == (1, False)
    window.settling = 0
    window.waiting = 20
    assert (window.room(0), window.is_full) == (0, True)
    assert [window.record_taken() for _ in range(20)] == [waiting == 10 for waiting in range(19, -1, -1)]
