"""The contract of versions: the items that another version completed run again, exactly once, and keep their result until then."""

from __future__ import annotations

import pytest

from asyncrunner.domain.item import Counts, NewItem, Status
from asyncrunner.domain.outcome import LARGE_RESULT, RESULT_PIECE, Cancelled, Completed, Failed, Outcome, Released, Retrying
from asyncrunner.store.batches import OTHER_VERSION, BatchVersion
from asyncrunner.store.protocols import Store
from asyncrunner.store.turn import Checkpoint, Want
from tests.contract.stores import BOOM, LOST, all_rows, batch_of, claim, joined, only_row, settle


async def complete_all(store: Store, batch_id: int, result: str) -> list[str]:
    claims = await claim(store, batch_id)
    for each in claims:
        await settle(store, each, Completed(result))
    return [each.id for each in claims]


async def complete(store: Store, batch_id: int, result: str) -> None:
    """Complete the only pending item, with a large result in pieces."""
    (held,) = await claim(store, batch_id)
    if len(result) <= LARGE_RESULT:
        await settle(store, held, Completed(result))
        return
    for piece, first in enumerate(range(0, len(result), RESULT_PIECE)):
        assert await store.stage_result(held, piece, result[first : first + RESULT_PIECE])
    await settle(store, held, Completed(result, kept=True))


async def change(store: Store, batch_id: int, version: str, *, worker: str = "w") -> int:
    answer = await store.adopt_version(worker, batch_id, version)
    assert answer.rivals == ()
    return 0 if answer.is_applied else await store.apply_version(batch_id, answer.number)


async def test_completed_items_run_again_once_for_each_version(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    await joined(store, "w")
    await complete_all(store, batch_id, '"without"')
    for version in ("v1", "v2", "v1"):
        assert await change(store, batch_id, version) == 2
        assert await store.counts(batch_id) == Counts(pending=2)
        assert await complete_all(store, batch_id, f'"{version}"') == ["a", "b"]
        assert await change(store, batch_id, version) == 0
    assert [row.result for row in await all_rows(store, batch_id)] == ['"v1"', '"v1"']


async def test_the_first_version_of_a_new_batch_changes_no_item(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    assert await change(store, batch_id, "v1") == 0
    assert await complete_all(store, batch_id, "1") == ["a"]
    assert await store.adopt_version("w", batch_id, "v1") == BatchVersion(1, is_applied=True)


async def test_only_completed_items_of_this_batch_run_again(store: Store) -> None:
    batch_id, other = await batch_of(store, ["done", "failed", "gone", "held"]), await batch_of(store, ["x"], name="other")
    await joined(store, "w", "v")
    await complete_all(store, other, "1")
    done, failed, gone, held = await claim(store, batch_id, worker="v")
    await settle(store, done, Completed("1"), worker="v")
    await settle(store, failed, Failed(BOOM, permanent=True), worker="v")
    await settle(store, gone, Cancelled(), worker="v")
    assert await change(store, batch_id, "v1") == 1
    turn = await settle(store, held, Completed('"of the earlier version"'), worker="v")
    assert list(turn.reruns) == [held], "it began before the change"
    assert await store.counts(batch_id) == Counts(pending=2, failed=1, cancelled=1)
    assert await store.counts(other) == Counts(completed=1)


@pytest.mark.parametrize(
    "outcome", [Failed(BOOM, permanent=True), Retrying(BOOM, 0.0), Released()], ids=lambda each: type(each).__name__
)
@pytest.mark.parametrize("size", [1, LARGE_RESULT + 1])
async def test_the_old_result_stays_until_a_new_one_is_committed(store: Store, outcome: Outcome, size: int) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    old, new = f'"{"o" * size}"', f'"{"n" * size}"'
    await complete(store, batch_id, old)
    assert await change(store, batch_id, "v1") == 1
    assert (await only_row(store, batch_id)).result == old
    for attempt in range(2):
        (held,) = await claim(store, batch_id)
        row = await only_row(store, batch_id)
        assert (row.status, row.result) == (Status.PROCESSING, old)
        if size > LARGE_RESULT:
            assert await store.stage_result(held, 0, '"a part of a new one')
        await settle(store, held, outcome)
        await joined(store, f"after-{attempt}")  # a join deletes orphaned pieces
        assert (await only_row(store, batch_id)).result == old
        assert [each.result for each in await (await store.reader()).items(batch_id, ["a"])] == [old]
        await store.reopen_failed(batch_id, max_attempts=None)
    await complete(store, batch_id, new)
    await joined(store, "last")
    row = await only_row(store, batch_id)
    assert (row.status, row.result) == (Status.COMPLETED, new)


async def test_a_cancelled_item_keeps_its_old_result(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    await complete(store, batch_id, '"old"')
    await change(store, batch_id, "v1")
    (held,) = await claim(store, batch_id)
    await settle(store, held, Cancelled())
    row = await only_row(store, batch_id)
    assert (row.status, row.result) == (Status.CANCELLED, '"old"')


async def test_a_rerun_of_a_held_item_keeps_the_result_of_the_same_payload_only(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    await joined(store, "w", "v")
    await complete_all(store, batch_id, '"old"')
    await change(store, batch_id, "v1", worker="v")
    held = await claim(store, batch_id)
    await store.leave("v")
    await store.add(batch_id, [NewItem("b", '"new payload"')], on_change="rerun")
    await change(store, batch_id, "v2", worker="w")
    for each in held:
        await settle(store, each, Completed('"of v1"'))
    rows = await all_rows(store, batch_id)
    assert [(row.status, row.payload, row.result) for row in rows] == [
        (Status.PENDING, '"a"', '"old"'),
        (Status.PENDING, '"new payload"', None),
    ]


async def test_a_rerun_begins_with_all_attempts_and_without_a_checkpoint(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    await store.turn("w", [], [], checkpoints=[Checkpoint(held, "[1]")])
    await settle(store, held, Retrying(BOOM, 0.0))
    await complete_all(store, batch_id, "1")
    await change(store, batch_id, "v1")
    (again,) = await claim(store, batch_id)
    assert (again.attempt, again.checkpoint) == (1, None)
    assert again.number > held.number


async def test_an_interrupted_change_continues_and_leaves_the_items_that_this_version_completed(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    await joined(store, "w")
    await complete_all(store, batch_id, '"old"')
    assert (await store.adopt_version("w", batch_id, "v1")).is_applied is False  # and the process is killed before it applies it
    await store.recover("w", LOST)
    assert await store.counts(batch_id) == Counts(completed=2)
    await joined(store, "v")
    await store.add(batch_id, [NewItem("c", "3")], on_change="error")
    (new,) = await claim(store, batch_id, worker="v")
    await settle(store, new, Completed('"v1"'), worker="v")
    answer = await store.adopt_version("v", batch_id, "v1")
    assert answer == BatchVersion(1, is_applied=False)
    assert await store.apply_version(batch_id, answer.number) == 2
    assert await store.apply_version(batch_id, answer.number) == 0
    assert {row.id: row.status for row in await all_rows(store, batch_id)} == {
        "a": Status.PENDING,
        "b": Status.PENDING,
        "c": Status.COMPLETED,
    }
    assert (await store.adopt_version("v", batch_id, "v1")).is_applied


async def test_the_end_of_an_overtaken_change_is_not_the_end_of_the_newest(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    await complete_all(store, batch_id, "1")
    first = await store.adopt_version("w", batch_id, "v1")
    await store.leave("w")
    await joined(store, "v")
    second = await store.adopt_version("v", batch_id, "v2")
    await store.apply_version(batch_id, first.number)
    assert (await store.adopt_version("v", batch_id, "v2")).is_applied is False
    await store.apply_version(batch_id, second.number)
    (held,) = await claim(store, batch_id, worker="v")
    await settle(store, held, Completed('"v2"'), worker="v")
    assert await store.apply_version(batch_id, first.number) == 0, "a worker that was declared lost continues its change"
    assert await store.counts(batch_id) == Counts(completed=1)
    assert (await store.adopt_version("v", batch_id, "v2")).is_applied


async def test_two_versions_at_the_same_time_are_refused_and_change_nothing(store: Store) -> None:
    batch_id, other = await batch_of(store, ["a"]), await batch_of(store, name="other")
    await joined(store, "w", "v", "without")
    await complete_all(store, batch_id, "1")
    await change(store, batch_id, "v1")
    await complete_all(store, batch_id, "1")
    answer = await store.adopt_version("v", batch_id, "v2")
    assert [(rival.worker_id, rival.version, rival.pid) for rival in answer.rivals] == [("w", "v1", 1)]
    assert (await store.adopt_version("v", other, "v2")).rivals == (), "versions of another batch"
    assert (await store.adopt_version("v", batch_id, "v1")).rivals == (), "the same version"
    await store.leave("w")
    assert await store.counts(batch_id) == Counts(completed=1)
    await store.leave("v")
    assert await change(store, batch_id, "v2", worker="without") == 1


async def test_a_worker_of_another_version_claims_no_items(store: Store) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    old = await store.adopt_version("w", batch_id, "v1")
    await store.recover("w", LOST)  # it hangs
    await joined(store, "v")
    new = await store.adopt_version("v", batch_id, "v2")
    await joined(store, "w")  # its heartbeat registers it again
    turn = await store.turn("w", [], [Want(batch_id, 1, 3, version=old.number)])
    assert (list(turn.claims), turn.batches[batch_id].stopped) == ([], OTHER_VERSION)
    for number in (new.number, None):
        turn = await store.turn("v", [], [Want(batch_id, 1, 3, version=number)])
        assert [each.id for each in turn.claims] == ["a"]
        await settle(store, turn.claims[0], Released(), worker="v")
