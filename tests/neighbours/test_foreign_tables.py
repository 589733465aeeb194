"""Other programs keep tables in the file: doctor has one line for them, bounded and escaped."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from asyncrunner import run_batch
from tests.support.cli import run_command

MORE = "the file also has 7 tables of other programs: shop_0, shop_1, shop_2, shop_3, shop_4, ..."


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    await run_batch([1], str, db=tmp_path / "jobs.db")
    return tmp_path / "jobs.db"


def notes(file: Path, script: str) -> list[str]:
    """Return the lines of doctor about the schema after another program has run *script*."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.executescript(script)
    process = run_command(file.parent, "doctor", "--db", str(file), COLUMNS="500")
    assert process.returncode == 0, process.stdout + process.stderr
    return [line for line in process.stdout.splitlines() if "schema" in line]


def test_the_tables_of_a_site_are_one_line(file: Path) -> None:
    script = "".join(f"CREATE TABLE shop_{n} (x UNIQUE, y); CREATE INDEX on_{n} ON shop_{n} (y);" for n in range(7))
    (line,) = notes(file, script)
    assert line.endswith(MORE)


def test_names_are_escaped_and_cut(file: Path) -> None:
    (line,) = notes(file, f"""CREATE TABLE "a\x1b[2J\n{"b" * 500}" (x)""")
    assert "the file also has 1 table of other programs: a\\x1b[2J\\nb" in line
    assert "\x1b" not in line
    assert len(line) < 150


def test_a_view_and_what_was_added_to_our_tables_have_lines_of_their_own(file: Path) -> None:
    lines = notes(file, "CREATE VIEW v AS SELECT 1; CREATE INDEX extra ON items (priority); CREATE TABLE t (x)")
    assert [line.partition("the ")[2] for line in lines] == [
        "index extra on items is not part of asyncrunner's schema",
        "file also has 1 table of other programs: t",
        "file also has 1 view of other programs: v",
    ]
