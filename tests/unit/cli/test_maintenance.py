"""`check`, `purge`, `backup` and `restore`."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.support.files import BATCH
from tests.support.state import changing, rows_of
from tests.unit.cli.conftest import Call


def test_check_is_for_monitoring(shop: str, call: Call) -> None:
    said = call("check", "--max-failed", "4")
    assert said.code == 1
    assert said.out.splitlines() == [
        "workers: shop: 3 unfinished items and no live worker",
        "failed: shop: 5 failed items, more than 4",
    ]
    assert call("check", "--json").document["ok"] is False
    with changing(shop) as connection:
        connection.execute("UPDATE items SET status = 'completed'")
    assert call("check") == (0, "no batch needs attention\n", "")


@pytest.mark.parametrize("before", ["99999d", "0001-01-01T00:00:00+05:00"])
def test_no_item_ended_before_the_first_possible_time(before: str, shop: str, call: Call) -> None:
    said = call("purge", "--before", before)
    assert (said.code, said.out) == (0, "shop: deleted items that ended before 1970-01-01 00:00:00 UTC: none\n")


@pytest.mark.sqlite_file
def test_a_batch_in_the_environment_does_not_restrict_a_backup(shop: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with changing(shop) as connection:
        connection.execute("INSERT INTO batches (name, handler, options, created_at) VALUES ('other', 'h', '{}', '')")
    monkeypatch.setenv("ASYNCRUNNER_BATCH", BATCH)
    assert call("backup", "all.db").code == 0
    assert rows_of(Path("all.db"), "SELECT name FROM batches ORDER BY 1") == [("other",), (BATCH,)]
    monkeypatch.setenv("ASYNCRUNNER_BACKUP_BATCH", BATCH)
    assert call("backup", "one.db").out.startswith(f"one.db: only {BATCH}, ")
    assert rows_of(Path("one.db"), "SELECT name FROM batches") == [(BATCH,)]


@pytest.mark.sqlite_file
def test_a_restore_names_the_file_that_it_replaced_and_refuses_another_programs(file: Path, call: Call) -> None:
    assert call("backup", "copy.db").code == 0
    with changing(file) as connection:
        connection.execute("UPDATE items SET status = 'cancelled'")
    said = call("restore", "copy.db")
    (old,) = (path.name for path in file.parent.glob("jobs.db.replaced-*") if not path.name.endswith(("-wal", "-shm")))
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("jobs.db: restored copy.db, 0.")
    assert said.out.endswith(f"{old}\n")
    cancelled = "SELECT count(*) FROM items WHERE status = 'cancelled'"
    assert (rows_of(file, cancelled), rows_of(Path(old), cancelled)) == ([(1,)], [(13,)])
    assert call("restore", "copy.db", "--db", "new.db", "--json").document == {
        "db": "new.db",
        "backup": "copy.db",
        "bytes": Path("new.db").stat().st_size,
        "replaced": None,
    }
    with sqlite3.connect("foreign.db") as foreign:
        foreign.execute("CREATE TABLE mine (x)")
    foreign.close()
    before = Path("foreign.db").read_bytes()
    refused = call("restore", "copy.db", "--db", "foreign.db")
    assert refused.code == 2
    assert "database of another program" in refused.err
    assert Path("foreign.db").read_bytes() == before
