"""The contract of AdminStore for many items and large ones: lists, searches, selections, exports, and the start of a value."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from asyncrunner.domain.item import NewItem, Status
from asyncrunner.domain.outcome import Completed, Failed, Retrying
from asyncrunner.store.admin_protocol import MAX_TEXT_BYTES, Change, Filter, Selection
from asyncrunner.text.timestamps import to_text
from tests.contract.stores import BOOM, NOW, Both, batch_of, claim, failed_items, joined, settle

EVERY = tuple(Status)


async def listed(both: Both, batch_id: int, criteria: Filter, *, after: str | None = None, limit: int = 10) -> list[str]:
    items = await both.admin.find(batch_id, criteria, after=after, limit=limit)
    assert items is not None
    return [item.id for item in items]


async def selected(both: Both, batch_id: int, selection: Selection) -> Sequence[str]:
    return await both.admin.ids_of(await both.admin.select(batch_id, selection, in_input_order=True))


# --- lists ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "criteria",
    [Filter(), Filter(Status.PENDING), Filter(Status.FAILED), Filter(Status.FAILED, error="boom"), Filter(before=NOW + 50),
     Filter(Status.FAILED, before=NOW + 50), Filter(Status.COMPLETED), Filter(error="boom")],
)  # fmt: skip
async def test_the_newest_first_is_the_same_list_backwards_also_page_by_page(both: Both, criteria: Filter) -> None:
    batch_id = await failed_items(both.engine)
    await both.clock.advance(100)
    await both.engine.add(batch_id, [NewItem(key, "1") for key in ("x", "y", "z")], on_change="error")
    newest = criteria._replace(newest=True)
    expected = list(reversed(await listed(both, batch_id, criteria)))
    assert await listed(both, batch_id, newest) == expected
    pages: list[str] = []
    while len(pages) < len(expected):
        pages += await listed(both, batch_id, newest, after=pages[-1] if pages else None, limit=1)
    assert pages == expected
    assert not pages or await listed(both, batch_id, newest, after=pages[-1]) == []


async def test_a_list_has_the_start_of_each_payload(both: Both) -> None:
    batch_id = await batch_of(both.engine)
    long = '"' + "ü" * 500 + '"'
    await both.engine.add(batch_id, [NewItem("short", '{"a":1}'), NewItem("long", long)], on_change="error")
    items = await both.admin.find(batch_id, Filter(), after=None, limit=10)
    assert items is not None
    assert [item.payload for item in items] == ['{"a":1}', long[:200]]


# --- searches -------------------------------------------------------------------------------------------------------


async def test_a_search_finds_the_text_in_key_payload_result_and_error_the_newest_first(both: Both) -> None:
    batch_id = await batch_of(both.engine)
    await joined(both.engine, "w")
    await both.engine.add(
        batch_id,
        [NewItem("in-Needle-key", "1"), NewItem("payload", '{"url":"a needle"}'), NewItem("result", "2"), NewItem("error", "3"),
         NewItem("none", '"needl"')],
        on_change="error",
    )  # fmt: skip
    held = {each.id: each for each in await claim(both.engine, batch_id)}
    await settle(both.engine, held["result"], Completed('["NEEDLE"]'))
    await settle(both.engine, held["error"], Failed(replace(BOOM, message="boom: no needle"), permanent=False))
    found = await both.admin.search(batch_id, Filter(), "needle", after=None, limit=10)
    assert found is not None
    assert [item.id for item in found.rows] == ["error", "result", "payload", "in-Needle-key"]
    assert (found.looked_at, found.of, found.last) == (5, 5, None)
    wild = await both.admin.search(batch_id, Filter(), "url*needle", after=None, limit=10)
    assert wild is not None
    assert [(item.id, item.payload) for item in wild.rows] == [("payload", '{"url":"a needle"}')]
    of_status = await both.admin.search(batch_id, Filter(Status.COMPLETED), "needle", after=None, limit=10)
    assert of_status is not None
    assert ([item.id for item in of_status.rows], of_status.looked_at, of_status.of) == (["result"], 1, 1)
    by_error = await both.admin.search(batch_id, Filter(Status.FAILED, error="boom"), "boom", after=None, limit=10)
    assert by_error is not None
    assert ([item.id for item in by_error.rows], by_error.of) == (["error"], None)
    assert await both.admin.search(batch_id, Filter(), "needle", after="nothing", limit=10) is None


async def test_a_search_that_is_full_continues_behind_the_last_item_that_it_looked_at(both: Both) -> None:
    batch_id = await batch_of(both.engine)
    await both.engine.add(batch_id, [NewItem(f"k{at}", f'"{at % 3}"') for at in range(9)], on_change="error")
    found = await both.admin.search(batch_id, Filter(), '"1"', after=None, limit=2)
    assert found is not None
    assert ([item.id for item in found.rows], found.looked_at, found.of, found.last) == (["k7", "k4"], 5, 9, "k4")
    rest = await both.admin.search(batch_id, Filter(), '"1"', after="k4", limit=2)
    assert rest is not None
    assert ([item.id for item in rest.rows], rest.looked_at, rest.last) == (["k1"], 4, None)


async def test_a_search_looks_at_ten_thousand_items_of_the_batch(both: Both) -> None:
    batch_id = await batch_of(both.engine, [f"k{at}" for at in range(10_003)])
    await batch_of(both.engine, ["k0"], name="other")
    found = await both.admin.search(batch_id, Filter(), "k2*", after=None, limit=5000)
    assert found is not None
    assert (found.looked_at, found.of, found.last) == (10_000, 10_003, "k3")
    assert [item.id for item in found.rows][-1] == "k20", "k2 is older than the newest 10,000"
    rest = await both.admin.search(batch_id, Filter(), "k2", after=found.last, limit=1000)
    assert rest is not None
    assert ([item.id for item in rest.rows], rest.looked_at, rest.last) == (["k2"], 3, None)


async def test_a_search_reads_a_hundred_megabytes_at_most(both: Both) -> None:
    batch_id = await batch_of(both.engine)
    payload = '"' + "x" * 20_000_000 + '"'
    for at in range(6):
        await both.engine.add(batch_id, [NewItem(f"k{at}", payload)], on_change="error")
    found = await both.admin.search(batch_id, Filter(), "needle", after=None, limit=10)
    assert found is not None
    assert (len(found.rows), found.looked_at, found.of, found.last) == (0, 5, 6, "k1")


# --- selections and exports -----------------------------------------------------------------------------------------


async def test_pending_items_are_selected_by_the_time_of_their_arrival(both: Both) -> None:
    batch_id = await batch_of(both.engine, [f"old{at}" for at in range(2500)])
    await both.clock.advance(100)
    await both.engine.add(batch_id, [NewItem("new", "1")], on_change="error")
    items = await both.admin.select(batch_id, Selection((Status.PENDING,), before=NOW + 50))
    assert (len(items.numbers), dict(items.counts)) == (2500, {"pending": 2500})
    none = await both.admin.select(batch_id, Selection((Status.PENDING,), before=NOW))
    assert (len(none.numbers), dict(none.counts)) == (0, {})


@pytest.mark.parametrize("criteria", [Filter(), *(Filter(status) for status in Status)])
@pytest.mark.parametrize("error", [None, "boom", "f1", "nothing"])
@pytest.mark.parametrize("before", [None, NOW, NOW + 5, NOW + 150])
async def test_a_selection_has_the_items_that_a_list_with_the_same_filter_has(
    both: Both, criteria: Filter, error: str | None, before: float | None
) -> None:
    batch_id = await failed_items(both.engine)
    await both.engine.add(batch_id, [NewItem(key, "1") for key in ("done", "retried", "held", "gone")], on_change="error")
    held = {each.id: each for each in await claim(both.engine, batch_id)}
    await both.clock.advance(10)
    await settle(both.engine, held["done"], Completed("1"), at=NOW + 10)
    await settle(both.engine, held["retried"], Retrying(BOOM, 0.0), at=NOW + 10)
    await both.engine.cancel(batch_id, ["gone"])
    await both.clock.advance(100)
    await both.engine.add(batch_id, [NewItem("new", "1")], on_change="error")
    criteria = criteria._replace(error=error, before=before)
    selection = Selection(EVERY if criteria.status is None else (criteria.status,), error=error, before=before)
    assert list(await selected(both, batch_id, selection)) == await listed(both, batch_id, criteria)


async def test_a_selection_is_in_input_order_whatever_the_priorities_are(both: Both) -> None:
    batch_id = await batch_of(both.engine)
    new = [NewItem(f"k{at}", "1", priority=at % 3) for at in range(7)]
    await both.engine.add(batch_id, new, on_change="error")
    assert list(await selected(both, batch_id, Selection((Status.PENDING,)))) == [item.id for item in new]


async def test_a_set_is_exported_in_its_order_without_items_that_left_the_states_or_were_deleted(both: Both) -> None:
    batch_id = await failed_items(both.engine)
    items = await both.admin.select(batch_id, Selection((Status.FAILED,)), in_input_order=True)
    records = await both.admin.export_selected(batch_id, items)
    assert [(record.batch, record.id, record.error) for record in records] == [
        ("b", "transient", "ValueError: boom"), ("b", "used up", "ValueError: boom"), ("b", "permanent", "Fail: no"),
    ]  # fmt: skip
    assert [record.id for record in await both.admin.export_selected(batch_id, items.part(1, 1))] == ["used up"]
    named = await both.admin.select(batch_id, Selection(keys=["permanent", "transient"]))
    await both.engine.reopen_failed(batch_id, max_attempts=3)
    assert [record.id for record in await both.admin.export_selected(batch_id, items)] == ["used up", "permanent"]
    assert list(await both.admin.ids_of(items)) == ["used up", "permanent"]
    assert list(await both.admin.ids_of(named)) == ["permanent", "transient"], "items with keys are in any state"


# --- one item -------------------------------------------------------------------------------------------------------


async def test_a_failed_attempt_has_its_start_and_its_duration(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a"])
    await joined(both.engine, "w")
    (held,) = await claim(both.engine, batch_id)
    await settle(both.engine, held, Failed(BOOM, permanent=False), at=NOW)
    item = await both.admin.item(batch_id, "a")
    assert item is not None
    assert [(each.started_at, each.duration) for each in item.failures] == [(to_text(NOW - 1.5), 1.5)]
    assert (await both.admin.snapshot(None)).failures[0].duration == 1.5


async def test_only_the_start_of_a_large_value_is_read(both: Both) -> None:
    batch_id = await batch_of(both.engine)
    await joined(both.engine, "w")
    payload = '"' + "ü" * MAX_TEXT_BYTES + '"'
    await both.engine.add(batch_id, [NewItem("a", payload), NewItem("b", "1")], on_change="error")
    held = {each.id: each for each in await claim(both.engine, batch_id)}
    for piece, text in enumerate(('"' + "x" * 60_000, "y" * 60_000, '"')):
        assert await both.engine.stage_result(held["a"], piece, text)
    await settle(both.engine, held["a"], Completed("", kept=True))
    await settle(both.engine, held["b"], Completed('"exactly"'))
    item = await both.admin.item(batch_id, "a")
    assert item is not None
    assert item.payload == payload[: (MAX_TEXT_BYTES - 1) // 2 + 1], "a character that the limit cuts is dropped"
    assert item.result == ('"' + "x" * 60_000 + "y" * 60_000)[:MAX_TEXT_BYTES]
    assert dict(item.cut) == {"payload": 2 * MAX_TEXT_BYTES + 2, "result": 120_002}
    whole = await both.admin.item(batch_id, "a", max_bytes=1_000_000)
    assert whole is not None
    assert (whole.payload, dict(whole.cut)) == (payload, {})
    assert whole.result == '"' + "x" * 60_000 + "y" * 60_000 + '"'
    small = await both.admin.item(batch_id, "b", max_bytes=len('"exactly"'))
    assert small is not None
    assert (small.result, small.checkpoint, dict(small.cut)) == ('"exactly"', None, {})


@pytest.mark.parametrize("canceller", ["engine", "admin"])
async def test_the_result_in_pieces_of_an_item_that_runs_again_survives_its_cancellation(both: Both, canceller: str) -> None:
    batch_id = await batch_of(both.engine, ["a"])
    await joined(both.engine, "w")
    (held,) = await claim(both.engine, batch_id)
    for piece, text in enumerate(('"' + "x" * 60_000, 'y"')):
        assert await both.engine.stage_result(held, piece, text)
    await settle(both.engine, held, Completed("", kept=True))
    named = await both.admin.select(batch_id, Selection(keys=["a"]))
    assert await both.admin.change(named, Change.RERUN) == 1
    if canceller == "engine":
        assert await both.engine.cancel(batch_id, ["a"]) == 1
    else:
        assert await both.admin.change(named, Change.CANCEL) == 1
    await joined(both.engine, "v")  # a start deletes the pieces that no item uses
    (record,) = await both.admin.export_selected(batch_id, named)
    assert (record.status, record.result) == ("cancelled", '"' + "x" * 60_000 + 'y"')


async def test_a_key_that_no_store_can_have_is_found_nowhere(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a"])
    key = "a\0"
    assert list(await both.admin.batches_with(key)) == []
    assert await both.admin.item(batch_id, key) is None
    assert await both.admin.find(batch_id, Filter(), after=key, limit=1) is None
    assert list(await both.admin.keys_with([batch_id], key, 5)) == []
    assert key not in list(await both.admin.similar_keys(batch_id, key))
    selection = await both.admin.select(batch_id, Selection(keys=[key, "a"]))
    assert list(selection.missing) == [key]
