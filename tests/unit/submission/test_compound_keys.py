"""Keys of several parts: ``key=("tenant", "number")``, a tuple from a key function, and ``submit(key=(...))``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from asyncrunner import Client, ConfigurationError, InvalidKey, Runner, run_batch
from tests.support.processes import Jobs
from tests.support.state import rows_of


@dataclass
class Order:
    tenant: str
    number: int | None
    note: str = ""


async def take(item: Order) -> str:
    return f"{item.tenant} {item.number}"


async def test_the_names_of_several_fields_are_the_key_together(db: str) -> None:
    orders = [Order("a", 1), Order("a", 2), Order("b", 1), Order("a", 1)]
    report = await run_batch(orders, take, db=db, key=("tenant", "number"))
    assert (report.completed, report.duplicates) == (3, 1)
    assert rows_of(db, "SELECT id FROM items ORDER BY seq") == [('["a","1"]',), ('["a","2"]',), ('["b","1"]',)]


async def test_a_key_function_may_return_a_tuple(db: str) -> None:
    def key(item: Order) -> tuple[str, int]:
        return item.tenant, item.number or 0

    await run_batch([Order("a", 1)], take, db=db, key=key)
    assert rows_of(db, "SELECT id FROM items") == [('["a","1"]',)]


async def test_parts_with_the_separators_of_json_stay_apart(db: str) -> None:
    rows = [{"a": 'x","y', "b": "z"}, {"a": "x", "b": 'y","z'}]
    report = await run_batch(rows, _take_row, db=db, key=["a", "b"])
    assert (report.completed, report.duplicates) == (2, 0)


async def _take_row(item: dict[str, Any]) -> None:
    pass


async def test_a_submitted_job_is_found_by_its_compound_key(db: str) -> None:
    runner = Runner(db)

    @runner.handler(batch="b")
    async def handler(item: int) -> int:
        return item

    async with runner:
        first = await handler.submit(1, key=("acme", 7))
        assert (first.key, first.created) == ('["acme","7"]', True)
        assert not (await handler.submit(1, key=("acme", "7"))).created
        assert await (await handler.handle(("acme", 7))).result(timeout=30) == 1
    async with Client(db) as client:
        assert (await client.handle("b", ("acme", 7))).key == first.key


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (lambda item: (), "empty tuple"),
        (lambda item: ("a", ("b",)), "has a tuple or a list in it"),
        (lambda item: ("a", None), "give a str"),
        (lambda item: ("a", 1.5), "give a str"),
        (lambda item: ("a" * 300, "b" * 300), "characters"),
        (("tenant", "number"), "field 'number' of item .* is None"),
        (("tenant", "nothing"), "no field 'nothing'"),
    ],
)
async def test_a_key_that_identifies_nothing_is_refused(key: Any, message: str, db: str) -> None:
    with pytest.raises(InvalidKey, match=message):
        await run_batch([Order("a", None)], take, db=db, key=key)


@pytest.mark.parametrize("key", [(), ("a", ""), ("a", 1), ("a", "a"), {"a"}, 7])
async def test_an_option_that_names_no_fields_is_refused(key: Any, db: str) -> None:
    with pytest.raises(ConfigurationError, match="key"):
        await run_batch([Order("a", 1)], take, db=db, key=key)


def test_the_command_line_takes_several_fields(jobs: Jobs) -> None:
    (jobs.folder / "take.py").write_text("async def take(item: dict[str, str]) -> None: ...")
    (jobs.folder / "orders.csv").write_text("tenant,number\na,1\nb,1\na,1\n")
    code, output = jobs.run("run", "take.py:take", "orders.csv", "--key", "tenant, number", "--batch", "b")
    assert code == 0, output
    assert jobs.query("SELECT id FROM items ORDER BY seq") == [('["a","1"]',), ('["b","1"]',)]
