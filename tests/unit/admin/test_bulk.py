"""Control with many items or large ones: ids, searches, exports of a part, progress per call, and stop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from asyncrunner import BatchNotFound, ConfigurationError, Control, ItemNotFound, Runner, run_batch
from asyncrunner.admin.read_models import Progress
from tests.support.files import make_store
from tests.support.state import execute, rows_of, snapshot

REFUSED = ["refused-1", "refused-2", "refused-3"]
WRONG = ["wrong-1", "wrong-2"]


@pytest.fixture
async def control(db: str) -> AsyncIterator[Control]:
    await asyncio.to_thread(make_store, db)
    async with Control(db) as opened:
        yield opened


@pytest.fixture
async def many(db: str) -> AsyncIterator[Control]:
    """A file with 4,500 completed items."""

    async def echo(number: int) -> int:
        return number

    await run_batch(range(4500), echo, db=db, batch="b")
    async with Control(db) as opened:
        yield opened


async def all_of(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


# --- ids and lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [{}, {"status": "failed"}, {"status": "completed", "newest": True}, {"error": "ConnectionError"}, {"newest": True},
     {"older_than": 3600.0}, {"status": "pending"}, {"status": "processing", "older_than": 60.0}],
)  # fmt: skip
async def test_ids_are_those_of_a_list_with_the_same_arguments(control: Control, arguments: dict[str, Any]) -> None:
    page = await control.items(limit=1000, **arguments)
    assert await all_of(control.ids(**arguments)) == [item.id for item in page.items]


async def test_ids_are_all_ids_however_many(many: Control) -> None:
    assert await all_of(many.ids()) == [str(number) for number in range(4500)]


async def test_ids_of_an_unknown_error_or_batch_are_an_error(control: Control) -> None:
    with pytest.raises(ItemNotFound, match="no failed item of 'shop' has 'nothing' in its error"):
        await all_of(control.ids(error="nothing"))
    with pytest.raises(BatchNotFound):
        await all_of(control.ids("ship"))


async def test_a_list_has_the_payload_and_the_newest_items_first(control: Control) -> None:
    page = await control.items(newest=True, limit=2)
    assert [(item.id, item.payload) for item in page.items] == [("held-1", '"held-1"'), ("open-2", '"open-2"')]
    assert (page.after, page.looked_at) == ("open-2", None)
    rest = await control.items(newest=True, after=page.after)
    assert [item.id for item in rest.items][:2] == ["open-1", "off-1"]


async def test_a_search_reports_how_many_items_it_looked_at(control: Control) -> None:
    page = await control.items(contains="FINE")
    assert [item.id for item in page.items] == ["fine-4", "fine-3", "fine-2", "fine-1"]
    assert (page.looked_at, page.of, page.after) == (13, 13, None)
    of_status = await control.items(contains="amount", status="failed")
    assert ([item.id for item in of_status.items], of_status.looked_at, of_status.of) == (["wrong-2", "wrong-1"], 5, 5)
    by_error = await control.items(contains="amount", error="negative")
    assert ([item.id for item in by_error.items], by_error.looked_at, by_error.of) == (["wrong-2", "wrong-1"], 2, None)
    with pytest.raises(ConfigurationError, match="contains"):
        await control.items(contains="*")
    with pytest.raises(ItemNotFound):
        await control.items(contains="fine", after="nothing")


# --- show -----------------------------------------------------------------------------------------------------------


async def test_show_has_the_start_of_a_large_value_its_size_and_the_export_has_the_whole(db: str) -> None:
    async def grow(item: dict[str, str]) -> str:
        return item["text"] * 20

    text = "x" * 200_000
    await run_batch([{"id": "a", "text": text}], grow, key="id", db=db, batch="b")
    async with Control(db) as control:
        item = await control.show("a")
        (record,) = await all_of(control.export(ids=["a"]))
    payload = json.dumps({"id": "a", "text": text}, separators=(",", ":"))
    assert (item.payload, item.result) == (payload[:65_536], f'"{text}"'[:65_536])
    assert item.cut == {"payload": len(payload), "result": 4_000_002}
    assert (record.payload, record.result) == (payload, json.dumps(text * 20))


async def test_a_result_whose_pieces_were_deleted_is_reported(db: str) -> None:
    async def grow(item: str) -> str:
        return item * 3_000_000

    await run_batch(["a"], grow, db=db, batch="b")
    execute(db, "DELETE FROM result_pieces WHERE piece = 0")
    async with Control(db) as control:
        item = await control.show("a")
    assert (item.result, item.cut) == ("the result is incomplete: rows of result_pieces were deleted", {})


async def test_attempts_have_a_start_and_a_duration(control: Control, db: str) -> None:
    item = await control.show("refused-1")
    assert [each.started_at is not None and each.started_at <= each.failed_at for each in item.failures] == [True, True]
    assert [each.duration is not None and 0 <= each.duration < 60 for each in item.failures] == [True, True]
    completed = (await control.show("fine-1")).timeline[-1].what
    assert completed.startswith("completed after ")
    execute(db, "UPDATE failures SET started_at = NULL, duration = NULL")
    old = await control.show("refused-1")
    assert old.timeline[1].what.startswith("attempt 1 failed: ConnectionError")


# --- exports --------------------------------------------------------------------------------------------------------


async def test_an_export_has_the_items_with_an_error_or_with_ids(control: Control) -> None:
    assert [record.id for record in await all_of(control.export(error="ConnectionError"))] == REFUSED
    assert [record.id for record in await all_of(control.export(error="negative", status=["failed", "completed"]))] == WRONG
    assert [record.id for record in await all_of(control.export(ids=["wrong-1", "fine-1"]))] == ["wrong-1", "fine-1"]
    with pytest.raises(ItemNotFound, match="no failed item"):
        await all_of(control.export(error="nothing"))
    with pytest.raises(ItemNotFound, match="there is no item"):
        await all_of(control.export(ids=["fine-1", "nothing"]))
    with pytest.raises(ConfigurationError, match="either ids, or status and error"):
        await all_of(control.export(ids=["fine-1"], status="failed"))


async def test_rows_have_the_chosen_fields_with_their_values_decoded(control: Control) -> None:
    rows = await all_of(control.export_rows(fields=["id", "result.booked", "result"], ids=["fine-1", "open-1"]))
    assert rows == [
        {"id": "fine-1", "result.booked": "fine-1", "result": {"booked": "fine-1"}},
        {"id": "open-1", "result.booked": None, "result": None},
    ]
    flat = await all_of(control.export_rows(flatten=True, fields=["result"], status="completed"))
    assert flat == [{"result.booked": f"fine-{number}"} for number in (1, 2, 3, 4)]
    with pytest.raises(ConfigurationError, match="no field 'nothing'"):
        await all_of(control.export_rows(fields=["nothing"]))
    with pytest.raises(ConfigurationError, match="give a list"):
        await all_of(control.export_rows(fields="id"))


# --- changes --------------------------------------------------------------------------------------------------------


async def test_old_pending_items_are_cancelled(control: Control, db: str) -> None:
    execute(db, "UPDATE items SET created_at = '2026-01-01 00:00:00.000' WHERE id IN ('open-1', 'held-1', 'fine-1')")
    changed = await control.cancel(older_than=3600)
    assert (changed.changed, changed.unchanged) == (1, 0)
    assert (await control.show("open-1")).status == "cancelled"
    assert [(await control.show(key)).status for key in ("open-2", "held-1", "fine-1")] == ["pending", "processing", "completed"]
    assert (await control.cancel(pending=True, older_than=0)).changed == 1


@pytest.mark.parametrize("arguments", [{"older_than": -1.0}, {"ids": ["open-1"], "older_than": 1.0}, {}])
async def test_a_refused_cancel_changes_nothing(control: Control, db: str, arguments: dict[str, Any]) -> None:
    before = snapshot(db)
    with pytest.raises(ConfigurationError):
        await control.cancel(**arguments)
    assert snapshot(db) == before


Call = Callable[[Control, Callable[[Progress], None]], Any]

CALLS: dict[str, Call] = {
    "rerun": lambda control, step: control.rerun(everything=True, on_progress=step),
    "purge": lambda control, step: control.purge(timedelta(0), on_progress=step),
    "export": lambda control, step: all_of(control.export(on_progress=step)),
    "export of a status": lambda control, step: all_of(control.export(status="completed", on_progress=step)),
    "export of ids": lambda control, step: all_of(control.export(ids=map(str, range(4500)), on_progress=step)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_call_reports_its_progress_after_each_step(many: Control, call: Call) -> None:
    seen: list[Progress] = []
    await call(many, seen.append)
    assert len(seen) >= 3
    assert {progress.of for progress in seen} == {4500}
    assert [progress.done for progress in seen] == sorted({progress.done for progress in seen})
    assert seen[-1].done == 4500


async def test_retry_and_cancel_report_the_progress_of_their_own_call(many: Control, db: str) -> None:
    execute(db, "UPDATE items SET status = 'failed', error = 'no' WHERE seq <= 4100")
    retried: list[Progress] = []
    cancelled: list[Progress] = []
    await many.retry(failed=True, on_progress=retried.append)
    await many.cancel(pending=True, on_progress=cancelled.append)
    assert retried == cancelled == [(2000, 4100), (4000, 4100), (4100, 4100)]


async def test_items_that_a_call_leaves_as_they_are_are_done_too(control: Control) -> None:
    seen: list[Progress] = []
    changed = await control.retry(["open-1", "wrong-1", "open-2"], on_progress=seen.append)
    assert (changed.changed, changed.unchanged, seen) == (1, 2, [(3, 3)])


async def test_an_exception_of_the_callback_ends_the_call_after_its_transaction(many: Control, db: str) -> None:
    def stop(progress: Progress) -> None:
        raise RuntimeError(f"after {progress.done}")

    execute(db, "UPDATE items SET status = 'failed'")
    with pytest.raises(RuntimeError, match="after 2000"):
        await many.retry(failed=True, on_progress=stop)
    assert rows_of(db, "SELECT count(*) FROM items WHERE status = 'pending'") == [(2000,)]


# --- stop -----------------------------------------------------------------------------------------------------------


async def test_stop_ends_a_run_and_reports_its_worker(db: str) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def wait(number: int) -> int:
        started.set()
        await go.wait()
        return number

    running = asyncio.create_task(run_batch(range(5), wait, db=db, batch="b", concurrency=1))
    await started.wait()
    async with Control(db) as control:
        with pytest.raises(BatchNotFound):
            await control.stop("other")
        stopped = await control.stop("b", now=True)
        ((worker,), left) = stopped.asked, stopped.left
        assert (worker.role, worker.batches, stopped.running, left, stopped.unproven) == ("run", ["b"], [], [], [])
        assert (await control.stop("b")).asked == []
    assert (await running).pending == 5


async def test_stop_leaves_a_runner_of_a_service_and_reports_workers_that_did_not_end(db: str) -> None:
    runner = Runner(db)

    @runner.handler(batch="jobs")
    async def job(number: int) -> int:
        return number

    async with runner, Control(db) as control:
        stopped = await control.stop(wait=0)
        assert ([worker.role for worker in stopped.left], stopped.asked) == (["service"], [])
    with pytest.raises(ConfigurationError, match="wait=-1"):
        async with Control(db) as control:
            await control.stop(wait=-1)
