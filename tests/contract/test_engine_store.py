"""The contract of EngineStore: the store of a running worker and of a program that submits items."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from asyncrunner.domain.item import Counts, NewItem, Status, Suspicion
from asyncrunner.domain.outcome import Cancelled, Completed, Failed, Outcome, PutOff, Released, Retrying, Settlement
from asyncrunner.domain.rate_limit import Rate
from asyncrunner.errors import KeyConflict
from asyncrunner.store.batches import BatchOptions, Controls
from asyncrunner.store.items import Cursor
from asyncrunner.store.protocols import Store
from asyncrunner.store.turn import Checkpoint, LostClaim, Want
from asyncrunner.store.workers import Vitals, WorkerInfo
from asyncrunner.testing import FakeClock
from tests.contract.stores import BOOM, LOST, NOW, all_rows, batch_of, claim, failed_items, joined, only_row, settle


async def test_a_turn_without_requested_claims_also_reports_the_controls_of_a_batch(store: Store) -> None:
    batch_id = await batch_of(store)
    assert await store.controls([batch_id, 99]) == {batch_id: Controls(blocked=False, concurrency=None)}
    await store.stop_batch(batch_id, "too many")
    assert (await store.controls([batch_id]))[batch_id].blocked
    await store.open_batch("b", "m:h", BatchOptions())
    assert not (await store.controls([batch_id]))[batch_id].blocked


# --- adding items ---------------------------------------------------------------------------------------------------


async def test_new_items_are_pending_and_counted(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    assert await store.counts(batch_id) == Counts(pending=2)


async def test_a_repeated_key_is_one_row_within_a_chunk_and_across_chunks(store: Store) -> None:
    batch_id = await batch_of(store)
    first = await store.add(batch_id, [NewItem("a", "1"), NewItem("b", "2"), NewItem("a", "1")], on_change="error")
    again = await store.add(batch_id, [NewItem("b", "2"), NewItem("c", "3")], on_change="error")
    assert (first[:4], again[:4]) == ((2, 1, 0, ()), (1, 1, 0, ()))
    assert (first.known, again.known) == (frozenset(), frozenset("b"))
    a, b, a_again = first.seqs
    assert (a, b) == (a_again, again.seqs[0]), "one number for each key"
    assert len({*first.seqs, *again.seqs}) == 3
    assert (await store.counts(batch_id)).total == 3


async def test_the_numbers_of_a_chunk_are_in_its_order_whatever_was_stored_before(store: Store) -> None:
    batch_id = await batch_of(store, ["9", "10", "11"])
    added = await store.add(batch_id, [NewItem(key, f'"{key}"') for key in ("new", "11", "9", "10", "11")], on_change="error")
    rows = {row.id: row.seq for row in await all_rows(store, batch_id)}
    assert list(added.seqs) == [rows[key] for key in ("new", "11", "9", "10", "11")]
    known = await store.add(batch_id, [NewItem(key, f'"{key}"') for key in ("11", "9")], on_change="error")
    assert list(known.seqs) == [rows["11"], rows["9"]]


async def test_another_payload_is_a_conflict_and_no_item_of_the_chunk_is_stored(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    with pytest.raises(KeyConflict, match=r"key .a. is already in the batch with another payload, .*; the new one is") as caught:
        await store.add(batch_id, [NewItem("new", "1"), NewItem("a", '"other"')], on_change="error")
    assert caught.value.key == "a"
    assert await store.counts(batch_id) == Counts(pending=1)


async def test_a_claim_has_the_trace_context_of_the_newest_submit_that_runs_the_item(store: Store) -> None:
    batch_id = await batch_of(store, ["old"])
    await store.join(WorkerInfo("w", "here", 1))
    entries = [NewItem(key, f'"{key}"', traceparent="first") for key in ("old", "a", "b")]
    await store.add(batch_id, entries, on_change="keep")
    await store.add(batch_id, [NewItem("b", "2", traceparent="second")], on_change="rerun")
    claims = (await store.turn("w", [], [Want(batch_id, 10, 3)])).claims
    assert {claim.id: claim.traceparent for claim in claims} == {"old": None, "a": "first", "b": "second"}


async def test_two_payloads_for_one_key_in_one_chunk_are_a_conflict(store: Store) -> None:
    batch_id = await batch_of(store)
    with pytest.raises(KeyConflict):
        await store.add(batch_id, [NewItem("a", "1"), NewItem("a", "2")], on_change="error")
    assert (await store.counts(batch_id)).total == 0


async def test_keep_stays_with_the_stored_payload(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    assert (await store.add(batch_id, [NewItem("a", '"other"')], on_change="keep"))[:4] == (0, 1, 1, ())
    assert (await only_row(store, batch_id)).payload == '"a"'


async def test_run_again_takes_every_known_key_and_rerun_one_with_another_payload(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    chunk = [NewItem("a", '"a"'), NewItem("b", '"other"'), NewItem("new", "1")]
    assert (await store.add(batch_id, chunk[:2], on_change="rerun"))[:4] == (0, 2, 1, [])
    assert (await store.add(batch_id, chunk, on_change="run again"))[:4] == (1, 2, 2, [])
    await joined(store, "w")
    claimed = await claim(store, batch_id, 10)
    assert [(each.id, each.payload, each.attempt) for each in claimed] == [("a", '"a"', 1), ("b", '"other"', 1), ("new", "1", 1)]


async def test_refuse_raises_for_a_known_key_with_the_same_payload_and_for_a_repeated_one(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    for entries in ([NewItem("new", "1"), NewItem("a", '"a"')], [NewItem("b", "1"), NewItem("b", "1")]):
        with pytest.raises(KeyConflict, match="is already in the batch, and if_exists is") as caught:
            await store.add(batch_id, entries, on_change="refuse")
        assert caught.value.key == entries[-1].id
    assert (await store.counts(batch_id)).total == 1


async def test_more_than_a_block_of_items_keeps_its_order(store: Store) -> None:
    keys = [f"k{number}" for number in range(700)]
    batch_id = await batch_of(store, keys)
    await joined(store, "w")
    assert [each.id for each in await claim(store, batch_id, 1000)] == keys
    assert [row.id for row in await all_rows(store, batch_id)] == keys


# --- the turn: claim ------------------------------------------------------------------------------------------------


async def test_a_claim_charges_the_attempt_and_numbers_grow(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (first,) = await claim(store, batch_id)
    assert (first.id, first.payload, first.attempt, first.crashes) == ("a", '"a"', 1, 0)
    await settle(store, first, Retrying(BOOM, 0.0))
    (second,) = await claim(store, batch_id)
    assert second.attempt == 2
    assert second.number > first.number


async def test_items_go_out_by_priority_then_in_the_order_they_came(store: Store) -> None:
    batch_id = await batch_of(store)
    entries = [NewItem("low", "1", priority=-1), NewItem("one", "1"), NewItem("high", "1", priority=5), NewItem("two", "1")]
    await store.add(batch_id, entries, on_change="error")
    await joined(store, "w")
    assert [each.id for each in await claim(store, batch_id)] == ["high", "one", "two", "low"]


@pytest.mark.parametrize("count", [61, 800, 12_000])
async def test_priority_holds_among_items_that_became_due(count: int, store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store)
    entries = [NewItem(str(number), "1", due_at=NOW + number / 1000) for number in range(count)]
    await store.add(batch_id, [*entries, NewItem("urgent", "1", 9, due_at=NOW + 50)], on_change="error")
    await joined(store, "w")
    clock.jump(100)
    assert [each.id for _ in range(2) for each in await claim(store, batch_id, 1)] == ["urgent", "0"]


async def test_a_due_item_goes_out_also_if_thousands_of_higher_priorities_wait(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store)
    waiting = [NewItem(str(number), "1", priority=number, due_at=NOW + 1000) for number in range(1, 2001)]
    await store.add(
        batch_id, [*waiting, NewItem("low", "1", due_at=NOW + 1), NewItem("first", "1", due_at=NOW)], on_change="error"
    )
    await joined(store, "w")
    clock.jump(10)
    assert [each.id for _ in range(3) for each in await claim(store, batch_id, 1)] == ["low", "first"]


async def test_an_item_does_not_go_out_before_it_is_due(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store)
    await store.add(batch_id, [NewItem("later", "1", due_at=NOW + 10)], on_change="error")
    await joined(store, "w")
    clock.jump(9.99)
    turn = await store.turn("w", [], [Want(batch_id, 5, 3)])
    assert list(turn.claims) == []
    assert turn.batches[batch_id].next_due == NOW + 10
    assert turn.batches[batch_id].unfinished
    assert (await store.counts(batch_id)).waiting == 1
    clock.jump(0.01)
    assert [each.id for each in await claim(store, batch_id)] == ["later"]


async def test_no_item_is_claimed_twice(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b", "c"])
    await joined(store, "w", "v")
    first = await claim(store, batch_id, 2, worker="w")
    second = await claim(store, batch_id, 2, worker="v")
    assert [each.id for each in first + second] == ["a", "b", "c"]


async def test_a_turn_that_grants_all_requested_claims_reports_no_state_of_the_batch(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    await joined(store, "w")
    turn = await store.turn("w", [], [Want(batch_id, 1, 3)])
    assert dict(turn.batches) == {}


async def test_a_finished_batch_is_reported_as_finished(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    turn = await store.turn("w", [Settlement(held, Completed("1"), NOW, NOW)], [Want(batch_id, 1, 3)])
    state = turn.batches[batch_id]
    assert (state.unfinished, state.next_due, state.resting_until) == (False, None, None)


async def test_batches_do_not_mix(store: Store) -> None:
    one, two = await batch_of(store, ["a"], name="one"), await batch_of(store, ["a"], name="two")
    await joined(store, "w")
    assert [each.batch_id for each in await claim(store, two)] == [two]
    assert (await store.counts(one)).pending == 1


# --- the turn: settle -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Completed('{"n":1}'), (Status.COMPLETED, 1, '{"n":1}', None)),
        (Retrying(BOOM, 30.0), (Status.PENDING, 1, None, "ValueError: boom")),
        (Failed(BOOM, permanent=True), (Status.FAILED, 1, None, "ValueError: boom")),
        (Failed(BOOM, permanent=False), (Status.FAILED, 1, None, "ValueError: boom")),
        (PutOff(BOOM, 30.0), (Status.PENDING, 0, None, "ValueError: boom")),
        (Released(), (Status.PENDING, 0, None, None)),
        (Cancelled(), (Status.CANCELLED, 1, None, None)),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_outcome_matches_its_row(store: Store, outcome: Outcome, expected: tuple[object, ...]) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    turn = await settle(store, held, outcome)
    row = await only_row(store, batch_id)
    assert list(turn.lost) == []
    assert (row.status, row.attempts, row.result, row.error) == expected


async def test_a_settled_item_has_the_times_of_its_handler(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    await settle(store, held, Completed("1"), at=NOW + 7)
    row = await only_row(store, batch_id)
    assert (row.started_at, row.completed_at) == (NOW + 5.5, NOW + 7)


async def test_a_retry_waits_for_its_delay(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    await settle(store, held, Retrying(BOOM, 30.0))
    clock.jump(29.9)
    assert await claim(store, batch_id) == []
    clock.jump(0.1)
    assert len(await claim(store, batch_id)) == 1


async def test_an_item_that_is_put_off_waits_for_its_delay_and_has_no_failure(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    assert held.put_off_at is None
    await settle(store, held, PutOff(BOOM, 30.0))
    assert await store.failure_causes(batch_id, 5) == []
    clock.jump(29.9)
    assert await claim(store, batch_id) == []
    clock.jump(0.1)
    (again,) = await claim(store, batch_id)
    assert (again.attempt, again.put_off_at) == (1, NOW)


async def test_a_claim_has_the_first_put_off_since_the_last_failure(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")

    async def claimed_after(outcome: Outcome) -> float | None:
        (held,) = await claim(store, batch_id)
        await settle(store, held, outcome)
        clock.jump(10)
        (again,) = await claim(store, batch_id)
        await settle(store, again, Released())
        return again.put_off_at

    assert await claimed_after(PutOff(BOOM, 0.0)) == NOW
    assert await claimed_after(PutOff(BOOM, 5.0)) == NOW, "several put-offs count from the first"
    assert await claimed_after(Retrying(BOOM, 0.0, crashed=True)) == NOW, "a lost worker is no answer of the service"
    assert await claimed_after(Retrying(BOOM, 0.0)) is None
    assert await claimed_after(PutOff(BOOM, 0.0)) == NOW + 40
    (held,) = await claim(store, batch_id)
    await settle(store, held, Failed(BOOM, permanent=False))
    await store.reopen_failed(batch_id, max_attempts=None)
    (held,) = await claim(store, batch_id)
    assert held.put_off_at is None


async def test_an_item_that_runs_anew_was_not_put_off(store: Store) -> None:
    batch_id = await batch_of(store, ["reopened", "rerun"])
    await joined(store, "w")
    for held in await claim(store, batch_id):
        await settle(store, held, PutOff(BOOM, 0.0))
    first, _ = await claim(store, batch_id)
    await settle(store, first, Failed(BOOM, permanent=False))
    assert await store.reopen_failed(batch_id, max_attempts=3) == 1
    await store.cancel(batch_id, ["rerun"])
    await store.add(batch_id, [NewItem("rerun", '"other"')], on_change="rerun")
    assert {each.id: each.put_off_at for each in await claim(store, batch_id)} == {"reopened": None, "rerun": None}


async def test_a_late_outcome_changes_nothing_and_is_named(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (first,) = await claim(store, batch_id)
    await settle(store, first, Retrying(BOOM, 0.0))
    (second,) = await claim(store, batch_id)
    late = await settle(store, first, Completed('"late"'))
    assert list(late.lost) == [first]
    assert (await only_row(store, batch_id)).status is Status.PROCESSING
    assert list((await settle(store, second, Completed('"right"'))).lost) == []
    assert (await only_row(store, batch_id)).result == '"right"'


async def test_of_many_outcomes_only_the_late_one_is_lost(store: Store) -> None:
    keys = [f"k{number}" for number in range(300)]
    batch_id = await batch_of(store, keys)
    await joined(store, "w")
    held = await claim(store, batch_id, 300)
    await settle(store, held[123], Released())
    turn = await store.turn("w", [Settlement(each, Completed("1"), NOW, NOW) for each in held], [])
    assert list(turn.lost) == [held[123]]
    assert await store.counts(batch_id) == Counts(pending=1, completed=299)


async def test_settling_twice_is_settling_once(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    await settle(store, held, Completed("1"))
    assert list((await settle(store, held, Failed(BOOM, permanent=True))).lost) == [held]
    assert (await only_row(store, batch_id)).status is Status.COMPLETED


async def test_a_pause_lets_the_whole_batch_rest(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id, 1)
    await settle(store, held, Retrying(BOOM, 20.0, pause=20.0))
    clock.jump(19)
    turn = await store.turn("w", [], [Want(batch_id, 5, 3)])
    assert (len(turn.claims), turn.batches[batch_id].resting_until) == (0, NOW + 20)
    clock.jump(1.5)
    assert len(await claim(store, batch_id)) == 2


async def test_a_rest_holds_for_every_worker_and_the_later_end_counts(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w", "v")
    await store.rest_batch(batch_id, 60.0)
    await store.rest_batch(batch_id, 10.0)
    for worker in ("w", "v"):
        turn = await store.turn(worker, [], [Want(batch_id, 5, 3)])
        assert (len(turn.claims), turn.batches[batch_id].resting_until) == (0, NOW + 60)
    clock.jump(60)
    assert len(await claim(store, batch_id, worker="v")) == 1


async def test_the_next_claim_has_the_saved_checkpoint(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"], max_attempts=9)
    await joined(store, "w")
    first, other = await claim(store, batch_id)
    assert first.checkpoint is None
    saved = [Checkpoint(first, "[1]"), Checkpoint(other, "[2]")]
    turn = await store.turn("w", [Settlement(first, Retrying(BOOM, 0.0), NOW, NOW)], [], checkpoints=saved)
    assert list(turn.lost) == []
    (again,) = await claim(store, batch_id)
    assert (again.id, again.checkpoint) == ("a", "[1]")
    late = await store.turn("w", [], [], checkpoints=[Checkpoint(first, "[3]"), Checkpoint(again, "[4]")])
    assert list(late.lost) == [first]
    await store.recover("w", LOST)
    await joined(store, "v")
    assert sorted((each.id, each.checkpoint) for each in await claim(store, batch_id, worker="v")) == [("a", "[4]"), ("b", "[2]")]


@pytest.mark.parametrize("end", ["settled", "recovered"])
async def test_a_checkpoint_of_a_claim_that_has_ended_changes_nothing_and_is_named(end: str, store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w", "v")
    (held,) = await claim(store, batch_id)
    await store.turn("w", [], [], checkpoints=[Checkpoint(held, "[1]")])
    if end == "settled":
        await settle(store, held, Retrying(BOOM, 0.0))
    else:
        await store.recover("w", LOST)
    late = await store.turn("w", [], [], checkpoints=[Checkpoint(held, "[2]")])
    assert list(late.lost) == [held]
    (again,) = await claim(store, batch_id, worker="v")
    assert again.checkpoint == "[1]"


async def test_rerunning_an_item_forgets_its_checkpoint_and_retrying_it_does_not(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    failed = Settlement(held, Failed(BOOM, permanent=False), NOW, NOW)
    await store.turn("w", [failed], [], checkpoints=[Checkpoint(held, "[1]")])
    await store.reopen_failed(batch_id, max_attempts=None)
    (again,) = await claim(store, batch_id)
    assert again.checkpoint == "[1]"
    await settle(store, again, Completed("1"))
    await store.add(batch_id, [NewItem("a", '"other"')], on_change="rerun")
    (fresh,) = await claim(store, batch_id)
    assert fresh.checkpoint is None


# --- what a guardrail, a rate limit or a person asks ----------------------------------------------------------------


async def test_a_stopped_batch_gives_no_claims_until_it_is_reopened(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    await store.stop_batch(batch_id, "too many failed")
    await store.stop_batch(batch_id, "another reason")
    turn = await store.turn("w", [], [Want(batch_id, 5, 3)])
    state = turn.batches[batch_id]
    assert (list(turn.claims), state.stopped, state.resting_until, state.unfinished) == (
        [],
        "too many failed",
        float("inf"),
        True,
    )
    await batch_of(store)
    assert len(await claim(store, batch_id)) == 1


async def test_no_more_is_claimed_than_the_rate_allows(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, [str(number) for number in range(100)])
    await joined(store, "w")
    rate = Rate(10.0, 2)

    async def turn(later: float) -> tuple[int, float | None]:
        clock.jump(NOW + later - clock.now())
        found = await store.turn("w", [], [Want(batch_id, 50, 3, rate)])
        return len(found.claims), found.batches[batch_id].resting_until

    count, resting_until = await turn(0)
    assert (count, round((resting_until or 0) - NOW, 3)) == (2, 0.1)
    assert (await turn(0.05))[0] == 0
    assert (await turn(0.11))[0] == 1
    assert (await turn(60))[0] == 2
    assert (await turn(-86_400))[0] == 2  # the clock was set back: no claim waits a day


async def test_cancelling_takes_pending_and_running_items_and_fences_off_the_holder(store: Store) -> None:
    batch_id = await batch_of(store, ["done", "running", "pending"])
    await joined(store, "w")
    done, running = await claim(store, batch_id, 2)
    await settle(store, done, Completed("1"))
    assert list(await store.lost_claims([running])) == []
    assert await store.cancel(batch_id, ["done", "running", "pending", "missing"]) == 2
    assert list(await store.lost_claims([done, running])) == [
        LostClaim(done, cancelled=False),
        LostClaim(running, cancelled=True),
    ]
    assert list((await settle(store, running, Completed('"late"'))).lost) == [running]
    assert await store.counts(batch_id) == Counts(completed=1, cancelled=2)
    assert await claim(store, batch_id) == []


async def test_a_claim_is_lost_when_another_worker_holds_the_item(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w", "v")
    (held,) = await claim(store, batch_id)
    await store.recover("w", LOST)
    assert list(await store.lost_claims([held])) == [LostClaim(held, cancelled=False)]
    (again,) = await claim(store, batch_id, worker="v")
    assert list(await store.lost_claims([held, again])) == [LostClaim(held, cancelled=False)]
    assert list(await store.lost_claims([])) == []


# --- failed items ---------------------------------------------------------------------------------------------------


async def test_reopening_takes_what_has_attempts_left_and_no_permanent_error(store: Store) -> None:
    batch_id = await failed_items(store)
    assert await store.reopen_failed(batch_id, max_attempts=3) == 1
    assert [each.id for each in await claim(store, batch_id)] == ["transient"]


async def test_more_attempts_reopen_items_that_had_used_up_theirs(store: Store) -> None:
    batch_id = await failed_items(store)
    assert await store.reopen_failed(batch_id, max_attempts=4) == 2
    assert {each.id: each.attempt for each in await claim(store, batch_id, most=4)} == {"transient": 2, "used up": 4}


async def test_reopening_everything_gives_a_fresh_start(store: Store) -> None:
    batch_id = await failed_items(store)
    assert await store.reopen_failed(batch_id, max_attempts=None) == 3
    assert [each.attempt for each in await claim(store, batch_id)] == [1, 1, 1]


# --- workers --------------------------------------------------------------------------------------------------------


async def test_a_worker_that_leaves_releases_its_items(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    await joined(store, "w")
    await claim(store, batch_id, 1)
    await store.leave("w")
    assert await store.counts(batch_id) == Counts(pending=2)
    assert [row.attempts for row in await all_rows(store, batch_id)] == [0, 0]


async def test_peers_are_the_workers_that_joined_and_did_not_leave(store: Store) -> None:
    await joined(store, "w", "v", "u")
    await store.leave("v")
    assert [peer.worker_id for peer in await store.peers("w")] == ["u"]


async def test_a_beat_changes_the_pulse(store: Store, clock: FakeClock) -> None:
    await joined(store, "w", "v")
    (before,) = await store.peers("w")
    clock.jump(1)
    await store.beat("v", Vitals(3, 1))
    (after,) = await store.peers("w")
    assert before.pulse != after.pulse


async def test_a_clock_that_is_set_back_moves_retries_earlier_once(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, ["a"])
    await store.add(batch_id, [NewItem("for tomorrow", "1", due_at=NOW + 86_400)], on_change="error")
    await joined(store, "w", "v")
    (held,) = await claim(store, batch_id)
    clock.jump(3600)
    await settle(store, held, Retrying(BOOM, 10.0))
    for worker in ("w", "v"):
        assert (await store.beat(worker, Vitals())).set_back == 0
    clock.jump(-3600)
    beat = await store.beat("w", Vitals())
    assert (beat.set_back, beat.moved) == (3600, 1)
    assert (await store.beat("w", Vitals())).set_back == 0
    clock.jump(10)
    assert [each.id for each in await claim(store, batch_id)] == ["a"]
    clock.jump(3600)
    assert await claim(store, batch_id) == [], "the time that an operator requested stays"


async def test_a_clock_that_is_set_back_moves_items_that_were_put_off_earlier(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, ["before", "first", "again"])
    await joined(store, "w")
    before, first, again = await claim(store, batch_id)
    await settle(store, before, PutOff(BOOM, 7200.0))
    await settle(store, again, PutOff(BOOM, 0.0))
    clock.jump(3600)
    (again,) = await claim(store, batch_id)
    await settle(store, again, PutOff(BOOM, 10.0), at=NOW + 3600)
    await settle(store, first, PutOff(BOOM, 10.0), at=NOW + 1)  # its attempt started before the time that the clock is set to
    await store.beat("w", Vitals())
    clock.jump(-3600)
    assert (await store.beat("w", Vitals())).moved == 2
    clock.jump(10)
    assert {each.id: each.put_off_at for each in await claim(store, batch_id)} == {"first": NOW, "again": NOW}
    clock.jump(7200)
    assert [each.id for each in await claim(store, batch_id)] == ["before"], "it was put off before the change of the clock"


async def test_beats_that_differ_by_a_few_seconds_move_nothing(store: Store, clock: FakeClock) -> None:
    await joined(store, "w", "v")
    await store.beat("w", Vitals())
    clock.jump(-4)
    assert (await store.beat("v", Vitals())).set_back == 0


async def test_recovery_counts_a_crash_and_fences_off_the_lost_worker(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w", "v")
    (held,) = await claim(store, batch_id, worker="w")
    assert await store.recover("w", LOST) == 1
    (again,) = await claim(store, batch_id, worker="v")
    assert (again.attempt, again.crashes) == (2, 1)
    late = await settle(store, held, Completed('"late"'), worker="w")
    assert late.outcast
    assert list(late.lost) == [held]
    assert (await only_row(store, batch_id)).status is Status.PROCESSING


async def test_of_two_recoveries_one_does_it(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    await claim(store, batch_id)
    assert [await store.recover("w", LOST), await store.recover("w", LOST)] == [1, 0]
    assert (await only_row(store, batch_id)).status is Status.PENDING


async def test_a_worker_that_has_beaten_since_the_evidence_is_not_lost(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "v")
    await joined(store, "w")
    await claim(store, batch_id)
    (seen,) = (peer for peer in await store.peers("v") if peer.worker_id == "w")
    clock.jump(300)
    await store.beat("w", Vitals())
    assert await store.recover("w", LOST, pulse=seen.pulse) == 0
    assert (await only_row(store, batch_id)).status is Status.PROCESSING
    (seen,) = (peer for peer in await store.peers("v") if peer.worker_id == "w")
    clock.jump(600)
    assert await store.recover("w", LOST, pulse=seen.pulse) == 1


async def test_a_recovered_item_without_attempts_left_fails_with_the_evidence(store: Store) -> None:
    batch_id = await batch_of(store, ["a"], max_attempts=1)
    await joined(store, "w")
    await claim(store, batch_id, most=1)
    await store.recover("w", LOST)
    row = await only_row(store, batch_id)
    assert (row.status, row.error) == (
        Status.FAILED,
        "WorkerLost: its lock is free. Attempt 1 of 1; other items of the worker: 0; crashes of this item: 1",
    )


async def lost_together(store: Store, clock: FakeClock, keys: list[str], times: int, *, max_attempts: int = 1) -> int:
    """Return a batch whose items a worker held each of the *times* that it was lost."""
    batch_id = await batch_of(store, keys, max_attempts=max_attempts)
    for number in range(times):
        await joined(store, f"lost-{number}")
        assert len(await claim(store, batch_id, len(keys), worker=f"lost-{number}", most=max_attempts)) == len(keys)
        await store.recover(f"lost-{number}", LOST)
        clock.jump(1000)
    return batch_id


@pytest.mark.parametrize("max_attempts", [1, 2, 5])
async def test_a_first_loss_changes_nothing_about_how_an_item_runs(store: Store, clock: FakeClock, max_attempts: int) -> None:
    batch_id = await lost_together(store, clock, ["a", "b"], 1, max_attempts=max_attempts)
    await joined(store, "v")
    turn = await store.turn("v", [], [Want(batch_id, 10, max_attempts)])
    assert [(found.id, found.crashes, found.suspicion) for found in turn.claims] == [("a", 1, 0), ("b", 1, 0)]


async def test_items_that_were_lost_together_twice_are_claimed_one_at_a_time(store: Store, clock: FakeClock) -> None:
    batch_id = await lost_together(store, clock, ["a", "b"], 2)
    await store.add(batch_id, [NewItem("fresh", "1")], on_change="error")
    await joined(store, "v")
    assert await store.counts(batch_id) == Counts(pending=3)
    turn = await store.turn("v", [], [Want(batch_id, 10, 1)])
    assert ([found.id for found in turn.claims], turn.batches[batch_id].suspicion) == (["fresh"], Suspicion.SUSPECT)
    for suspect, next_one in (("a", Suspicion.SUSPECT), ("b", Suspicion.NONE)):
        turn = await store.turn("v", [], [Want(batch_id, 0, 1, suspicion=Suspicion.SUSPECT)])
        (held,) = turn.claims
        assert (held.id, held.attempt, held.crashes, held.suspicion) == (suspect, 1, 2, Suspicion.SUSPECT)
        assert (turn.batches[batch_id].suspicion if batch_id in turn.batches else Suspicion.NONE) == next_one
        await settle(store, held, Completed("1"), worker="v")


async def test_a_turn_claims_a_suspect_and_other_items_together(store: Store, clock: FakeClock) -> None:
    batch_id = await lost_together(store, clock, ["a"], 2, max_attempts=9)
    await store.add(batch_id, [NewItem("fresh", "1"), NewItem("more", "1")], on_change="error")
    await joined(store, "v")
    turn = await store.turn("v", [], [Want(batch_id, 1, 9, suspicion=Suspicion.SUSPECT)])
    assert [found.id for found in turn.claims] == ["a", "fresh"]


async def test_the_only_suspect_at_a_further_loss_is_isolated_and_then_fails_alone(store: Store, clock: FakeClock) -> None:
    batch_id = await lost_together(store, clock, ["a"], 2, max_attempts=4)
    await store.add(batch_id, [NewItem("beside", "1")], on_change="error")
    await joined(store, "w", "v")
    await store.turn("w", [], [Want(batch_id, 1, 4, suspicion=Suspicion.SUSPECT)])
    await store.recover("w", LOST)
    clock.jump(1000)
    turn = await store.turn("v", [], [Want(batch_id, 1, 4, suspicion=Suspicion.SUSPECT)])
    assert [found.id for found in turn.claims] == ["beside"], "an isolated item needs a request for one"
    assert turn.batches[batch_id].suspicion == Suspicion.ISOLATED
    await settle(store, turn.claims[0], Completed("1"), worker="v")
    turn = await store.turn("v", [], [Want(batch_id, 0, 4, suspicion=Suspicion.ISOLATED)])
    assert [(found.id, found.suspicion) for found in turn.claims] == [("a", Suspicion.ISOLATED)]
    await store.recover("v", LOST)
    assert await store.counts(batch_id) == Counts(completed=1, failed=1)


@pytest.mark.parametrize(("outcome", "attempt"), [(Retrying(BOOM, 0.0), 4), (PutOff(BOOM, 0.0), 3)], ids=["retry", "put-off"])
async def test_a_suspect_that_ends_without_a_crash_is_no_longer_a_suspect(
    store: Store, clock: FakeClock, outcome: Retrying | PutOff, attempt: int
) -> None:
    batch_id = await lost_together(store, clock, ["a"], 2, max_attempts=9)
    await joined(store, "v")
    turn = await store.turn("v", [], [Want(batch_id, 0, 9, suspicion=Suspicion.SUSPECT)])
    await settle(store, turn.claims[0], outcome, worker="v")
    turn = await store.turn("v", [], [Want(batch_id, 1, 9)])
    assert [found.attempt for found in turn.claims] == [attempt]


async def test_two_workers_of_one_process_die_together(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"], max_attempts=1)
    for worker in ("w", "v"):
        await store.join(WorkerInfo(worker, "here", 1, process="p"))
    await claim(store, batch_id, 1, worker="w", most=1)
    await claim(store, batch_id, 1, worker="v", most=1)
    for worker in ("w", "v"):
        await store.recover(worker, LOST)
    assert await store.counts(batch_id) == Counts(pending=2)


async def test_a_suspect_of_a_process_whose_other_workers_died_too_is_not_isolated(store: Store, clock: FakeClock) -> None:
    batch_id = await lost_together(store, clock, ["a", "b"], 2, max_attempts=9)
    for worker in ("w", "v"):
        await store.join(WorkerInfo(worker, "here", 1, process="p"))
        assert (await store.turn(worker, [], [Want(batch_id, 0, 9, suspicion=Suspicion.SUSPECT)])).claims
    for worker in ("w", "v"):
        await store.recover(worker, LOST)
    clock.jump(1000)
    await joined(store, "x")
    for _ in range(2):
        (held,) = (await store.turn("x", [], [Want(batch_id, 0, 9, suspicion=Suspicion.SUSPECT)])).claims
        assert held.suspicion is Suspicion.SUSPECT


async def test_two_processes_with_one_host_name_and_pid_are_two_processes(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"], max_attempts=1)
    for worker in ("w", "v"):
        await store.join(WorkerInfo(worker, "container", 1, process=worker))
    await claim(store, batch_id, 1, worker="w", most=1)
    await claim(store, batch_id, 1, worker="v", most=1)
    await store.recover("w", LOST)
    assert await store.counts(batch_id) == Counts(processing=1, failed=1)


async def test_an_outcast_worker_claims_nothing_until_its_next_beat(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    await store.recover("w", LOST)
    turn = await store.turn("w", [], [Want(batch_id, 1, 3)])
    assert (turn.outcast, list(turn.claims)) == (True, [])
    assert (await store.beat("w", Vitals())).outcast
    assert not (await store.beat("w", Vitals())).outcast
    assert len(await claim(store, batch_id)) == 1


async def test_a_live_workers_items_are_no_orphans(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    await claim(store, batch_id)
    assert await store.recover(None, LOST) == 0
    assert (await only_row(store, batch_id)).status is Status.PROCESSING


async def test_recovering_orphans_twice_finds_none(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    await claim(store, batch_id)
    await store.leave("w")
    assert await store.recover(None, LOST) == 0
    assert (await only_row(store, batch_id)).status is Status.PENDING


# --- opening and closing --------------------------------------------------------------------------------------------


async def test_a_cancelled_caller_does_not_undo_an_operation_that_has_begun(store: Store) -> None:
    batch_id = await batch_of(store)
    adding = asyncio.ensure_future(store.add(batch_id, [NewItem("a", "1")], on_change="error"))
    await asyncio.sleep(0)
    adding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await adding
    assert (await store.add(batch_id, [NewItem("b", "2")], on_change="error")).new == 1
    assert (await store.counts(batch_id)).total == 2


async def test_of_operations_that_share_a_transaction_a_bad_one_fails_alone(store: Store) -> None:
    batch_id = await batch_of(store, ["taken"])
    results = await asyncio.gather(
        store.add(batch_id, [NewItem("a", "1")], on_change="error"),
        store.add(batch_id, [NewItem("taken", "2")], on_change="error"),
        store.add(batch_id, [NewItem("b", "1")], on_change="error"),
        return_exceptions=True,
    )
    assert [type(result).__name__ for result in results] == ["Added", "KeyConflict", "Added"]
    assert (await store.counts(batch_id)).total == 3


# --- other workers --------------------------------------------------------------------------------------------------


async def test_peers_are_the_other_workers_with_the_evidence_of_their_life(store: Store) -> None:
    await joined(store, "w", "v")
    (peer,) = await store.peers("w")
    assert (peer.worker_id, peer.host, peer.pid, peer.alive in (True, None)) == ("v", "here", 1, True)
    assert peer.evidence


# --- purging --------------------------------------------------------------------------------------------------------


async def walk(store: Store, batch_ids: list[int], *, older_than: float, cursor: Cursor | None = None) -> tuple[int, int]:
    """Purge to the end; return the numbers of due and of deleted items."""
    due = removed = 0
    while True:
        step = await store.purge_step(batch_ids, older_than=older_than, cursor=cursor)
        due, removed, cursor = due + step.due, removed + step.removed, step.next
        if cursor is None:
            return due, removed


async def test_a_purge_removes_old_completed_items_and_their_failures_and_nothing_else(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, ["old", "tried twice", "failed", "young", "pending"])
    other = await batch_of(store, ["other"], name="other")
    await joined(store, "w")
    old, tried, failed, young = await claim(store, batch_id, 4)
    (elsewhere,) = await claim(store, other)
    await settle(store, tried, Retrying(BOOM, 0.0))
    (tried,) = await claim(store, batch_id, 1)
    for each, outcome, at in (
        (old, Completed("1"), NOW),
        (tried, Completed("1"), NOW + 1),
        (failed, Failed(BOOM, permanent=True), NOW),
        (young, Completed("1"), NOW + 10),
        (elsewhere, Completed("1"), NOW),
    ):
        await settle(store, each, outcome, at=at)
    clock.jump(20)
    assert await walk(store, [batch_id], older_than=10) == (2, 2)
    assert [row.id for row in await all_rows(store, batch_id)] == ["failed", "young", "pending"]
    assert await store.counts(batch_id) == Counts(pending=1, completed=1, failed=1)
    assert [row.id for row in await all_rows(store, other)] == ["other"]
    assert [cause.items for cause in await store.failure_causes(batch_id, 9)] == [1]
    assert await walk(store, [batch_id], older_than=10) == (0, 0)


async def test_a_purge_comes_to_every_item_in_steps(store: Store, clock: FakeClock) -> None:
    keys = [f"k{number}" for number in range(2500)]
    batch_id = await batch_of(store, keys)
    await joined(store, "w")
    held = await claim(store, batch_id, 2500)
    old = [held[0], *held[1700:]]  # the purge moves on from the oldest items before it has reached all due ones
    await store.turn("w", [Settlement(each, Completed("1"), NOW, NOW) for each in old], [])
    clock.jump(11)
    first = await store.purge_step([batch_id], older_than=10, cursor=None)
    assert 0 < first.removed < len(old), "one step blocks other writers only for a part of the items"
    due, removed = await walk(store, [batch_id], older_than=10, cursor=first.next)
    assert due == removed == len(old) - first.removed
    assert await store.counts(batch_id) == Counts(processing=2500 - len(old))


async def test_an_item_that_was_purged_is_new_again(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    await settle(store, held, Completed("1"))
    clock.jump(2)
    assert await walk(store, [batch_id], older_than=1) == (1, 1)
    assert (await store.add(batch_id, [NewItem("a", '"a"')], on_change="error")).new == 1
    assert await store.counts(batch_id) == Counts(pending=1)


# --- large results --------------------------------------------------------------------------------------------------


async def test_a_result_in_pieces_is_complete_once_it_is_settled_and_invisible_before(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    await joined(store, "w")
    first, second = await claim(store, batch_id)
    assert await store.stage_result(first, 0, '"one ')
    assert await store.stage_result(first, 1, "twö ")
    assert await store.stage_result(first, 2, 'three"')
    assert await store.stage_result(second, 0, '"other"')
    assert (await store.items(batch_id, ["a"]))[0].result is None
    await settle(store, first, Completed('"one twö three"', kept=True))
    (row,) = await store.items(batch_id, ["a"])
    assert (row.status, row.result) == (Status.COMPLETED, '"one twö three"')
    assert [row.result for row in await all_rows(store, batch_id)] == ['"one twö three"', None]


async def test_a_piece_given_twice_is_kept_once(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    for text in ('"lost acknowledgement', '"first'):
        assert await store.stage_result(held, 0, text)
    assert await store.stage_result(held, 1, '"')
    await settle(store, held, Completed('"first"', kept=True))
    assert (await only_row(store, batch_id)).result == '"first"'


async def test_a_piece_of_a_claim_that_is_not_current_is_not_kept(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w", "x")
    (held,) = await claim(store, batch_id)
    assert await store.stage_result(held, 0, '"of the lost"')
    await store.recover("w", LOST)
    assert not await store.stage_result(held, 1, "late")
    clock.jump(3600)
    (again,) = await claim(store, batch_id, worker="x")
    assert not await store.stage_result(held, 1, "late")
    assert (await settle(store, held, Completed('"of the lost"', kept=True), worker="x")).lost == [held]
    await settle(store, again, Completed('"small"'), worker="x")
    assert (await only_row(store, batch_id)).result == '"small"'


async def test_an_item_run_again_has_the_new_result_and_not_the_pieces_of_the_old_one(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    for piece, text in enumerate(('"old', "er", '"')):
        await store.stage_result(held, piece, text)
    await settle(store, held, Completed('"older"', kept=True))
    await store.add(batch_id, [NewItem("a", "2")], on_change="rerun")
    assert (await only_row(store, batch_id)).result is None
    (again,) = await claim(store, batch_id)
    await store.stage_result(again, 0, '"new"')
    assert (await only_row(store, batch_id)).result is None
    await settle(store, again, Completed('"new"', kept=True))
    assert (await only_row(store, batch_id)).result == '"new"'
