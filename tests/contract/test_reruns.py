"""The contract of a rerun that is requested while a worker holds the item: the item runs once more after its attempt."""

from __future__ import annotations

import pytest

from asyncrunner.domain.item import Counts, NewItem, OnKnownKey, Status
from asyncrunner.domain.outcome import Cancelled, Completed, ErrorInfo, Failed, Outcome, PutOff, Released, Retrying, Settlement
from asyncrunner.errors import KeyConflict
from asyncrunner.store.protocols import Store
from asyncrunner.store.turn import Checkpoint, Want
from asyncrunner.testing import FakeClock
from tests.contract.stores import BOOM, LOST, NOW, all_rows, batch_of, claim, joined, only_row, settle

REQUESTS: list[OnKnownKey] = ["rerun", "run again"]
OUTCOMES: list[Outcome] = [
    Completed('"of the old payload"'),
    Retrying(BOOM, 60.0),
    PutOff(BOOM, 60.0),
    Failed(BOOM, permanent=True),
    Released(),
]


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
async def test_a_held_item_runs_once_more_after_its_attempt_whatever_its_outcome(
    store: Store, request_: OnKnownKey, outcome: Outcome
) -> None:
    batch_id = await batch_of(store, ["a", "beside"])
    await joined(store, "w")
    held, beside = await claim(store, batch_id)
    added = await store.add(batch_id, [NewItem("a", '"new"')], on_change=request_)
    assert (added.new, added.existing, added.changed, list(added.undone)) == (0, 1, 1, [])
    assert list(await store.lost_claims([held, beside])) == [], "the attempt is left alone"
    assert await claim(store, batch_id) == [], "it does not run beside its own attempt"

    settlements = [Settlement(each, outcome, NOW - 1, NOW) for each in (held, beside)]
    turn = await store.turn("w", settlements, [Want(batch_id, 1, 3)], checkpoints=[Checkpoint(held, "[1]")])
    assert (list(turn.lost), list(turn.reruns)) == ([], [held])
    (again,) = turn.claims
    assert (again.id, again.payload, again.attempt, again.crashes, again.checkpoint) == ("a", '"new"', 1, 0, None)
    assert again.number > held.number
    turn = await settle(store, again, Completed('"of the new payload"'))
    assert (list(turn.lost), list(turn.reruns)) == ([], []), "it runs once more, and not for ever"
    row = next(row for row in await all_rows(store, batch_id) if row.id == "a")
    assert (row.status, row.payload, row.result) == (Status.COMPLETED, '"new"', '"of the new payload"')
    assert (await store.counts(batch_id)).total == 2


async def test_the_same_payload_is_a_request_only_for_run_again(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    await joined(store, "w")
    first, second = await claim(store, batch_id)
    assert (await store.add(batch_id, [NewItem("a", '"a"')], on_change="rerun")).changed == 0
    assert (await store.add(batch_id, [NewItem("b", '"b"')], on_change="run again")).changed == 1
    turn = await store.turn("w", [Settlement(each, Completed("1"), NOW, NOW) for each in (first, second)], [])
    assert list(turn.reruns) == [second]
    assert await store.counts(batch_id) == Counts(pending=1, completed=1)


async def test_of_several_requests_the_newest_counts_and_is_the_payload_of_the_next_comparison(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    for payload, changed in (('"b"', 1), ('"b"', 0), ('"c"', 1), ('"a"', 1), ('"c"', 1)):
        assert (await store.add(batch_id, [NewItem("a", payload)], on_change="rerun")).changed == changed
    assert (await store.add(batch_id, [NewItem("a", '"c"')], on_change="error")).existing == 1
    with pytest.raises(KeyConflict):
        await store.add(batch_id, [NewItem("a", '"a"')], on_change="error")
    await settle(store, held, Completed("1"))
    assert (await only_row(store, batch_id)).payload == '"c"'


async def test_the_rerun_has_the_priority_and_the_time_of_the_request(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, ["a", "beside"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id, 1)
    await store.add(batch_id, [NewItem("a", '"new"', 7, NOW + 60)], on_change="run again")
    turn = await store.turn("w", [Settlement(held, Retrying(BOOM, 600.0), NOW, NOW)], [])
    assert await store.counts(batch_id) == Counts(pending=2, waiting=1)
    assert [each.id for each in await claim(store, batch_id, 1)] == ["beside"]
    await clock.advance(61)
    assert [each.payload for each in await claim(store, batch_id)] == ['"new"']
    assert list(turn.reruns) == [held]


@pytest.mark.parametrize("end", ["recover", "leave"])
async def test_a_request_survives_the_worker(store: Store, end: str) -> None:
    batch_id = await batch_of(store, ["a"], max_attempts=1)
    await joined(store, "w", "v")
    (held,) = await claim(store, batch_id, most=1)
    await store.add(batch_id, [NewItem("a", '"new"')], on_change="run again")
    if end == "leave":
        await store.leave("w")
    else:
        assert await store.recover("w", LOST) == 1
    (again,) = await claim(store, batch_id, worker="v", most=1)
    assert (again.payload, again.attempt, again.crashes, again.suspicion) == ('"new"', 1, 0, 0)
    assert list((await settle(store, held, Completed('"late"'))).lost) == [held]
    await settle(store, again, Completed('"right"'), worker="v")
    assert (await only_row(store, batch_id)).result == '"right"'


async def test_a_cancellation_withdraws_the_request(store: Store) -> None:
    batch_id = await batch_of(store, ["by a person", "by its worker"])
    await joined(store, "w")
    first, second = await claim(store, batch_id)
    await store.add(batch_id, [NewItem(first.id, "1"), NewItem(second.id, "2")], on_change="run again")
    assert await store.cancel(batch_id, [first.id]) == 1
    turn = await store.turn("w", [Settlement(each, Cancelled(), NOW, NOW) for each in (first, second)], [])
    assert (list(turn.lost), list(turn.reruns)) == ([first], [])
    assert await store.counts(batch_id) == Counts(cancelled=2)
    same = [NewItem(each.id, each.payload) for each in (first, second)]
    assert (await store.add(batch_id, same, on_change="error")).changed == 0, "their payloads are the first ones"
    await store.add(batch_id, [NewItem(first.id, '"later"')], on_change="run again")
    (again,) = await claim(store, batch_id)
    assert (again.id, again.payload) == (first.id, '"later"')
    assert list((await settle(store, again, Completed("1"))).reruns) == []


async def test_a_request_for_one_of_many_and_a_lost_claim_in_one_turn(store: Store) -> None:
    keys = [f"k{number}" for number in range(300)]
    batch_id = await batch_of(store, keys)
    await joined(store, "w")
    held = await claim(store, batch_id, 300)
    await store.add(batch_id, [NewItem("k7", "7"), NewItem("k200", "200")], on_change="run again")
    await store.cancel(batch_id, ["k9"])
    turn = await store.turn("w", [Settlement(each, Completed("1"), NOW, NOW) for each in held], [])
    assert ([each.id for each in turn.lost], [each.id for each in turn.reruns]) == (["k9"], ["k7", "k200"])
    assert await store.counts(batch_id) == Counts(pending=2, completed=297, cancelled=1)


async def test_two_payloads_in_one_chunk_keep_the_later_one(store: Store) -> None:
    batch_id = await batch_of(store, ["held", "pending"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id, 1)
    chunk = [NewItem("held", "1"), NewItem("pending", "1"), NewItem("held", "2"), NewItem("pending", "2")]
    await store.add(batch_id, chunk, on_change="run again")
    await settle(store, held, Failed(ErrorInfo("Fail", "no"), permanent=True))
    assert [row.payload for row in await all_rows(store, batch_id)] == ["2", "2"]
