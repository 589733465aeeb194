"""The contract of turns that claim only the items that a run was given."""

from __future__ import annotations

from asyncrunner.domain.item import NewItem, Status
from asyncrunner.domain.outcome import Completed, Failed, Retrying, Settlement
from asyncrunner.store.batches import BatchState
from asyncrunner.store.protocols import Store
from asyncrunner.store.turn import Turn, Want
from asyncrunner.testing import FakeClock
from tests.contract.stores import BOOM, LOST, NOW, all_rows, batch_of, failed_items, joined, settle


async def seqs_of(store: Store, batch_id: int) -> dict[str, int]:
    return {row.id: row.seq for row in await all_rows(store, batch_id)}


async def claim_given(store: Store, batch_id: int, limit: int = 100, *, worker: str = "w") -> Turn:
    return await store.turn(worker, [], [Want(batch_id, limit, 3, only_given=True)])


def state_of(turn: Turn) -> BatchState:
    (state,) = turn.batches.values()
    return state


async def test_only_given_items_are_claimed_and_the_state_counts_only_them(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b", "c", "d"])
    seqs = await seqs_of(store, batch_id)
    await joined(store, "w")
    nothing = await claim_given(store, batch_id)
    assert (list(nothing.claims), state_of(nothing).unfinished) == ([], False)
    assert await store.give(batch_id, [seqs["b"], seqs["d"], 999_999], max_attempts=3) == 0
    turn = await claim_given(store, batch_id)
    assert ([each.id for each in turn.claims], state_of(turn).unfinished) == (["b", "d"], True)
    end = await store.turn(
        "w", [Settlement(each, Completed("1"), NOW, NOW) for each in turn.claims], [Want(batch_id, 5, 3, only_given=True)]
    )
    assert (list(end.claims), state_of(end).unfinished) == ([], False)
    assert [row.status for row in await all_rows(store, batch_id)] == ["pending", "completed", "pending", "completed"]


async def test_given_items_are_claimed_by_priority_in_steps(store: Store) -> None:
    batch_id = await batch_of(store)
    await store.add(batch_id, [NewItem(f"{n}", "1", priority=n % 3) for n in range(6)], on_change="error")
    seqs = await seqs_of(store, batch_id)
    await joined(store, "w")
    await store.give(batch_id, [seqs[key] for key in "01245"], max_attempts=3)
    claimed = [[each.id for each in (await claim_given(store, batch_id, 2)).claims] for _ in range(3)]
    assert claimed == [["2", "5"], ["1", "4"], ["0"]]


async def test_a_retry_of_a_given_item_is_claimed_when_it_is_due(store: Store, clock: FakeClock) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    seqs = await seqs_of(store, batch_id)
    await joined(store, "w")
    await store.give(batch_id, [seqs["a"]], max_attempts=3)
    (held,) = (await claim_given(store, batch_id)).claims
    await settle(store, held, Retrying(BOOM, 60.0))
    waiting = await claim_given(store, batch_id)
    assert (list(waiting.claims), state_of(waiting).unfinished, state_of(waiting).next_due) == ([], True, NOW + 60.0)
    clock.jump(60.0)
    (again,) = (await claim_given(store, batch_id)).claims
    assert (again.id, again.attempt) == ("a", 2)


async def test_a_given_item_that_another_worker_holds_is_unfinished_and_is_claimed_after_its_loss(
    store: Store, clock: FakeClock
) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    seqs = await seqs_of(store, batch_id)
    await joined(store, "w", "other")
    (held, other) = (await store.turn("other", [], [Want(batch_id, 2, 3)])).claims
    await store.give(batch_id, [seqs["a"]], max_attempts=3)
    assert state_of(await claim_given(store, batch_id)).unfinished
    await store.recover("other", LOST)
    clock.jump(3600.0)
    (again,) = (await claim_given(store, batch_id)).claims
    assert (again.id, held.id, other.id) == ("a", "a", "b")
    await settle(store, again, Completed("1"))
    assert not state_of(await claim_given(store, batch_id)).unfinished


async def test_giving_failed_items_reopens_those_and_no_others(store: Store) -> None:
    batch_id = await failed_items(store)
    seqs = await seqs_of(store, batch_id)
    given = [seqs["transient"], seqs["permanent"]]
    assert await store.give(batch_id, given, max_attempts=0) == 0
    assert await store.give(batch_id, given, max_attempts=3) == 1
    statuses = {row.id: row.status for row in await all_rows(store, batch_id)}
    assert statuses == {"transient": Status.PENDING, "permanent": Status.FAILED, "used up": Status.FAILED}
    assert await store.give(batch_id, given, max_attempts=None) == 1
    turn = await claim_given(store, batch_id)
    assert [(each.id, each.attempt) for each in turn.claims] == [("transient", 2), ("permanent", 1)]


async def test_items_that_ended_elsewhere_do_not_hide_the_others(store: Store) -> None:
    keys = [f"k{number:04}" for number in range(5000)]
    batch_id = await batch_of(store, keys)
    await joined(store, "w", "other")
    added = await store.add(batch_id, [NewItem(key, f'"{key}"') for key in keys], on_change="error")
    await store.give(batch_id, added.seqs, max_attempts=3)
    elsewhere = (await store.turn("other", [], [Want(batch_id, 4990, 3)])).claims
    failed = Failed(BOOM, permanent=True)
    await store.turn("other", [Settlement(each, failed, NOW, NOW) for each in elsewhere], [])
    turn = await claim_given(store, batch_id)
    assert [each.id for each in turn.claims] == keys[4990:]
