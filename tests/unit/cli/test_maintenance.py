"""`check`, `purge` and `backup`."""

from __future__ import annotations

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
