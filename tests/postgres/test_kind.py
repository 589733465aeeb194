"""The kind of store ``postgres`` of the tests: a schema for each location, a connection as another program has, and its removal."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.contract.stores import parameters
from tests.support import postgres_kind, postgres_server
from tests.support.kinds import KINDS
from tests.support.postgres_kind import schema_of, server_of
from tests.support.state import changing, execute, exists, rows_of

KIND = KINDS["postgres"]


@pytest.fixture
def location(server_dsn: str, tmp_path: Path) -> str:
    made = KIND.new_location(tmp_path, "jobs.db")
    with psycopg.connect(server_dsn) as connection:
        connection.execute(f"CREATE SCHEMA {schema_of(made)}".encode())
        connection.execute(f"CREATE TABLE {schema_of(made)}.items (id text, n int, at timestamptz)".encode())
    return made


def test_a_folder_and_a_name_have_one_location_and_others_have_others(server_dsn: str, tmp_path: Path) -> None:
    location = KIND.new_location(tmp_path, "jobs.db")
    assert location == KIND.new_location(tmp_path, "jobs.db")
    assert location.startswith("postgresql://")
    assert len({location, KIND.new_location(tmp_path, "other.db"), KIND.new_location(tmp_path / "inner", "jobs.db")}) == 3
    assert server_of(location) == server_dsn
    assert not exists(location)


def test_a_connection_sees_the_schema_and_takes_question_marks(location: str) -> None:
    assert exists(location)
    execute(location, "INSERT INTO items VALUES (?, ?, ?)", "50 % of 'it'?", 1, "2026-01-02 03:04:05.678")
    with changing(location) as connection:
        connection.executemany("INSERT INTO items VALUES (?, ?, NULL)", [("b", 2), ("c", 3)])
        assert connection.execute("UPDATE items SET n = 4 WHERE id = 'b'").rowcount == 1
    query = "SELECT id, n, at FROM items WHERE id LIKE '%?' OR n >= 3 ORDER BY n"
    assert rows_of(location, query) == [("50 % of 'it'?", 1, "2026-01-02 03:04:05.678"), ("c", 3, None), ("b", 4, None)]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        rows_of(location, "DELETE FROM items RETURNING id", read_only=True)


def test_a_change_that_fails_leaves_nothing(location: str) -> None:
    with pytest.raises(ZeroDivisionError), changing(location) as connection:
        connection.execute("INSERT INTO items VALUES ('a', 1, NULL)")
        raise ZeroDivisionError
    assert rows_of(location, "SELECT * FROM items") == []


def test_a_connection_to_a_schema_that_does_not_exist_is_an_error(server_dsn: str, tmp_path: Path) -> None:
    location = KIND.new_location(tmp_path, "jobs.db")
    with pytest.raises(psycopg.errors.InvalidSchemaName):
        rows_of(location, "SELECT 1")


def test_the_schemas_of_a_test_are_dropped(location: str, tmp_path: Path) -> None:
    never_made = KIND.new_location(tmp_path, "never made")
    KIND.remove()
    assert not exists(location)
    assert not exists(never_made)


def test_a_transaction_that_a_test_left_open_makes_the_removal_fail(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_kind, "_LOCK_TIMEOUT", "50ms")
    with psycopg.connect(server_of(location)) as left_open:
        left_open.execute(f"LOCK {schema_of(location)}.items".encode())
        with pytest.raises(psycopg.errors.LockNotAvailable):
            KIND.remove()
    KIND.remove()
    assert not exists(location)


def test_without_a_server_the_stores_are_skipped_by_name_and_in_ci_they_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(postgres_server.VARIABLE, raising=False)
    monkeypatch.setattr(postgres_server, "wheel_binaries", lambda: None)
    monkeypatch.setattr(postgres_server, "_shared", None)
    monkeypatch.delenv("CI", raising=False)
    sqlite, postgres = parameters(["sqlite", "postgres"])
    assert sqlite.marks == []
    assert [mark.kwargs["reason"] for mark in postgres.marks] == [postgres_server.MISSING]
    assert "ASYNCRUNNER_TEST_POSTGRES" in postgres_server.MISSING
    monkeypatch.setenv("CI", "true")
    assert [each.marks for each in parameters(["sqlite", "postgres"])] == [[], []]
    with pytest.raises(postgres_server.ServerFailedError, match="install the extra server"):
        KIND.new_location(tmp_path, "jobs.db")
