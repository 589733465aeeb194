"""The liveness lock proves that a process lives; the write lock is fair."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import lock_descriptor

from asyncrunner.errors import StoreError, StoreUnavailable
from asyncrunner.sqlite import SQLiteStore
from asyncrunner.sqlite.file import liveness_lock, lock_file, write_lock
from asyncrunner.store.workers import Vitals, WorkerInfo

HOLDER = """
import sys
import threading
from pathlib import Path
from asyncrunner.sqlite.file.liveness_lock import LivenessLock
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
        patch.setattr(liveness_lock, "lock_descriptor", lock_during_a_test)
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
            patch.setattr(liveness_lock, "lock_descriptor", refuse)
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
