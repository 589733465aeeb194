"""Rows in blocks: any number of rows is written exactly, without extra rows for the rest of a block."""

from __future__ import annotations

import sqlite3

from hypothesis import given
from hypothesis import strategies as st

from asyncrunner.sqlite.sql.bulk import BulkStatement

INSERT = BulkStatement(
    "INSERT INTO t (a, b) SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL ON CONFLICT (a) DO NOTHING", columns=2
)
UPDATE = BulkStatement("UPDATE t SET b = column2 FROM (VALUES {rows}) WHERE a = column1", columns=2)


@given(st.one_of(st.integers(0, 70), st.sampled_from([127, 128, 129, 1023, 1024, 1025, 2600])))
def test_each_row_is_written_once_and_in_order(count: int) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY, a INTEGER UNIQUE, b TEXT)")
    connection.execute("INSERT INTO t (a, b) VALUES (NULL, 'untouched')")
    assert INSERT.execute(connection, [(n, "new") for n in range(count)]) == count
    assert INSERT.execute(connection, [(n, "again") for n in range(count)]) == 0
    assert connection.execute("SELECT a FROM t WHERE a IS NOT NULL ORDER BY seq").fetchall() == [(n,) for n in range(count)]
    assert UPDATE.execute(connection, [(n, str(n)) for n in range(count + 5)]) == count
    found = connection.execute("SELECT a, b FROM t ORDER BY seq").fetchall()
    connection.close()
    assert found == [(None, "untouched"), *((n, str(n)) for n in range(count))]
