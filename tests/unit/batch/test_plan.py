"""A plan predicts a run and changes no row."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import sqlite3
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import ConfigurationError, Fail, ItemError, Plan, SchemaTooNew, StoreError, plan_batch, run_batch
from asyncrunner.sqlite.admin.plan import SeenKeys
from tests.support.processes import Jobs
from tests.support.state import changing, exists, rows_of

ran: list[int] = []


async def work(item: dict[str, Any]) -> int:
    ran.append(item["n"])
    if item["n"] in (20, 21):
        raise Fail("never")
    if item["n"] in (30, 31, 32):
        raise ValueError("for now")
    return int(item["n"])


def items(*numbers: int, x: int = 0) -> list[dict[str, int]]:
    return [{"n": n, "x": x} for n in numbers]


OPTIONS: dict[str, Any] = {"key": "n", "batch": "b", "max_attempts": 1}


@pytest.fixture
async def prepared(db: str) -> str:
    """Return a store: 1-5 completed, 10 and 11 pending, 20 and 21 failed permanently, 30-32 failed, 40 cancelled."""
    await run_batch(items(1, 2, 3, 4, 5, 20, 21, 30, 31, 32, 10, 11, 40), work, db=db, **OPTIONS)
    with changing(db) as connection:
        connection.execute("UPDATE items SET status = 'pending', completed_at = NULL, attempts = 0 WHERE id IN ('10', '11')")
        connection.execute("UPDATE items SET status = 'cancelled' WHERE id = '40'")
    ran.clear()
    return db


def counts(plan: Plan) -> dict[str, int]:
    """Return the counts that are not zero."""
    return {name: value for name, value in dataclasses.asdict(plan).items() if type(value) is int and value}


INPUT = [*items(1, 2, 2, 10, 20, 30, 40, 50, 51), *items(3, 60, 60, x=7)]


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        (INPUT[:9], {},
         {"given": 9, "duplicates": 1, "new": 2, "completed": 2, "failed": 2, "cancelled": 1, "pending": 1, "leftovers": 1,
          "missing": 7, "to_run": 4}),
        (INPUT[:9], {"max_attempts": 2},
         {"given": 9, "duplicates": 1, "new": 2, "completed": 2, "failed": 2, "cancelled": 1, "pending": 1, "leftovers": 1,
          "missing": 7,
          "retried": 3, "to_run": 7}),
        (INPUT[:9], {"retry_failed": True},
         {"given": 9, "duplicates": 1, "new": 2, "completed": 2, "failed": 2, "cancelled": 1, "pending": 1, "leftovers": 1,
          "missing": 7,
          "retried": 5, "to_run": 9}),
        (INPUT, {"on_change": "keep"},
         {"given": 12, "duplicates": 2, "new": 3, "completed": 3, "failed": 2, "cancelled": 1, "pending": 1, "leftovers": 1, "changed": 1,
          "missing": 6, "to_run": 5}),
        (INPUT, {"on_change": "rerun"},
         {"given": 12, "duplicates": 2, "new": 3, "completed": 3, "failed": 2, "cancelled": 1, "pending": 1, "leftovers": 1, "changed": 1,
          "missing": 6, "to_run": 6}),
        (items(20, 30, 40, 1, 10, x=9), {"on_change": "rerun", "max_attempts": 2},
         {"given": 5, "completed": 1, "failed": 2, "cancelled": 1, "pending": 1, "leftovers": 1, "changed": 5, "missing": 8, "retried": 3,
          "to_run": 8}),
        (items(20, 30, 10, x=9), {"on_change": "rerun", "retry_failed": True},
         {"given": 3, "failed": 2, "pending": 1, "leftovers": 1, "changed": 3, "missing": 10, "retried": 5, "to_run": 7}),
        ([], {}, {"missing": 13, "leftovers": 2, "to_run": 2}),
        (None, {"retry_failed": True}, {"missing": 13, "leftovers": 2, "retried": 5, "to_run": 7}),
    ],
)  # fmt: skip
async def test_a_plan_predicts_the_run(given: Any, options: dict[str, Any], expected: dict[str, int], prepared: str) -> None:
    everything = {**OPTIONS, **options}
    before = rows_of(prepared, "SELECT * FROM items ORDER BY seq"), rows_of(prepared, "SELECT * FROM batches")
    plan = await plan_batch(given, work, db=prepared, **everything)
    assert counts(plan) == expected
    assert not plan.conflict
    assert ran == []
    assert (rows_of(prepared, "SELECT * FROM items ORDER BY seq"), rows_of(prepared, "SELECT * FROM batches")) == before
    await run_batch(given, work, db=prepared, **everything)
    assert len(set(ran)) == plan.to_run


async def test_a_plan_compares_with_the_payload_of_a_requested_rerun(prepared: str) -> None:
    with changing(prepared) as connection:
        connection.execute("UPDATE items SET status = 'processing', rerun_payload = '{\"n\":10,\"x\":9}' WHERE id = '10'")
    assert (await plan_batch(items(10, x=9), work, db=prepared, **OPTIONS)).changed == 0
    assert (await plan_batch(items(10), work, db=prepared, **OPTIONS)).changed == 1


async def test_a_run_that_would_stop_at_a_changed_item_is_planned_as_one(prepared: str) -> None:
    plan = await plan_batch(items(1, 2, x=1), work, db=prepared, **OPTIONS)
    assert (plan.conflict, plan.changed, plan.completed) == (True, 2, 2)


async def test_two_payloads_of_one_key_in_the_input_are_a_change_and_another_order_of_fields_is_none(db: str) -> None:
    given = [{"n": 1, "x": 1}, {"x": 1, "n": 1}, {"n": 1, "x": 2}]
    plan = await plan_batch(given, work, db=db, **OPTIONS)
    assert (plan.given, plan.new, plan.duplicates, plan.changed, plan.conflict) == (3, 1, 2, 1, True)


async def test_a_store_that_is_not_there_is_not_made(db: str, tmp_path: Path) -> None:
    plan = await plan_batch(range(3), print, db=db, batch="b")
    assert counts(plan) == {"given": 3, "new": 3, "to_run": 3}
    assert plan.seconds is None
    assert not exists(db)
    assert list(tmp_path.iterdir()) == []


async def test_a_file_without_the_batch_has_none_of_its_items(prepared: str) -> None:
    assert counts(await plan_batch(range(3), print, db=prepared, batch="other")) == {"given": 3, "new": 3, "to_run": 3}


async def test_the_time_is_judged_by_the_attempts_of_before(db: str) -> None:
    async def slow(n: int) -> None:
        await asyncio.sleep(0)

    await run_batch(range(10), slow, db=db)
    with changing(db) as connection:
        connection.execute("DELETE FROM turns WHERE number < (SELECT max(number) FROM turns)")
        connection.execute("UPDATE turns SET completed = 3, failed = 1, retried = 4, durations = ?", (json.dumps(
            {"completed": [2_000_000] * 3, "failed": [2_000_000], "retried": [2_000_000] * 4}),))  # fmt: skip

    async def seconds(**options: Any) -> float | None:
        return (await plan_batch(range(110), slow, db=db, **options)).seconds

    assert await seconds(concurrency=10) == pytest.approx(100 * 2 * 2 / 10)  # two attempts an item, two seconds each
    assert await seconds(concurrency=1000) == pytest.approx(100 * 2 * 2 / 100)  # no more slots than items
    assert await seconds(concurrency=10, rate_limit="1/s") == pytest.approx(200)
    assert (await plan_batch(range(10), slow, db=db)).seconds == 0


async def test_sources_of_every_kind_are_planned_and_their_mistakes_are_reported(db: str) -> None:
    async def source() -> AsyncIterator[int]:
        for n in range(2500):
            yield n

    def broken() -> Iterable[int]:
        yield 1
        raise OSError("the tape is torn")

    assert (await plan_batch(source(), print, db=db, batch="b")).new == 2500
    assert (await plan_batch(iter([1, 1]), print, db=db, batch="b")).duplicates == 1
    with pytest.raises(OSError, match="torn"):
        await plan_batch(broken(), print, db=db, batch="b")
    with pytest.raises(ItemError, match="item 1 of the input"):
        await plan_batch([1, object()], print, db=db, batch="b")
    with pytest.raises(ConfigurationError):
        await plan_batch("abc", print, db=db, batch="b")
    with pytest.raises(TypeError, match="did you mean 'on_change'"):
        await plan_batch([1], print, db=db, on_chnge="keep")  # type: ignore[call-arg]


@pytest.mark.sqlite_file
async def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        await plan_batch([1], print, db=tmp_path / "nowhere" / "a.db", batch="b")


@pytest.mark.sqlite_file
async def test_a_file_of_an_older_schema_is_not_upgraded(prepared: str) -> None:
    connection = sqlite3.connect(prepared, isolation_level=None)
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    digest = hashlib.blake2b(Path(prepared).read_bytes()).digest()
    with pytest.raises(SchemaTooNew, match="older schema"):
        await plan_batch(items(1), work, db=prepared, **OPTIONS)
    assert hashlib.blake2b(Path(prepared).read_bytes()).digest() == digest


async def test_memory_does_not_grow_with_the_input(db: str) -> None:
    async def peak(count: int) -> int:
        tracemalloc.start()
        await plan_batch((n for n in range(count)), print, db=db, batch="b")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    await peak(100)
    # One chunk or two are in memory, as the source and the lookup take turns: at most twice as much, however long the input.
    assert await peak(50_000) < 2.5 * await peak(10_000)


@pytest.mark.sqlite_file
def test_keys_that_were_seen_are_kept_outside_of_the_store() -> None:
    seen = SeenKeys()
    (row,) = seen._connection.execute("PRAGMA database_list").fetchall()
    assert row[1:] == ("main", "")  # a private file that vanishes with the connection
    seen.close()


# --- the command line -----------------------------------------------------------------------------------------------


def test_a_dry_run_is_printed_and_runs_nothing(jobs: Jobs) -> None:
    jobs.run("run", "h.py:work", jobs.items(20), "--quiet")
    jobs.log.write_text("")
    jobs.items(25)
    process = jobs.start("run", "h.py:work", "items.txt", "--dry-run")
    out, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:4] == [
        "h:work on asyncrunner.db: dry run, no item is run or changed", "25 in the input", "5 new", "20 completed, skipped",
    ]  # fmt: skip
    assert lines[4].startswith("5 to run, about ")
    assert jobs.log.read_text() == ""


def test_a_dry_run_as_json_and_without_a_file(jobs: Jobs) -> None:
    process = jobs.start("run", "h.py:work", jobs.items(3), env={"ASYNCRUNNER_DRY_RUN": "1", "ASYNCRUNNER_JSON": "1"})
    document = json.loads(process.communicate(timeout=60)[0])
    assert (process.returncode, document["new"], document["to_run"], document["seconds"]) == (0, 3, 3, None)
    assert not jobs.db.exists()


def test_a_mistake_in_a_dry_run_is_reported(jobs: Jobs) -> None:
    (jobs.folder / "bad.txt").write_text("1\ntwo\n")
    for arguments, text in (
        (["h.py:work", "bad.txt"], "bad.txt, line 2"),
        (["h.py:work", "bad.txt", "--detach"], "cannot be combined with --detach"),
    ):
        code, said = jobs.run("run", *arguments, "--dry-run")
        assert (code, text in said) == (2, True), said
    (jobs.folder / "bad.csv").write_text('a\n1\n"2\n')
    for name in ("bad.txt", "bad.csv"):
        code, said = jobs.run("run", "h.py:work", name, "--dry-run")
        assert (code, "are saved" in said) == (2, False), said
        code, said = jobs.run("run", "h.py:work", name)
        # No row of the table is an int, so nothing is before the first one.
        assert (code, "the items before it are saved" in said) == (2, name == "bad.txt"), said


def test_changed_items_are_named_with_the_next_step(jobs: Jobs) -> None:
    jobs.handlers("\nasync def row(item: dict[str, str]) -> None:\n    pass\n")
    (jobs.folder / "a.csv").write_text("k,v\na,1\nb,1\n")
    jobs.run("run", "h.py:row", "a.csv", "--key", "k", "--quiet")
    (jobs.folder / "a.csv").write_text("k,v\na,2\nb,1\nb,1\n")
    process = jobs.start("run", "h.py:row", "a.csv", "--key", "k", "--dry-run")
    out, _ = process.communicate(timeout=60)
    assert "           1  changed (same key, other payload): an error" in out
    assert "           1  given more than once" in out
    assert out.endswith("The run would stop with an error at the first changed item; give --on-change keep or rerun.\n")
