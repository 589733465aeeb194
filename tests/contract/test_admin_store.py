"""The contract of AdminStore, the operator's side of a store, beside an EngineStore with the same rows.

A store in memory has no operator's side, because it belongs to one object of one process and no operator can reach it:
``open_admin`` finds no store there. So this contract runs for each kind of store that has a location, and not for memory.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from asyncrunner import Runner
from asyncrunner.backends import MEMORY, open_admin
from asyncrunner.domain.item import NewItem, Status, Suspicion
from asyncrunner.domain.outcome import Cancelled, Completed, Failed, Outcome, PutOff, Released, Retrying, Settlement
from asyncrunner.errors import StoreClosed, StoreNotFound
from asyncrunner.store.admin_protocol import AdminStore, Change, Filter, Selection
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.protocols import Store
from asyncrunner.store.snapshot import HistoryRow
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import Stop, Throttle, Vitals, WorkerInfo
from asyncrunner.testing import FakeClock
from asyncrunner.text.timestamps import to_text
from tests.contract.stores import ADMIN_STORES, BOOM, LOST, NOW, Both, batch_of, claim, failed_items, joined, parameters, settle
from tests.support.kinds import KINDS
from tests.support.state import exists

LATER = to_text(NOW + 100)


async def status_of(store: Store, batch_id: int) -> dict[str, str]:
    page = await store.item_page(batch_id, None, 1001)
    return {row.id: row.status.value for row in page.rows}


async def exported(admin: AdminStore, batch_id: int, *statuses: Status) -> list[Any]:
    records: list[Any] = []
    cursor = None
    while True:
        page = await admin.export_page(batch_id, statuses or None, cursor)
        records += page.rows
        cursor = page.next
        if cursor is None:
            return records


# --- opening --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", parameters(ADMIN_STORES))
async def test_a_store_that_does_not_exist_is_not_created(name: str, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound):
        await ADMIN_STORES[name](tmp_path, FakeClock(NOW)).open()
    assert not exists(KINDS[name].new_location(tmp_path, "jobs.db"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sqlite_file
async def test_a_store_in_memory_has_no_operators_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with Runner(MEMORY):
        with pytest.raises(StoreNotFound):
            await open_admin(MEMORY, FakeClock(NOW)).open()
    assert list(tmp_path.iterdir()) == []


async def test_a_closed_store_refuses_every_call_and_is_closed_again_without_an_error(both: Both) -> None:
    await both.admin.close()
    await both.admin.close()
    for call in (both.admin.batches, both.admin.workers, lambda: both.admin.set_controls(1, paused=True)):
        with pytest.raises(StoreClosed):
            await call()


# --- reading --------------------------------------------------------------------------------------------------------


async def test_batches_come_in_the_order_of_their_creation_with_their_controls(both: Both) -> None:
    for name in ("z", "a"):
        await batch_of(both.engine, ["x"] if name == "a" else [], name=name)
    rows = await both.admin.batches()
    assert [(row.name, row.handler, row.created_at, row.paused, row.stopped) for row in rows] == [
        ("z", "m:h", to_text(NOW), False, None), ("a", "m:h", to_text(NOW), False, None),
    ]  # fmt: skip
    assert list(await both.admin.batches_with("x")) == ["a"]
    assert list(await both.admin.batches_with("y")) == []


async def test_a_snapshot_has_the_raw_rows_of_one_moment(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a", "b", "c"])
    other = await batch_of(both.engine, ["x"], name="other")
    await joined(both.engine, "w")
    first, second = await claim(both.engine, batch_id, 2)
    await settle(both.engine, first, Failed(BOOM, permanent=True))
    await both.clock.advance(100)
    snapshot = await both.admin.snapshot([batch_id], stuck_after=99)
    (batch,) = snapshot.batches
    assert (snapshot.at, batch.batch.name, batch.counts.pending, batch.counts.processing, batch.counts.failed) == (
        NOW + 100, "b", 1, 1, 1,
    )  # fmt: skip
    assert [(turn.at, turn.failed) for turn in batch.turns] == [(NOW, 1)]
    assert (list(batch.processing_starts), [item.id for item in batch.stuck]) == ([to_text(NOW)], [second.id])
    (worker,) = snapshot.workers
    assert (worker.worker_id, worker.host, worker.pid, worker.holding, worker.alive) == ("w", "here", 1, 1, True)
    assert worker.evidence
    assert [(failure.id, failure.error) for failure in snapshot.failures] == [(first.id, "ValueError: boom")]
    assert (await both.admin.snapshot([other])).failures == []
    everything = await both.admin.snapshot(None)
    assert [(each.batch.name, list(each.stuck)) for each in everything.batches] == [("b", []), ("other", [])]


MINUTE = int(NOW)


async def history_of(both: Both, batch_id: int, *, first: int = 0, minutes: int = 60, step: int = 60) -> list[HistoryRow]:
    """Return the history from the minute *first*, which 0 counts from NOW."""
    since = MINUTE + 60 * first
    return list(await both.admin.history(batch_id, since=since, until=since + 60 * minutes, step=step))


async def test_the_history_counts_the_attempts_of_each_minute_by_their_outcome(both: Both) -> None:
    outcomes: dict[str, Outcome] = {
        "completed": Completed("1"),
        "failed": Failed(BOOM, permanent=True),
        "retried": Retrying(BOOM, 100.0),
        "put off": PutOff(BOOM, 100.0),
        "released": Released(),
        "cancelled": Cancelled(),
        "its worker died": Retrying(LOST, 100.0, crashed=True),
        "killed too many": Failed(LOST, permanent=False, crashed=True),
    }
    batch_id = await batch_of(both.engine, list(outcomes))
    other = await batch_of(both.engine, ["x"], name="other")
    await joined(both.engine, "w")
    assert await history_of(both, batch_id) == []
    held = await claim(both.engine, batch_id) + await claim(both.engine, other)
    outcomes["x"] = Completed("1")
    settlements = [Settlement(each, outcomes[each.id], NOW - 1.5, NOW) for each in held]
    assert (await both.engine.turn("w", settlements, [])).lost == []
    assert await history_of(both, batch_id) == [HistoryRow(MINUTE, completed=1, failed=2, retried=2, seconds=4.5)]
    assert await history_of(both, other) == [HistoryRow(MINUTE, 1, 0, 0, 1.5)]


async def test_an_outcome_of_a_lost_claim_is_not_in_the_history(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a"])
    await joined(both.engine, "w")
    (held,) = await claim(both.engine, batch_id)
    await both.engine.cancel(batch_id, ["a"])
    assert (await settle(both.engine, held, Completed("1"))).lost == [held]
    assert await history_of(both, batch_id) == []


async def test_a_dropped_outcome_of_an_item_that_runs_again_is_not_in_the_history(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a"])
    await joined(both.engine, "w")
    (held,) = await claim(both.engine, batch_id)
    await both.engine.add(batch_id, [NewItem("a", "2")], on_change="rerun")
    assert (await settle(both.engine, held, Failed(BOOM, permanent=False))).reruns == [held]
    assert await history_of(both, batch_id) == []


async def test_the_history_is_summed_up_in_steps_between_two_times(both: Both) -> None:
    batch_id = await batch_of(both.engine, list("abcdef"))
    await joined(both.engine, "w")
    for minute in (0, 0, 1, 59, 60, 61):
        both.clock.jump(NOW + 60 * minute + 59.9 - both.clock.now())
        (held,) = await claim(both.engine, batch_id, 1)
        await settle(both.engine, held, Completed("1"))
    assert [(row.at - MINUTE, row.completed, row.seconds) for row in await history_of(both, batch_id, minutes=100)] == [
        (0, 2, 3.0), (60, 1, 1.5), (3540, 1, 1.5), (3600, 1, 1.5), (3660, 1, 1.5),
    ]  # fmt: skip
    assert [row.at - MINUTE for row in await history_of(both, batch_id, first=1, minutes=59)] == [60, 3540]
    hours = await history_of(both, batch_id, minutes=120, step=3600)
    assert [(row.at - MINUTE, row.completed, row.seconds) for row in hours] == [(0, 4, 6.0), (3600, 2, 3.0)]


async def test_a_minute_that_comes_again_because_the_clock_was_set_back_is_summed_up(both: Both) -> None:
    batch_id = await batch_of(both.engine, list("abcd"))
    await joined(both.engine, "w")
    for seconds in (0, 60, -60, 60):
        both.clock.jump(seconds)
        (held,) = await claim(both.engine, batch_id, 1)
        await settle(both.engine, held, Completed("1"), at=both.clock.now())
    assert [(row.at - MINUTE, row.completed) for row in await history_of(both, batch_id)] == [(0, 2), (60, 2)]


async def test_minutes_are_deleted_after_14_days(both: Both) -> None:
    ended = await batch_of(both.engine, ["x"], name="ended")
    batch_id = await batch_of(both.engine, list("abcd"))
    await joined(both.engine, "w")
    days = 14 * 24 * 60
    for minute in (0, 1, days, days + 1):
        both.clock.jump(NOW + 60 * minute - both.clock.now())
        for each in (await claim(both.engine, ended, 1)) + (await claim(both.engine, batch_id, 1)):
            await settle(both.engine, each, Completed("1"))
    await both.engine.beat("w", Vitals())
    rows = await history_of(both, batch_id, minutes=days + 2)
    assert [(row.at - MINUTE) // 60 for row in rows] == [1, days, days + 1]
    left = [row.completed for row in await history_of(both, ended, minutes=days + 2)]
    assert left in ([1], []), "it has had no turn since, so a file still has its minute"


async def test_a_snapshot_has_the_last_hour_of_the_history_and_the_version(both: Both) -> None:
    batch_id = await batch_of(both.engine, list("abc"))
    await joined(both.engine, "w")
    await both.engine.adopt_version("w", batch_id, "v2")
    for minute in (0, 1, 60):
        both.clock.jump(NOW + 60 * minute - both.clock.now())
        (held,) = await claim(both.engine, batch_id, 1)
        await settle(both.engine, held, Completed("1"))
    (batch,) = (await both.admin.snapshot(None)).batches
    assert [(row.at - MINUTE) // 60 for row in batch.history] == [1, 60]
    assert batch.batch.version == "v2"


async def test_workers_are_those_that_have_not_left_and_of_a_batch_those_that_hold_items_of_it(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a"])
    await joined(both.engine, "w", "v", "gone")
    await both.engine.leave("gone")
    await claim(both.engine, batch_id)
    assert {worker.worker_id: worker.holding for worker in await both.admin.workers()} == {"w": 1, "v": 0}
    assert [worker.worker_id for worker in await both.admin.workers(batch_id)] == ["w"]
    assert await both.admin.pulses() == {}


async def test_a_worker_reports_its_role_and_what_it_runs(both: Both) -> None:
    await both.engine.join(WorkerInfo("w", "here", 1, "run", ["a", "b"]))
    (worker,) = await both.admin.workers()
    assert (worker.role, list(worker.batches)) == ("run", ["a", "b"])


async def test_a_pulse_changes_with_each_heartbeat(both: Both) -> None:
    await joined(both.engine, "w")
    (before,) = await both.admin.workers()
    await both.clock.advance(1)
    vitals = Vitals(7, 2, 1, 0.5, 10, 4, {"b": Throttle(3, 10, NOW)})
    await both.engine.beat("w", vitals)
    (after,) = await both.admin.workers()
    assert after.pulse != before.pulse
    assert after[-8:-1] == vitals
    await both.engine.beat("w", vitals)
    (still,) = await both.admin.workers()
    assert still.last_heartbeat == after.last_heartbeat
    assert still.pulse != after.pulse, "the clock stands still, the worker does not"


async def test_items_are_found_by_state_error_and_age_behind_a_key(both: Both) -> None:
    batch_id = await failed_items(both.engine)
    await both.clock.advance(100)
    await both.engine.add(batch_id, [NewItem("new", "1")], on_change="error")

    async def found(criteria: Filter, after: str | None = None, limit: int = 10) -> list[str] | None:
        items = await both.admin.find(batch_id, criteria, after=after, limit=limit)
        return None if items is None else [item.id for item in items]

    assert await found(Filter()) == ["transient", "used up", "permanent", "new"]
    assert await found(Filter(), after="used up", limit=1) == ["permanent"]
    assert await found(Filter(Status.PENDING)) == ["new"]
    assert await found(Filter(Status.FAILED, error="value*BOOM")) == ["transient", "used up"]
    assert await found(Filter(Status.FAILED, error="f1")) == ["transient", "used up"]
    assert await found(Filter(Status.FAILED, error="b_om")) == []
    assert await found(Filter(before=NOW + 50)) == ["transient", "used up", "permanent"]
    assert await found(Filter(), after="nothing") is None


async def test_an_item_is_returned_as_it_is_stored(both: Both) -> None:
    batch_id = await failed_items(both.engine)
    item = await both.admin.item(batch_id, "used up")
    assert item is not None
    assert (item.batch, item.status, item.attempts, item.payload, item.result) == ("b", "failed", 3, '"used up"', None)
    assert [failure.attempt for failure in item.failures] == [1, 2, 3]
    assert item.failures[0].traceback == "the frames"
    assert await both.admin.item(batch_id, "nothing") is None


async def test_put_offs_are_counted_for_the_item_and_for_its_batch(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a", "b"])
    await joined(both.engine, "w")
    for held in await claim(both.engine, batch_id):
        await settle(both.engine, held, PutOff(BOOM, 0.0))
    (held,) = await claim(both.engine, batch_id, 1)
    await both.clock.advance(5)
    await settle(both.engine, held, PutOff(BOOM, 60.0))
    item = await both.admin.item(batch_id, "a")
    assert item is not None
    assert (item.put_offs, item.put_off_at, item.put_off_until) == (2, to_text(NOW), to_text(NOW + 6 * 3600))
    assert (await both.admin.snapshot(None)).batches[0].batch.put_offs == 3
    assert [record.put_offs for record in await exported(both.admin, batch_id)] == [2, 1]
    (held,) = await claim(both.engine, batch_id)
    await settle(both.engine, held, Completed("1"))
    item = await both.admin.item(batch_id, "b")
    assert item is not None
    assert (item.put_offs, item.put_off_at, item.put_off_until) == (1, None, None), "nothing is pending any more"


async def test_a_requested_rerun_is_visible_and_the_attempt_before_it_leaves_only_its_failure(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a", "b", "beside"])
    await joined(both.engine, "w")
    held = await claim(both.engine, batch_id)
    await both.engine.add(batch_id, [NewItem("a", "[1]"), NewItem("b", "2")], on_change="run again")
    item = await both.admin.item(batch_id, "a")
    assert item is not None
    assert (item.payload, item.rerun_payload, item.status) == ('"a"', "[1]", "processing")
    assert [record.rerun_payload for record in await exported(both.admin, batch_id)] == ["[1]", "2", None]

    outcomes: list[Outcome] = [Failed(BOOM, permanent=False), Completed("1"), Completed("1")]
    settlements = [Settlement(each, outcome, NOW, NOW) for each, outcome in zip(held, outcomes, strict=True)]
    await both.engine.turn("w", settlements, [])
    item = await both.admin.item(batch_id, "a")
    assert item is not None
    assert (item.payload, item.rerun_payload, item.status, item.attempts, item.error) == ("[1]", None, "pending", 0, None)
    assert [(failure.attempt, failure.message) for failure in item.failures] == [(1, "boom")]
    (turn,) = (await both.admin.snapshot(None)).batches[0].turns
    assert (turn.completed, turn.failed, turn.retried) == (1, 0, 0)


async def test_a_snapshot_has_the_suspects_and_the_isolated_items_of_all_batches(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a"], max_attempts=9)
    other = await both.engine.open_batch("other", "m:h", BatchOptions())
    await joined(both.engine, "w1", "w2", "w3", "v")
    for worker in ("w1", "w2", "w3"):
        suspicion = Suspicion.SUSPECT if worker == "w3" else Suspicion.NONE
        assert (await both.engine.turn(worker, [], [Want(batch_id, 1, 9, suspicion=suspicion)])).claims
        await both.engine.recover(worker, LOST)
        await both.clock.advance(1000)
        state = await both.admin.snapshot([batch_id])
        found = [(each.id, each.suspicion, each.crashes, each.is_running) for each in state.batches[0].suspects]
        crashes = int(worker[1])
        expected = {2: Suspicion.SUSPECT, 3: Suspicion.ISOLATED}
        assert found == ([] if crashes < 2 else [("a", expected[crashes], crashes, False)])
    assert (await both.engine.turn("v", [], [Want(batch_id, 0, 9, suspicion=Suspicion.ISOLATED)])).claims
    state = await both.admin.snapshot([other.batch_id])
    assert [list(each.suspects) for each in state.batches] == [[]]
    ((name, (row,)),) = state.isolated.items()
    assert (name, row.id, row.is_running, row.worker_id, row.started_at) == ("b", "a", True, "v", to_text(both.clock.now()))
    item = await both.admin.item(batch_id, "a")
    assert item is not None
    assert (item.suspect, item.isolated) == (True, True)


async def test_an_isolated_item_of_a_paused_batch_waits_for_nothing(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a"], max_attempts=9)
    await joined(both.engine, "w1", "w2", "w3")
    for worker in ("w1", "w2", "w3"):
        suspicion = Suspicion.SUSPECT if worker == "w3" else Suspicion.NONE
        assert (await both.engine.turn(worker, [], [Want(batch_id, 1, 9, suspicion=suspicion)])).claims
        await both.engine.recover(worker, LOST)
        await both.clock.advance(1000)
    assert list((await both.admin.snapshot(None)).isolated) == ["b"]
    await both.admin.set_controls(batch_id, paused=True)
    assert list((await both.admin.snapshot(None)).isolated) == []


async def test_similar_keys_are_likely_typing_errors_or_else_neighbours(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["page-17", "page-18", "zebra"])
    assert list(await both.admin.similar_keys(batch_id, "Page-17")) == ["page-17"]
    assert "page-18" in await both.admin.similar_keys(batch_id, "page-99")


async def test_stuck_and_old_items_are_found_by_their_age(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a", "b"])
    await joined(both.engine, "w")
    (held,) = await claim(both.engine, batch_id, 1)
    await both.clock.advance(60)
    (stuck,) = await both.admin.stuck([batch_id], longer_than=59, limit=5)
    assert (stuck.batch, stuck.id, stuck.worker_id, stuck.started_at) == ("b", held.id, "w", to_text(NOW))
    assert list(await both.admin.stuck([batch_id], longer_than=61, limit=5)) == []
    assert await both.admin.oldest_pending(batch_id) == ("b", to_text(NOW))
    await both.engine.cancel(batch_id, ["b"])
    assert await both.admin.oldest_pending(batch_id) is None


async def test_causes_count_items_and_attempts(both: Both) -> None:
    batch_id = await failed_items(both.engine)
    page = await both.admin.failure_causes(batch_id, 10)
    assert [(row.error, row.items, row.attempts) for row in page.rows] == [("ValueError: boom", 2, 4), ("Fail: no", 1, 1)]
    row = page.rows[0]
    assert (row.first_seen, row.last_seen, row.example) == (to_text(NOW), to_text(NOW), "transient")
    assert (page.causes, page.items) == (2, 3)
    cut = await both.admin.failure_causes(batch_id, 1)
    assert (len(cut.rows), cut.causes, cut.items) == (1, 2, 3)


async def test_the_attempts_of_a_cause_are_counted_by_minute(both: Both) -> None:
    batch_id = await failed_items(both.engine)
    other = (await both.admin.failure_causes(batch_id, 10)).rows
    boom, no = (row.fingerprint or "" for row in other)
    minute = to_text(NOW)[:16]
    counted = await both.admin.cause_minutes(batch_id, [boom, no, "unknown"], since=NOW - 60, limit=10)
    assert counted == {boom: {minute: 4}, no: {minute: 1}, "unknown": {}}
    assert await both.admin.cause_minutes(batch_id, [boom], since=NOW - 60, limit=3) == {boom: {minute: 3}}
    assert await both.admin.cause_minutes(batch_id, [boom], since=NOW + 60, limit=3) == {boom: {}}
    assert await both.admin.cause_minutes(batch_id + 1, [boom], since=0, limit=3) == {boom: {}}


async def test_an_export_has_every_item_once_in_input_order_page_by_page(both: Both) -> None:
    keys = [f"k{number}" for number in range(2500)]
    batch_id = await batch_of(both.engine, keys)
    await batch_of(both.engine, ["x"], name="other")
    await joined(both.engine, "w")
    (first,) = await claim(both.engine, batch_id, 1)
    await settle(both.engine, first, Completed('"done"'))
    records = await exported(both.admin, batch_id)
    assert [record.id for record in records] == keys
    assert (records[0].batch, records[0].status, records[0].result) == ("b", "completed", '"done"')
    assert [record.id for record in await exported(both.admin, batch_id, Status.COMPLETED)] == ["k0"]


async def test_the_input_of_a_dry_run_is_matched_with_the_stored_items(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["same", "other"])
    known = await both.admin.match_input(batch_id, [NewItem("same", '"same"'), NewItem("other", "1"), NewItem("new", "1")])
    assert {key: (item.status, item.is_changed) for key, item in known.items()} == {
        "same": (Status.PENDING, False), "other": (Status.PENDING, True),
    }  # fmt: skip


@pytest.mark.parametrize("max_attempts", [1, 2, 3, 4])
async def test_as_many_items_are_reopenable_as_the_engine_reopens(max_attempts: int, both: Both) -> None:
    batch_id = await failed_items(both.engine)
    counted = await both.admin.count_reopenable(batch_id, max_attempts=max_attempts)
    assert counted == await both.engine.reopen_failed(batch_id, max_attempts=max_attempts)


# --- changing -------------------------------------------------------------------------------------------------------


async def test_keys_are_selected_in_any_state_and_missing_ones_are_named(both: Both) -> None:
    batch_id = await failed_items(both.engine)
    await both.engine.add(batch_id, [NewItem("new", "1")], on_change="error")
    items = await both.admin.select(batch_id, Selection(keys=["new", "nothing", "used up"]))
    assert (len(items.numbers), dict(items.counts), items.missing) == (2, {"pending": 1, "failed": 1}, ["nothing"])


async def test_items_are_selected_by_state_error_and_age_and_change_in_parts(both: Both) -> None:
    batch_id = await failed_items(both.engine)
    by_error = await both.admin.select(batch_id, Selection((Status.FAILED,), error="boom"))
    assert (len(by_error.numbers), dict(by_error.counts)) == (2, {"failed": 2})
    for before, expected in ((NOW, {}), (NOW + 1, {"failed": 3})):
        by_age = await both.admin.select(batch_id, Selection((Status.FAILED, Status.COMPLETED), before=before))
        assert dict(by_age.counts) == expected
    mixed = await both.admin.select(batch_id, Selection((Status.PENDING, Status.FAILED, Status.CANCELLED), error="boom"))
    assert (list(mixed.numbers), mixed.counts) == (list(by_error.numbers), by_error.counts)
    everything = await both.admin.select(batch_id, Selection((Status.FAILED,)))
    assert [await both.admin.change(everything.part(first, 2), Change.RETRY) for first in (0, 2)] == [2, 1]
    assert set((await status_of(both.engine, batch_id)).values()) == {"pending"}


async def test_a_retry_gives_fresh_attempts(both: Both) -> None:
    batch_id = await failed_items(both.engine)
    items = await both.admin.select(batch_id, Selection((Status.FAILED, Status.CANCELLED)))
    assert await both.admin.change(items, Change.RETRY) == 3
    assert [each.attempt for each in await claim(both.engine, batch_id)] == [1, 1, 1]


async def test_a_cancel_fences_off_the_holder_as_that_of_the_engine_does(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a", "b"])
    await joined(both.engine, "w")
    held = await claim(both.engine, batch_id)
    await both.clock.advance(100)
    items = await both.admin.select(batch_id, Selection(keys=["a"]))
    assert await both.admin.change(items, Change.CANCEL) == 1
    assert await both.engine.cancel(batch_id, ["b"]) == 1
    assert {each.claim.id: each.cancelled for each in await both.engine.lost_claims(held)} == {"a": True, "b": True}
    by_operator, by_engine = [await both.admin.item(batch_id, key) for key in ("a", "b")]
    assert by_operator is not None
    assert by_engine is not None
    assert replace(by_operator, id="", payload="") == replace(by_engine, id="", payload="")
    assert (by_operator.status, by_operator.completed_at, by_operator.worker_id) == ("cancelled", LATER, None)


async def test_items_that_left_the_selected_states_meanwhile_stay_as_they_are(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["claimed", "waiting"])
    await joined(both.engine, "w")
    pending = await both.admin.select(batch_id, Selection((Status.PENDING,)))
    (held,) = await claim(both.engine, batch_id, 1)
    assert await both.admin.change(pending, Change.CANCEL) == 1
    assert await status_of(both.engine, batch_id) == {"claimed": "processing", "waiting": "cancelled"}
    cancelled = await both.admin.select(batch_id, Selection((Status.CANCELLED,), before=NOW + 1))
    await both.admin.change(await both.admin.select(batch_id, Selection(keys=["waiting"])), Change.RETRY)
    assert await both.admin.change(cancelled, Change.PURGE) == 0
    assert (await settle(both.engine, held, Released())).lost == []


async def test_a_purge_deletes_finished_items_that_ended_before_a_moment(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["old", "new", "open"])
    await joined(both.engine, "w")
    old, new = await claim(both.engine, batch_id, 2)
    await settle(both.engine, old, Completed("1"))
    await both.clock.advance(100)
    await settle(both.engine, new, Completed("1"), at=NOW + 100)
    items = await both.admin.select(batch_id, Selection((Status.COMPLETED,), before=NOW + 100))
    assert (await both.admin.change(items, Change.PURGE), await both.admin.change(items, Change.PURGE)) == (1, 0)
    assert await status_of(both.engine, batch_id) == {"new": "completed", "open": "pending"}
    assert (await both.engine.counts(batch_id)).total == 2


async def test_controls_are_seen_by_the_engine_and_their_news_is_reported(both: Both) -> None:
    batch_id = await batch_of(both.engine)
    assert [await both.admin.set_controls(batch_id, paused=True) for _ in range(2)] == [True, False]
    assert (await both.engine.controls([batch_id]))[batch_id].blocked
    assert await both.admin.set_controls(batch_id, concurrency=7)
    assert [await both.admin.set_controls(batch_id, paused=False) for _ in range(2)] == [True, False]
    controls = (await both.engine.controls([batch_id]))[batch_id]
    assert (controls.blocked, controls.concurrency) == (False, 7)
    await both.engine.stop_batch(batch_id, "too many")
    assert await both.admin.set_controls(batch_id, paused=False)
    assert await both.admin.set_controls(batch_id, concurrency=None)
    (row,) = await both.admin.batches()
    assert (row.paused, row.stopped, row.concurrency) == (False, None, None)
    assert not await both.admin.set_controls(99, paused=True, concurrency=3)


async def test_a_change_of_another_process_between_two_waits_for_a_change_ends_the_second_wait(both: Both) -> None:
    batch_id = await batch_of(both.engine)
    mark = await both.engine.wait_for_change(None)
    await both.admin.set_controls(batch_id, paused=True)  # while the engine does not wait
    assert await asyncio.wait_for(both.engine.wait_for_change(mark), 20) != mark


async def test_a_worker_gets_a_stop_request_with_its_next_heartbeats_and_the_stronger_one_stays(both: Both) -> None:
    await joined(both.engine, "w", "v", "gone")
    await both.engine.leave("gone")
    assert await both.admin.request_stop(["w", "gone", "unknown"], Stop.DRAIN) == 1
    assert await both.admin.request_stop([], Stop.DRAIN) == 0
    assert (await both.engine.beat("w", Vitals())).stop is Stop.DRAIN
    assert (await both.engine.beat("v", Vitals())).stop is Stop.NO
    await both.admin.request_stop(["w"], Stop.CANCEL)
    await both.admin.request_stop(["w"], Stop.DRAIN)
    assert (await both.engine.beat("w", Vitals())).stop is Stop.CANCEL


@pytest.mark.parametrize("recovers", ["engine", "admin"])
async def test_a_lost_worker_is_recovered_once_and_only_with_its_last_pulse(recovers: str, both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a", "b"])
    await joined(both.engine, "w")
    held = await claim(both.engine, batch_id)
    (worker,) = await both.admin.workers()
    store = both.engine if recovers == "engine" else both.admin
    assert await store.recover("w", LOST, pulse="an older one") == 0
    assert (await store.recover("w", LOST, pulse=worker.pulse), await store.recover("w", LOST)) == (2, 0)
    assert [each.claim.id for each in await both.engine.lost_claims(held)] == ["a", "b"]
    item = await both.admin.item(batch_id, "a")
    assert item is not None
    assert (item.status, item.crashes, len(item.failures), item.worker_id) == ("pending", 1, 1, None)
    assert "its lock is free" in item.failures[0].message


async def test_the_items_of_a_live_worker_are_no_orphans(both: Both) -> None:
    batch_id = await batch_of(both.engine, ["a"])
    await joined(both.engine, "w")
    await claim(both.engine, batch_id)
    assert not await both.admin.has_orphans()
    assert await both.admin.recover(None, LOST) == 0
    assert await status_of(both.engine, batch_id) == {"a": "processing"}
