"""`export`: formats, files that appear only when they are complete, memory."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncrunner.errors import ConfigurationError
from asyncrunner.text import atomic_file
from tests.support.files import make_store
from tests.support.state import changing
from tests.unit.cli.conftest import Call


def test_an_export_to_stdout_is_json_lines_with_the_count_on_stderr(shop: str, call: Call) -> None:
    said = call("export", "--status", "completed")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert (said.code, said.err) == (0, "4 items exported\n")
    assert (rows[0]["id"], rows[0]["payload"], rows[0]["result"]) == ("fine-1", "fine-1", {"booked": "fine-1"})
    assert call("export", "--status", "failed", "--status", "cancelled", "--json").err == '{"items":6}\n'


def test_a_csv_holds_no_formula_and_every_other_cell_as_it_is(shop: str, call: Call) -> None:
    cells = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "plain", 'a "quoted", one\nwith lines']
    with changing(shop) as connection:
        for number, cell in enumerate(cells):
            connection.execute("UPDATE items SET error = ? WHERE seq = ?", (cell, number + 1))
    said = call("export", "items.csv")
    assert (said.code, said.out) == (0, "")
    with Path("items.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["error"] for row in rows[: len(cells)]] == [f"'{cell}" for cell in cells[:6]] + cells[6:]
    assert rows[0]["payload"] == '"fine-1"'
    assert Path("items.csv").stat().st_mode & 0o777 == 0o600


def test_negative_numbers_of_json_are_numbers_in_a_csv(shop: str, call: Call) -> None:
    values: dict[str, list[str | None]] = {"payload": ["-5", "-1.5e+3", "-1+1", "-05"], "result": ["-5", None, None, "=1"]}
    with changing(shop) as connection:
        for name, column in values.items():
            for number, value in enumerate(column):
                connection.execute(f"UPDATE items SET {name} = ?, error = '-5' WHERE seq = ?", (value, number + 1))
    rows = list(csv.DictReader(io.StringIO(call("export", "--format", "csv").out, newline="")))[:4]
    assert [row["payload"] for row in rows] == ["-5", "-1.5e+3", "'-1+1", "'-05"]
    assert [row["result"] for row in rows] == ["-5", "", "", "'=1"]
    assert [row["error"] for row in rows] == ["'-5"] * 4


def test_a_parquet_file_has_a_column_a_field(shop: str, call: Call) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert call("export", "items.parquet", "--json").document == {"file": "items.parquet", "items": 13}
    rows = parquet.read_table("items.parquet").to_pylist()
    assert (rows[0]["id"], rows[0]["attempts"], rows[0]["result"]) == ("fine-1", 1, '{"booked":"fine-1"}')
    assert call("export", "none.parquet", "--status", "processing", "--status", "cancelled").code == 0
    assert parquet.read_table("none.parquet").num_rows == 2


def test_parquet_without_pyarrow_names_the_package_to_install(file: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = call("export", "items.parquet")
    assert said.code == 2
    assert "pip install 'asyncrunner[parquet]'" in said.err
    assert not list(file.parent.glob("*parquet*"))
    assert not list(file.parent.glob(".*parquet*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk to write to is Linux's")
def test_a_full_disk_is_reported_in_one_line(file: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "asyncrunner", "export", "--db", "jobs.db"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2,
        "Error: the export could not be written (No space left on device); the items are unchanged\n",
    )


def test_where_there_are_no_links_a_file_still_gets_its_name_and_replaces_none(
    shop: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert call("export", "items.jsonl").code == 0
    assert Path("items.jsonl").read_text().count("\n") == 13
    assert Path("items.jsonl").stat().st_mode & 0o777 == 0o600
    (draft := Path("draft")).write_text("new")
    with pytest.raises(ConfigurationError, match="created by another program meanwhile"):
        atomic_file.publish(draft, Path("items.jsonl"))
    assert not draft.exists()


def test_rows_that_were_edited_by_hand_are_still_lines_of_json(shop: str, call: Call) -> None:
    with changing(shop) as connection:
        connection.execute("UPDATE items SET payload = '{\"a\":\n 1}' WHERE id = 'fine-1'")
        connection.execute("UPDATE items SET payload = '{broken' WHERE id = 'refused-1'")
    rows = [json.loads(line) for line in call("export").out.splitlines()]
    assert [row["payload"] for row in rows[:2]] == [{"a": 1}, "{broken"]


@pytest.mark.sqlite_file
def test_an_export_takes_no_more_memory_for_more_items(tmp_path: Path) -> None:
    """Compare the peak memory of the command for two files, one ten times as large."""
    peaks: list[int] = []
    for items in (3_000, 30_000):
        db = tmp_path / f"{items}.db"
        make_store(db)
        with changing(db) as connection:
            connection.execute(
                "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?) "
                "INSERT INTO items (batch_id, id, claim, status, payload, result) "
                "SELECT 1, 'i' || n, 0, 'completed', '1', json_quote(hex(zeroblob(1000))) FROM n",
                (items,),
            )
        script = (
            "import resource, sys\nfrom asyncrunner.cli import main\n"
            f"sys.argv = ['asyncrunner', 'export', '{tmp_path}/{items}.jsonl', '--db', '{db}']\n"
            "try:\n    main()\nexcept SystemExit:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
        peaks.append(int(done.stdout) * (1 if sys.platform == "darwin" else 1024))
    assert (tmp_path / "30000.jsonl").stat().st_size > 60_000_000
    assert peaks[1] - peaks[0] < 10_000_000
