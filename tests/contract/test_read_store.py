"""The contract of ReadStore: for the store itself, and for a reader that outlives it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from asyncrunner.domain.item import Counts
from asyncrunner.domain.outcome import Completed, Failed
from asyncrunner.errors import StoreClosed
from asyncrunner.store.batches import Batch
from asyncrunner.store.protocols import ReadStore, Store
from asyncrunner.store.workers import Vitals, WorkerInfo
from asyncrunner.testing import FakeClock
from tests.contract.stores import BOOM, LOST, NOW, all_rows, batch_of, claim, failed_items, joined, settle

ReaderOf = Callable[[Store], Awaitable[ReadStore]]


async def itself(store: Store) -> ReadStore:
    return store


async def reader(store: Store) -> ReadStore:
    return await store.reader()


async def reader_after_the_end(store: Store) -> ReadStore:
    made = await store.reader()
    await store.close()
    return made


@pytest.fixture(params=[itself, reader, reader_after_the_end], ids=lambda made: made.__name__)
def reader_of(request: pytest.FixtureRequest) -> ReaderOf:
    made: ReaderOf = request.param
    return made


async def test_items_are_found_by_their_keys_and_batches_by_their_names(store: Store, reader_of: ReaderOf) -> None:
    batch_id = await batch_of(store, ["a", "b", "c"])
    other = await batch_of(store, ["a"], name="other")
    reads = await reader_of(store)
    assert sorted(row.id for row in await reads.items(batch_id, ["a", "c", "missing"])) == ["a", "c"]
    assert (await reads.find_batch("other"), await reads.find_batch("missing")) == (Batch(other, "other"), None)
    assert list(await reads.batch_names()) == ["b", "other"]
    assert await reads.incomplete_copies(["b", "missing"]) == {}


async def test_items_are_found_by_their_numbers_in_their_batch_only(store: Store, reader_of: ReaderOf) -> None:
    batch_id = await batch_of(store, ["a", "b", "c"])
    other = await batch_of(store, ["d"], name="other")
    seqs = {row.id: row.seq for row in (*await all_rows(store, batch_id), *await all_rows(store, other))}
    reads = await reader_of(store)
    found = await reads.items_by_seq(batch_id, [seqs["c"], seqs["a"], seqs["d"], 999_999])
    assert {row.id: row.seq for row in found} == {"a": seqs["a"], "c": seqs["c"]}
    assert list(await reads.items_by_seq(batch_id, [])) == []


async def test_failures_are_grouped_by_cause_the_most_frequent_first(store: Store, reader_of: ReaderOf) -> None:
    batch_id = await failed_items(store)
    reads = await reader_of(store)
    causes = await reads.failure_causes(batch_id, 5)
    assert [(cause.error, cause.items) for cause in causes] == [("ValueError: boom", 2), ("Fail: no", 1)]
    assert [cause.items for cause in await reads.failure_causes(batch_id, 1)] == [2]
    assert await reads.counts(batch_id) == Counts(failed=3)


async def test_the_causes_of_some_items_are_those_of_the_given_numbers(store: Store, reader_of: ReaderOf) -> None:
    batch_id = await failed_items(store)
    seqs = {row.id: row.seq for row in await all_rows(store, batch_id)}
    reads = await reader_of(store)
    some = [seqs["transient"], seqs["permanent"], 999_999]
    causes = await reads.failure_causes(batch_id, 5, seqs=some)
    assert [(cause.error, cause.items, cause.example) for cause in causes] == [
        ("ValueError: boom", 1, "transient"),
        ("Fail: no", 1, "permanent"),
    ]
    assert list(await reads.failure_causes(batch_id, 5, seqs=[])) == []


async def test_the_open_items_are_those_that_are_not_completed_by_state(store: Store, reader_of: ReaderOf) -> None:
    batch_id = await batch_of(store, ["completed", "failed", "cancelled", "processing", "pending"])
    await batch_of(store, ["elsewhere"], name="other")
    await joined(store, "w")
    held = {each.id: each for each in await claim(store, batch_id, 4)}
    await settle(store, held["completed"], Completed("1"))
    await settle(store, held["failed"], Failed(BOOM, permanent=True))
    await store.cancel(batch_id, ["cancelled"])
    seqs = {row.id: row.seq for row in await all_rows(store, batch_id)}
    found = await (await reader_of(store)).open_items(batch_id)
    states = {"pending": found.pending, "failed": found.failed, "cancelled": found.cancelled, "processing": found.processing}
    assert {name: list(numbers) for name, numbers in states.items()} == {name: [seqs[name]] for name in states}
    assert list(found.unfinished) == [seqs["processing"], seqs["pending"]]
    assert (len(found.all), found.newest) == (4, seqs["pending"] + 1)


async def test_items_that_change_after_the_snapshot_are_open_as_before(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    has_snapshot = asyncio.Event()
    reading = asyncio.ensure_future(store.open_items(batch_id, on_snapshot=has_snapshot.set))
    reading.add_done_callback(lambda _: has_snapshot.set())
    await has_snapshot.wait()
    await store.cancel(batch_id, ["a", "b"])
    await batch_of(store, ["c"], name="other")
    found = await reading
    assert (len(found.pending), len(found.cancelled), found.newest) == (2, 0, max(found.pending))
    assert len((await store.open_items(batch_id)).cancelled) == 2


async def test_the_rate_is_that_of_the_newest_turns(store: Store, clock: FakeClock, reader_of: ReaderOf) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    await joined(store, "w")
    assert await store.recent_rate(batch_id) is None
    for each in await claim(store, batch_id):
        await settle(store, each, Completed("1"))
        clock.jump(0.5)
    reads = await reader_of(store)
    assert await reads.recent_rate(batch_id) == pytest.approx(2.0)


@pytest.mark.parametrize("ends", ["leaves", "dies", "works on"])
async def test_a_pause_between_two_runs_is_no_part_of_the_rate(
    ends: str, store: Store, clock: FakeClock, reader_of: ReaderOf
) -> None:
    batch_id = await batch_of(store, list("abcdef"))
    for run, worker in enumerate(("first", "second")):
        await store.join(WorkerInfo(worker, "here", 1, batches=["other", "b"]))
        for each in await claim(store, batch_id, 3, worker=worker):
            clock.jump(1)
            await settle(store, each, Completed("1"), worker=worker)
        await store.beat(worker, Vitals())
        if run == 0:
            if ends == "leaves":
                await store.leave(worker)
            clock.jump(40)
            if ends == "dies":
                await store.recover(worker, LOST)
            elif ends == "works on":
                await store.beat(worker, Vitals())
    # Five items finished after the first turn: in 2 s of the first run and 3 s of the second one. A worker dies at some time
    # after its newest heartbeat.
    least, most = {"leaves": (5, 5), "dies": (5, 7), "works on": (45, 45)}[ends]
    rate = await (await reader_of(store)).recent_rate(batch_id)
    assert rate is not None
    assert 5 / most <= rate + 1e-9 <= 5 / least + 2e-9


async def test_pages_continue_after_the_last_row_and_end(store: Store, reader_of: ReaderOf) -> None:
    batch_id = await batch_of(store, ["a", "b", "c"])
    await batch_of(store, ["d"], name="other")
    reads = await reader_of(store)
    first = await reads.item_page(batch_id, None, 2)
    second = await reads.item_page(batch_id, first.next, 2)
    assert [row.id for row in (*first.rows, *second.rows)] == ["a", "b", "c"]
    assert second.next is None
    whole = await reads.item_page(batch_id, None, 3)
    assert len(whole.rows) == 3
    assert whole.next is None or (await reads.item_page(batch_id, whole.next, 3)) == ([], None)


async def test_a_result_in_pieces_is_read_whole(store: Store, reader_of: ReaderOf) -> None:
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    (held,) = await claim(store, batch_id)
    for piece, text in enumerate(('"one ', "two ", 'three"')):
        assert await store.stage_result(held, piece, text)
    await settle(store, held, Completed('"one two three"', kept=True))
    reads = await reader_of(store)
    (row,) = await reads.items(batch_id, ["a"])
    assert (row.result, row.started_at, row.completed_at) == ('"one two three"', NOW - 1.5, NOW)
    assert list((await reads.item_page(batch_id, None, 5)).rows) == [row]
    assert list(await reads.items_by_seq(batch_id, [row.seq])) == [row]


async def test_a_reader_is_usable_in_another_event_loop_after_the_end(store: Store) -> None:
    batch_id = await batch_of(store, ["a", "b"])
    reads = await reader_after_the_end(store)
    counted: list[Counts] = []
    thread = threading.Thread(target=lambda: counted.append(asyncio.run(reads.counts(batch_id))))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert counted == [Counts(pending=2)]


async def test_a_closed_store_reports_that_it_is_closed_and_closes_again_without_an_error(store: Store) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreClosed, match="not open"):
        await store.counts(1)
    with pytest.raises(StoreClosed, match="not open"):
        await store.turn("w", [], [])
