"""docs/reference/tables.md names every table and column of a newly created file, and its SQL runs there."""

from __future__ import annotations

import asyncio
import re
import sqlite3

import pytest

from asyncrunner import run_batch
from tests.docs.test_readme import ROOT

TEXT = (ROOT / "docs" / "reference" / "tables.md").read_text()


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> sqlite3.Connection:
    db = tmp_path_factory.mktemp("tables") / "new.db"
    asyncio.run(run_batch([1], str, db=db))
    return sqlite3.connect(db)


def test_the_page_has_every_table_and_column_with_its_type(connection: sqlite3.Connection) -> None:
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'").fetchall()
    columns = {
        name: [(column, kind) for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({name})")] for (name,) in tables
    }
    sections = re.findall(r"^## (\w+)\n(.*?)(?=^## )", TEXT, re.MULTILINE | re.DOTALL)
    documented = {name: re.findall(r"^\| `(\w+)` \| `(\w+)` \| .+ \|$", section, re.MULTILINE) for name, section in sections}
    assert documented == columns


def test_the_mark_and_the_statements_of_the_page_are_right(connection: sqlite3.Connection) -> None:
    (mark,) = re.findall(r"0x[0-9A-F]{8}", TEXT)
    assert connection.execute("PRAGMA application_id").fetchone() == (int(mark, 16),)
    statements = [each for block in re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL) for each in block.split(";") if each.strip()]
    assert len(statements) == 8
    for statement in statements:
        connection.execute(statement)


def test_the_forms_that_the_page_shows_are_those_of_the_file(connection: sqlite3.Connection) -> None:
    ((created, payload, result),) = connection.execute("SELECT created_at, payload, result FROM items").fetchall()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", created)
    assert (payload, result) == ("1", '"1"')
    assert connection.execute("SELECT role FROM workers").fetchall() == [("run",)]
