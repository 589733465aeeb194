"""When a worker starts a suspect, and which items wait for it, with a fake clock and without a store."""

from __future__ import annotations

from typing import Any, cast

import pytest

from asyncrunner.domain.item import Claim, Suspicion
from asyncrunner.store.batches import BatchState
from asyncrunner.worker.admission import allocate
from asyncrunner.worker.batch_queue import BatchQueue
from asyncrunner.worker.isolation import Isolation

NONE, SUSPECT, ISOLATED = Suspicion
SOME = BatchState(unfinished=True, next_due=None, resting_until=None, concurrency=None)


class Executor:
    max_attempts = 3


def claim(seq: int, suspicion: Suspicion = NONE, batch_id: int = 1) -> Claim:
    return Claim(seq, batch_id, str(seq), "1", number=1, attempt=1, crashes=3, suspicion=suspicion)


class Running:
    """An execution with the attributes that a batch queue reads."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim


def a_queue(batch_id: int = 1, *, limit: int = 10, due: Suspicion = NONE, running: int = 0) -> BatchQueue:
    """Return a queue that runs *running* items and whose last answer reported a suspect of suspicion *due*."""
    queue = BatchQueue(batch_id, f"b{batch_id}", cast("Any", Executor()), limit=limit)
    queue.answer.begin_turn()
    queue.answer.record(SOME._replace(suspicion=due), is_complete=True, only_suspect=False)
    for seq in range(running):
        start(queue, claim(1000 + seq, batch_id=batch_id))
    return queue


def start(queue: BatchQueue, suspect: Claim) -> Any:
    execution = cast("Any", Running(suspect))
    queue.running.add(execution)
    return execution


def requested_of(
    queues: list[BatchQueue], isolation: Isolation, now: float, *, slots: int = 10, waiting: int = 0
) -> dict[int, Any]:
    """Return the requested (limit, suspicion) of each batch."""
    return {want.batch_id: (want.limit, want.suspicion) for want in allocate(queues, slots, waiting, isolation, now)}


def test_a_suspect_is_requested_beside_the_other_items_and_takes_one_of_the_slots() -> None:
    isolation = Isolation()
    assert requested_of([a_queue(due=SUSPECT)], isolation, 0.0) == {1: (9, SUSPECT)}
    assert not isolation.blocks_others(0.0)


@pytest.mark.parametrize(("limit", "slots"), [(20, 10), (10, 20)], ids=["of the worker", "of the batch"])
def test_a_suspect_takes_one_of_the_slots(limit: int, slots: int) -> None:
    assert requested_of([a_queue(due=SUSPECT, limit=limit)], Isolation(), 0.0, slots=slots) == {1: (9, SUSPECT)}


def test_the_next_suspect_is_requested_when_the_first_has_ended_or_has_run_for_30_s() -> None:
    queue, isolation = a_queue(due=SUSPECT), Isolation()
    first = claim(1, SUSPECT)
    execution = start(queue, first)
    assert isolation.take_in(queue, [first, claim(2)], 0.0) == [first]
    assert requested_of([queue], isolation, 29.9) == {1: (9, NONE)}
    assert isolation.next_change(29.0) == 1.0
    assert isolation.take_overdue(29.9) == []
    assert requested_of([queue], isolation, 30.0) == {1: (8, SUSPECT)}
    assert [suspect.claim for suspect in isolation.take_overdue(30.0)] == [first]
    assert isolation.take_overdue(30.0) == [], "it is reported once"
    isolation.take_in(queue, [first], 40.0)
    queue.running.discard(execution)
    assert requested_of([queue], isolation, 41.0) == {1: (9, SUSPECT)}
    assert (isolation.take_overdue(75.0), isolation.is_active) == ([], False)


def test_an_isolated_suspect_waits_for_the_other_items_for_30_s() -> None:
    queue, other, isolation = a_queue(due=ISOLATED), a_queue(2, running=1), Isolation()
    queues = [queue, other]
    assert requested_of(queues, isolation, 100.0) == {}
    assert isolation.blocks_others(100.0)
    assert requested_of(queues, isolation, 100.9) == {}
    assert isolation.next_change(100.9) == pytest.approx(0.1)
    assert requested_of(queues, isolation, 101.0) == {1: (0, SUSPECT)}, "a check whether the isolated item is still pending"
    assert requested_of(queues, isolation, 101.1) == {}
    assert requested_of(queues, isolation, 129.9) == {1: (0, SUSPECT)}
    assert requested_of(queues, isolation, 130.0) == {1: (0, ISOLATED)}, "it starts beside the item that still runs, and no other"


def test_an_isolated_suspect_starts_alone_as_soon_as_nothing_else_runs() -> None:
    queue, other, isolation = a_queue(due=ISOLATED), a_queue(2), Isolation()
    assert requested_of([queue, other], isolation, 0.0) == {1: (0, ISOLATED)}
    isolated = claim(1, ISOLATED)
    start(queue, isolated)
    queue.answer.record(SOME, is_complete=True, only_suspect=False)
    isolation.take_in(queue, [isolated], 0.0)
    assert isolation.waiting_since is None
    assert requested_of([queue, other], isolation, 29.9) == {}
    assert isolation.next_change(0.0) == 30.0
    assert requested_of([queue, other], isolation, 30.0).keys() == {1, 2}


def test_handlers_that_wait_for_a_result_do_not_delay_an_isolated_suspect() -> None:
    assert requested_of([a_queue(due=ISOLATED, running=2)], Isolation(), 0.0, waiting=2) == {1: (0, ISOLATED)}


def test_an_isolated_suspect_that_is_no_longer_due_holds_nothing_back() -> None:
    queue, isolation = a_queue(due=ISOLATED, running=1), Isolation()
    assert requested_of([queue], isolation, 0.0) == {}
    queue.answer.record(SOME, is_complete=True, only_suspect=False)
    assert requested_of([queue], isolation, 1.0) == {1: (9, NONE)}
    assert not isolation.is_active


def test_the_least_suspicious_suspect_of_all_batches_is_first() -> None:
    queues = [a_queue(1, due=ISOLATED), a_queue(2, due=SUSPECT)]
    isolation = Isolation()
    requested = requested_of(queues, isolation, 0.0)
    assert (requested[1][1], requested[2][1], isolation.waiting_since) == (NONE, SUSPECT, None)


@pytest.mark.parametrize("due", [SUSPECT, ISOLATED])
def test_a_suspect_without_a_free_slot_is_not_requested_and_holds_nothing_back(due: Suspicion) -> None:
    isolation = Isolation()
    assert requested_of([a_queue(due=due, running=2)], isolation, 0.0, slots=2) == {}
    full, other = a_queue(1, due=due, running=2, limit=2), a_queue(2, due=SUSPECT)
    requested = requested_of([full, other], isolation, 0.0)
    assert (list(requested), requested[2][1]) == ([2], SUSPECT), "a full batch does not delay another one"


def test_a_suspect_of_a_paused_batch_holds_nothing_back() -> None:
    queue, other, isolation = a_queue(due=ISOLATED), a_queue(2, running=1), Isolation()
    queue.set_paused(True)
    assert 2 in requested_of([queue, other], isolation, 0.0)


def test_a_suspect_gets_the_next_slot() -> None:
    queue = a_queue()
    queue.take_in([claim(1), claim(2)], 0.0)
    queue.take_in([claim(3, SUSPECT), claim(4)], 0.0)
    assert [each.seq for each in queue.ready] == [3, 1, 2, 4]
