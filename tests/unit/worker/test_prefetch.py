"""How many claims a worker holds ahead of its free slots."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from asyncrunner.worker.admission import allocate, want_new
from asyncrunner.worker.batch_queue import BatchQueue, Prefetch
from asyncrunner.worker.isolation import Isolation


@given(st.integers(1, 20_000), st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=20))
def test_prefetch_is_bounded_and_very_slow_work_is_never_claimed_ahead(limit: int, seen: list[tuple[float, float]]) -> None:
    pace = Prefetch(limit)
    assert pace.ahead() == 0
    for turn, item in seen:
        pace.record_turn(turn)
        pace.record_items(item, 1)
    assert 0 <= pace.ahead() <= Prefetch.MAX_ITEMS
    for _ in range(100):
        pace.record_items(1e7, 1)
    pace.assume_slow()
    assert pace.ahead() == 0


def test_no_slot_waits_for_a_turn_while_slow_handlers_end() -> None:
    pace = Prefetch(200)
    for _ in range(100):
        pace.record_turn(0.005)
        pace.record_items(0.05, 1)
    assert not pace.is_quick
    assert pace.ahead() in (39, 40), "twice the 20 items that 200 slots finish during a turn"
    pace.set_limit(4)
    assert pace.ahead() == 0


def test_no_slot_waits_for_a_turn_that_takes_longer_than_most() -> None:
    pace = Prefetch(200)
    for _ in range(100):
        pace.record_turn(0.001)
        pace.record_items(0.05, 1)
    assert pace.ahead() in (7, 8)
    pace.record_turn(0.01, has_claimed=False)
    assert pace.ahead() in (79, 80), "a request may have to wait for a turn that claims nothing"
    pace.record_turn(1.0)
    pace.record_items(1.0, 1)
    assert pace.ahead() == 200, "one item per slot"
    for _ in range(2000):
        pace.record_turn(0.001)
        pace.record_items(0.05, 1)
    assert pace.ahead() in (7, 8)


def test_fast_work_is_claimed_ahead() -> None:
    pace = Prefetch(100)
    for _ in range(10):
        pace.record_turn(0.01)
        pace.record_items(0.0, 1)
    assert pace.ahead() >= 500


def test_slow_handlers_that_share_the_slots_leave_the_next_free_slot_to_the_other_batch() -> None:
    executor = cast("Any", SimpleNamespace(max_attempts=3))
    queue, other = (BatchQueue(number, "b", executor, limit=200) for number in (1, 2))
    for _ in range(100):
        queue.prefetch.record_turn(0.005)
        queue.prefetch.record_items(0.05, 1)
    queue.requested = 200
    assert allocate([queue], 200, 0, Isolation(), 0.0)[0].limit == queue.ahead > 0
    assert [want.batch_id for want in allocate([queue, other], 200, 0, Isolation(), 0.0)] == []
    assert want_new([queue, other], queue, 200, Isolation(), 0.0) is None
