"""The liveness lock proves that a process lives; the write lock is fair."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asyncrunner.errors import StoreError, StoreUnavailable
from asyncrunner.sqlite.file import liveness_lock, lock_file, write_lock

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
