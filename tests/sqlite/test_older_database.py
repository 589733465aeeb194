"""A log that is newer than its database is refused if pages are missing, and what a kill leaves is never refused."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from asyncrunner.errors import StoreError
from asyncrunner.sqlite.file import opening, wal_owner
from asyncrunner.sqlite.file.wal import wal_of
from tests.sqlite.test_restore import crash, make
from tests.support.files import opened
from tests.support.state import rows_of

WRITES = """
import random, sqlite3, sys
path, seed = sys.argv[1], int(sys.argv[2])
choices = random.Random(seed)
connection = sqlite3.connect(path, isolation_level=None, timeout=60)
connection.executescript("PRAGMA cache_size = 5; PRAGMA synchronous = OFF")  # a small cache writes frames before the commit
connection.execute(f"PRAGMA wal_autocheckpoint = {choices.choice([0, 5, 20, 200])}")
statements = [
    "INSERT INTO notes (text) SELECT randomblob(3000) FROM items LIMIT 20",
    "INSERT INTO notes (text) VALUES (randomblob(50000))",
    "DELETE FROM notes WHERE rowid % 3 = 0",
    "UPDATE notes SET text = randomblob(3000) WHERE rowid % 5 = 0",
    "VACUUM",
    "PRAGMA wal_checkpoint(PASSIVE)",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "BEGIN IMMEDIATE; INSERT INTO notes (text) SELECT randomblob(9000) FROM items LIMIT 20; ROLLBACK",
]
print("open", flush=True)
while True:
    try:
        connection.executescript(choices.choices(statements, [8, 8, 2, 8, 1, 2, 1, 4])[0])
    except sqlite3.OperationalError:  # another writer
        continue
    print("wrote", flush=True)
"""


@pytest.fixture
async def older(db: Path, tmp_path: Path) -> Path:
    """Return a copy of the database with 100 items; since then, the database has received 2,100 more, and was killed."""
    await make(db, *(f"old-{number}" for number in range(100)))
    copy = tmp_path / "older.db"
    shutil.copy2(db, copy)
    crash(db, count=100)
    connection = sqlite3.connect(db)
    connection.close()  # runs the WAL checkpoint, so that later pages are in no log
    crash(db, "later-", count=1000)
    connection = sqlite3.connect(db)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    crash(db, "last-", count=1000)
    return copy


@pytest.mark.parametrize("way", ["mv", "cp -p", "copied later, then touched"])
async def test_an_older_copy_beside_the_log_of_its_successor_is_refused(way: str, db: Path, older: Path) -> None:
    if way == "mv":
        older.rename(db)
    else:
        shutil.copy2(older, db)
        if way != "cp -p":
            wal_of(db).touch()
    before = db.read_bytes(), wal_of(db).read_bytes()
    with pytest.raises(StoreError, match=r"belongs to another state .* pages are missing"):
        await opened(db)
    with pytest.raises(StoreError, match="belongs to another state"):
        opening.connect_reader(db)
    assert (db.read_bytes(), wal_of(db).read_bytes()) == before
    wal_of(db).unlink()
    assert rows_of(db, "SELECT count(*) FROM items") == [(100,)]


async def test_a_file_that_is_shorter_than_its_page_count_is_opened_if_the_log_has_the_other_pages(db: Path) -> None:
    await make(db, "a")
    crash(db, count=4000)
    assert wal_of(db).stat().st_size > 3 * db.stat().st_size
    await (await opened(db)).close()
    assert rows_of(db, "SELECT count(*) FROM items") == [(4001,)]


async def test_a_frame_that_a_later_transaction_cut_off_does_not_count(db: Path, tmp_path: Path) -> None:
    """Its process was killed after it wrote the frame and before other processes could see the commit."""
    await make(db, *map(str, range(20)))
    killed_after(db, "CREATE TABLE notes (text); INSERT INTO notes SELECT randomblob(3000) FROM items")
    logs: list[bytes] = []
    for name, statement in (("grows", "INSERT INTO notes VALUES (randomblob(400000))"), ("stays", "UPDATE notes SET text = 1")):
        copy = tmp_path / name
        shutil.copyfile(db, copy)
        shutil.copyfile(wal_of(db), wal_of(copy))
        killed_after(copy, statement)
        logs.append(wal_of(copy).read_bytes())
    cut_off, last = logs
    assert len(cut_off) > len(last)
    assert cut_off[:32] == last[:32], "both continue the same log"
    wal_of(db).write_bytes(last + cut_off[len(last) :])
    with wal_of(db).open("rb") as frames, db.open("rb") as pages:
        assert wal_owner._lacks_pages_of(wal_owner._headers(frames, 4096, last[16:24]), pages, 4096), "headers do not suffice"
    await (await opened(db)).close()
    assert rows_of(db, "SELECT count(*), max(length(text)) FROM notes") == [(20, 1)]
    assert rows_of(db, "PRAGMA integrity_check") == [("ok",)]


def killed_after(path: Path, script: str) -> None:
    """Run the statements in a process that dies, so that their pages are only in the log."""
    program = "import os, sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2]); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", program, str(path), script], check=False).returncode == 9


@pytest.mark.parametrize("seed", range(4))
async def test_files_of_killed_processes_are_never_refused(seed: int, db: Path) -> None:
    choices = random.Random(seed)
    await make(db, *map(str, range(20)))
    connection = sqlite3.connect(db)
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    for round_ in range(3):
        programs = [
            subprocess.Popen([sys.executable, "-c", WRITES, str(db), str(seed * 100 + round_ * 10 + n)], stdout=subprocess.PIPE)
            for n in range(2)
        ]
        for program in programs:
            assert program.stdout is not None
            for _ in range(choices.randrange(2, 25)):
                assert program.stdout.readline()
            program.kill()
        for program in programs:
            program.communicate()
        assert wal_owner.wal_belongs(db)
        with wal_of(db).open("rb") as frames, db.open("rb") as pages:
            assert frames.read(1) == b"" or not wal_owner._lacks_pages(pages, frames)
