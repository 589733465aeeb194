"""Control: its reads and changes of a file; a refused call changes no row."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import (
    BatchNotFound,
    ConfigurationError,
    Control,
    Fail,
    ItemNotFound,
    Runner,
    StoreClosed,
    StoreError,
    StoreNotFound,
    run_batch,
)
from asyncrunner.sqlite.locks.liveness_lock import LivenessLock
from asyncrunner.sqlite.locks.lock_file import locks_folder
from asyncrunner.sqlite.maintenance import backup
from asyncrunner.testing import FakeClock
from asyncrunner.text.timestamps import to_text
from tests.conftest import Until
from tests.support.files import BATCH, lose_workers, make_store
from tests.support.state import changing, execute, exists, rows_of, snapshot, totals


@pytest.fixture
def made(db: str) -> None:
    """Create a store with items in every state."""
    make_store(db)


@pytest.fixture
async def control(db: str, made: None) -> AsyncIterator[Control]:
    async with Control(db) as opened:
        yield opened


def statuses(db: str, *ids: str) -> list[str]:
    found = dict(rows_of(db, "SELECT id, status FROM items"))
    return [found[key] for key in ids]


# --- looking ---------------------------------------------------------------------------------------------------------


async def test_status_is_of_one_batch_or_of_all_with_the_newest_failures(control: Control) -> None:
    status = await control.status()
    (batch,) = status.batches
    assert (batch.name, batch.total, batch.counts.completed, batch.counts.failed) == (BATCH, 13, 4, 5)
    assert (batch.counts.pending, batch.counts.processing, batch.counts.cancelled) == (2, 1, 1)
    assert [(stuck.id, stuck.worker_alive) for stuck in batch.stuck] == [("held-1", False)]
    assert len(status.failures) == 5
    assert status.failures[0].error.startswith(("ConnectionError: cannot reach", "Fail: a negative amount"))
    assert [each.name for each in (await control.status(BATCH)).batches] == [BATCH]


async def test_the_newest_failures_are_the_last_ones_of_items_that_failed(db: str, control: Control) -> None:
    execute(db, "UPDATE items SET status = 'completed' WHERE id LIKE 'refused-%'")
    execute(db, "UPDATE items SET status = 'pending' WHERE id = 'wrong-2'")
    assert [(failure.id, failure.attempt) for failure in (await control.status()).failures] == [("wrong-1", 1)]
    execute(db, "UPDATE items SET status = 'failed' WHERE id = 'refused-2'")
    assert {(each.id, each.attempt) for each in (await control.status(BATCH)).failures} == {("wrong-1", 1), ("refused-2", 2)}


async def test_the_status_has_the_next_due_time_and_the_age_of_the_oldest_item(db: str, control: Control) -> None:
    execute(db, "UPDATE items SET due_at = '2999-01-01 04:00:00.000' WHERE id = 'open-1'")
    execute(db, "UPDATE items SET due_at = '2999-01-01 05:00:00.000' WHERE id = 'open-2'")
    (batch,) = (await control.status()).batches
    assert (batch.next_due_at, batch.oldest) == ("2999-01-01 04:00:00.000", None)
    execute(db, "UPDATE items SET due_at = '2001-01-01 04:00:00.000' WHERE id = 'open-1'")
    (batch,) = (await control.status()).batches
    assert batch.next_due_at == "2999-01-01 05:00:00.000"
    execute(db, "UPDATE items SET due_at = NULL, created_at = '2026-01-01 00:00:00.000' WHERE id = 'open-2'")
    (batch,) = (await control.status()).batches
    assert (batch.next_due_at, batch.oldest is not None and batch.oldest > 86400) == (None, True)


async def test_the_oldest_item_is_the_first_of_all_priorities(db: str, control: Control) -> None:
    execute(db, "UPDATE items SET status = 'pending', due_at = NULL, priority = 9 - seq % 3, worker_id = NULL")
    execute(db, "UPDATE items SET created_at = '2026-01-01 00:00:00.000'")
    for days, seq in ((7, 4), (9, 2), (3, 3)):
        execute(db, "UPDATE items SET created_at = ? WHERE seq = ?", to_text(time.time() - days * 86400), seq)
        execute(db, "UPDATE items SET status = 'cancelled' WHERE seq < ?", seq)
        execute(db, "UPDATE items SET status = 'pending' WHERE seq >= ?", seq)
        (batch,) = (await control.status()).batches
        assert batch.oldest is not None
        assert round(batch.oldest / 86400) == days


async def test_items_come_in_input_order_page_by_page(control: Control) -> None:
    first = await control.items(limit=5)
    assert [item.id for item in first.items] == ["fine-1", "refused-1", "fine-2", "wrong-1", "refused-2"]
    assert first.after == "refused-2"
    rest = await control.items(limit=50, after=first.after)
    assert [item.id for item in rest.items][-3:] == ["open-1", "open-2", "held-1"]
    assert (len(rest.items), rest.after) == (8, None)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"status": "failed"}, ["refused-1", "wrong-1", "refused-2", "refused-3", "wrong-2"]),
        ({"status": "failed", "limit": 2, "after": "wrong-1"}, ["refused-2", "refused-3"]),
        ({"status": "completed"}, ["fine-1", "fine-2", "fine-3", "fine-4"]),
        ({"status": "pending"}, ["open-1", "open-2"]),
        ({"status": "processing"}, ["held-1"]),
        ({"status": "processing", "older_than": 3600.0}, ["held-1"]),
        ({"status": "processing", "older_than": 1e9}, []),
        ({"error": "NEGATIVE amount"}, ["wrong-1", "wrong-2"]),
        ({"error": "connection*0.3"}, ["refused-3"]),
        ({"error": "connection*0.3", "older_than": 1e9}, []),
        ({"status": "failed", "older_than": 1e9}, []),
        ({"status": "cancelled", "older_than": 0.0}, ["off-1"]),
    ],
    ids=str,
)
async def test_items_by_state_error_and_age(control: Control, filters: dict[str, Any], expected: list[str]) -> None:
    if expected == [] and "error" in filters:
        with pytest.raises(ItemNotFound, match="no failed item of 'shop' has 'connection"):
            await control.items(**filters)
        return
    assert [item.id for item in (await control.items(**filters)).items] == expected


async def test_wildcards_of_sql_in_a_pattern_are_plain_characters(db: str, control: Control) -> None:
    with changing(db) as connection:
        connection.execute("UPDATE items SET error = 'E: 100% of_it \\ done' WHERE id = 'wrong-1'")
    assert [item.id for item in (await control.items(error="100% of_it \\")).items] == ["wrong-1"]
    with pytest.raises(ItemNotFound):
        await control.items(error="100_ of")
    with pytest.raises(ConfigurationError, match="would match everything"):
        await control.items(error="**")


async def test_a_cause_of_failures_is_a_pattern_too(control: Control) -> None:
    causes = await control.failures()
    assert [(cause.items, cause.attempts) for cause in causes] == [(3, 6), (2, 2)]
    assert causes[0].error == "ConnectionError: cannot reach 10.0.0.1"
    assert causes[0].example == "refused-1"
    assert causes[0].first_seen is not None
    assert causes[0].last_seen is not None
    assert causes[0].first_seen <= causes[0].last_seen
    found = await control.items(error=causes[1].fingerprint)
    assert [item.id for item in found.items] == ["wrong-1", "wrong-2"]


async def test_causes_of_retried_attempts_and_of_items_failed_by_hand_are_there_too(db: str, control: Control) -> None:
    with changing(db) as connection:
        connection.execute("UPDATE items SET status = 'completed' WHERE id LIKE 'refused-%'")
        connection.execute("UPDATE items SET status = 'failed', error = 'by hand' WHERE id LIKE 'open-%'")
    causes = await control.failures(BATCH)
    assert [(cause.items, cause.attempts, cause.error[:15]) for cause in causes] == [
        (2, 2, "Fail: a negativ"), (2, 0, "by hand"), (0, 6, "ConnectionError"),
    ]  # fmt: skip
    assert (causes[1].fingerprint, causes[1].first_seen) == (None, None)
    assert len(await control.failures(limit=1)) == 1


async def test_show_has_every_failed_attempt_and_the_time_of_each_event(db: str, control: Control) -> None:
    item = await control.show("refused-2")
    assert (item.batch, item.status, item.attempts, item.payload, item.result) == (BATCH, "failed", 2, "refused-2", None)
    assert [failure.attempt for failure in item.failures] == [1, 2]
    assert "in book" in item.failures[0].traceback
    assert [moment.what.partition(" after ")[0].partition(":")[0] for moment in item.timeline] == [
        "accepted", "attempt 1 failed", "attempt 2 failed", "failed",
    ]  # fmt: skip
    assert [moment.at for moment in item.timeline] == sorted(moment.at for moment in item.timeline)
    assert (await control.show("fine-1", BATCH)).result == {"booked": "fine-1"}
    with changing(db) as connection:
        connection.execute("UPDATE items SET payload = '{no json', due_at = '2999-01-01 00:00:00.000' WHERE id = 'open-1'")
    broken = await control.show("open-1")
    assert broken.payload == "{no json"
    assert broken.timeline[-1].what == "may run"
    with changing(db) as connection:
        connection.execute("UPDATE items SET put_offs = 2, put_off_at = 3e10 WHERE id = 'open-1'")
    put_off = (await control.show("open-1")).timeline[-1]
    assert (put_off.at, put_off.what) == ("2999-01-01 00:00:00.000", "runs next, after 2 put-offs")


async def test_stuck_items_name_their_worker_and_whether_it_lives(control: Control) -> None:
    (item,) = await control.stuck()
    assert (item.batch, item.id, item.worker_id, item.worker_alive) == (BATCH, "held-1", "gone", False)
    assert await control.stuck(older_than=1e9) == []


async def test_a_time_is_seconds_a_timedelta_or_a_text(control: Control) -> None:
    for older_than in (0, 0.0, timedelta(0), "0s"):
        assert [item.id for item in await control.stuck(older_than=older_than)] == ["held-1"]
        assert len((await control.items(status="pending", older_than=older_than)).items) == 2
        assert len([key async for key in control.ids(status="pending", older_than=older_than)]) == 2
        assert [item.id for item in (await control.status(stuck_after=older_than)).batches[0].stuck] == ["held-1"]
        limits = {"max_pending_age": older_than, "max_processing_age": older_than}
        found = await control.check(max_failed="any", **limits)  # type: ignore[arg-type]  # pyright: ignore
        assert [problem.check for problem in found] == ["workers", "pending", "processing"]
    for older_than in (1e9, timedelta(days=10_000), "10000d"):
        assert await control.stuck(older_than=older_than) == []
        assert (await control.items(older_than=older_than)).items == []
        assert (await control.cancel(older_than=older_than)).changed == 0
    assert (await control.stop(wait=timedelta(0))).asked == []
    wrong: list[Any] = [-1, timedelta(-1), "soon", "-5m", True, None]
    for value in wrong:
        with pytest.raises(ConfigurationError, match=r"older_than=.*: give seconds, 0 or more, a timedelta, or a text such as"):
            await control.stuck(older_than=value)


async def test_live_workers_are_distinguished_from_dead_ones(db: str, control: Control) -> None:
    assert await control.workers() == []
    async with Runner(db):
        (worker,) = await control.workers()
        assert (worker.alive, worker.pid, worker.holding) == (True, os.getpid(), 0)
        assert await control.workers(BATCH) == []
    with changing(db) as connection:
        connection.execute("UPDATE workers SET ended_at = NULL")


# --- retry and cancel ------------------------------------------------------------------------------------------------


async def test_retry_by_cause_gives_a_fresh_start_to_those_alone(db: str, control: Control) -> None:
    with changing(db) as connection:
        connection.execute("UPDATE items SET crashes = 2, suspect = 1, due_at = '2999-01-01' WHERE id = 'refused-1'")
    changed = await control.retry(error="cannot reach")
    assert (changed.changed, changed.unchanged) == (3, 0)
    assert statuses(db, "refused-1", "refused-2", "refused-3", "wrong-1") == ["pending", "pending", "pending", "failed"]
    assert rows_of(
        db, "SELECT attempts, crashes, suspect, permanent, due_at, completed_at FROM items WHERE id = 'refused-1'"
    ) == [(0, 0, 0, 0, None, None)]


@pytest.mark.parametrize(
    ("how", "changed"),
    [({"failed": True}, 5), ({"everything": True}, 6), ({"ids": ["off-1", "wrong-2", "open-1"]}, 2), ({"error": "Fail:"}, 2)],
    ids=str,
)
async def test_every_way_to_retry(db: str, control: Control, how: dict[str, Any], changed: int) -> None:
    before = dict(rows_of(db, "SELECT id, status FROM items"))
    assert (await control.retry(**how)).changed == changed
    after = dict(rows_of(db, "SELECT id, status FROM items"))
    moved = {key for key in before if before[key] != after[key]}
    assert len(moved) == changed
    assert {before[key] for key in moved} <= {"failed", "cancelled"}
    assert {after[key] for key in moved} == {"pending"}


async def test_retried_items_run_again_and_complete(db: str, control: Control) -> None:
    async def mended(item: str) -> str:
        return item

    await control.retry(failed=True)
    report = await run_batch(None, mended, db=db, batch=BATCH)
    assert (report.failed, report.batch_counts.completed) == (0, 12)  # and a cancelled attempt
    assert await control.failures() != []
    assert all(cause.items == 0 for cause in await control.failures())


async def test_a_retry_of_a_running_or_completed_item_is_refused_and_changes_no_item(db: str, control: Control) -> None:
    before = snapshot(db)
    with pytest.raises(ConfigurationError, match="3 of 4 items cannot be retried: 2 are completed and 1 is processing"):
        await control.retry(["wrong-1", "fine-1", "held-1", "fine-2"])
    assert snapshot(db) == before


async def test_cancel_by_id_and_of_all_that_wait(db: str, control: Control) -> None:
    changed = await control.cancel(["open-1", "held-1", "fine-1"])
    assert (changed.changed, changed.unchanged) == (2, 1)
    assert statuses(db, "open-1", "held-1", "fine-1", "open-2") == ["cancelled", "cancelled", "completed", "pending"]
    assert (await control.cancel(pending=True)).changed == 1
    assert statuses(db, "open-2") == ["cancelled"]


async def test_a_running_handler_is_cancelled_within_a_second_by_another_connection(db: str, until: Until) -> None:
    cancelled: list[str] = []
    running = asyncio.Event()

    async def forever(item: str) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    runner = Runner(db)
    handler = runner.handler(batch="b")(forever)
    async with runner:
        handle = await handler.submit("x", key="x")
        await running.wait()
        async with Control(db) as control:
            began = time.monotonic()
            assert (await control.cancel(["x"])).changed == 1
            await until(lambda: cancelled == ["x"])
            assert time.monotonic() - began < 1.0
        assert await handle.status() == "cancelled"


async def test_many_are_changed_in_small_transactions_between_which_others_write(
    db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(item: int) -> None: ...

    await run_batch(range(5000), never, db=db, batch="b")
    with changing(db) as connection:
        connection.execute("UPDATE items SET status = 'failed', error = 'E: x'")
    seen: list[int] = []

    def look(changed: int) -> None:
        seen.append(changed)
        with changing(db) as connection:  # it would wait for the open transaction
            connection.execute("UPDATE batches SET options = options")

    async with Control(db, progress=look) as control:
        assert (await control.retry(failed=True)).changed == 5000
    assert seen == [2000, 4000, 5000]


# --- controls --------------------------------------------------------------------------------------------------------


async def test_pause_and_resume_report_whether_they_changed_the_batch(db: str, control: Control) -> None:
    assert [await control.pause(), await control.pause()] == [True, False]
    assert (await control.status()).batches[0].paused
    assert [await control.resume(), await control.resume()] == [True, False]
    with changing(db) as connection:
        connection.execute("UPDATE batches SET stopped = 'too many', cooldown_until = '2999-01-01 00:00:00.000'")
    assert await control.resume()
    assert rows_of(db, "SELECT paused, stopped, cooldown_until FROM batches") == [(0, None, None)]


async def test_a_concurrency_is_set_and_taken_back(db: str, control: Control) -> None:
    await control.set_concurrency(7)
    assert (await control.status()).batches[0].concurrency == 7
    await control.set_concurrency(None)
    assert rows_of(db, "SELECT concurrency FROM batches") == [(None,)]


async def test_recover_releases_orphaned_items_and_those_of_dead_workers(db: str, control: Control) -> None:
    assert await control.recover() == {"": 1}
    assert statuses(db, "held-1") == ["pending"]
    assert rows_of(db, "SELECT crashes, error LIKE 'WorkerLost: its worker is not known%' FROM items WHERE id = 'held-1'") == [
        (1, 1)
    ]
    assert await control.recover() == {}


async def test_recover_of_one_batch_leaves_the_orphaned_items_of_other_batches_alone(db: str, made: None) -> None:
    with changing(db) as connection:
        connection.execute("INSERT INTO batches (name, handler, options, created_at) VALUES ('other', 'h', '{}', '2026-01-01')")
        connection.execute("INSERT INTO items (batch_id, id, status, attempts, payload) VALUES (2, 'x', 'processing', 1, '1')")
    async with Control(db) as control:
        assert await control.recover(batch=BATCH) == {"": 1}
        assert statuses(db, "held-1", "x") == ["pending", "processing"]
        # The other orphaned item may have caused the crash, so this item did not crash alone.
        assert rows_of(db, "SELECT message LIKE '%other items of the worker: 1;%' FROM failures WHERE id = 'held-1'") == [(1,)]
        assert await control.recover() == {"": 1}


@pytest.mark.sqlite_file
async def test_recover_deletes_the_pieces_of_a_large_result_that_a_dead_worker_left(db: str, made: None) -> None:
    with changing(db) as connection:
        connection.execute(
            "INSERT INTO workers (worker_id, host, pid, started_at, last_heartbeat) VALUES ('gone', 'h', 1, '', '')"
        )
        connection.execute("INSERT INTO result_pieces SELECT seq, claim, 0, 'text' FROM items WHERE id = 'held-1'")
    LivenessLock(Path(db), "gone").drop()
    async with Control(db) as control:
        assert await control.recover() == {"gone": 1}
    assert rows_of(db, "SELECT count(*) FROM result_pieces") == [(0,)]
    assert not (locks_folder(Path(db)) / "gone").exists()


async def test_recover_of_one_batch_leaves_workers_without_its_items_alone(db: str, made: None) -> None:
    with changing(db) as connection:
        connection.execute("INSERT INTO batches (name, handler, options, created_at) VALUES ('other', 'h', '{}', '2026-01-01')")
        connection.execute(
            "INSERT INTO items (batch_id, id, status, worker_id, attempts, payload) "
            "VALUES (2, 'x', 'processing', 'a', 1, '1'), (2, 'y', 'processing', 'b', 1, '1'), (1, 'z', 'processing', 'b', 1, '1')"
        )
    await lose_workers(db, "a", "b")
    async with Control(db) as control:
        with pytest.raises(ConfigurationError, match="worker a holds no item of 'shop'"):
            await control.recover(["a"], batch=BATCH)
        assert await control.recover(batch=BATCH) == {"b": 2, "": 1}
        assert statuses(db, "x", "y", "z", "held-1") == ["processing", "pending", "pending", "pending"]
        assert await control.recover(batch=BATCH) == {}
        assert await control.recover(batch="other") == {"a": 1}


async def test_a_live_worker_is_given_up_only_by_name(db: str, until: Until) -> None:
    running = asyncio.Event()

    async def hang(item: str) -> None:
        running.set()
        await asyncio.Event().wait()

    runner = Runner(db)
    handler = runner.handler(batch="b")(hang)
    async with runner:
        await handler.submit("x", key="x")
        await running.wait()
        async with Control(db) as control:
            (worker,) = await control.workers("b")
            assert await control.recover() == {}
            assert await control.recover([worker.worker_id]) == {worker.worker_id: 1}
            with pytest.raises(ConfigurationError, match="there is no worker 'missing'"):
                await control.recover(["missing"])
        await until(lambda: rows_of(db, "SELECT crashes FROM items") == [(1,)])
        await runner.stop(drain=False)


@pytest.fixture
def silent_file(db: str, made: None) -> str:
    """Return a copy made while a worker held an item: the worker is in the file, but there is no lock file."""
    with changing(db) as connection:
        connection.execute("UPDATE workers SET ended_at = NULL, last_heartbeat = '2026-01-02 03:04:05.678', worker_id = 'gone'")
    return db


async def ended(task: asyncio.Task[Any], clock: FakeClock) -> None:
    """Advance the clock until the call ends; its reads of the file use threads."""
    while not task.done():
        await clock.advance(0.25)
        await asyncio.sleep(0.001)


@pytest.mark.sqlite_file
async def test_recover_takes_from_a_worker_without_a_lock_file_once_it_has_been_silent_for_5_s(silent_file: str) -> None:
    clock = FakeClock()
    async with Control(silent_file, clock=clock) as control:
        began = clock.monotonic()
        recovering = asyncio.create_task(control.recover())
        await ended(recovering, clock)
        assert recovering.result() == {"gone": 1}
        assert clock.monotonic() - began >= 5.0
        assert await control.workers() == []
    assert statuses(silent_file, "held-1") == ["pending"]
    assert rows_of(silent_file, "SELECT error LIKE '%no lock file and no heartbeat for 5 s%' FROM items WHERE id = 'held-1'") == [
        (1,)
    ]


class CountingClock(FakeClock):
    """A fake clock that counts its sleeps."""

    sleeps = 0

    async def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        await super().sleep(seconds)


@pytest.mark.sqlite_file
async def test_recover_takes_no_item_from_a_worker_without_a_lock_file_that_beats(silent_file: str, until: Until) -> None:
    clock = CountingClock()
    async with Control(silent_file, clock=clock) as control:
        recovering = asyncio.create_task(control.recover())
        await until(lambda: clock.sleeps)  # it has checked once
        with changing(silent_file) as connection:
            connection.execute("UPDATE workers SET last_heartbeat = '2026-01-02 03:04:06.678'")
        await ended(recovering, clock)
        assert recovering.result() == {}
    assert statuses(silent_file, "held-1") == ["processing"]


@pytest.mark.sqlite_file
async def test_unknown_is_not_alive_for_vacuum_and_check(silent_file: str) -> None:
    said = "1 worker may be dead, because nothing holds its lock: if no worker runs, run `asyncrunner recover`"
    async with Control(silent_file) as control:
        assert said in [problem.message for problem in await control.check()]
        with pytest.raises(ConfigurationError, match=said):
            await control.vacuum()


@pytest.mark.sqlite_file
async def test_a_backup_has_no_workers_and_refunds_the_attempts_of_their_items(silent_file: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    before = snapshot(silent_file)
    async with Control(silent_file) as control:
        assert await control.backup(copy) == copy.stat().st_size
    assert snapshot(silent_file) == before
    assert rows_of(copy, "SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]
    assert rows_of(copy, "SELECT status, attempts, worker_id, crashes FROM items WHERE id = 'held-1'") == [
        ("pending", 0, None, 0)
    ]
    assert [path.name for path in tmp_path.glob("*copy*")] == ["copy.db"]
    async with Control(copy) as control:
        assert await control.recover() == {}
        assert await control.vacuum() > 0


# --- purge, backup, export -------------------------------------------------------------------------------------------


async def test_a_purge_counts_first_and_then_deletes_items_that_ended_long_ago(db: str, control: Control) -> None:
    with changing(db) as connection:
        connection.execute("UPDATE items SET completed_at = '2026-01-01 00:00:00.000' WHERE id IN ('fine-1', 'wrong-1', 'off-1')")
    before = snapshot(db)
    planned = await control.purge(timedelta(days=1), status=["completed", "failed"], dry_run=True)
    assert (planned.items, planned.dry_run) == ({"completed": 1, "failed": 1}, True)
    assert snapshot(db) == before
    done = await control.purge(datetime(2026, 2, 1, tzinfo=UTC), status=["completed", "failed"])
    assert done.items == planned.items
    assert rows_of(db, "SELECT count(*) FROM items WHERE id IN ('fine-1', 'wrong-1')") == [(0,)]
    assert rows_of(db, "SELECT count(*) FROM failures WHERE id = 'wrong-1'") == [(0,)]
    assert [total for _, total in totals(db)] == [11]
    assert (await control.status()).batches[0].counts.completed == 3


async def test_a_purge_of_unfinished_states_is_refused(db: str, control: Control) -> None:
    before = snapshot(db)
    with pytest.raises(ConfigurationError, match="purge deletes only finished items"):
        await control.purge(timedelta(0), status=["completed", "pending"])
    with pytest.raises(ConfigurationError, match="in the future"):
        await control.purge(datetime.now(UTC) + timedelta(days=1))
    with pytest.raises(ConfigurationError, match="time zone"):
        await control.purge(datetime(2026, 1, 1))  # noqa: DTZ001 - that is what is refused
    assert snapshot(db) == before


@pytest.mark.sqlite_file
async def test_vacuum_frees_space_and_is_refused_while_a_worker_is_alive(db: str) -> None:
    async def big(item: int) -> str:
        return "x" * 2000

    await run_batch(range(2000), big, db=db, batch="b")
    async with Control(db) as control:
        size = Path(db).stat().st_size
        purged = await control.purge(timedelta(0))
        assert purged.free_bytes > size / 2
        async with Runner(db):
            with pytest.raises(ConfigurationError, match="1 live worker: the file cannot be rewritten"):
                await control.vacuum()
        assert await control.vacuum() == Path(db).stat().st_size < size / 4
        assert (await control.status()).batches[0].total == 0


@pytest.mark.sqlite_file
async def test_a_backup_is_complete_private_and_of_one_moment_while_items_are_added(db: str, tmp_path: Path) -> None:
    async def work(item: int) -> int:
        return item

    runner = Runner(db, concurrency=50)
    handler = runner.handler(batch="b")(work)
    copy = tmp_path / "copy.db"
    async with runner:
        await handler.submit_many(range(3000))

        async def more() -> None:
            for first in range(3000, 12_000, 300):
                await handler.submit_many(range(first, first + 300))

        adding = asyncio.create_task(more())
        async with Control(db) as control:
            size = await control.backup(copy)
        await adding
    assert (copy.stat().st_size, copy.stat().st_mode & 0o777) == (size, 0o600)
    assert list(tmp_path.glob(".*")) == []
    assert rows_of(copy, "PRAGMA integrity_check") == [("ok",)]
    ((total, counted, last),) = rows_of(
        copy, "SELECT total, (SELECT count(*) FROM items), (SELECT max(seq) FROM items) FROM batches"
    )
    assert total == counted == last, "the backup has the items added before its beginning, and no others"
    assert counted % 300 == 0
    again = await run_batch(None, work, db=copy, batch="b")
    assert again.batch_counts.completed == counted


@pytest.mark.sqlite_file
async def test_a_backup_of_one_batch_has_nothing_else_in_it(db: str, made: None, tmp_path: Path) -> None:

    async def refuse(item: str) -> None:
        raise Fail(f"the secret of {item}")

    await run_batch(["secret-1", "secret-2"], refuse, db=db, batch="other", progress=False)
    before = snapshot(db)
    copy = tmp_path / "copy.db"
    async with Control(db) as control:
        assert await control.backup(copy, BATCH) == copy.stat().st_size
    assert snapshot(db) == before
    for table in ("items", "failures"):
        there = rows_of(db, f"SELECT * FROM {table} WHERE batch_id = 1 ORDER BY 1")
        assert rows_of(copy, f"SELECT * FROM {table} ORDER BY 1") == there
    assert rows_of(copy, "SELECT name, total FROM batches") == [(BATCH, 13)]
    assert rows_of(copy, "SELECT count(*) FROM workers") == [(0,)]
    assert b"secret" in Path(db).read_bytes()
    assert b"secret" not in copy.read_bytes(), "the free pages of the copy do not contain the other items either"


@pytest.mark.sqlite_file
async def test_a_backup_ends_during_constant_writes_and_contains_none_of_them(
    db: str, control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_BACKUP_PAGES", 1)
    calls = 0

    def write_something() -> bool:
        nonlocal calls
        calls += 1
        with changing(db) as connection:
            connection.execute("INSERT INTO items (batch_id, id, payload) VALUES (1, ?, '1')", (f"late-{calls}",))
        return calls < 1000  # a backup that restarts after each write never ends

    backup.back_up(Path(db), tmp_path / "copy.db", write_something, time.time())
    assert calls > 10
    assert rows_of(tmp_path / "copy.db", "SELECT count(*) FROM items") == [(13,)]


@pytest.mark.sqlite_file
async def test_a_backup_that_is_cancelled_leaves_nothing(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_BACKUP_PAGES", 1)
    asking = asyncio.Event()
    loop = asyncio.get_running_loop()
    back_up = backup.back_up

    def slow(path: Path, target: Path, is_wanted: Any, now: float, *, only: int | None) -> int:
        def asked() -> bool:
            loop.call_soon_threadsafe(asking.set)
            while is_wanted():
                time.sleep(0.001)
            return False

        return back_up(path, target, asked, now, only=only)

    monkeypatch.setattr(backup, "back_up", slow)
    task = asyncio.create_task(control.backup(tmp_path / "copy.db"))
    await asking.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    give_up_at = time.monotonic() + 10
    while list(tmp_path.glob(".copy*")) and time.monotonic() < give_up_at:
        await asyncio.sleep(0.005)
    assert [path.name for path in tmp_path.iterdir() if "copy" in path.name] == []


@pytest.mark.sqlite_file
async def test_a_backup_never_replaces_anything(control: Control, tmp_path: Path) -> None:
    (tmp_path / "copy.db").write_text("mine")
    (tmp_path / "link.db").symlink_to("nowhere")
    for name in ("copy.db", "link.db"):
        with pytest.raises(ConfigurationError, match="already exists"):
            await control.backup(tmp_path / name)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        await control.backup(tmp_path / "no" / "copy.db")
    assert (tmp_path / "copy.db").read_text() == "mine"


async def test_an_export_has_every_item_once_in_input_order(control: Control) -> None:
    records = [record async for record in control.export()]
    assert [record.id for record in records][:4] == ["fine-1", "refused-1", "fine-2", "wrong-1"]
    assert len(records) == 13
    assert (records[0].payload, records[0].result, records[0].batch) == ('"fine-1"', '{"booked":"fine-1"}', BATCH)
    some = [record.status async for record in control.export(status=["failed", "cancelled"])]
    assert sorted(set(some)) == ["cancelled", "failed"]


# --- check -----------------------------------------------------------------------------------------------------------


async def test_check_reports_only_problems_that_need_an_operator(db: str, control: Control) -> None:
    found = await control.check(max_failed=4, max_pending_age=0.0)
    assert [problem.check for problem in found] == ["workers", "failed", "pending"]
    assert {problem.batch for problem in found} == {BATCH}
    async with Runner(db):  # it is alive, but has no handler of the batch
        (problem,) = await control.check(max_failed=5, max_pending_age=1e9)
        assert problem.message == "3 unfinished items, but no worker for this batch among 1 live worker"
    with changing(db) as connection:
        connection.execute("UPDATE batches SET stopped = 'too many failures'")
        connection.execute("UPDATE items SET status = 'cancelled' WHERE status = 'processing'")
    assert [problem.check for problem in await control.check(max_failed=None)] == ["workers", "stopped"]
    with changing(db) as connection:
        connection.execute("UPDATE items SET status = 'cancelled' WHERE status = 'pending'")
    assert await control.check(max_failed=None) == []


# --- what is refused -------------------------------------------------------------------------------------------------


async def test_names_that_are_nearly_right_are_answered_with_the_intended_one(db: str, control: Control) -> None:
    with pytest.raises(BatchNotFound, match="has no batch 'shpo'; did you mean 'shop'"):
        await control.pause("shpo")
    with pytest.raises(ItemNotFound, match="no item 'refusd-2' in 'shop'; did you mean 'refused-2'"):
        await control.show("refusd-2")
    with pytest.raises(ItemNotFound, match=r"no item 'x' in 'shop' \(and 1 more are missing\)"):
        await control.retry(["x", "wrong-1", "y"])
    with pytest.raises(ItemNotFound, match="no item 'unknown'"):
        await control.items(after="unknown")
    with pytest.raises(ConfigurationError, match="did you mean 'failed'"):
        await control.items(status="faild")
    assert statuses(db, "wrong-1") == ["failed"]


@pytest.mark.parametrize("typed", ["page_17", "Page-17", "pge-17", "paage-17", " page-17", "page/17", "page-017", "apge-17"])
async def test_the_nearest_of_many_ids_is_the_intended_one(typed: str, db: str, control: Control) -> None:
    with changing(db) as connection:
        connection.executemany(
            "INSERT INTO items (batch_id, id, payload) VALUES (1, ?, '1')", [(f"page-{n}",) for n in range(1200)]
        )
    with pytest.raises(ItemNotFound, match="did you mean 'page-17'"):
        await control.show(typed)
    with pytest.raises(ItemNotFound) as raised:
        await control.show("x" * 5000)
    assert len(str(raised.value)) < 400
    assert " more" not in str(raised.value)


async def test_several_batches_are_listed_where_one_must_be_named(db: str, control: Control) -> None:
    with changing(db) as connection:
        connection.execute("INSERT INTO batches (name, handler, options, created_at) VALUES ('other', 'h', '{}', '2026-01-01')")
        connection.execute("INSERT INTO items (batch_id, id, payload) VALUES (2, 'fine-1', '1'), (2, 'mine', '1')")
    with pytest.raises(
        ConfigurationError, match=r"has 2 batches; give one of 'shop', 'other' with --batch \(in Python: batch=\)"
    ):
        await control.pause()
    with pytest.raises(ItemNotFound, match="there is no item 'fin-1' in any of the 2 batches"):
        await control.show("fin-1")
    with pytest.raises(
        ConfigurationError, match="'fine-1' is in several batches: 'shop', 'other'; give one of them with --batch"
    ):
        await control.show("fine-1")
    with pytest.raises(ItemNotFound, match="it is in the batch 'other'"):
        await control.cancel(["mine"], "shop")
    assert (await control.show("mine")).batch == "other"
    assert [batch.name for batch in (await control.status()).batches] == ["shop", "other"]
    assert await control.batches() == ["shop", "other"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda control: control.retry(), "give exactly one of ids, failed=True"),
        (lambda control: control.retry(["a"], failed=True), "give exactly one of ids"),
        (lambda control: control.retry([]), "no ids were given"),
        (lambda control: control.retry("wrong-1"), "ids='wrong-1': give a list"),
        (lambda control: control.retry(b"wrong-1"), "give a list"),
        (lambda control: control.cancel("open-1"), "ids='open-1': give a list"),
        (lambda control: control.recover("gone"), "worker_ids='gone': give a list"),
        (lambda control: control.cancel(), "give either ids or pending=True"),
        (lambda control: control.items(limit=0), "limit=0"),
        (lambda control: control.items(batch=5), "batch=5 is not valid UTF-8"),
        (lambda control: control.status(stuck_after=float("nan")), "stuck_after=nan: give seconds"),
        (lambda control: control.status(stuck_after=-1), "stuck_after=-1: give seconds"),
        (lambda control: control.backup(None), "target=None: give the path"),
        pytest.param(
            lambda control: control.backup("a\0b"), "cannot be written \\(.*embedded null", marks=pytest.mark.sqlite_file
        ),
        (lambda control: control.show("a\udcff"), "is not valid UTF-8 text"),
        (lambda control: control.retry(["a\0"]), "is not valid UTF-8 text"),
        (lambda control: control.items(after="\udcff"), "is not valid UTF-8 text"),
        (lambda control: control.items(error="\udcff"), "is not valid UTF-8 text"),
        (lambda control: control.items(older_than=-1.0), "older_than=-1.0"),
        (lambda control: control.items(error="x" * 2000), "at most 1,000 characters"),
        (lambda control: control.items(error="***"), r"^error='\*\*\*' would match everything"),
        (lambda control: control.set_concurrency(0), "concurrency=0"),
        (lambda control: control.set_concurrency(10**6), "at most 100,000"),
        (lambda control: control.check(max_failed=-1), "max_failed=-1"),
        (lambda control: control.purge(timedelta(0), status=[]), "no status given"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_argument_that_cannot_work_changes_nothing(db: str, control: Control, call: Any, said: str) -> None:
    before = snapshot(db)
    with pytest.raises(ConfigurationError, match=said):
        await call(control)
    assert snapshot(db) == before


async def test_a_purge_before_the_first_possible_time_finds_no_items(control: Control) -> None:
    for before in (timedelta(days=9_999_999), datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))):
        assert (await control.purge(before, dry_run=True)).items == {}


async def test_a_store_that_is_not_there_is_not_made(db: str, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound):
        await Control(db).open()
    with pytest.raises(ConfigurationError):
        Control("")
    with pytest.raises(StoreClosed, match="use `async with control:`"):
        await Control(db).pause()
    assert not exists(db)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sqlite_file
async def test_a_file_that_may_only_be_read_is_shown_and_not_changed(db: str, control: Control) -> None:
    await control.close()
    Path(db).chmod(0o400)
    async with Control(db) as reading:
        assert len((await reading.items()).items) == 13
        if os.geteuid() != 0:
            with pytest.raises(StoreError, match="cannot be written"):
                await reading.pause()


@pytest.mark.sqlite_file
async def test_a_lock_that_another_program_holds_is_waited_for(db: str, control: Control) -> None:
    holder = sqlite3.connect(db, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    pausing = asyncio.create_task(control.pause())
    await asyncio.wait({pausing}, timeout=0.7)
    assert not pausing.done()
    holder.execute("COMMIT")
    holder.close()
    assert await pausing


@pytest.mark.sqlite_file
@pytest.mark.parametrize("content", [None, "not a database " * 100])
async def test_a_backup_that_cannot_read_the_file_leaves_no_draft(content: str | None, tmp_path: Path) -> None:
    source = tmp_path / "source.db"
    if content is not None:
        source.write_text(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError):
        backup.back_up(source, tmp_path / "copy.db", lambda: True, time.time())
    assert sorted(tmp_path.iterdir()) == before


# --- rerun -----------------------------------------------------------------------------------------------------------


async def test_rerun_makes_done_items_pending_with_their_payload_and_their_old_result(control: Control, db: str) -> None:
    before = {key: rest for key, *rest in rows_of(db, "SELECT id, status, payload, result FROM items")}
    assert (await control.rerun(status="completed", dry_run=True)).changed == 4
    assert {key: rest for key, *rest in rows_of(db, "SELECT id, status, payload, result FROM items")} == before
    done = await control.rerun(status=["completed"])
    assert (done.batch, done.changed, done.unchanged) == (BATCH, 4, 0)
    for key, status, payload, result in rows_of(db, "SELECT id, status, payload, result FROM items"):
        assert [payload, result] == before[key][1:]
        assert status == ("pending" if before[key][0] == "completed" else before[key][0])
    assert rows_of(db, "SELECT count(*) FROM items WHERE status = 'pending' AND result IS NOT NULL") == [(4,)]
    assert (await control.status()).batches[0].counts.completed == 0


async def test_rerun_gives_all_attempts_and_no_checkpoint_and_retry_keeps_the_checkpoint(control: Control, db: str) -> None:
    execute(db, "UPDATE items SET checkpoint = '1', attempts = 3, crashes = 2, suspect = 1 WHERE status = 'failed'")
    (first, second) = [key for (key,) in rows_of(db, "SELECT id FROM items WHERE status = 'failed' LIMIT 2")]
    await control.rerun([first])
    await control.retry([second])
    found = {
        key: rest for key, *rest in rows_of(db, "SELECT id, status, attempts, crashes, suspect, error, checkpoint FROM items")
    }
    assert found[first] == ["pending", 0, 0, 0, None, None]
    assert (found[second][0], found[second][-1]) == ("pending", "1")


async def test_a_running_item_runs_once_more_after_its_attempt(db: str) -> None:
    started, go, ran = asyncio.Event(), asyncio.Event(), 0

    async def handler(_: int) -> int:
        nonlocal ran
        ran += 1
        started.set()
        await go.wait()
        return ran

    running = asyncio.create_task(run_batch([1], handler, db=db, batch="b"))
    await started.wait()
    async with Control(db) as control:
        assert (await control.rerun(everything=True)).changed == 1
        assert (await control.rerun(["1"])).unchanged == 1, "it is requested already"
    go.set()
    report = await running
    assert [outcome.result async for outcome in report.outcomes()] == [2]


async def test_many_items_run_again_in_short_transactions(db: str) -> None:
    async def handler(number: int) -> int:
        return number

    await run_batch(range(5000), handler, db=db, batch="b")
    seen: list[int] = []
    async with Control(db, progress=seen.append) as control:
        assert (await control.rerun(everything=True)).changed == 5000
    assert len(seen) >= 3
    assert max(after - before for before, after in zip([0, *seen], seen, strict=False)) <= 2000
    assert (await run_batch(range(5000), handler, db=db, batch="b")).completed == 5000


@pytest.mark.parametrize(
    "selection", [{}, {"ids": ["a"], "everything": True}, {"status": []}, {"status": "pending"}, {"ids": []}, {"error": "*"}]
)
async def test_a_refused_rerun_changes_nothing(control: Control, db: str, selection: dict[str, Any]) -> None:
    before = snapshot(db)
    with pytest.raises(ConfigurationError):
        await control.rerun(**selection)
    unknown: list[dict[str, Any]] = [{"ids": ["fine-1", "nowhere"]}, {"error": "no such error"}]
    for missing in unknown:
        with pytest.raises(ItemNotFound):
            await control.rerun(**missing)
    assert snapshot(db) == before
