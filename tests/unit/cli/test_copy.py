"""`copy`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asyncrunner.backends import open_engine
from asyncrunner.store.protocols import Store
from asyncrunner.store.workers import WorkerInfo
from tests.support.copies import stop_copy
from tests.support.files import BATCH
from tests.support.state import execute, rows_of
from tests.unit.cli.conftest import Call

pytestmark = pytest.mark.sqlite_file  # the target is a file; tests/unit/admin/test_copying.py also copies to a server

COUNTS = "13 items (3 pending, 4 completed, 5 failed, 1 cancelled) and 8 recorded failures"


def test_a_copy_reports_the_numbers_of_items_and_the_second_one_says_that_it_is_complete(file: Path, call: Call) -> None:
    assert call("copy", "jobs.db", "new.db") == (0, f"shop: copied: {COUNTS}\n", "")
    again = call("copy", "jobs.db", "new.db")
    assert (again.code, again.err) == (0, "")
    assert again.out.startswith("shop: already copied at 20")
    assert again.out.endswith(f" UTC, nothing was changed; the copy has {COUNTS}\n")
    document = call("copy", "jobs.db", "third.db", "--batch", BATCH, "--json").document
    assert document == {
        "from": "jobs.db",
        "to": "third.db",
        "batches": [
            {
                "batch": BATCH,
                "items": {"pending": 3, "completed": 4, "failed": 5, "cancelled": 1},
                "failures": 8,
                "copied_before": None,
                "problem": None,
                "added": 0,
                "deleted": 0,
            }
        ],
    }


def test_a_copy_that_differs_at_the_end_has_the_exit_code_1(file: Path, call: Call) -> None:
    call("copy", "jobs.db", "new.db")
    execute("new.db", "UPDATE copies SET finished_at = NULL")
    execute("new.db", "UPDATE items SET status = 'cancelled' WHERE id = 'fine-1'")
    said = call("copy", "jobs.db", "new.db")
    assert said.code == 1
    assert said.out.startswith("shop: not completely copied: 13 items")
    assert "completed: 4 in the source, 3 in the target" in said.err
    assert rows_of("new.db", "SELECT finished_at FROM copies") == [(None,)]
    command = f"asyncrunner copy {Path('jobs.db').resolve()} new.db --restart"
    assert f"`{command}` deletes it there and copies it again" in said.err
    assert call(*command.split()[1:]) == (
        0, f"shop: copied: {COUNTS}\n", f"shop: deleting the incomplete copy from {file}: 13 items\n"
    )  # fmt: skip


def test_a_restart_names_the_items_that_other_programs_added_before_it_deletes_them(file: Path, call: Call) -> None:
    asyncio.run(stop_copy("jobs.db", "new.db"))
    execute("new.db", "INSERT INTO items (batch_id, id, payload) SELECT batch_id, 'open-2', '1' FROM batches")
    said = call("copy", "jobs.db", "new.db", "--batch", BATCH)
    assert said.code == 2
    command = f"asyncrunner copy {file} new.db --batch {BATCH} --restart"
    assert (
        f"another program added the item 'open-2' to the batch before its copy was complete. Stop that program; `{command}`"
        in (said.err)
    )
    assert call(*command.split()[1:]) == (
        0,
        f"shop: copied: {COUNTS}\n",
        f"shop: deleting the incomplete copy from {file}: 7 items, of which other programs added 1\n",
    )


def test_an_item_that_another_program_added_is_not_counted_as_copied(file: Path, call: Call) -> None:
    asyncio.run(stop_copy("jobs.db", "new.db"))
    execute("new.db", "INSERT INTO items (batch_id, id, payload) SELECT batch_id, 'new-1', '1' FROM batches")
    assert call("copy", "jobs.db", "new.db") == (0, f"shop: copied: {COUNTS}; other programs have added 1 item\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.db", "new.db"), "there is no database at"),
        (("jobs.db", "new.db", "--batch", "shpo"), "did you mean 'shop'?"),
        (("jobs.db", "jobs.db"), "is both the source and the target"),
        (("jobs.db", "mysql://host/db"), "not in mysql://..."),
        (("jobs.db",), "Missing argument 'TO'"),
    ],
)
def test_wrong_usage(file: Path, call: Call, arguments: tuple[str, ...], message: str) -> None:
    said = call("copy", *arguments)
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert not Path("new.db").exists()


def test_a_live_worker_is_named_with_the_command_that_stops_it(file: Path, call: Call) -> None:
    async def joined() -> Store:
        store = open_engine("jobs.db")
        await store.open()
        await store.join(WorkerInfo("w1", "here", 4711, "run", [BATCH]))
        return store

    with asyncio.Runner() as loop:
        store = loop.run(joined())
        said = call("copy", "jobs.db", "new.db")
        loop.run(store.close())
    assert said.code == 2
    assert "process 4711 on here; stop them first, for example with `asyncrunner stop --db jobs.db`" in said.err
