"""Datasette shows every table of a file, whether the file is new or was made with an earlier schema."""

from __future__ import annotations

import gc
import sqlite3
import sys
import warnings
from contextlib import closing
from pathlib import Path

import pytest

from asyncrunner import run_batch
from asyncrunner.sqlite.file.opening import connect_memory
from asyncrunner.sqlite.maintenance.checks import _check_schema, without_comments
from asyncrunner.sqlite.sql.schema import APPLICATION_ID, MIGRATIONS, migrate, set_version

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)  # Python 3.13, about a connection that datasette opens when it is imported
    from datasette.app import Datasette

    gc.collect()

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ITEMS = "SELECT sql FROM sqlite_schema WHERE name = 'items'"


async def fail_for_two(number: int) -> int:
    if number == 2:
        raise ValueError("two")
    return number


def file_of_schema(path: Path, version: int, rows: int = 3) -> sqlite3.Connection:
    """Return a connection to a file as an earlier version of the package made it, with a batch of *rows* items."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    for script in MIGRATIONS[:version]:
        connection.executescript(script)
    set_version(connection, version)
    connection.execute("INSERT INTO batches (name, handler, options, created_at) VALUES ('b', 'h', '{}', '2026-01-01')")
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO items (batch_id, id, payload) VALUES (1, ?, '1')", ((str(number),) for number in range(rows))
    )
    connection.execute("COMMIT")
    return connection


async def statuses(db: Path) -> dict[str, int]:
    """Return the status of the page and of the JSON, with labels, of each table and of the first row of items."""
    datasette = Datasette([str(db)], settings={"num_sql_threads": 1})
    await datasette.invoke_startup()
    try:
        name = db.stem
        tables = await datasette.get_database(name).table_names()
        assert {"batches", "items", "workers", "failures", "turns", "result_pieces", "causes"} <= set(tables)
        paths = [f"/{name}", f"/{name}/items/1", f"/{name}/batches/1"]
        paths += [f"/{name}/{table}{form}" for table in tables for form in ("", ".json?_labels=on")]
        return {path: (await datasette.client.get(path)).status_code for path in paths}
    finally:
        for database in datasette.databases.values():
            database.close()
        datasette.executor.shutdown()  # its threads would hold up the end of the process
        gc.collect()  # Datasette does not close every connection, and Python 3.13 warns of that


async def test_datasette_shows_every_table_of_a_new_file(tmp_path: Path) -> None:
    db = tmp_path / "jobs.db"
    await run_batch([1, 2, 3], fail_for_two, db=db, max_attempts=1)
    assert {path: status for path, status in (await statuses(db)).items() if status != 200} == {}


@pytest.mark.parametrize("version", range(1, 7))
async def test_datasette_shows_every_table_of_a_file_with_an_earlier_schema(version: int, tmp_path: Path) -> None:
    db = tmp_path / "jobs.db"
    file_of_schema(db, version).close()
    await run_batch([1, 2, 3], fail_for_two, db=db, max_attempts=1)
    assert {path: status for path, status in (await statuses(db)).items() if status != 200} == {}


def test_the_edit_of_the_foreign_key_leaves_the_schema_of_a_new_file_and_copies_no_row(tmp_path: Path) -> None:
    with closing(file_of_schema(tmp_path / "jobs.db", 6, rows=20_000)) as connection, closing(connect_memory()) as fresh:
        assert [row[4] for row in connection.execute("PRAGMA foreign_key_list(items)")] == [None]
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        roots = connection.execute(
            "SELECT name, rootpage FROM sqlite_schema WHERE tbl_name = 'items' AND rootpage > 0"
        ).fetchall()
        connection.execute("BEGIN IMMEDIATE")
        migrate(connection, 6)
        connection.execute("COMMIT")
        assert [row[4] for row in connection.execute("PRAGMA foreign_key_list(items)")] == ["batch_id"]
        assert without_comments(connection.execute(ITEMS).fetchone()[0]) == without_comments(fresh.execute(ITEMS).fetchone()[0])
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert set(roots) <= set(connection.execute("SELECT name, rootpage FROM sqlite_schema").fetchall())
        assert connection.execute("PRAGMA page_count").fetchone()[0] < pages + 20
        assert connection.execute("PRAGMA writable_schema").fetchone() == (0,)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Connection.setconfig() is new in Python 3.12")
def test_a_sqlite_in_defensive_mode_keeps_the_earlier_text_of_the_key(tmp_path: Path) -> None:
    with closing(file_of_schema(tmp_path / "jobs.db", 6)) as connection:
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)  # type: ignore[attr-defined, unused-ignore]
        migrate(connection, 6)
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert [row[4] for row in connection.execute("PRAGMA foreign_key_list(items)")] == [None]
        assert list(_check_schema(connection)) == []
