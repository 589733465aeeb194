"""A forked child process cannot use the store of its parent and does not hurt it."""

from __future__ import annotations

import os
from pathlib import Path

from asyncrunner.errors import StoreClosed
from asyncrunner.sqlite.locks import liveness_lock
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.workers import WorkerInfo
from tests.support.files import opened

NOW = 1_800_000_000.0


async def test_a_forked_child_cannot_use_the_parents_store_and_does_not_hurt_it(db: Path) -> None:
    store = await opened(db)
    await store.join(WorkerInfo("w", "here", 1))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            coroutine = store.counts(1)
            coroutine.send(None)
        except StoreClosed as error:
            code = 0 if "forked from" in str(error) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert liveness_lock.is_held(db, "w") is True
    await store.open_batch("b", "h", BatchOptions())
    await store.close()
    assert liveness_lock.is_held(db, "w") is False


async def test_a_forked_child_does_not_keep_the_lock_of_its_parent(db: Path) -> None:
    store = await opened(db)
    await store.join(WorkerInfo("w", "here", 1))
    (waits, goes_on), (heard, says) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(says, b"x")
        os.read(waits, 1)
        os._exit(0)
    try:
        os.read(heard, 1)  # the child runs, so it has closed its inherited lock
        await store.close()
        assert liveness_lock.is_held(db, "w") is False
    finally:
        os.write(goes_on, b"x")
        os.waitpid(child, 0)
        for descriptor in (waits, goes_on, heard, says):
            os.close(descriptor)
