"""Only backends.py names a database, and it refuses a location that it cannot open."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncrunner
from asyncrunner import Client, ConfigurationError, Control, Runner, backends
from asyncrunner.backends import full_location, open_admin, open_engine, open_maintenance, open_transactional_insert

PACKAGE = Path(asyncrunner.__file__).parent

DATABASES = ("sqlite3", "aiosqlite", "asyncrunner.sqlite")


@pytest.mark.parametrize("make", [open_engine, open_admin, open_maintenance, open_transactional_insert, Runner, Client, Control])
@pytest.mark.parametrize("location", ["redis://host", "mysql+pymysql://me:secret@host/jobs"])
def test_the_url_of_another_server_is_not_taken_for_a_path(make: Callable[[str], Any], location: str) -> None:
    with pytest.raises(ConfigurationError, match=r"SQLite file or on a PostgreSQL server, not in \w") as error:
        make(location)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("make", [open_engine, open_admin, open_maintenance, open_transactional_insert, Runner, Client, Control])
@pytest.mark.parametrize(
    "location",
    [
        "postgres:/me:secret@host/jobs",
        "postgresql:me:secret@host/jobs",
        str(Path("postgresql://me:secret@host/jobs")),  # a Path makes one slash of two
        "PostgreSQL://me:secret@host/jobs",
        "postgresql+asyncpg://me:secret@host/jobs",
        "postgresql//me:secret@host/jobs",
        "postgres//me:secret@host/jobs",
        "postgres:host",
        "postgressql://me:secret@host/jobs",
        "Postgres://me:secret@host/jobs",
        "pg://me:secret@host/jobs",
        "psql:me:secret@host/jobs",
        "pgsql//host/jobs",
        " postgresql://me:secret@host/jobs",
        "'postgresql://me:secret@host/jobs'",
        "me:secret@host:5432/jobs",
        "localhost:5432/jobs",
        "host/jobs?schema=mails",
        "?schema=mails",
    ],
)
def test_a_url_with_a_mistake_in_its_scheme_is_not_taken_for_a_path(make: Callable[[str], Any], location: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"begins with postgresql:// .* write postgresql://user@host:5432/database"
    ) as error:
        make(location)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("make", [open_engine, Runner, Client])
def test_a_server_without_its_driver_is_refused_with_what_to_install(
    make: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r'pip install "asyncrunner\[postgres\]"'):
        make("postgresql://me@host/jobs")


def test_the_url_of_a_server_does_not_depend_on_the_folder() -> None:
    assert full_location("postgresql://me@host/jobs") == "postgresql://me@host/jobs"


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    for path in ("C:jobs.db", "postgres/jobs.db", "pg.db", "at 12:30/jobs.db", "./postgres//jobs.db", "me@work/jobs.db"):
        assert open_engine(path).location == path
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
