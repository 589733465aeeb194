"""Only backends.py names a database, and it refuses a location that it cannot open."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncrunner
from asyncrunner import Client, ConfigurationError, Control, Runner
from asyncrunner.backends import open_admin, open_engine, open_maintenance, open_transactional_insert

PACKAGE = Path(asyncrunner.__file__).parent

DATABASES = ("sqlite3", "aiosqlite", "asyncrunner.sqlite")


@pytest.mark.parametrize("make", [open_engine, open_admin, open_maintenance, open_transactional_insert, Runner, Client, Control])
@pytest.mark.parametrize("location", ["postgresql://me@host/jobs", "postgres://me:secret@host/jobs", "redis://host"])
def test_the_url_of_a_server_is_not_taken_for_a_path(make: Callable[[str], Any], location: str) -> None:
    with pytest.raises(ConfigurationError, match="this version stores items in a SQLite file") as error:
        make(location)
    assert "secret" not in str(error.value)


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    assert open_engine("C:jobs.db").location == "C:jobs.db"
    assert open_engine(":memory:").location == ":memory:"


def imported(path: Path) -> set[str]:
    """Return the names of the modules that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("room", ["runner", "submission", "testing.py", "admin", "cli", "batch/plan.py"])
def test_code_that_runs_submits_and_operates_names_no_database(room: str) -> None:
    place = PACKAGE / room
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert files
    found = {
        (file.name, name)
        for file in files
        for name in imported(file)
        if any(name == database or name.startswith(f"{database}.") for database in DATABASES)
    }
    assert found == set()
