"""The summary of a run says how to run the items of a bug again."""

from __future__ import annotations

import asyncio
import shlex
from typing import Any

import pytest

from asyncrunner import Fail, RetryPolicy, run_batch
from asyncrunner.batch.report import BatchReport
from asyncrunner.cli.render.summary import report_document, summary_text
from tests.support.leftovers import leave_pending
from tests.unit.cli.conftest import Call


def report_of(db: str, errors: list[Exception]) -> BatchReport[int, None]:
    async def handler(n: int) -> None:
        raise errors[n]

    at_once: Any = RetryPolicy(initial=0)
    return asyncio.run(run_batch(range(len(errors)), handler, db=db, batch="shop", max_attempts=2, retry=at_once))


def test_the_items_of_a_bug_among_other_causes_have_commands_of_their_own(db: str, call: Call) -> None:
    report = report_of(db, [KeyError("price"), KeyError("price"), OSError("no")])
    lines = summary_text(report, "m:h", "shop").splitlines()
    at = lines.index("KeyError looks like a bug in the handler. After you fix it, run only the items of this cause again:")
    assert lines[at + 1] == f"""  asyncrunner retry --error 'KeyError: '"'"'price'"'"'' --db {shlex.quote(db)} --batch shop"""
    assert lines[at + 2] == f"  asyncrunner run m:h --db {shlex.quote(db)} --batch shop"
    assert not any("OSError looks" in line for line in lines)
    assert "shop: 2 items pending again" in call("retry", "--error", "KeyError: 'price'", "--db", db, "--batch", "shop").out


def test_items_with_other_causes_than_those_that_are_shown_are_counted(db: str) -> None:
    errors = [type(f"{name}Error", (Exception,), {})("no") for name in "ABCDEFG"]
    report = report_of(db, errors)
    lines = summary_text(report, "m:h", None).splitlines()
    assert "  2 with other causes; `asyncrunner failures` shows all" in lines
    assert report_document(report, 0)["other_failures"] == 0, "the report has 20 causes"


def test_a_bug_that_is_the_only_cause_needs_no_other_command(db: str) -> None:
    lines = summary_text(report_of(db, [NameError("x")]), "m:h", None).splitlines()
    assert "NameError looks like a bug in the handler." in lines
    assert not any("asyncrunner retry" in line for line in lines)


@pytest.mark.parametrize("error", [TypeError("m" * 100), TypeError("\x1b[2J")], ids=["long", "not printable"])
def test_a_message_that_no_command_can_hold_is_left_out(error: Exception, db: str) -> None:
    text = summary_text(report_of(db, [error, OSError("no")]), "m:h", None)
    assert "  asyncrunner retry --error TypeError --db" in text


async def test_no_line_mixes_what_was_given_with_leftovers(db: str) -> None:
    await leave_pending(db, [*range(-5, 0), *range(100, 790)], batch="shop")

    async def handler(number: int) -> int:
        if number < 0:
            raise Fail("negative")
        return number

    report = await run_batch([1, 2, 3, 1, -5], handler, db=db, batch="shop")
    lines = summary_text(report, "m:h", "shop").splitlines()
    assert lines[:2] == [
        "shop: of what was given: 3 completed, 1 failed, 1 given more than once",
        "  of earlier runs: 690 completed, 4 failed",
    ]
    assert lines[2].startswith("  together: 698 attempts in ")
    assert lines[3] == "  1 x Fail: negative   (for example, item -5)"
    at = lines.index("Of the items of earlier runs, 4 failed. To see why:")
    assert lines[at + 1] == f"  asyncrunner failures --db {shlex.quote(db)} --batch shop"
    document = report_document(report, 0)
    assert document["leftovers"] == {"completed": 690, "failed": 4, "cancelled": 0, "pending": 0}
    assert (document["total"], document["completed"], document["failed"]) == (4, 3, 1)
