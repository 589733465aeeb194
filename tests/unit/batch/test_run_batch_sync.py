"""``run_batch_sync``: without an event loop, and in a thread of its own where one runs."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextvars import ContextVar

import pytest

from asyncrunner import ConfigurationError, run_batch_sync
from tests.support.processes import Jobs

color: ContextVar[str] = ContextVar("color", default="none")
threads: set[str] = set()


async def double(number: int) -> int:
    threads.add(threading.current_thread().name)
    return 2 * number


async def colored(number: int) -> str:
    return color.get()


def test_a_program_without_a_loop_gets_the_report_and_the_results(db: str) -> None:
    threads.clear()
    report = run_batch_sync([3, 1], double, db=db)
    assert (report.completed, threads) == (2, {threading.current_thread().name})
    assert asyncio.run(report.results()) == [6, 2]


async def test_in_a_running_loop_the_batch_runs_in_a_thread_of_its_own(db: str) -> None:
    threads.clear()
    report = run_batch_sync([3, 1], double, db=db)
    assert (report.completed, threads) == (2, {"asyncrunner run_batch_sync"})
    assert await report.results() == [6, 2]
    assert not [thread for thread in threading.enumerate() if thread.name == "asyncrunner run_batch_sync"]


async def test_the_thread_has_the_context_variables_of_the_caller(db: str) -> None:
    color.set("blue")
    assert await run_batch_sync([1], colored, db=db).results() == ["blue"]


async def test_an_error_of_the_run_is_raised_in_the_calling_thread(db: str) -> None:
    with pytest.raises(ConfigurationError, match="concurrency"):
        run_batch_sync([1], double, db=db, concurrency=0)


async def test_a_handler_that_runs_its_own_batch_is_refused_in_a_thread_too(db: str) -> None:
    def handler(number: int) -> None:
        run_batch_sync([1], handler, db=db, batch="b")

    report = run_batch_sync([1], handler, db=db, batch="b", max_attempts=1)
    assert report.failed == 1
    assert "cannot run the batch" in report.failures[0].error


IN_A_LOOP = """
import asyncio, sys
sys.path.insert(0, ".")
from h import forever
from asyncrunner import run_batch_sync

async def main():
    run_batch_sync(range(3), forever, db="asyncrunner.db", batch="b")

try:
    if sys.argv[1] == "in a loop":
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
    elif sys.argv[1] == "in asyncio.run":
        asyncio.run(main())
    else:
        run_batch_sync(range(3), forever, db="asyncrunner.db", batch="b")
except KeyboardInterrupt:
    sys.exit(77)
"""


@pytest.mark.parametrize("where", ["in a loop", "in asyncio.run", "without a loop"])
def test_ctrl_c_releases_the_items(where: str, jobs: Jobs) -> None:
    process = jobs.start_script(IN_A_LOOP, where)
    jobs.until(lambda: len(jobs.lines("start")) == 3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 77, said
    assert jobs.query("SELECT status, attempts, crashes, count(*) FROM items GROUP BY 1, 2, 3") == [("pending", 0, 0, 3)]
    assert jobs.query("SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]
