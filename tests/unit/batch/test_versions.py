"""``version=``: what another version completed runs again, exactly once, and keeps its old result until then."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from typing import Any

import pytest

from asyncrunner import ConfigurationError, Control, Fail, ProgressUpdate, Runner, plan_batch, run_batch, stream_batch
from asyncrunner.runner.runner import run_until_idle
from asyncrunner.testing import in_memory
from tests.support.state import execute, rows_of


def answering(text: str, ran: list[int]) -> Callable[[int], Any]:
    async def handler(number: int) -> str:
        ran.append(number)
        return f"{text} {number}"

    return handler


async def run(db: str, version: str | None, items: int = 5, **options: Any) -> tuple[list[int], int, int]:
    """Run the batch with a version; return what ran, and the report's completed and skipped."""
    ran: list[int] = []
    report = await run_batch(range(items), answering(str(version), ran), db=db, batch="b", version=version, **options)
    return sorted(ran), report.completed, report.skipped


async def test_each_change_of_the_version_runs_every_completed_item_again_once(db: str) -> None:
    everything = [0, 1, 2, 3, 4]
    assert await run(db, None) == (everything, 5, 0)
    assert await run(db, "v1") == (everything, 5, 0), "completed without a version"
    assert await run(db, "v1") == ([], 0, 5)
    assert await run(db, None) == ([], 0, 5), "no opinion"
    assert await run(db, "v2", items=7) == ([*everything, 5, 6], 7, 0)
    assert await run(db, "v2", items=8) == ([7], 1, 7), "skipped are the items of this version"
    assert await run(db, "v1", items=8) == ([*everything, 5, 6, 7], 8, 0), "an earlier version is another one"
    assert set(rows_of(db, "SELECT result FROM items WHERE id = '0'")) == {('"v1 0"',)}


async def test_the_progress_and_the_log_report_what_runs_again(db: str, caplog: pytest.LogCaptureFixture) -> None:
    await run(db, "v1")
    updates: list[ProgressUpdate] = []
    caplog.set_level("INFO")
    await run(db, "v2", progress=updates.append)
    note = "pending again for version 'v2': 5 items that another version completed"
    assert updates[-1].note == note
    assert "version 'v2' of 'b': pending again: 5 items that another version completed" in caplog.messages
    await run(db, "v2", progress=updates.append)
    assert updates[-1].note is None


async def test_items_that_are_not_in_the_input_run_again_too(db: str) -> None:
    await run(db, "v1")
    assert (await run(db, "v2", items=2))[0] == [0, 1, 2, 3, 4]


async def test_an_item_that_a_run_without_a_version_completed_counts_as_of_the_newest_version(db: str) -> None:
    await run(db, "v1", items=1)
    await run(db, None, items=2)
    assert await run(db, "v1", items=2) == ([], 0, 2)
    assert (await run(db, "v2", items=2))[0] == [0, 1]


async def test_the_old_result_is_shown_until_the_new_one_is_committed_also_if_the_new_attempt_fails(db: str) -> None:
    await run(db, "v1", items=2)

    async def failing(number: int) -> str:
        shown = {record.id: (record.status, record.result) async for record in control.export()}
        assert shown[str(number)] == ("processing", f'"v1 {number}"')
        if number == 0:
            raise Fail("no")
        return "new"

    async with Control(db) as control:
        report = await run_batch(range(2), failing, db=db, batch="b", version="v2", concurrency=1)
        assert [(outcome.status, outcome.result) async for outcome in report.outcomes()] == [
            ("failed", None),
            ("completed", "new"),
        ]
        item = await control.show("0")
        assert (item.status, item.result) == ("failed", "v1 0")
        assert [(record.status, record.result) async for record in control.export()] == [
            ("failed", '"v1 0"'),
            ("completed", '"new"'),
        ]
    assert (await run(db, "v2", items=2, retry_failed=True))[0] == [0]
    assert rows_of(db, "SELECT result FROM items WHERE id = '0'") == [('"v2 0"',)]


async def test_the_dry_run_counts_what_would_run_again_and_changes_nothing(db: str) -> None:
    ran: list[int] = []
    handler = answering("x", ran)

    async def plan(version: str | None, **options: Any) -> tuple[int, int, int]:
        plan = await plan_batch(range(6), handler, db=db, batch="b", version=version, **options)
        return plan.completed, plan.other_version, plan.to_run

    await run(db, "v1")
    before = rows_of(db, "SELECT * FROM items"), rows_of(db, "SELECT * FROM batches")
    assert await plan(None) == await plan("v1") == (5, 0, 1)
    assert await plan("v2") == (5, 5, 6)
    plan_of_two = await plan_batch(range(2), handler, db=db, batch="b", version="v2")
    assert (plan_of_two.leftovers, plan_of_two.to_run) == (3, 5)
    plan_of_two = await plan_batch(range(2), handler, db=db, batch="b", version="v2", leftovers="leave")
    assert (plan_of_two.leftovers, plan_of_two.to_run) == (3, 2)
    assert (rows_of(db, "SELECT * FROM items"), rows_of(db, "SELECT * FROM batches")) == before
    plan_of_changed = await plan_batch(
        [10], answering("x", ran), key=lambda _: "0", db=db, batch="b", version="v2", on_change="rerun"
    )
    assert (plan_of_changed.changed, plan_of_changed.to_run) == (1, 5), "a changed item is counted once"
    execute(db, "UPDATE batches SET version = 'v2', version_number = version_number + 1")  # as an interrupted change
    execute(db, "UPDATE items SET version = 2 WHERE id < '2'")
    assert await plan("v2") == (5, 3, 4)
    assert ran == []


async def test_two_versions_at_the_same_time_are_refused_with_the_worker_and_the_way_out(db: str) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def waiting(_: int) -> None:
        started.set()
        await go.wait()

    first = asyncio.create_task(run_batch([1], waiting, db=db, batch="b", version="v1"))
    await started.wait()
    ((worker_id, pid),) = rows_of(db, "SELECT worker_id, pid FROM workers WHERE ended_at IS NULL")
    with pytest.raises(ConfigurationError) as refused:
        await run(db, "v2")
    for part in ("'v2'", "'v1'", f"worker {worker_id} (pid {pid} on", f"asyncrunner stop --db {shlex.quote(db)}", "version='v1'"):
        assert part in str(refused.value)
    assert rows_of(db, "SELECT count(*), max(version) FROM batches") == [(1, "v1")]
    assert rows_of(db, "SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(1,)], "the refused worker has left"
    same = asyncio.create_task(run(db, "v1", items=3))
    without = asyncio.create_task(run(db, None, items=3))
    go.set()
    await asyncio.gather(first, same, without)
    assert (await run(db, "v2", items=3))[0] == [0, 1, 2]


async def test_an_item_that_runs_without_a_version_during_the_change_runs_once_more(db: str) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def old(number: int) -> str:
        started.set()
        await go.wait()
        return f"old {number}"

    first = asyncio.create_task(run_batch([0], old, db=db, batch="b"))
    await started.wait()
    changing = asyncio.create_task(run(db, "v1", items=2))
    while rows_of(db, "SELECT rerun_payload FROM items WHERE id = '0'") != [("0",)]:
        await asyncio.sleep(0.01)
    go.set()
    await asyncio.gather(first, changing)
    assert rows_of(db, "SELECT status, version FROM items WHERE id = '0'") == [("completed", 1)]
    assert rows_of(db, "SELECT claim > 1 FROM items WHERE id = '0'") == [(1,)], "claimed again after the change"


async def test_a_stream_yields_the_new_results_only(db: str) -> None:
    await run(db, "v1", items=3)
    async with stream_batch(range(3), answering("v2", []), db=db, batch="b", version="v2") as outcomes:
        assert {outcome.result async for outcome in outcomes} == {"v2 0", "v2 1", "v2 2"}


async def test_the_version_of_a_handler_of_a_runner(db: str) -> None:
    for version, runs in (("v1", 3), ("v1", 0), ("v2", 3)):
        ran: list[int] = []
        runner = Runner(db)
        handler = runner.handler(batch="b", key=str, version=version)(answering(version, ran))
        async with runner:
            handles = await handler.submit_many(range(3))
            await run_until_idle(runner)
            assert [await handle.result() for handle in handles] == [f"{version} {number}" for number in range(3)]
        assert len(ran) == runs


async def test_a_version_in_memory() -> None:
    runner = Runner("unused.db")
    handler = runner.handler(batch="b", key=str, version="v9")(answering("v9", []))
    async with in_memory(runner):
        handle = await handler.submit(1)
        await run_until_idle(runner)
        assert await handle.result() == "v9 1"


async def test_a_run_that_is_stopped_during_the_change_leaves_the_rest_to_the_next_one(db: str) -> None:
    await run(db, "v1")
    await run(db, "v2", deadline=1e-9)
    assert rows_of(db, "SELECT version FROM batches") == [("v2",)]
    assert (await run(db, "v2"))[0] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("version", ["", "x" * 201, 3, b"v1", "a\0"])
async def test_a_version_is_a_short_text(db: str, version: Any) -> None:
    with pytest.raises(ConfigurationError, match="version"):
        await run(db, version)
