"""The liveness lock proves that a process lives; the write lock is fair."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
from filelock import lock_descriptor

from asyncrunner.domain.item import NewItem
from asyncrunner.errors import StoreError, StoreUnavailable
from asyncrunner.sqlite.locks import liveness_lock, lock_file, write_lock
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import Vitals, WorkerInfo
from asyncrunner.testing import FakeClock
from tests.contract.stores import LOST

HOLDER = """
import sys
import threading
from pathlib import Path
from asyncrunner.sqlite.locks.liveness_lock import LivenessLock
lock = LivenessLock(Path(sys.argv[1]), "w")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_held_lock_proves_that_a_stopped_process_lives_and_a_free_lock_that_it_is_dead(db: Path) -> None:
    assert liveness_lock.is_held(db, "w") is None
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(db)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert liveness_lock.is_held(db, "w") is True
    os.kill(process.pid, signal.SIGSTOP)
    assert liveness_lock.is_held(db, "w") is True
    process.kill()
    process.communicate()
    assert liveness_lock.is_held(db, "w") is False
    liveness_lock.forget(db, "w")
    assert liveness_lock.is_held(db, "w") is None


def test_the_write_lock_is_refused_while_another_process_holds_it_and_free_afterwards(db: Path) -> None:
    one, two = write_lock.FairWriteLock(db), write_lock.FairWriteLock(db)
    with one.pass_through(), pytest.raises(StoreUnavailable, match="the write lock was not free within"), two.pass_through():
        pass
    with two.pass_through():
        pass
    one.close()
    two.close()


def test_a_lock_folder_of_another_user_is_named(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreError, match="must belong to the user who runs asyncrunner"):
        write_lock.FairWriteLock(db)
    lock_file.locks_folder(db).rmdir()
    lock_file.locks_folder(db).touch()
    with pytest.raises(StoreError, match="cannot be used"):
        liveness_lock.LivenessLock(db, "w")


@pytest.mark.parametrize("was", ["never there", "deleted"])
def test_a_test_of_the_lock_at_the_moment_it_is_taken_neither_proves_a_death_nor_prevents_the_lock(
    was: str, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = liveness_lock.LivenessLock(db, "w") if was == "deleted" else None
    tests: list[lock_file.LockFile | bool] = []

    def lock_during_a_test(descriptor: int, *, blocking: bool) -> bool:
        try:
            test = lock_file.LockFile(lock_file.locks_folder(db) / "w", create=False)
        except FileNotFoundError:
            tests.append(False)
        else:
            tests.append(test)  # another process tests the lock, and holds it during the test
            lock_descriptor(test.descriptor, blocking=False)
        return lock_descriptor(descriptor, blocking=blocking)

    with monkeypatch.context() as patch:
        patch.setattr(filelock, "lock_descriptor", lock_during_a_test)
        if lock is None:
            lock = liveness_lock.LivenessLock(db, "w")
        else:
            shutil.rmtree(lock_file.locks_folder(db))
            assert lock.restore()
    for test in tests:
        if isinstance(test, lock_file.LockFile):
            test.close()
    assert tests == [False], "the file is at its path only with its lock"
    assert liveness_lock.is_held(db, "w") is True
    lock.release()


def copy_locks(db: Path) -> None:
    """Restore the folder of lock files from a copy, as `rsync` does: each file is replaced by a new one."""
    for path in list(lock_file.locks_folder(db).iterdir()):
        copy = path.with_name(f".{path.name}.copy")
        shutil.copy2(path, copy)
        copy.replace(path)


async def test_row_55_a_copied_lock_file_proves_no_death_and_robs_no_living_worker(db: Path) -> None:
    clock = FakeClock()
    store, other = SQLiteStore(db, clock=clock), SQLiteStore(db, clock=clock)
    await store.open()
    await other.open()
    await store.join(WorkerInfo("w", "here", 1))
    await other.join(WorkerInfo("other", "here", 2))
    copy_locks(db)
    assert [peer.alive for peer in await other.peers("other")] == [None], "its own file may still be locked"
    await store.beat("w", Vitals())
    await other.beat("other", Vitals())
    assert [peer.alive for peer in await other.peers("other")] == [True]
    copy_locks(db)
    await store.close()
    assert [peer.alive for peer in await other.peers("other")] == [None]
    await other.close()


async def test_a_copy_of_an_earlier_lock_file_does_not_get_the_inode_of_that_file(db: Path, tmp_path: Path) -> None:
    """ext4 gives a freed inode to the next new file."""
    lock = liveness_lock.LivenessLock(db, "w")
    path = lock_file.locks_folder(db) / "w"
    earlier = tmp_path / "earlier"
    shutil.copy2(path, earlier)
    for _ in range(20):
        copy = path.with_name("copy")
        shutil.copy2(earlier, copy)
        copy.replace(path)
        assert liveness_lock.is_held(db, "w") is None
        assert lock.restore()
        assert liveness_lock.is_held(db, "w") is True
    lock.drop()
    assert liveness_lock.is_held(db, "w") is False


async def test_a_dead_worker_is_proven_by_its_own_file_alone(db: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(db)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert liveness_lock.is_held(db, "w") is False
    copy_locks(db)
    assert liveness_lock.is_held(db, "w") is None


async def test_a_worker_whose_descriptors_were_all_closed_takes_its_lock_again(db: Path, tmp_path: Path) -> None:
    """A library that makes a daemon closes every descriptor, and the number may belong to another file afterwards."""
    lock = liveness_lock.LivenessLock(db, "w")
    assert lock._file is not None
    number = lock._file.descriptor
    os.close(number)
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    assert other == number
    assert lock.restore()
    assert liveness_lock.is_held(db, "w") is True
    os.write(other, b"still open")
    os.close(other)
    lock.release()


async def test_a_lock_that_cannot_be_opened_again_now_is_taken_at_a_later_heartbeat(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = liveness_lock.LivenessLock(db, "w")
    (lock_file.locks_folder(db) / "w").unlink()

    def too_many(*_: object, **__: object) -> lock_file.LockFile:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(liveness_lock, "LockFile", too_many)
        assert not lock.restore()
    assert lock.restore()
    assert liveness_lock.is_held(db, "w") is True
    lock.release()


@pytest.mark.parametrize("how", ["a link", "another user's"])
def test_a_folder_of_locks_that_another_user_may_have_made_is_refused(how: str, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    folder = lock_file.locks_folder(shared / "jobs.db")
    if how == "a link":
        (tmp_path / "theirs").mkdir()
        folder.symlink_to(tmp_path / "theirs")
    else:
        folder.mkdir(mode=0o777)
        try:
            os.chown(folder, 12345, 12345)
        except PermissionError:
            pytest.skip("only root can give a folder away")
    with pytest.raises(StoreError, match="is a symbolic link or belongs to another user"):
        lock_file.create_folder(shared / "jobs.db")
    if how == "a link":
        shared.chmod(0o700)
        assert lock_file.create_folder(shared / "jobs.db") == folder


async def test_a_lock_that_could_not_be_taken_is_taken_at_the_next_heartbeat(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLiteStore(db)
    await store.open()
    worker = WorkerInfo("w", "here", 1)
    refused = 0

    def refuse(descriptor: int, *, blocking: bool) -> bool:
        nonlocal refused
        refused += 1
        return False

    for moment in ("joining", "restoring"):
        with monkeypatch.context() as patch:
            patch.setattr(filelock, "lock_descriptor", refuse)
            if moment == "joining":
                await store.join(worker)
            else:
                (lock_file.locks_folder(db) / "w").unlink()
                await store.beat("w", Vitals())
        assert liveness_lock.is_held(db, "w") is None, "no lock file proves nothing; a free one would prove a death"
        await store.beat("w", Vitals())
        assert liveness_lock.is_held(db, "w") is True
    assert refused == 2
    await store.leave("w")
    assert sorted(each.name for each in lock_file.locks_folder(db).iterdir()) == ["next", "turn"]
    await store.close()


async def test_a_write_lock_that_could_not_be_restored_is_restored_by_the_next_write(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(db)
    await store.open()
    await store.join(WorkerInfo("w", "here", 1))
    (lock_file.locks_folder(db) / "turn").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(write_lock.FairWriteLock, "_open", lambda _: (_ for _ in ()).throw(StoreError("refused")))
        with pytest.raises(StoreError, match="refused"):
            await store.beat("w", Vitals())
    assert await store.find_batch("b") is None
    await store.stop_batch(1, "any write")
    assert (lock_file.locks_folder(db) / "turn").exists()
    await store.leave("w")
    await store.close()


async def test_the_lock_of_a_worker_that_died_after_one_more_heartbeat_stays_the_proof_of_its_death(tmp_path: Path) -> None:
    db = tmp_path / "jobs.db"
    dead, other = SQLiteStore(db), SQLiteStore(db)
    for name, store in (("dead", dead), ("other", other)):
        await store.open()
        await store.join(WorkerInfo(name, "here", 1))
    batch = await dead.open_batch("b", "m:h", BatchOptions())
    await dead.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    await dead.turn("dead", [], [Want(batch.batch_id, 1, 3)])
    (before,) = await other.peers("other")
    await dead.beat("dead", Vitals())
    dead._locks.pop("dead").drop()  # as the kernel does when the process dies
    assert await other.recover("dead", LOST, pulse=before.pulse) == 0, "it was alive after that heartbeat"
    (peer,) = await other.peers("other")
    assert peer.alive is False
    assert await other.recover("dead", LOST, pulse=peer.pulse) == 1
    assert liveness_lock.is_held(db, "dead") is None, "the file is deleted with the recovery"
    await other.close()
    await dead.close()
