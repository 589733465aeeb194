"""Changes by hand to a file and to the files beside it, during a run and between runs (rows 31 and 48)."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from pathlib import Path

import pytest

from asyncrunner import Runner, run_batch
from asyncrunner.errors import StoreError, StoreReplaced
from asyncrunner.runner.runner import internals_of
from asyncrunner.sqlite.locks import liveness_lock, lock_file
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.workers import Vitals, WorkerInfo
from tests.conftest import Until
from tests.support.processes import Jobs
from tests.support.state import execute, rows_of

NOW = 1_800_000_000.0


async def same(n: int) -> int:
    return n


@pytest.mark.sqlite_file
def test_row_31_no_new_file_is_created_beside_the_log_of_an_old_one(jobs: Jobs) -> None:
    process = jobs.start("run", "h.py:work", jobs.items(300), "-c", "2", "--batch", "b", seconds=0.01)
    jobs.until(lambda: len(jobs.lines("end")) > 20)
    process.kill()
    process.wait()
    wal = jobs.db.with_name(jobs.db.name + "-wal")
    assert wal.stat().st_size > 0
    moved = jobs.folder / "kept"
    jobs.db.rename(moved)
    code, said = jobs.run("run", "h.py:work", jobs.items(10), "--batch", "b")
    assert code == 2, said
    assert "is missing, but asyncrunner.db-wal exists" in said
    assert "Put asyncrunner.db back, or delete asyncrunner.db-wal" in said
    assert not jobs.db.exists()
    moved.rename(jobs.db)
    code, said = jobs.run("run", "h.py:work", jobs.items(300), "-c", "20", "--batch", "b")
    assert code == 0, said
    assert jobs.query("SELECT status, count(*) FROM items GROUP BY 1") == [("completed", 300)]
    assert jobs.query("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.sqlite_file
async def test_row_31_no_process_opens_a_file_whose_shm_was_deleted_under_a_live_worker(db: str) -> None:
    store = SQLiteStore(db)
    await store.open()
    await store.join(WorkerInfo("w", "here", 1))
    Path(f"{db}-shm").unlink()
    with pytest.raises(StoreError, match=r"-shm was deleted while another process uses the database.*Stop every program"):
        await SQLiteStore(db).open()
    with pytest.raises(StoreReplaced, match=r"-shm, which holds SQLite's locks, was deleted"):
        await store.beat("w", Vitals())
    await store.close()


async def test_row_48_a_run_whose_worker_was_deleted_by_hand_continues(db: str, until: Until) -> None:
    go = asyncio.Event()
    started: list[int] = []

    async def wait(n: int) -> int:
        started.append(n)
        await go.wait()
        return n

    running = asyncio.ensure_future(run_batch(range(8), wait, db=db, batch="b", concurrency=4))
    await until(lambda: len(started) == 4)
    (worker,) = rows_of(db, "SELECT worker_id FROM workers")
    execute(db, "DELETE FROM workers")
    await until(lambda: rows_of(db, "SELECT worker_id FROM workers WHERE ended_at IS NULL") == [worker])
    go.set()
    report = await asyncio.wait_for(running, 20)
    assert (report.completed, sorted(started)) == (8, list(range(8)))
    assert rows_of(db, "SELECT max(attempts), sum(crashes) FROM items") == [(1, 0)]


async def test_row_48_an_item_that_was_made_processing_by_hand_is_recovered_during_the_run(db: str, until: Until) -> None:
    runner = Runner(db, concurrency=2)

    @runner.handler(batch="b")
    async def handler(n: int) -> int:
        return n

    async with runner:
        handle = await handler.submit(1, delay=3600)
        execute(db, "UPDATE items SET status = 'processing', due_at = NULL")
        assert await handle.result(timeout=30) == 1


@pytest.mark.sqlite_file
async def test_the_locks_are_made_again_when_they_were_deleted_under_a_run(
    db: str, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    runner, other = Runner(db), Runner(db)

    @runner.handler(batch="b")
    async def handler(n: int) -> int:
        return n

    async with runner:
        (worker_id,) = (row[0] for row in rows_of(db, "SELECT worker_id FROM workers"))
        shutil.rmtree(lock_file.locks_folder(Path(db)))
        await until(lambda: liveness_lock.is_held(Path(db).resolve(), worker_id))
        async with other:
            assert await (await handler.submit(1)).result(timeout=20) == 1
            assert {each.name for each in lock_file.locks_folder(Path(db)).iterdir()} >= {"next", "turn", worker_id}
    assert "the lock files" in caplog.text
    assert rows_of(db, "SELECT sum(lost), sum(crashes) FROM workers, items") == [(0, 0)]


@pytest.mark.sqlite_file
async def test_a_payload_that_is_no_text_fails_only_its_own_item(db: str) -> None:
    await run_batch(range(3), same, db=db, batch="b")
    execute(db, "UPDATE items SET status = 'pending', attempts = 0")
    execute(db, "UPDATE items SET payload = CAST(x'22ff22' AS TEXT) WHERE id = '1'")
    report = await run_batch(None, same, db=db, batch="b")
    assert (report.completed, report.failed) == (2, 1)
    assert rows_of(db, "SELECT id, error LIKE 'PayloadUnreadable%' FROM items WHERE status = 'failed'") == [("1", 1)]


async def test_a_payload_that_is_not_json_fails_with_the_key_of_its_item(db: str) -> None:
    await run_batch(range(3), same, db=db, batch="b")
    execute(db, "INSERT INTO items (batch_id, id, payload) SELECT batch_id, 'order-17', 'Ada' FROM batches")
    report = await run_batch(None, same, db=db, batch="b")
    assert report.failed == 1
    ((error,),) = rows_of(db, "SELECT error FROM items WHERE status = 'failed'")
    assert error.startswith("PayloadUnreadable: the stored payload of item 'order-17' is not JSON (")


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE batches SET turns = 9223372036854775807", "doctor` to find the difference"),
        ("CREATE TRIGGER no BEFORE UPDATE ON items BEGIN SELECT RAISE(ABORT, 'no'); END", "doctor` to find the difference"),
    ],
)
@pytest.mark.sqlite_file
async def test_a_refusal_of_the_database_is_a_named_error(db: str, statement: str, says: str) -> None:
    await run_batch(range(3), same, db=db, batch="b")
    execute(db, "UPDATE items SET status = 'pending', attempts = 0")
    execute(db, statement)
    with pytest.raises(StoreError, match=says):
        await run_batch(None, same, db=db, batch="b")


@pytest.mark.sqlite_file
async def test_a_runner_that_stopped_by_itself_raises_where_its_block_ends(db: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    runner = Runner(db)
    with pytest.raises(StoreError, match="deleted"):
        async with runner:
            Path(db).unlink()
            engine_task = internals_of(runner).engine_task
            assert engine_task is not None
            await asyncio.wait({engine_task})


@pytest.mark.parametrize("name", ["x" * 300, "loop"])
@pytest.mark.sqlite_file
def test_a_path_that_is_none_is_an_error_in_words(name: str, jobs: Jobs) -> None:
    (jobs.folder / "loop").symlink_to("loop")
    for command in (["status"], ["doctor"], ["run", "h.py:work", jobs.items(1)]):
        code, said = jobs.run(*command, "--db", name)
        assert (code, "Traceback" in said) == (2, False), said
        assert name[:20] in said


@pytest.mark.sqlite_file
def test_a_pipe_is_no_database(jobs: Jobs) -> None:
    os.mkfifo(jobs.folder / "pipe")
    for command in (["status"], ["run", "h.py:work", jobs.items(1)]):
        code, said = jobs.run(*command, "--db", "pipe")
        assert code == 2
        assert "is a pipe, a socket or a device, not a file" in said
