"""run_batch with ``processes=``: real child processes run the handlers of this one."""

from __future__ import annotations

import asyncio
import functools
import os
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import BatchReport, ConfigurationError, ProgressUpdate, RetryPolicy, run_batch, run_batch_sync, stream_batch
from asyncrunner.batch.processes.settings import shares_of
from asyncrunner.errors import SetupFailed
from tests.conftest import Until
from tests.support import cpu_handlers
from tests.support.state import rows_of

pytestmark = pytest.mark.sqlite_file


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


async def run(items: Any, handler: Any, **options: Any) -> BatchReport[Any, Any]:
    return await run_batch(items, handler, db="jobs.db", **{"processes": 2, **options})


async def test_two_children_run_every_item_once_and_the_report_counts_for_all_of_them() -> None:
    report = await run(range(50), cpu_handlers.pid_of)
    pids = Counter(await report.results())
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert (report.total, report.completed, report.attempts, report.retried, report.stopped) == (50, 50, 50, 0, None)
    assert rows_of(Path("jobs.db"), "SELECT DISTINCT status, attempts FROM items") == [("completed", 1)]
    assert rows_of(Path("jobs.db"), "SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]
    again = await run(None, cpu_handlers.pid_of)
    assert (again.completed, again.skipped, again.attempts) == (0, 50, 0)


async def test_the_parent_counts_no_attempts_of_its_children(until: Until) -> None:
    running = asyncio.create_task(run(range(8), cpu_handlers.fails_or_waits, max_attempts=1, concurrency=4))
    is_parent = f"pid = {os.getpid()}"
    totals = f"SELECT {is_parent}, sum(items_processed), sum(items_failed) FROM workers GROUP BY 1 ORDER BY 1"
    parent = f"SELECT last_heartbeat FROM workers WHERE {is_parent}"
    await until(Path("jobs.db").exists)
    await until(lambda: rows_of(Path("jobs.db"), totals)[:1] == [(0, 6, 6)])
    heartbeat = rows_of(Path("jobs.db"), parent)
    await until(lambda: rows_of(Path("jobs.db"), parent) != heartbeat)
    assert rows_of(Path("jobs.db"), totals) == [(0, 6, 6), (1, 0, 0)]
    Path("go").touch()
    report = await running
    assert (report.failed, report.completed, report.attempts) == (6, 2, 8)


@pytest.mark.parametrize(
    ("concurrency", "processes", "shares"),
    [(10, 4, [3, 3, 2, 2]), (4, 4, [1, 1, 1, 1]), (2, 4, [1, 1]), (1, 8, [1]), (7, 1, [7])],
)
def test_the_shares_of_the_concurrency_are_as_equal_as_possible(concurrency: int, processes: int, shares: list[int]) -> None:
    assert shares_of(concurrency, processes) == shares


async def test_a_concurrency_of_one_makes_one_child() -> None:
    report = await run(range(5), cpu_handlers.in_thread, concurrency=1, processes=4)
    assert len(set(await report.results())) == 1


async def test_setup_is_entered_and_left_once_in_each_child() -> None:
    report = await run(range(20), cpu_handlers.with_setup, setup=cpu_handlers.counted_setup)
    pids = {value.removeprefix("of ") for value in await report.results()}
    assert len(pids) == 2
    lines = Counter(Path("setup").read_text().splitlines())
    assert lines == {f"{what} {pid}": 1 for what in ("enter", "leave") for pid in pids}


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_setup_that_fails_ends_the_run_and_charges_no_item(processes: int) -> None:
    with pytest.raises(SetupFailed) as failure:
        await run(range(5), cpu_handlers.with_setup, setup=cpu_handlers.failing_setup, processes=processes)
    assert failure.value.error == "ConnectionError: the service is away"
    assert re.fullmatch(
        r"setup=failing_setup failed at the start: ConnectionError: the service is away, line \d+ of .*cpu_handlers.py; "
        "no item has lost an attempt",
        str(failure.value),
    )
    if processes > 1:  # the setup of this process is entered before the file is created
        assert rows_of(Path("jobs.db"), "SELECT DISTINCT status, attempts FROM items") in ([], [("pending", 0)])


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_setup_that_cannot_be_left_is_raised_after_the_outcomes_are_saved(processes: int) -> None:
    with pytest.raises(SetupFailed, match=r"setup=unclosable failed when it was left: OSError: cannot be closed, line"):
        await run(range(5), cpu_handlers.with_value, setup=cpu_handlers.unclosable, processes=processes)
    assert rows_of(Path("jobs.db"), "SELECT DISTINCT status, attempts FROM items") == [("completed", 1)]


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_setup_without_a_context_manager_is_a_mistake_in_the_options(processes: int) -> None:
    with pytest.raises(ConfigurationError, match=r"setup= must return an async context manager, and no_manager\(\) returned int"):
        await run(range(5), cpu_handlers.with_value, setup=cpu_handlers.no_manager, processes=processes)


async def test_a_partial_passes_its_values_as_json() -> None:
    handler = functools.partial(cpu_handlers.scaled, factor=3, names=["a", "b"])
    report = await run([1, 2], handler, batch="b")
    assert await report.results() == [[3, ["a", "b"]], [6, ["a", "b"]]]


async def test_max_failures_counts_the_failed_items_of_all_children() -> None:
    handler = cpu_handlers.fails_five_times_in_each_process  # so no child reaches the limit alone
    report = await run(range(2_000), handler, max_attempts=1, max_failures=8, concurrency=2)
    stopped = re.fullmatch(r"(\d+) items failed: the limit max_failures=8 is reached", report.stopped or "")
    assert stopped is not None  # both children may fail an item in the turn that reaches the limit
    assert 8 <= int(stopped[1]) <= report.failed <= 10
    assert report.pending
    assert report.completed + report.failed + report.pending == report.total


@pytest.mark.parametrize("retry", [{"permanent": cpu_handlers.OddError}, {"permanent": cpu_handlers.is_odd}, {"on": (KeyError,)}])
async def test_children_have_the_retry_policy(retry: dict[str, Any]) -> None:
    report = await run(range(2), cpu_handlers.fails_once, retry=RetryPolicy(initial=0, **retry))
    assert (report.failed, report.attempts, report.retried) == (2, 2, 0)


async def test_children_retry_other_errors() -> None:
    report = await run(range(2), cpu_handlers.fails_once, retry=RetryPolicy(initial=0, on=cpu_handlers.OddError))
    assert (report.completed, report.attempts, report.retried) == (2, 4, 2)


async def test_a_deadline_that_has_passed_stops_the_run() -> None:
    report = await run(range(5), cpu_handlers.in_thread, deadline=datetime(2020, 1, 1, tzinfo=UTC))
    assert report.stopped == "its deadline passed (2020-01-01 00:00:00 UTC)"
    assert report.completed == 0


async def test_a_child_that_ends_with_exit_code_0_is_replaced_too() -> None:
    report = await run(range(6), cpu_handlers.leaves, concurrency=1)
    assert await report.results() == list(range(6))


async def test_what_children_log_is_logged_here(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "asyncrunner"):
        await run([7], cpu_handlers.fails, max_attempts=1, batch="b")
    (record,) = [record for record in caplog.records if "ValueError: no number is right" in record.getMessage()]
    assert {name: getattr(record, name) for name in ("batch", "item", "attempt")} == {"batch": "b", "item": "7", "attempt": 1}


async def test_leftovers_stay_pending() -> None:
    first = await run(range(30), cpu_handlers.fails, max_attempts=1, max_failures=1, batch="b")
    assert first.pending
    report = await run([28, 29, 28], cpu_handlers.in_thread, batch="b", leftovers="leave", max_attempts=2)
    assert (report.total, report.completed, report.duplicates) == (2, 2, 1)
    assert [key for (key,) in rows_of(Path("jobs.db"), "SELECT id FROM items WHERE status = 'completed' ORDER BY seq")] == [
        "28",
        "29",
    ]


async def test_another_version_runs_completed_items_again() -> None:
    await run(range(4), cpu_handlers.in_thread, version="one")
    report = await run(range(4), cpu_handlers.in_thread, version="two")
    assert (report.completed, report.skipped, report.attempts) == (4, 0, 4)


async def test_the_progress_ends_with_the_items_of_all_children() -> None:
    updates: list[ProgressUpdate] = []
    await run(range(30), cpu_handlers.pid_of, progress=updates.append)
    assert (updates[-1].done, updates[-1].total) == (30, 30)


async def test_a_source_of_unknown_length_is_read_on_while_children_finish_its_items() -> None:
    numbers = (number for number in range(12_000))  # more than may be stored and not done
    report = await run(numbers, cpu_handlers.scaled, batch="b")
    assert report.completed == 12_000


def test_run_batch_sync_has_processes() -> None:
    report = run_batch_sync(range(10), cpu_handlers.pid_of, db="jobs.db", processes=2)
    assert report.completed == 10


# --- what other processes cannot import ------------------------------------------------------------------------------


async def local(number: int) -> int:
    return number


local.__qualname__ = "test.<locals>.local"


def wrapped(number: int) -> int:
    return number


wrapped_twin = wrapped
ODD: Any = object()
TUPLE: Any = (1,)
NAN: Any = float("nan")


def wrapped(number: int) -> int:  # type: ignore[no-redef]
    return -number


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (lambda number: number, "the handler is a lambda: write a function and define it at the top level of a .py file"),
        (local, "the handler is test.<locals>.local, a local function: define it at the top level"),
        (cpu_handlers.Methods().handle, "the handler is the bound method Methods.handle: write a function"),
        (cpu_handlers.Methods(), "the handler is an object of Methods, not a function: write a function"),
        (
            wrapped_twin,
            "the handler is wrapped, and its module tests.unit.batch.test_processes has another object under this name",
        ),
        (functools.partial(cpu_handlers.scaled, factor=TUPLE), r"a functools.partial with factor=\(1,\): give text, numbers"),
        (functools.partial(cpu_handlers.scaled, names=[ODD]), "a functools.partial with names="),
        (functools.partial(cpu_handlers.scaled, factor=NAN), "a functools.partial with factor=nan"),
    ],
)
async def test_a_handler_that_no_other_process_can_import_is_refused_at_the_call(handler: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"processes=2 runs handlers in other processes.*{message}"):
        await run([1], handler, batch="b")
    assert not Path("jobs.db").exists()


async def test_a_function_of_a_notebook_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cell(number: int) -> int:
        return number

    cell.__qualname__, cell.__module__ = "cell", "__main__"
    monkeypatch.setattr("sys.modules", {**__import__("sys").modules, "__main__": type("Main", (), {"__spec__": None})})
    with pytest.raises(
        ConfigurationError, match=r"the handler is cell, defined in a notebook or at a prompt, .* move it to a .py file"
    ):
        await run([1], cell, batch="b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run_in": "process"}, "processes=2 and run_in='process' cannot be combined"),
        ({"processes": 0}, "processes=0: give a whole number of at least 1"),
        ({"processes": 1001}, "processes=1001: give at most 1,000"),
        ({"retry": RetryPolicy(permanent=lambda error: True)}, r"RetryPolicy\(permanent=...\) is a lambda"),
    ],
)
async def test_options_that_children_cannot_have_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await run([1], cpu_handlers.in_thread, **options)


def test_a_stream_has_no_child_processes() -> None:
    with pytest.raises(ConfigurationError, match=r"leave out processes=, or use run_batch\(\) and read report.outcomes\(\)"):
        stream_batch([1], cpu_handlers.in_thread, db="jobs.db", processes=2)
