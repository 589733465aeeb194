"""The commands on a batch whose copy is not complete."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.copies import reason_of, stop_copy
from tests.support.files import BATCH
from tests.support.state import execute, snapshot
from tests.unit.cli.conftest import Call

pytestmark = pytest.mark.sqlite_file  # the target is a file; tests/unit/admin/test_incomplete_copies.py has each kind of store


@pytest.fixture
def half(file: Path) -> str:
    """A file with a space in its name, with an incomplete copy that an operator has resumed by hand."""
    target = "new jobs.db"
    asyncio.run(stop_copy("jobs.db", target))
    execute(target, "UPDATE batches SET paused = 0, stopped = NULL")
    return target


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "jobs.py:book", "--batch", BATCH),
        ("run", "jobs.py:book", "--batch", BATCH, "--dry-run"),
        ("work", "jobs.py:runner"),
        ("resume",),
        ("retry", "--failed"),
        ("rerun", "--all"),
        ("cancel", "--pending"),
        ("pause",),
        ("set", "concurrency", "3"),
        ("purge", "--before", "1d"),
    ],
)
def test_a_command_that_would_run_or_change_it_is_refused(half: str, call: Call, arguments: tuple[str, ...]) -> None:
    Path("jobs.py").write_text(
        "from asyncrunner import Runner\nrunner = Runner()\n@runner.handler(batch='shop')\nasync def book(item: str) -> None: ...\n"
    )
    before = snapshot(half)
    said = call(*arguments, "--db", half)
    assert (said.code, said.out) == (2, "")
    assert f"cannot be run or changed: {reason_of('jobs.db', half)}\n" in said.err
    assert " 'new jobs.db' --batch shop`" in said.err
    assert snapshot(half) == before


def test_status_check_and_doctor_name_the_command_that_completes_it(half: str, call: Call) -> None:
    reason = reason_of("jobs.db", half)
    status = call("status", "--db", half)
    assert f"  {reason}\n" in status.out
    assert "resume" not in status.out
    assert call("check", "--db", half) == (1, f"copy: shop: {reason}\n", "")
    doctor = call("doctor", "--db", half)
    assert [line.split(None, 2)[-1] for line in doctor.out.splitlines() if "batches" in line] == [f"'shop': {reason}"]
    asyncio.run(stop_copy("jobs.db", "new jobs.db", steps=1))  # pauses the batch again
    assert call("doctor", "--db", half).out.count("'shop'") == 1
    execute(half, "INSERT INTO batches (name, handler, options, created_at) VALUES ('other', 'h', '{}', '2026-01-01')")
    (line,) = [line for line in call("status", "--db", half).out.splitlines() if line.startswith("shop")]
    assert line.endswith("copy not done")
