"""The bells: what other processes commit rings at a waiting worker, and what does not ring is found by reading the file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from asyncrunner import Control, Runner
from asyncrunner.domain.item import Claim, NewItem
from asyncrunner.domain.outcome import Completed, Failed, Released, Settlement
from asyncrunner.sqlite import change_watch
from asyncrunner.sqlite.locks.bell import NEW_ITEMS, SOON, Bell, Ringer, announce, open_bell
from asyncrunner.sqlite.locks.lock_file import locks_folder
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import ClaimRequest, Want
from asyncrunner.store.workers import Vitals, WorkerInfo
from tests.conftest import Until
from tests.contract.stores import BOOM, LOST

pytestmark = [
    pytest.mark.sqlite_file,
    pytest.mark.skipif(sys.platform != "linux", reason="bells are sockets in Linux's abstract namespace"),
]


class Two(NamedTuple):
    """Two processes on one file: ``busy`` changes it, and the worker of ``idle`` waits. A read of the file takes an hour."""

    db: Path
    busy: SQLiteStore
    idle: SQLiteStore
    batch_id: int


@pytest.fixture
async def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    monkeypatch.setattr(change_watch, "_SLOW_POLL_SECONDS", 3600.0)
    monkeypatch.setattr(change_watch, "_POLL_SECONDS", 3600.0)
    db = tmp_path / "jobs.db"
    busy, idle = SQLiteStore(db), SQLiteStore(db)
    for name, store in (("busy", busy), ("idle", idle)):
        await store.open()
        await store.join(WorkerInfo(name, "here", os.getpid()))
    batch = await busy.open_batch("b", "m:h", BatchOptions())
    for store in (busy, idle):
        bell_of(store).take()
    yield Two(db, busy, idle, batch.batch_id)
    for store in (busy, idle):
        await store.close()


def bell_of(store: SQLiteStore) -> Bell:
    bell = store._watch._bell
    assert bell is not None
    return bell


async def a_claim(two: Two) -> Claim:
    """Add an item that the busy worker claims with the add, which rings at no worker."""
    request = ClaimRequest("busy", Want(two.batch_id, 1, 3))
    added = await two.busy.add(two.batch_id, [NewItem("a", "1")], on_change="error", request=request)
    (held,) = added.claims
    assert not bell_of(two.idle).take()
    return held


async def new_items(two: Two) -> None:
    await two.busy.add(two.batch_id, [NewItem("a", "1")], on_change="error")


async def a_release(two: Two) -> None:
    held = await a_claim(two)
    await two.busy.turn("busy", [Settlement(held, Released(), 0.0, 0.0)], [])


async def the_end_of_the_batch(two: Two) -> None:
    held = await a_claim(two)
    await two.busy.turn("busy", [Settlement(held, Completed("1"), 0.0, 0.0)], [Want(two.batch_id, 1, 3)])


async def the_leave_of_a_worker_with_items(two: Two) -> None:
    await a_claim(two)
    await two.busy.leave("busy")


async def a_recovery(two: Two) -> None:
    await a_claim(two)
    assert await two.busy.recover("busy", LOST) == 1


async def a_retry_by_an_operator(two: Two) -> None:
    held = await a_claim(two)
    await two.busy.turn("busy", [Settlement(held, Failed(BOOM, permanent=True), 0.0, 0.0)], [])
    async with Control(two.db) as control:
        await control.retry(batch="b", failed=True)


async def a_resumption_by_an_operator(two: Two) -> None:
    async with Control(two.db) as control:
        await control.pause("b")
        bell_of(two.idle).take()
        await control.resume("b")


@pytest.mark.parametrize(
    "change",
    [
        new_items,
        a_release,
        the_end_of_the_batch,
        the_leave_of_a_worker_with_items,
        a_recovery,
        a_retry_by_an_operator,
        a_resumption_by_an_operator,
    ],
)
async def test_a_change_rings_at_the_worker_of_another_process(two: Two, change: Callable[[Two], Awaitable[None]]) -> None:
    mark = await two.idle.wait_for_items([two.batch_id], None)
    bell_of(two.idle).take()
    waiting = asyncio.ensure_future(two.idle.wait_for_items([two.batch_id], mark))
    await change(two)
    await asyncio.wait_for(waiting, 20)


async def test_items_that_their_own_process_has_claimed_ring_at_no_worker(two: Two) -> None:
    held = await a_claim(two)
    await two.busy.turn("busy", [Settlement(held, Completed("1"), 0.0, 0.0)], [])
    await two.busy.beat("busy", Vitals())
    assert not bell_of(two.idle).take()


async def test_a_turn_without_outcomes_rings_at_no_worker_so_that_idle_workers_do_not_wake_one_another(two: Two) -> None:
    for store, name in ((two.busy, "busy"), (two.idle, "idle")):
        assert not (await store.turn(name, [], [Want(two.batch_id, 1, 3)])).batches[two.batch_id].unfinished
    assert not bell_of(two.idle).take()
    assert not bell_of(two.busy).take()


async def test_a_program_that_does_not_ring_is_found_by_reading(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = await two.idle.wait_for_items([two.batch_id], None)
    monkeypatch.setattr(change_watch, "_SLOW_POLL_SECONDS", 0.01)
    waiting = asyncio.ensure_future(two.idle.wait_for_items([two.batch_id], mark))
    with sqlite3.connect(two.db) as shell:
        shell.execute("INSERT INTO items (batch_id, id, payload) VALUES (?, 'by hand', '1')", (two.batch_id,))
    shell.close()
    await asyncio.wait_for(waiting, 20)
    assert two.idle._watch._poll_quickly_until > 0, "the next items of such a program are found sooner"


async def test_the_reads_of_the_duties_find_such_a_program_before_the_next_slow_read(two: Two) -> None:
    mark = await two.idle.wait_for_items([two.batch_id], None)
    waiting = asyncio.ensure_future(two.idle.wait_for_items([two.batch_id], mark))
    await asyncio.sleep(0)
    await two.idle.peers("idle")
    await asyncio.sleep(0)
    assert not waiting.done()
    with sqlite3.connect(two.db) as shell:
        shell.execute("INSERT INTO items (batch_id, id, payload) VALUES (?, 'by hand', '1')", (two.batch_id,))
    shell.close()
    await two.idle.peers("idle")
    await asyncio.wait_for(waiting, 20)


async def test_the_duties_read_an_unchanged_file_once(two: Two) -> None:
    (before,) = await two.idle.peers("idle")
    statements: list[str] = []
    watcher = two.idle._watch._watcher
    assert watcher is not None
    watcher.set_trace_callback(statements.append)
    assert await two.idle.peers("idle") == [before]
    assert statements == ["PRAGMA data_version"]
    await two.busy.beat("busy", Vitals())
    (after,) = await two.idle.peers("idle")
    assert after.pulse != before.pulse
    assert len(await two.idle.peers("another")) == 2


async def test_heartbeats_and_other_changes_that_bring_no_items_wake_no_worker(
    two: Two, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    mark = await two.idle.wait_for_items([two.batch_id], None)
    monkeypatch.setattr(change_watch, "_SLOW_POLL_SECONDS", 0.001)
    read: list[object] = []
    read_states = two.idle._watch._read_states

    def counted(batch_ids: Sequence[int]) -> object:
        read.append(batch_ids)
        return read_states(batch_ids)

    monkeypatch.setattr(two.idle._watch, "_read_states", counted)
    waiting = asyncio.ensure_future(two.idle.wait_for_items([two.batch_id], mark))
    for number in range(1, 4):
        await two.busy.beat("busy", Vitals())
        await until(lambda number=number: len(read) >= number)  # type: ignore[misc]
    assert not waiting.done()
    waiting.cancel()


async def test_a_transaction_of_a_program_lets_the_workers_read_often(two: Two) -> None:
    mark = await two.idle.wait_for_items([two.batch_id], None)
    waiting = asyncio.ensure_future(two.idle.wait_for_items([two.batch_id], mark))
    announce(two.db)
    await asyncio.sleep(0)
    assert bell_of(two.idle).take() in (SOON, b"")
    waiting.cancel()
    connection = sqlite3.connect(two.db, isolation_level=None)
    runner = Runner(two.db)

    @runner.handler(batch="b")
    async def handler(item: int) -> None: ...

    connection.execute("BEGIN IMMEDIATE")
    handler.submit_in(connection, 1)
    assert bell_of(two.idle).take() == SOON
    connection.execute("COMMIT")
    connection.close()


async def test_the_file_of_a_bell_is_private_is_restored_and_ends_with_its_worker(two: Two) -> None:
    path = locks_folder(two.db) / "idle.bell"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    await two.idle.beat("idle", Vitals())
    assert path.read_text() == bell_of(two.idle).name
    await two.busy.recover("idle", LOST)
    await two.idle.leave("idle")
    assert not path.exists()
    assert (locks_folder(two.db) / "busy.bell").exists()
    await two.busy.close()
    assert not list(locks_folder(two.db).glob("*.bell*"))


async def test_a_dead_worker_leaves_no_file_of_a_bell(two: Two) -> None:
    dead = open_bell(two.db, "dead")
    assert dead is not None
    dead.abandon()
    Ringer(two.db).ring(NEW_ITEMS)  # raises nothing
    await two.busy.join(WorkerInfo("dead", "here", 1))
    two.busy._locks.pop("dead").drop()
    await two.busy.recover("dead", LOST)
    assert not (locks_folder(two.db) / "dead.bell").exists()


def test_a_file_of_a_bell_that_another_program_wrote_is_ignored(tmp_path: Path) -> None:
    db = tmp_path / "jobs.db"
    folder = locks_folder(db)
    folder.mkdir()
    for number, text in enumerate(["", "no name", "../../etc", "0" * 31, "g" * 32, "0" * 32]):
        (folder / f"{number}.bell").write_text(text)
    (folder / "link.bell").symlink_to("/dev/zero")
    ringer = Ringer(db)
    ringer.ring(NEW_ITEMS)
    assert ringer._read_names() == {"0" * 32}


async def test_without_bells_the_file_is_read_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    store = SQLiteStore(tmp_path / "jobs.db")
    await store.open()
    await store.join(WorkerInfo("w", "here", os.getpid()))
    assert store._watch._bell is None
    batch = await store.open_batch("b", "m:h", BatchOptions())
    mark = await store.wait_for_items([batch.batch_id], None)
    waiting = asyncio.ensure_future(store.wait_for_items([batch.batch_id], mark))
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    await asyncio.wait_for(waiting, 20)
    await store.close()
