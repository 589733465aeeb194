"""The slot journal has the items that ran when a worker was killed; the worker's other items are released."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from asyncrunner.domain.item import NewItem, Suspicion
from asyncrunner.sqlite.locks import slot_journal
from asyncrunner.sqlite.locks.slot_journal import SlotJournal
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.testing import FakeClock
from tests.contract.stores import LOST
from tests.support.processes import Jobs
from tests.support.state import rows_of

pytestmark = pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="the system has no boot id")


@pytest.fixture(autouse=True)
def folder_of_locks(tmp_path: Path) -> None:
    """Create the folder of lock files, as a worker's lock does before the journal is created."""
    (tmp_path / "jobs.db-locks").mkdir(mode=0o700)


def test_notes_are_read_by_another_process_and_survive_growth(tmp_path: Path) -> None:
    journal = SlotJournal(tmp_path / "jobs.db", "w")
    notes = journal.notes(2)
    notes[0], notes[1] = 7, 2**40
    more = journal.notes(5000)
    assert len(more) >= 5000
    more[4999] = 9
    assert slot_journal.running(tmp_path / "jobs.db", "w") == frozenset({7, 2**40, 9})
    (path,) = (tmp_path / "jobs.db-locks").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    journal.delete()
    assert slot_journal.running(tmp_path / "jobs.db", "w") is None


@pytest.mark.parametrize("content", [b"", b"slots-1\n", b"x" * 4096])
def test_a_file_that_is_no_journal_of_this_boot_proves_nothing(tmp_path: Path, content: bytes) -> None:
    SlotJournal(tmp_path / "jobs.db", "w").notes(1)
    (path,) = (tmp_path / "jobs.db-locks").iterdir()
    path.write_bytes(content)
    assert slot_journal.running(tmp_path / "jobs.db", "w") is None


def test_a_journal_of_an_earlier_boot_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SlotJournal(tmp_path / "jobs.db", "w").notes(1)[0] = 7
    monkeypatch.setattr(slot_journal, "_boot_id", lambda: b"another boot".ljust(36))
    assert slot_journal.running(tmp_path / "jobs.db", "w") is None


def test_without_room_on_the_disk_the_notes_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    journal = SlotJournal(tmp_path / "jobs.db", "w")
    journal.notes(1)[0] = 7
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert list(journal.notes(1000))[:3] == [7, 0, 0]
    assert slot_journal.running(tmp_path / "jobs.db", "w") is None, "the old notes would hide the items that run now"
    assert list(SlotJournal(tmp_path / "jobs.db", "w").notes(3)) == [0, 0, 0]
    assert slot_journal.running(tmp_path / "jobs.db", "w") is None


def test_while_too_many_files_are_open_the_old_notes_hide_no_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    journal = SlotJournal(tmp_path / "jobs.db", "w")
    journal.notes(1)[0] = 7
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        journal.notes(1000)[0] = 8
    assert slot_journal.running(tmp_path / "jobs.db", "w") is None, "7 has ended, and 8 runs"


def test_notes_in_memory_are_in_the_file_once_it_can_be_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = SlotJournal(tmp_path / "jobs.db", "w")
    with monkeypatch.context() as patched:
        patched.setattr(slot_journal, "_boot_id", lambda: None)
        journal.notes(2)[1] = 7
    journal.notes(4)[2] = 9
    assert slot_journal.running(tmp_path / "jobs.db", "w") == frozenset({7, 9})


async def test_only_items_that_had_started_count_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = SQLiteStore(path)
    await store.open()
    batch = await store.open_batch("b", "m:h", BatchOptions(max_attempts=3))
    await store.add(batch.batch_id, [NewItem(key, "1") for key in "abcd"], on_change="error")
    await store.join(WorkerInfo("w", "here", 1))
    turn = await store.turn("w", [], [Want(batch.batch_id, 10, 3)])
    notes = store.slot_notes("w", 10)
    notes[0] = turn.claims[1].seq
    notes[1] = 10**9  # the seq of an item that is settled
    assert await store.recover("w", LOST) == 4
    assert rows_of(str(path), "SELECT id, status, attempts, crashes FROM items") == [
        ("a", "pending", 0, 0), ("b", "pending", 1, 1), ("c", "pending", 0, 0), ("d", "pending", 0, 0),
    ]  # fmt: skip
    await store.close()


async def test_an_item_that_ran_beside_items_that_had_not_started_ran_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = SQLiteStore(path)
    await store.open()
    batch = await store.open_batch("b", "m:h", BatchOptions(max_attempts=1))
    await store.add(batch.batch_id, [NewItem(key, "1") for key in "ab"], on_change="error")
    await store.join(WorkerInfo("w", "here", 1))
    turn = await store.turn("w", [], [Want(batch.batch_id, 10, 1)])
    store.slot_notes("w", 10)[0] = turn.claims[0].seq
    assert await store.recover("w", LOST) == 2
    ((status, error),) = rows_of(str(path), "SELECT status, error FROM items WHERE id = 'a'")
    assert status == "failed"
    assert error.endswith("Attempt 1 of 1; other items of the worker: 0; crashes of this item: 1")
    assert rows_of(str(path), "SELECT status, crashes FROM items WHERE id = 'b'") == [("pending", 0)]
    await store.close()


@pytest.mark.parametrize("first", [0, 1])
async def test_a_suspect_that_had_not_started_does_not_count_beside_the_one_that_ran(tmp_path: Path, first: int) -> None:
    path = tmp_path / "jobs.db"
    clock = FakeClock(1_800_000_000.0)
    store = SQLiteStore(path, clock=clock)
    await store.open()
    batch = await store.open_batch("b", "m:h", BatchOptions(max_attempts=9))
    await store.add(batch.batch_id, [NewItem(key, "1") for key in "ab"], on_change="error")
    for worker in ("v", "w"):
        await store.join(WorkerInfo(worker, "here", 1))
        assert len((await store.turn(worker, [], [Want(batch.batch_id, 10, 9)])).claims) == 2
        await store.recover(worker, LOST)
        clock.jump(1000)
    await store.join(WorkerInfo("x", "here", 1))
    want = Want(batch.batch_id, 0, 9, suspicion=Suspicion.SUSPECT)
    claims = [(await store.turn("x", [], [want])).claims[0] for _ in range(2)]
    store.slot_notes("x", 10)[0] = claims[first].seq
    assert await store.recover("x", LOST) == 2
    suspicions = dict(rows_of(str(path), "SELECT id, suspect FROM items"))
    assert suspicions == {claims[first].id: Suspicion.ISOLATED, claims[1 - first].id: Suspicion.SUSPECT}
    await store.close()


def test_a_link_in_the_place_of_a_journal_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    journal = SlotJournal(tmp_path / "jobs.db", "w")
    journal.notes(1)
    (path,) = (tmp_path / "jobs.db-locks").iterdir()
    journal.drop()
    path.unlink()
    path.symlink_to(target)
    notes = journal.notes(1)
    notes[0] = 7
    assert target.read_bytes() == b"precious"


def test_after_a_kill_with_quick_handlers_few_items_count_a_crash(jobs: Jobs) -> None:
    process = jobs.start("run", "h.py:work", jobs.items(5000), "-c", "50", "--quiet", seconds=0.0)
    jobs.until(lambda: jobs.db.exists() and jobs.query("SELECT count(*) > 100 FROM items WHERE status = 'completed'") == [(1,)])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    held = jobs.query("SELECT count(*) FROM items WHERE status = 'processing'")[0][0]
    assert jobs.run("run", "h.py:work", "items.txt", "-c", "50", "--quiet", seconds=0.0)[0] == 0
    crashed = jobs.query("SELECT count(*) FROM items WHERE crashes > 0")[0][0]
    assert crashed <= min(held, 50)
    assert not list(jobs.folder.glob("*-locks/*.slots"))
    assert jobs.query("SELECT status, count(*) FROM items GROUP BY 1") == [("completed", 5000)]


def test_a_run_that_ends_leaves_no_journal(jobs: Jobs) -> None:
    assert jobs.run("run", "h.py:work", jobs.items(5), "--quiet")[0] == 0
    assert not list(jobs.folder.glob("*-locks/*.slots"))
