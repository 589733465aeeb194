"""The tables on a server are an interface too: the queries and changes of the documentation work as they stand."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from asyncrunner.backends import open_engine
from asyncrunner.domain.item import NewItem
from asyncrunner.domain.outcome import Completed, ErrorInfo, Failed, Outcome, Settlement
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.protocols import Store
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.testing import FakeClock
from tests.docs.test_tables import TEXT
from tests.support.kinds import KINDS
from tests.support.postgres_kind import schema_of
from tests.support.postgres_state import disagreements

STATEMENTS = [
    " ".join(each.split())
    for block in re.findall(r"```postgresql\n(.*?)```", TEXT, re.DOTALL)
    for each in block.split(";")
    if each.strip()
]


class Prepared:
    """A store with one item of each kind: completed, failed with all attempts, failed with one, processing for long, pending."""

    def __init__(self, store: Store, batch_id: int, now: float, connection: psycopg.Connection[Any], db: str) -> None:
        self.store = store
        self.batch_id = batch_id
        self.now = now
        self.db = db
        self._connection = connection

    def ask(self, statement: str) -> list[Any]:
        cursor = self._connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
async def prepared(server_dsn: str, tmp_path: Path) -> AsyncIterator[Prepared]:
    db = KINDS["postgres"].new_location(tmp_path, "jobs.db")
    now = float(int(time.time()) - 600)  # ten minutes ago: an item started then is stuck
    clock = FakeClock(now)
    store = open_engine(db, clock=clock)
    await store.open()
    batch_id = (await store.open_batch("b", "h", BatchOptions())).batch_id
    await store.join(WorkerInfo("w", "here", 1))
    keys = ["done", "used up", "some-id", "stuck", "waiting"]
    await store.add(batch_id, [NewItem(key, "1") for key in keys], on_change="error")
    claims = {each.id: each for each in (await store.turn("w", [], [Want(batch_id, 4, 3)])).claims}
    boom = ErrorInfo("ValueError", "boom", "", "f1")
    outcomes: dict[str, Outcome] = {
        "done": Completed("2"),
        "used up": Failed(boom, permanent=False),
        "some-id": Failed(boom, permanent=True),
    }
    clock.jump(2)
    await store.turn("w", [Settlement(claims[key], outcome, now, now + 2) for key, outcome in outcomes.items()], [])
    with psycopg.connect(server_dsn, options=f"-c search_path={schema_of(db)}", autocommit=True) as connection:
        connection.execute("UPDATE items SET attempts = 3 WHERE id = 'used up'")
        yield Prepared(store, batch_id, now, connection, db)
    await store.close()


def test_the_page_has_the_queries_of_the_file_for_a_server_too() -> None:
    of_the_file = [
        each for block in re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL) for each in block.split(";") if each.strip()
    ]
    assert len(STATEMENTS) == len(of_the_file) == 8
    assert [each.split(" FROM ")[-1].split(" ")[0] for each in STATEMENTS] == [
        " ".join(each.split()).split(" FROM ")[-1].split(" ")[0] for each in of_the_file
    ]


async def test_the_queries_of_the_page_work_as_they_stand(prepared: Prepared) -> None:
    counts, used_up, stuck, averages, causes, hours = [prepared.ask(each) for each in STATEMENTS[:6]]
    assert sorted(counts) == [("completed", 1), ("failed", 2), ("pending", 1), ("processing", 1)]
    assert used_up == [("used up", "ValueError: boom", 3)]
    assert [(key, worker, at.timestamp()) for key, worker, at in stuck] == [("stuck", "w", prepared.now)]
    assert {status: (count, seconds and float(seconds)) for status, count, seconds in averages} == {
        "completed": (1, 2.0), "failed": (2, 2.0), "processing": (1, None),
    }  # fmt: skip
    assert [(kind, count, at.timestamp()) for kind, count, at in causes] == [("ValueError", 2, prepared.now + 2)]
    assert [(at.timestamp(), *map(float, numbers)) for at, *numbers in hours] == [
        ((prepared.now + 2) // 3600 * 3600, 1, 2, 0, 6.0)
    ]


async def test_the_first_queries_of_the_design_need_no_other_functions(prepared: Prepared) -> None:
    unfinished = prepared.ask("SELECT id FROM items WHERE status IN ('pending','failed') AND attempts < 3 ORDER BY seq")
    assert unfinished == [("some-id",), ("waiting",)]
    failed = prepared.ask("SELECT id, error FROM items WHERE status = 'failed' ORDER BY seq")
    assert failed == [("used up", "ValueError: boom"), ("some-id", "ValueError: boom")]


async def test_the_changes_of_the_page_make_the_items_run_again(prepared: Prepared) -> None:
    for statement in STATEMENTS[6:]:
        prepared.ask(statement)
        assert disagreements(prepared.db) == {}
    claims = (await prepared.store.turn("w", [], [Want(prepared.batch_id, 5, 3)])).claims
    assert [each.id for each in claims] == ["some-id", "stuck", "waiting"]
    assert disagreements(prepared.db) == {}


async def test_the_columns_are_those_of_the_file_but_for_those_that_the_page_names(prepared: Prepared) -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## )", TEXT, re.MULTILINE | re.DOTALL))
    (missing,) = re.findall(r"`batches` has no (.+?) columns", TEXT)
    absent = {
        "batches": {*re.findall(r"`(\w+)`", missing), "minute_completed", "minute_failed", "minute_retried", "minute_seconds"}
    }
    for table in ("batches", "items", "workers", "failures"):
        documented = set(re.findall(r"^\| `(\w+)` \|", sections[table], re.MULTILINE)) - absent.get(table, set())
        columns = {
            name
            for (name,) in prepared.ask(
                f"SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = '{table}'"
            )
        }
        assert documented <= columns, table
