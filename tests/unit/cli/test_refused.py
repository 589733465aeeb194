"""A run that is refused leaves nothing, and a table with another delimiter is named as the cause."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.cli import run_command

HANDLERS = """
from dataclasses import dataclass

async def upper(line: str) -> str:
    return line.upper()

async def row(item: dict) -> str:
    return str(item)

@dataclass
class Order:
    a: int

async def order(item: Order) -> int:
    return item.a
"""

pytestmark = pytest.mark.sqlite_file


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    (tmp_path / "h.py").write_text(HANDLERS)
    (tmp_path / "one.txt").write_text("one\n")
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n"two"\n')
    (tmp_path / "late.jsonl").write_text('"one"\n{"a": 1}\n')
    (tmp_path / "semicolons.csv").write_text("a;b;c\n1;2;3\n")
    (tmp_path / "tabs.csv").write_text("a\tb\n1\t2\n")
    (tmp_path / "commas.tsv").write_text("a,b\n1,2\n")
    (tmp_path / "text.db").write_text("no database at all " * 100)
    (tmp_path / "empty.db").touch()
    with closing(sqlite3.connect(tmp_path / "foreign.db")) as connection, connection:
        connection.execute("CREATE TABLE mine (x)")
    with closing(sqlite3.connect(tmp_path / "newer.db")) as connection, connection:
        connection.execute("PRAGMA application_id = 1095979598")
        for name in ("batches", "items", "workers", "failures", "turns"):
            connection.execute(f"CREATE TABLE {name} (x)")
        connection.execute("PRAGMA user_version = 99")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["h.py:upper", "missing.txt"], "does not exist"),
        (["h.py:upper", "one.txt", "--leftovers", "keep"], "leftovers='keep'"),
        (["h.py:upper", "one.txt", "--concurrency", "0"], "concurrency=0"),
        (["h.py:upper", "one.txt", "--concurrency", "many"], "Invalid value for '--concurrency'"),
        (["h.py:upper", "one.txt", "--key", "id"], "has no field 'id'"),
        (["h.py:none", "one.txt"], "has no 'none'"),
        (["h.py:upper", "bad.jsonl"], "bad.jsonl, line 1: the item does not fit upper"),
        (["h.py:upper", "late.jsonl", "--on-bad-input", "fail"], "line 2: the item does not fit upper"),
        (["h.py:order", "semicolons.csv"], "'a;b;c' would be lost"),
        (["h.py:upper", "one.txt", "--db", "text.db"], "not an intact SQLite database"),
        (["h.py:upper", "one.txt", "--db", "empty.db"], "an empty file"),
        (["h.py:upper", "one.txt", "--db", "foreign.db"], "a database of another program"),
        (["h.py:upper", "one.txt", "--db", "newer.db"], "upgrade asyncrunner"),
        (["h.py:upper", "one.txt", "--db", "no/new.db"], "there is no folder"),
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.sqlite_file
def test_a_refused_run_leaves_no_database_no_locks_and_no_changed_file(arguments: list[str], message: str, inputs: Path) -> None:
    before = {path.name: path.read_bytes() for path in inputs.iterdir()}
    done = run_command(inputs, "run", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert {path.name: path.read_bytes() for path in inputs.iterdir() if path.name != "__pycache__"} == before


@pytest.mark.sqlite_file
def test_a_bad_line_after_good_ones_keeps_the_items_before_it(inputs: Path) -> None:
    done = run_command(inputs, "run", "h.py:upper", "late.jsonl")
    assert (done.returncode, "late.jsonl, line 2" in done.stderr) == (2, True)
    with closing(sqlite3.connect(inputs / "asyncrunner.db")) as connection:
        assert connection.execute("SELECT id FROM items").fetchall() == [("one",)]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (
            ["h.py:row", "semicolons.csv", "--key", "a"],
            "separated by semicolons, and csv is separated by commas; save it with commas",
        ),
        (
            ["h.py:row", "semicolons.csv", "--fields", "a"],
            "separated by semicolons, and csv is separated by commas; save it with commas",
        ),
        (["h.py:order", "semicolons.csv"], "separated by semicolons, and csv is separated by commas; save it with commas"),
        (["h.py:row", "semicolons.csv", "--key", "a", "--on-bad-input", "fail"], "separated by semicolons"),
        (["h.py:row", "tabs.csv", "--key", "a"], "separated by tabs, and csv is separated by commas; add --format tsv"),
        (["h.py:row", "commas.tsv", "--key", "a"], "separated by commas, and tsv is separated by tabs; add --format csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_table_with_another_delimiter_is_named_as_the_cause(arguments: list[str], hint: str, inputs: Path) -> None:
    assert hint in run_command(inputs, "run", *arguments).stderr


def test_a_table_with_one_column_gets_no_hint(inputs: Path) -> None:
    (inputs / "one.csv").write_text("a\n1\n")
    assert "separated by" not in run_command(inputs, "run", "h.py:row", "one.csv", "--key", "b").stderr
