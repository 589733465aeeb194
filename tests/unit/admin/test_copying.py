"""Copies of batches between files and servers."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import Client, Control, run_batch
from asyncrunner.admin.read_models import Copied, DeletedCopy, Progress
from asyncrunner.backends import open_copy_source, open_copy_target, open_engine
from asyncrunner.errors import ConfigurationError, StoreError
from asyncrunner.postgres.connection.address import shown
from asyncrunner.store.copying import rows as copied_rows
from asyncrunner.store.copying.incomplete import CopyCommand, why_blocked
from asyncrunner.store.copying.walk import BEGINNING, page_behind
from asyncrunner.store.rules.columns import options_in
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.testing import FakeClock
from tests.support.copies import command_of, stop_copy
from tests.support.files import BATCH, book
from tests.support.postgres_state import disagreements
from tests.support.state import counts, execute, rows_of, snapshot, totals

pytestmark = pytest.mark.sqlite_file  # the source is a file; the target is of each kind

ITEM_COLUMNS = ", ".join(
    f"CAST({each} AS INTEGER)" if each == "permanent" else each for each in copied_rows.CopiedItem._fields if each != "status"
)
FAILURE_COLUMNS = ", ".join(copied_rows.CopiedFailure._fields)
BATCH_COLUMNS = (
    "name, handler, options, created_at, CAST(paused AS INTEGER), cooldown_until, concurrency, stopped, rate_spent, version, "
    "version_number, version_applied"
)


def stored(db: str) -> list[Any]:
    """Return every copied column; of items in processing, as they are after their worker has left."""
    return [
        rows_of(db, f"SELECT {ITEM_COLUMNS}, status FROM items ORDER BY seq"),
        rows_of(db, f"SELECT {FAILURE_COLUMNS} FROM failures ORDER BY failure_id"),
        rows_of(db, f"SELECT {BATCH_COLUMNS} FROM batches ORDER BY name"),
        rows_of(
            db,
            "SELECT items.id, result_pieces.claim, piece, text FROM result_pieces JOIN items ON items.seq = result_pieces.seq "
            "ORDER BY items.seq, piece",
        ),
        totals(db),
    ]


def release(db: str) -> None:
    execute(
        db,
        "UPDATE items SET status = 'pending', worker_id = NULL, started_at = NULL, attempts = attempts - 1 WHERE status = 'processing'",
    )


async def copy(source: str, target: str, *batches: str) -> list[Copied]:
    async with Control(source) as control:
        return await control.copy(target, batches or None)


async def test_a_copy_there_and_back_keeps_every_column_and_does_not_change_the_source(
    source: str, target: str, tmp_path: Path
) -> None:
    before = snapshot(source)
    (copied,) = await copy(source, target)
    assert copied == Copied(BATCH, {"pending": 3, "completed": 4, "failed": 5, "cancelled": 1}, 8, None, None)
    assert snapshot(source) == before
    release(source)
    assert stored(target) == stored(source)
    assert rows_of(target, "SELECT count(*) FROM workers") == [(0,)]
    back = str(tmp_path / "back.db")
    await copy(target, back)
    assert stored(back) == stored(source)
    if "://" in target:
        assert disagreements(target) == {}


async def test_a_copied_batch_is_finished_by_the_workers_of_the_target(source: str, target: str) -> None:
    execute(source, "UPDATE batches SET stopped = NULL, cooldown_until = NULL")
    execute(source, "UPDATE items SET due_at = NULL")
    await copy(source, target)
    async with Control(target) as control:
        causes = await control.failures(BATCH)
        assert sorted((each.items, each.attempts) for each in causes) == [(2, 2), (3, 6)]
        await control.retry(batch=BATCH, error="negative amount")
    report = await run_batch(["fine-9"], book, db=target, batch=BATCH, max_attempts=2)
    assert report.batch_counts.unfinished == 0
    assert counts(target) == {"completed": 8, "failed": 5, "cancelled": 1}
    assert [key for (key,) in rows_of(target, "SELECT id FROM items ORDER BY seq")][-1] == "fine-9"


async def test_a_copy_that_is_complete_says_so_and_changes_nothing(source: str, target: str) -> None:
    (first,) = await copy(source, target)
    execute(target, "UPDATE items SET status = 'cancelled' WHERE id = 'open-1'")
    before = stored(target)
    (second,) = await copy(source, target)
    assert first.copied_before is None
    assert second.copied_before is not None
    assert stored(target) == before


async def test_a_batch_that_no_copy_began_is_refused(source: str, target: str, tmp_path: Path) -> None:
    await run_batch([1], str, db=target, batch=BATCH)
    before = stored(target)
    with pytest.raises(ConfigurationError, match="that no copy began, so it is not changed; copy to another file or schema"):
        await copy(source, target)
    assert stored(target) == before


async def test_a_copy_of_another_batch_of_that_name_is_refused(source: str, target: str, tmp_path: Path) -> None:
    await copy(source, target)
    other = str(tmp_path / "other.db")
    await run_batch([1], str, db=other, batch=BATCH)
    with pytest.raises(ConfigurationError, match=r"was copied from another batch, of .*source\.db"):
        await copy(other, target)


async def test_a_live_worker_of_the_source_is_refused_and_a_dead_one_is_not(source: str, target: str) -> None:
    store = open_engine(source)
    await store.open()
    await store.join(WorkerInfo("w1", "here", 4711, "run", [BATCH]))
    with pytest.raises(
        ConfigurationError, match=r"1 live worker may change the batch 'shop'.* process 4711 on here; stop them first"
    ):
        await copy(source, target)
    assert not Path(target).exists()
    await store.close()  # as after a kill: the lock is free, and the worker has not left
    (copied,) = await copy(source, target)
    assert copied.problem is None


async def test_a_worker_of_another_batch_is_not_in_the_way(source: str, target: str) -> None:
    store = open_engine(source)
    await store.open()
    await store.join(WorkerInfo("w1", "here", 4711, "run", ["other"]))
    (copied,) = await copy(source, target, BATCH)
    await store.close()
    assert copied.problem is None


async def test_large_results_are_copied_in_pieces(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, back = str(tmp_path / "source.db"), str(tmp_path / "back.db")
    await run_batch([3_000_000, 5, 2_500_001], large, db=source, batch="large")
    monkeypatch.setattr("asyncrunner.store.copying.rows.PAGE_CHARACTERS", 1)  # a page for each row
    await copy(source, target)
    await copy(target, back)
    assert stored(back) == stored(source)
    async with Control(back) as control:
        assert [len(item.result or "") async for item in control.export("large")] == [3_000_002, 7, 2_500_003]


async def large(size: int) -> str:
    return "x" * size


async def test_an_item_with_a_requested_rerun_runs_with_the_new_payload(source: str, target: str) -> None:
    execute(source, "UPDATE items SET rerun_payload = '\"fine-77\"', checkpoint = '1' WHERE id = 'held-1'")
    await copy(source, target)
    query = "SELECT status, payload, rerun_payload, attempts, checkpoint FROM items WHERE id = 'held-1'"
    assert rows_of(target, query) == [("pending", '"fine-77"', None, 0, None)]


async def test_all_batches_are_copied_or_only_the_named_ones(target: str, tmp_path: Path) -> None:
    source = str(tmp_path / "source.db")
    for name in ("one", "two", "three"):
        await run_batch([name, "x"], str, db=source, batch=name)
    assert [each.batch for each in await copy(source, target, "three", "one")] == ["one", "three"]
    assert [(each.batch, each.copied_before is None) for each in await copy(source, target)] == [
        ("one", False),
        ("two", True),
        ("three", False),
    ]
    assert totals(target) == [("one", 2), ("three", 2), ("two", 2)]


async def test_a_source_that_changes_during_the_copy_is_reported_and_the_copy_stays_paused(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(*_: object) -> None:
        execute(source, "UPDATE items SET status = 'cancelled' WHERE id = 'open-1'")

    async with Control(source) as control:
        (copied,) = await control.copy(target, on_progress=change)
    assert copied.problem is not None
    assert "pending: 2 in the source, 3 in the target; cancelled: 2 in the source, 1 in the target" in copied.problem
    assert rows_of(target, "SELECT CAST(paused AS INTEGER) FROM batches") == [(1,)]


async def test_a_key_that_another_program_adds_to_the_target_is_not_overwritten(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncrunner.store.copying.rows.PAGE_ITEMS", 2)

    def submit(progress: Progress) -> None:
        if progress.done == 2:
            execute(target, "INSERT INTO items (batch_id, id, payload) SELECT batch_id, 'open-2', '1' FROM batches")

    async with Control(source) as control:
        with pytest.raises(
            StoreError, match=r"added the item 'open-2' to the batch before its copy was complete\. .* --restart` deletes"
        ):
            await control.copy(target, on_progress=submit)
    assert rows_of(target, "SELECT payload FROM items WHERE id = 'open-2'") == [("1",)]


async def test_a_cancelled_copy_continues_and_its_batch_is_not_served_meanwhile(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("asyncrunner.store.copying.rows.PAGE_ITEMS", 2)
    steps = 0

    def stop(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyError("stop")

    async with Control(source) as control:
        with pytest.raises(KeyError):
            await control.copy(target, on_progress=stop)
    assert sum(counts(target).values()) == 6
    ((paused, reason),) = rows_of(target, "SELECT CAST(paused AS INTEGER), stopped FROM batches")
    assert (paused, reason) == (
        1,
        why_blocked(CopyCommand(source, shown(target) if "://" in target else target)),
    )
    await check_that_no_worker_starts_an_item(target)
    with pytest.raises(ConfigurationError, match="is itself a copy that is not complete"):
        await copy(target, str(tmp_path / "third.db"))
    await copy(source, target)
    release(source)
    assert stored(target) == stored(source)


async def test_a_batch_that_an_operator_resumes_during_its_copy_is_paused_again(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncrunner.store.copying.rows.PAGE_ITEMS", 2)
    paused = []

    def resume(*_: object) -> None:
        paused.extend(rows_of(target, "SELECT CAST(paused AS INTEGER) FROM batches"))
        execute(target, "UPDATE batches SET paused = (1 = 0)")

    async with Control(source) as control:
        await control.copy(target, on_progress=resume)
    assert set(paused) == {(1,)}


async def check_that_no_worker_starts_an_item(target: str) -> None:
    store = open_engine(target)
    await store.open()
    handler, options = rows_of(target, "SELECT handler, options FROM batches")[0]
    with pytest.raises(ConfigurationError, match="is not complete; repeat `asyncrunner copy"):
        await store.open_batch(BATCH, handler, options_in(options))
    batch = await store.find_batch(BATCH)
    assert batch is not None
    await store.join(WorkerInfo("w1", "here", 1, "run", [BATCH]))
    turn = await store.turn("w1", [], [Want(batch.batch_id, 10, 3)])
    await store.leave("w1")
    await store.close()
    assert turn.claims == []


async def test_a_page_whose_answer_was_lost_is_not_stored_twice_and_a_second_command_is_refused(source: str, target: str) -> None:
    sent, received = open_copy_source(source), open_copy_target(target)
    await sent.open()
    await received.open()
    try:
        ((batch_id,),) = rows_of(source, "SELECT batch_id FROM batches")
        batch = await sent.copied_batch(batch_id)
        assert batch is not None
        state = await received.begin_copy(batch, CopyCommand("there", target))
        page = await page_behind(sent, batch_id, BEGINNING)
        await received.store_page(state.batch_id, BEGINNING, page)
        await received.store_page(state.batch_id, BEGINNING, page)
        again = await received.begin_copy(batch, CopyCommand("there", target))
        assert (again.batch_id, again.reached, again.items) == (state.batch_id, page.reached, 13)
        with pytest.raises(StoreError, match="another command copies this batch"):
            await received.store_page(state.batch_id, BEGINNING, page._replace(reached="items 2"))
        assert sum(counts(target).values()) == 13
    finally:
        await received.close()
        await sent.close()


async def test_a_deleted_batch_of_the_target_is_copied_again(source: str, target: str) -> None:
    await copy(source, target)
    for table in ("items", "failures", "batches"):
        execute(target, f"DELETE FROM {table}")
    assert rows_of(target, "SELECT count(*) FROM copies") == [(0,)]
    (copied,) = await copy(source, target)
    assert (copied.copied_before, copied.problem) == (None, None)
    release(source)
    assert stored(target) == stored(source)


KILLED = """
import asyncio, os, signal, sys
from asyncrunner import Control
from asyncrunner.store.copying import rows

rows.PAGE_ITEMS = 10
steps = 0

def killed(progress):
    global steps
    steps += 1
    if steps == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with Control(sys.argv[1]) as control:
        await control.copy(sys.argv[2], restart=sys.argv[4] == "restart", on_progress=killed)

asyncio.run(main())
"""


def test_a_copy_that_is_killed_again_and_again_loses_and_doubles_nothing(target: str, tmp_path: Path) -> None:
    source = str(tmp_path / "source.db")
    items = [*(f"fine-{n}" for n in range(60)), *(f"wrong-{n}" for n in range(25))]
    asyncio.run(run_batch(items, book, db=source, batch=BATCH))
    codes = []
    for step in (2, 4, 1, 3, 100):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, source, target, str(step), ""], env=os.environ, timeout=60, check=False
        )
        codes.append(killed.returncode)
    assert codes == [-signal.SIGKILL] * 4 + [0]
    assert stored(target) == stored(source)
    if "://" in target:
        assert disagreements(target) == {}


async def test_the_source_and_the_target_may_not_be_the_same(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="both the source and the target"):
        await copy(source, str(tmp_path / "." / "source.db"))
    with pytest.raises(ConfigurationError, match="a store in memory is lost"):
        await copy(source, ":memory:")


async def test_a_text_that_a_server_cannot_store_is_named(source: str, target: str) -> None:
    with sqlite3.connect(source) as connection:
        connection.execute("UPDATE items SET checkpoint = '\"' || char(0) || '\"' WHERE id = 'open-1'")
    connection.close()
    if "://" in target:
        with pytest.raises(StoreError, match="the checkpoint of item 'open-1' has a character that PostgreSQL cannot store"):
            await copy(source, target)
    else:
        await copy(source, target)


async def test_a_restart_deletes_an_incomplete_copy_and_copies_again(source: str, target: str) -> None:
    await run_batch([1, 2], str, db=target, batch="other")
    await stop_copy(source, target, steps=9)
    execute(target, "UPDATE items SET status = 'cancelled' WHERE id = 'fine-1'")
    (copied,) = await copy(source, target)
    assert copied.problem is not None
    assert f"`{command_of(source, target).text(restart=True)}` deletes it there and copies it again" in copied.problem
    async with Client(target) as client:
        await client.submit(BATCH, "new-1", key="new-1")
    named: list[DeletedCopy] = []
    async with Control(source) as control:
        (copied,) = await control.copy(target, restart=True, on_restart=named.append)
    assert named == [DeletedCopy(BATCH, source, 14, 1)]
    assert (copied.problem, copied.deleted, copied.added) == (None, 14, 0)
    assert totals(target) == [("other", 2), (BATCH, 13)]
    for table in ("items", "failures", "turns"):
        execute(target, f"DELETE FROM {table} WHERE batch_id = (SELECT batch_id FROM batches WHERE name = 'other')")
    execute(target, "DELETE FROM batches WHERE name = 'other'")
    release(source)
    assert stored(target) == stored(source)
    if "://" in target:
        assert disagreements(target) == {}


async def test_a_restart_deletes_no_complete_copy_and_no_batch_that_no_copy_began(source: str, target: str) -> None:
    await copy(source, target)
    before = stored(target)
    async with Control(source) as control:
        (copied,) = await control.copy(target, restart=True)
    assert (copied.deleted, copied.copied_before is None) == (0, False)
    assert stored(target) == before
    execute(target, "DELETE FROM copies")
    async with Control(source) as control:
        with pytest.raises(ConfigurationError, match="that no copy began, so it is not changed"):
            await control.copy(target, restart=True)
    assert stored(target) == before


async def test_a_restart_that_is_refused_by_its_function_deletes_nothing(source: str, target: str) -> None:
    def refuse(_: DeletedCopy) -> None:
        raise KeyError("no")

    await stop_copy(source, target)
    before = stored(target)
    async with Control(source) as control:
        with pytest.raises(KeyError):
            await control.copy(target, restart=True, on_restart=refuse)
    assert stored(target) == before
    await copy(source, target)
    release(source)
    assert stored(target) == stored(source)


async def test_an_incomplete_copy_of_another_batch_is_replaced_only_by_a_restart(
    source: str, target: str, tmp_path: Path
) -> None:
    other = str(tmp_path / "other.db")
    await run_batch([1, 2, 3], str, db=other, batch=BATCH)
    await stop_copy(other, target, steps=1)
    with pytest.raises(ConfigurationError) as refused:
        await copy(source, target)
    assert f"complete it with `{command_of(other, target, BATCH).text()}`, or delete" in str(refused.value)
    assert f"with `{command_of(source, target).text(restart=True)}`" in str(refused.value)
    async with Control(source) as control:
        (copied,) = await control.copy(target, restart=True)
    assert (copied.deleted, copied.problem) == (2, None)
    release(source)
    assert stored(target) == stored(source)


@pytest.mark.parametrize("again", [False, True])
async def test_a_deletion_that_stopped_is_continued_by_the_next_copy(
    source: str, target: str, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    monkeypatch.setattr("asyncrunner.admin.copying._DISCARDED", 1)
    await stop_copy(source, target)

    def stop(*_: object) -> None:
        raise KeyError("stop")

    async with Control(source) as control:
        with pytest.raises(KeyError):
            await control.copy(target, restart=True, on_progress=stop)
    assert sum(counts(target).values()) == 5
    await check_that_no_worker_starts_an_item(target)
    async with Control(source) as control:
        (copied,) = await control.copy(target, restart=again)
    assert (copied.deleted, copied.problem) == (5, None)
    release(source)
    assert stored(target) == stored(source)


async def test_a_copy_ends_when_another_command_restarts_it(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncrunner.store.copying.rows.PAGE_ITEMS", 2)

    def restart(progress: Progress) -> None:
        if progress.done == 4:
            execute(target, "UPDATE copies SET reached = 'restart'")

    async with Control(source) as control:
        with pytest.raises(StoreError, match="another command copies this batch, or has deleted it"):
            await control.copy(target, on_progress=restart)
    assert sum(counts(target).values()) == 4


async def test_a_complete_copy_is_neither_deleted_nor_finished_by_a_command_that_was_late(source: str, target: str) -> None:
    await copy(source, target)
    received = open_copy_target(target)
    await received.open()
    try:
        state = await received.find_copy(BATCH)
        assert state is not None
        for late in (received.begin_restart(state.batch_id), received.discard_items(state.batch_id, 9)):
            with pytest.raises(StoreError, match="another command copies this batch"):
                await late
        execute(target, "UPDATE copies SET finished_at = NULL, reached = 'restart'")
        sent = open_copy_source(source)
        await sent.open()
        batch = await sent.copied_batch(1)
        await sent.close()
        assert batch is not None
        with pytest.raises(StoreError, match="another command copies this batch"):
            await received.finish_copy(state.batch_id, batch)
    finally:
        await received.close()
    assert sum(counts(target).values()) == 13


def test_a_restart_that_is_killed_again_and_again_loses_and_doubles_nothing(target: str, tmp_path: Path) -> None:
    source = str(tmp_path / "source.db")
    asyncio.run(run_batch([*(f"fine-{n}" for n in range(60)), *(f"wrong-{n}" for n in range(25))], book, db=source, batch=BATCH))
    asyncio.run(stop_copy(source, target, steps=30))
    codes = []
    for step, restart in ((1, "restart"), (2, ""), (4, "restart"), (100, "")):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, source, target, str(step), restart], env=os.environ, timeout=60, check=False
        )
        codes.append(killed.returncode)
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert stored(target) == stored(source)
    if "://" in target:
        assert disagreements(target) == {}


async def test_large_results_of_a_deleted_copy_are_deleted(target: str, tmp_path: Path) -> None:
    source = str(tmp_path / "source.db")
    await run_batch([2_500_001, 5], large, db=source, batch="large")
    await copy(source, target)
    execute(target, "UPDATE copies SET finished_at = NULL")
    async with Control(source) as control:
        await control.copy(target, restart=True)
    assert stored(target) == stored(source)
    assert rows_of(target, "SELECT count(*) FROM result_pieces") == [(3,)]


async def test_a_worker_whose_lock_is_free_may_still_be_alive(source: str, target: str) -> None:
    clock = FakeClock()
    store = open_engine(source, clock=clock)
    await store.open()
    await store.join(WorkerInfo("w1", "here", 4711, "run", [BATCH]))
    await store.close()
    for file in Path(f"{source}-locks").iterdir():
        file.unlink()
    await clock.advance(3.5)
    async with Control(source, clock=clock) as control:
        with pytest.raises(
            ConfigurationError, match=r"may still be alive, such as process 4711 on here: .* try again in 7 seconds"
        ):
            await control.copy(target)
    await clock.advance(7)
    async with Control(source, clock=clock) as control:
        assert [each.problem for each in await control.copy(target)] == [None]
