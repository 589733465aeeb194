"""The contract of adds that claim: the items are those that the next turn would claim, in the state that it would give them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest

from asyncrunner.domain.item import Claim, Counts, NewItem, OnKnownKey, Status
from asyncrunner.domain.outcome import Completed, Failed
from asyncrunner.store.batches import Added
from asyncrunner.store.protocols import Store
from asyncrunner.store.turn import ClaimRequest, Want
from asyncrunner.testing import FakeClock
from tests.contract.stores import BOOM, LOST, NOW, Both, all_rows, batch_of, claim, joined, only_row, settle

ABC = [NewItem(key, f'"{key}"') for key in "abc"]


async def add(
    store: Store,
    batch_id: int,
    entries: Sequence[NewItem] = ABC,
    *,
    limit: int = 10,
    version: int | None = None,
    on_change: OnKnownKey = "error",
) -> Added:
    request = ClaimRequest("w", Want(batch_id, limit, 3, version=version))
    return await store.add(batch_id, entries, on_change=on_change, request=request)


async def claims_of(store: Store, batch_id: int, added: Added, *, limit: int = 10) -> list[Claim]:
    """Return the claims of the add; those of the next turn on a store whose adds claim nothing."""
    if store.claims_with_add:
        return list(added.claims)
    assert list(added.claims) == []
    return await claim(store, batch_id, limit)


async def test_an_add_makes_the_claims_that_a_turn_would_make(store: Store) -> None:
    with_add, with_turn = await batch_of(store, name="with add"), await batch_of(store, list("abc"), name="with turn")
    await joined(store, "w")
    added = await add(store, with_add)
    by_add, by_turn = await claims_of(store, with_add, added), await claim(store, with_turn)
    assert added[:4] == (3, 0, 0, ())
    assert [(each.id, each.payload, each.number, each.attempt, each.crashes, each.suspicion) for each in by_add] == [
        (each.id, each.payload, each.number, each.attempt, each.crashes, each.suspicion) for each in by_turn
    ]
    assert [each.seq for each in by_add] == list(added.seqs)
    assert await store.counts(with_add) == await store.counts(with_turn) == Counts(processing=3)
    rows, expected = await all_rows(store, with_add), await all_rows(store, with_turn)
    assert [row._replace(seq=0) for row in rows] == [row._replace(seq=0) for row in expected]


async def test_the_first_items_of_a_chunk_are_claimed_and_the_others_come_next(store: Store) -> None:
    batch_id = await batch_of(store)
    await joined(store, "w")
    added = await add(store, batch_id, limit=2)
    first = await claims_of(store, batch_id, added, limit=2)
    assert [each.id for each in first] == ["a", "b"]
    assert await store.counts(batch_id) == Counts(pending=1, processing=2)
    assert [each.id for each in await claim(store, batch_id)] == ["c"]


async def test_an_outcome_is_stored_under_the_claim_of_an_add_and_only_once(store: Store) -> None:
    batch_id = await batch_of(store)
    await joined(store, "w")
    (held,) = await claims_of(store, batch_id, await add(store, batch_id, ABC[:1]))
    assert (await settle(store, held, Completed('"done"'))).lost == []
    assert list((await settle(store, held, Completed('"late"'))).lost) == [held]
    row = await only_row(store, batch_id)
    assert (row.status, row.result, row.attempts) == (Status.COMPLETED, '"done"', 1)


async def test_what_an_add_claimed_is_released_by_leave_and_recovered_after_a_loss(store: Store) -> None:
    batch_id = await batch_of(store)
    await joined(store, "w", "v")
    await claims_of(store, batch_id, await add(store, batch_id))
    await store.leave("w")
    assert [(row.status, row.attempts) for row in await all_rows(store, batch_id)] == [(Status.PENDING, 0)] * 3
    again = await claim(store, batch_id, worker="v")
    assert [each.number for each in again] == [2, 2, 2]
    assert await store.recover("v", LOST) == 3


async def test_a_known_key_is_not_claimed_and_of_a_repeated_key_the_first_entry_is(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (old,) = await claim(store, batch_id)
    await settle(store, old, Completed("1"))
    chunk = [NewItem("a", '"a"'), NewItem("b", "1"), NewItem("b", "2"), NewItem("c", "3"), NewItem("c", "3")]
    added = await add(store, batch_id, chunk, on_change="keep")
    claims = await claims_of(store, batch_id, added)
    assert [(each.id, each.payload) for each in claims] == [("b", "1"), ("c", "3")]
    assert added[:3] == (2, 3, 1)
    assert added.known == frozenset("a")


async def test_a_chunk_of_known_keys_claims_nothing(store: Store) -> None:
    batch_id = await batch_of(store, list("abc"))
    await joined(store, "w")
    for each in await claim(store, batch_id):
        await settle(store, each, Completed("1"))
    assert list((await add(store, batch_id)).claims) == []
    assert (await store.counts(batch_id)).completed == 3


async def test_items_that_are_not_due_yet_do_not_prevent_the_claims(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store)
    await joined(store, "w")
    await store.add(batch_id, [NewItem("later", "1", due_at=NOW + 60)], on_change="error")
    assert [each.id for each in await claims_of(store, batch_id, await add(store, batch_id))] == ["a", "b", "c"]
    await clock.advance(61)
    assert list((await add(store, batch_id, [NewItem("new", "1")])).claims) == []
    assert [each.id for each in await claim(store, batch_id)] == ["later", "new"]


async def test_the_trace_context_of_the_submit_is_in_the_claim(store: Store) -> None:
    batch_id = await batch_of(store)
    await joined(store, "w")
    added = await add(store, batch_id, [NewItem("a", "1", traceparent="first")])
    assert [each.traceparent for each in await claims_of(store, batch_id, added)] == ["first"]


async def a_chunk_with_a_due_time(both: Both, batch_id: int) -> Added:
    return await add(both.engine, batch_id, [*ABC, NewItem("late", "1", due_at=NOW - 1)])


async def a_chunk_with_two_priorities(both: Both, batch_id: int) -> Added:
    return await add(both.engine, batch_id, [*ABC, NewItem("first", "1", priority=1)])


async def a_batch_with_another_due_item(both: Both, batch_id: int) -> Added:
    await both.engine.add(batch_id, [NewItem("older", "1", priority=-1)], on_change="error")
    return await add(both.engine, batch_id)


async def a_batch_with_a_retry_that_is_due(both: Both, batch_id: int) -> Added:
    await both.engine.add(batch_id, [NewItem("older", "1", due_at=NOW + 10)], on_change="error")
    await both.clock.advance(10)
    return await add(both.engine, batch_id)


async def a_paused_batch(both: Both, batch_id: int) -> Added:
    await both.admin.set_controls(batch_id, paused=True)
    return await add(both.engine, batch_id)


async def a_stopped_batch(both: Both, batch_id: int) -> Added:
    await both.engine.stop_batch(batch_id, "3 items failed")
    return await add(both.engine, batch_id)


async def a_resting_batch(both: Both, batch_id: int) -> Added:
    await both.engine.rest_batch(batch_id, 60.0)
    return await add(both.engine, batch_id)


async def a_batch_with_another_version(both: Both, batch_id: int) -> Added:
    return await add(both.engine, batch_id, version=7)


async def a_lost_worker(both: Both, batch_id: int) -> Added:
    await both.engine.recover("w", LOST)
    return await add(both.engine, batch_id)


async def a_request_for_no_item(both: Both, batch_id: int) -> Added:
    return await add(both.engine, batch_id, limit=0)


async def a_rerun_of_changed_keys(both: Both, batch_id: int) -> Added:
    return await add(both.engine, batch_id, on_change="rerun")


async def a_rerun_of_known_keys(both: Both, batch_id: int) -> Added:
    return await add(both.engine, batch_id, on_change="run again")


@pytest.mark.parametrize(
    "situation",
    [
        a_chunk_with_a_due_time,
        a_chunk_with_two_priorities,
        a_batch_with_another_due_item,
        a_batch_with_a_retry_that_is_due,
        a_paused_batch,
        a_stopped_batch,
        a_resting_batch,
        a_batch_with_another_version,
        a_lost_worker,
        a_request_for_no_item,
        a_rerun_of_changed_keys,
        a_rerun_of_known_keys,
    ],
)
async def test_an_add_claims_nothing_where_a_turn_would_not_claim_its_items_next(
    both: Both, situation: Callable[[Both, int], Awaitable[Added]]
) -> None:
    batch_id = await batch_of(both.engine)
    await joined(both.engine, "w")
    added = await situation(both, batch_id)
    assert list(added.claims) == []
    counts = await both.engine.counts(batch_id)
    assert (counts.processing, counts.pending) == (0, counts.total)
    assert counts.total >= 3


async def test_a_failed_item_does_not_prevent_the_claims(store: Store) -> None:
    batch_id = await batch_of(store, ["x"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    await settle(store, held, Failed(BOOM, permanent=True))
    assert len(await claims_of(store, batch_id, await add(store, batch_id))) == 3
