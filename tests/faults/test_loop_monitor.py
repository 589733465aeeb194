"""Row 14: a handler that blocks the event loop. The process keeps its items, and the report names the item."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path

import pytest

from asyncrunner import Runner
from asyncrunner.runner.duties.loop_monitor import BlockDetector, LoopMonitor
from tests.support.processes import Jobs
from tests.support.state import rows_of

BLOCKING = """
import asyncio, os, time

LOG = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

def note(what, n):
    os.write(LOG, f"{what} {n} {os.getpid()}\\n".encode())

async def block(n: int) -> int:
    note("start", n)
    if n == 0:
        time.sleep(4)
    await asyncio.sleep(0.01)
    note("end", n)
    return n
"""


def test_row_14_a_gap_is_a_block_if_the_monitor_saw_it_or_the_process_used_cpu() -> None:
    detector = BlockDetector(0.0, 0.0)
    assert detector.look(0.5) is None
    assert detector.tick(0.625, 0.0) is None
    assert detector.look(1.0) is None
    assert detector.check_at == 1.625, "a second after the last tick"
    assert [detector.look(1.75), detector.look(2.0), detector.look(2.25)] == [1.125, None, None], "each block is reported once"
    assert detector.tick(3.625, 0.0) == 3.0
    assert (detector.blocks, detector.longest) == (1, 3.0)
    assert detector.tick(13.625, 9.0) == 10.0, "a C call hides the loop from the monitor, but uses CPU"
    assert (detector.blocks, detector.longest) == (2, 10.0)


def test_row_16_a_process_that_was_stopped_was_not_blocked() -> None:
    detector = BlockDetector(0.0, 0.0)
    assert detector.look(3600.0) is None, "the thread slept as long as the loop"
    assert detector.tick(3600.1, 0.01) is None
    assert detector.blocks == 0
    assert detector.look(detector.check_at) is None
    assert detector.look(detector.check_at) == 1.0, "the next block is detected as soon as it lasts a second"


async def test_row_14_a_blocked_loop_is_reported_with_the_item_and_the_stack_and_counted(
    db: str, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Runner(db, concurrency=5)

    @runner.handler(batch="b")
    async def block(n: int) -> int:
        if n == 0:
            time.sleep(1.6)
        return n

    caplog.set_level(logging.WARNING, "asyncrunner")
    async with runner:
        handle = await block.submit(0, key="the guilty")
        assert await handle.result(timeout=20) == 0
        while not rows_of(db, "SELECT loop_blocks FROM workers WHERE loop_blocks = 1"):
            await asyncio.sleep(0.02)
        ((longest,),) = rows_of(db, "SELECT longest_block FROM workers")
    assert 1.0 < longest < 15
    during, after = (record for record in caplog.records if "blocked" in record.message)
    assert "blocked for 1." in during.message
    assert "by the handler of item 'the guilty' of 'b'" in during.message
    assert "time.sleep(1.6)" in during.message
    assert "asyncrunner/worker/" not in during.message
    assert "by the handler of item 'the guilty' of 'b'" in after.message
    assert (during.item, during.batch) == ("the guilty", "b")  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "asyncrunner loop monitor"]


async def test_row_14_a_block_outside_of_handlers_is_reported_as_such(caplog: pytest.LogCaptureFixture) -> None:
    monitor = LoopMonitor(list)
    monitor.start()
    time.sleep(1.6)
    await asyncio.sleep(0.3)
    monitor.stop()
    assert "by code outside the handlers" in caplog.text
    assert "test_loop_monitor.py" in caplog.text


@pytest.mark.sqlite_file
def test_row_14_a_blocked_process_keeps_its_items_and_status_reports_the_block(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    (tmp_path / "p.py").write_text(BLOCKING)
    blocked = jobs.start("run", "p.py:block", jobs.items(20), "-c", "5", "--batch", "b")
    try:
        jobs.until(lambda: jobs.runs("start")[0] == 1)
        other = jobs.start("run", "p.py:block", "--batch", "b", "-c", "5", "--quiet")
        _, said = blocked.communicate(timeout=60)
        assert (blocked.returncode, other.wait(30)) == (0, 0), said
    finally:
        jobs.kill()
    assert jobs.runs("start") == jobs.runs("end") == dict.fromkeys(range(20), 1)
    assert jobs.query("SELECT max(attempts), sum(crashes), max(status) FROM items") == [(1, 0, "completed")]
    assert "the event loop has been blocked for" in said
    assert "time.sleep(4)" in said
    assert jobs.query("SELECT count(*) FROM workers WHERE loop_blocks = 1 AND longest_block > 3") == [(1,)]
