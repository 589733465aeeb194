"""A database file is created completely or not at all, private to its owner, and once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from asyncrunner.errors import StoreError, StoreNotFound
from asyncrunner.sqlite.file import creation, opening
from asyncrunner.sqlite.locks import lock_file
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.workers import WorkerInfo
from tests.support.files import opened

NOW = 1_800_000_000.0


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def test_everything_is_readable_by_its_owner_only(db: Path) -> None:
    old = os.umask(0)
    try:
        store = await opened(db)
        await store.join(WorkerInfo("w", "here", 1))
        files = [db, db.with_name("jobs.db-wal"), db.with_name("jobs.db-shm"), *lock_file.locks_folder(db).iterdir()]
        assert {path.name: mode(path) for path in files} == dict.fromkeys([path.name for path in files], 0o600)
        assert mode(lock_file.locks_folder(db)) == 0o700
        await store.close()
    finally:
        os.umask(old)
    assert [path.name for path in db.parent.iterdir() if path.name.startswith(".")] == []


async def test_a_missing_folder_is_named_and_not_created(db: Path) -> None:
    with pytest.raises(StoreNotFound, match="there is no folder"):
        await SQLiteStore(db.parent / "no" / "jobs.db").open()
    with pytest.raises(StoreNotFound, match="there is no database at"):
        opening.connect_reader(db)
    assert list(db.parent.iterdir()) == []


def test_six_processes_may_create_the_file_at_the_same_time(db: Path) -> None:
    code = f"""
import asyncio
from asyncrunner import run_batch
async def work(n: int) -> int: return n
print(asyncio.run(run_batch(range(50), work, db={str(db)!r}, batch='b')).total)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    said = [process.communicate(timeout=60) for process in processes]
    assert [out.strip() for out, _ in said] == ["50"] * 6, said
    found = sqlite3.connect(db)
    assert found.execute("SELECT status, count(*), max(attempts) FROM items GROUP BY 1").fetchall() == [("completed", 50, 1)]
    found.close()


def test_a_folder_where_no_file_can_be_created_is_an_immediate_error(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, said in (
        (PermissionError(13, "denied"), "check the permissions of"),
        (OSError(28, "full"), "check the disk, or give"),
    ):

        def refuse(*_: object, refusal: OSError = error) -> int:
            raise refusal

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", refuse)
            with pytest.raises(StoreError, match=said):
                creation.create_if_missing(db)
    assert list(db.parent.iterdir()) == []
