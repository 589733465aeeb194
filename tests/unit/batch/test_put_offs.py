"""Items that a service or their handler puts off: what people read about them."""

from __future__ import annotations

import pytest

from asyncrunner import Control, Later, run_batch
from asyncrunner.backends import open_engine
from asyncrunner.cli.render.inspect import item_lines
from asyncrunner.cli.render.status import display_lines, status_lines
from asyncrunner.cli.render.summary import report_document, summary_text
from asyncrunner.domain.outcome import PutOff
from asyncrunner.testing import FakeClock
from tests.contract.stores import BOOM, NOW, batch_of, claim, joined, settle


async def test_put_offs_are_in_the_report_the_summary_and_the_status(db: str) -> None:
    seen: set[int] = set()

    async def handler(n: int) -> int:
        if n not in seen:
            seen.add(n)
            raise Later("still running", after=0)
        return n

    report = await run_batch(range(3), handler, db=db, max_attempts=1, batch="b")
    assert (report.completed, report.put_offs, report.retried, report.attempts) == (3, 3, 0, 3)
    assert ", 3 times put off in " in summary_text(report, "m:h", None)
    assert report_document(report, 0)["put_offs"] == 3
    async with Control(db) as control:
        status = await control.status()
    assert "  3 put-offs, which cost no attempt" in status_lines(status)
    assert "  3 put-offs, which cost no attempt" in display_lines(status, 1.0, 120, 40)


@pytest.mark.parametrize(("count", "text"), [(1, "1 put-off, "), (2, "2 put-offs, ")])
async def test_show_has_since_when_an_item_is_put_off_and_when_it_fails(count: int, text: str, db: str) -> None:
    store = open_engine(db, clock=FakeClock(NOW))
    await store.open()
    batch_id = await batch_of(store, ["a"])
    await joined(store, "w")
    for _ in range(count):
        (held,) = await claim(store, batch_id)
        await settle(store, held, PutOff(BOOM, 0.0))
    await store.close()
    async with Control(db) as control:
        item = await control.show("a")
    lines = list(item_lines(item, "jobs.db", NOW + 180))
    assert f"0 attempts, {text}which cost no attempt" in lines[1]
    assert lines[2] == "  has been put off for 3 min 00 s; fails after 6 h 00 min"
