"""``run_in="process"``: a core for each item, and a child that dies fails only its own item."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import subprocess
import sys
import time
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import ConfigurationError, RetryPolicy, Runner, run_batch
from asyncrunner.backends import open_engine
from asyncrunner.batch.batch_run import BatchRun
from asyncrunner.domain.options import RunOptions
from asyncrunner.domain.outcome import PutOff
from asyncrunner.events import Settled
from asyncrunner.execution import process_handler
from asyncrunner.runner.runner import internals_of
from asyncrunner.testing import FakeClock
from asyncrunner.text.timestamps import from_text
from tests.conftest import Until
from tests.support import child_handlers
from tests.support.state import rows_of

InMemory = Callable[[Runner], Awaitable[FakeClock]]


async def test_items_and_results_keep_their_types(db: str) -> None:
    jobs = [child_handlers.Job(number) for number in range(6)]
    report = await run_batch(jobs, child_handlers.square, db=db, run_in="process", concurrency=2)
    assert [outcome.result async for outcome in report.outcomes()] == [child_handlers.Job(n * n) for n in range(6)]


async def test_a_child_is_another_process_and_gets_the_attempt(db: str) -> None:
    report = await run_batch([5], child_handlers.whoami, db=db, run_in="process", batch="b")
    (outcome,) = [outcome async for outcome in report.outcomes()]
    pid, *rest = outcome.result or []
    assert pid != os.getpid()
    assert rest == [1, "5", "b/5", None]


@pytest.mark.parametrize("handler", [child_handlers.segfault, child_handlers.leave])
async def test_a_child_that_dies_fails_its_own_item_and_no_other(handler: Callable[[int], int], db: str) -> None:
    report = await run_batch(
        range(8), handler, db=db, run_in="process", concurrency=2, max_attempts=2, retry=RetryPolicy(initial=0.01)
    )
    assert (report.completed, report.failed) == (7, 1)
    ((key, error, attempts, crashes),) = rows_of(db, "SELECT id, error, attempts, crashes FROM items WHERE status = 'failed'")
    assert (key, attempts, crashes) == ("3", 2, 0)
    assert error.startswith("ChildDied: the process that ran")
    assert rows_of(db, "SELECT max(attempts) FROM items WHERE id <> '3'") == [(1,)]


@pytest.mark.parametrize(
    ("kind", "status", "error", "due"),
    [
        ("value", "pending", "ValueError: in the child", (0, 1)),
        ("fail", "failed", "Fail: permanently", None),
        ("retry", "pending", "Retry: later", (29, 32)),
        ("odd", "pending", "tests.support.child_handlers.OddError: code 5", (0, 1)),
        ("exit", "pending", "SystemExit: 3", (0, 1)),
        ("lambda", "failed", "ResultNotStorable: the handler returned function", None),
        ("local", "pending", "tests.support.child_handlers.raises.<locals>.LocalError: not to be found", (0, 1)),
    ],
)
async def test_an_error_in_a_child_is_the_error_of_the_handler(
    kind: str, status: str, error: str, due: tuple[int, int] | None, db: str, until: Until
) -> None:
    runner = Runner(db)
    handler = runner.handler(run_in="process", retry=RetryPolicy(initial=1.0))(child_handlers.raises)
    async with runner:
        await handler.submit(kind)
        await until(lambda: rows_of(db, "SELECT 1 FROM failures"))
    ((found, text, due_at),) = rows_of(db, "SELECT status, error, due_at FROM items")
    ((failed_at,),) = rows_of(db, "SELECT failed_at FROM failures")
    assert found == status
    assert text.startswith(error)
    if due is not None:
        delay = (from_text(due_at) or 0) - (from_text(failed_at) or 0)
        assert due[0] <= delay <= due[1] + 0.001
    ((trace,),) = rows_of(db, "SELECT traceback FROM failures")
    assert "child_handlers.py" in trace or kind == "lambda"
    assert "asyncrunner/execution/" not in trace.split("\n")[1]


async def test_an_http_answer_in_a_child_puts_the_item_off(db: str, until: Until) -> None:
    runner = Runner(db)
    handler = runner.handler(run_in="process")(child_handlers.raises)
    outcomes: list[Any] = []
    runner.on(Settled, lambda settled: outcomes.append(settled.outcome))
    async with runner:
        await handler.submit("http")
        await until(lambda: outcomes)
    assert (type(outcomes[0]), outcomes[0].after, outcomes[0].error.type) == (PutOff, 77.0, "httpx.HTTPStatusError")


@pytest.mark.parametrize("file", [None, "<stdin>", "/nowhere/cell.py"])
def test_a_function_of_a_notebook_is_refused(file: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    main = types.ModuleType("__main__")
    if file is not None:
        main.__file__ = file

    def cell(n: int) -> int:
        return n

    cell.__module__, cell.__qualname__ = "__main__", "cell"
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(ConfigurationError, match=r"cell is defined in a notebook or at a prompt.*\.py file"):
        Runner().handler(run_in="process")(cell)


async def test_a_program_of_a_handler_in_a_process_can_be_terminated(db: str) -> None:
    report = await run_batch([1], child_handlers.terminates, db=db, run_in="process", timeout=60, max_attempts=1)
    assert [outcome.result async for outcome in report.outcomes()] == [[-signal.SIGTERM, -signal.SIGTERM]]


async def test_the_output_of_a_handler_and_of_its_children_is_not_part_of_the_answer(db: str) -> None:
    report = await run_batch(range(3), child_handlers.noisy, db=db, run_in="process", concurrency=1, max_attempts=1)
    assert [outcome.result async for outcome in report.outcomes()] == ["'' b''"] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
@pytest.mark.sqlite_file
def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    command = [
        sys.executable,
        "-m",
        "asyncrunner",
        "run",
        "tests.support.child_handlers:slow_and_noted",
        "items.txt",
        "--run-in",
        "process",
    ]
    (tmp_path / "items.txt").write_text("1\n")
    process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up_at = time.monotonic() + 30
    while not ((tmp_path / "pids").exists() and (tmp_path / "pids").read_text().endswith("\n")):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    process.kill()
    process.wait()
    while _runs(int((tmp_path / "pids").read_text())):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


async def test_a_timeout_kills_the_child(db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Until) -> None:
    pid_file, clock = tmp_path / "pid", FakeClock()
    monkeypatch.setenv("PID_FILE", str(pid_file))
    options = RunOptions.of("run_batch", {"db": db, "run_in": "process", "timeout": 5, "max_attempts": 1})
    run: BatchRun[int, None] = BatchRun([1], child_handlers.forever, options, clock=clock)
    async with run:
        await until(lambda: pid_file.exists() and pid_file.read_text() != "")
        await clock.advance(5)
        report = await run.finish()
    assert report.failed == 1
    assert rows_of(db, "SELECT error FROM items")[0][0].startswith("AttemptTimeout")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


async def test_a_handler_under_a_decorator_is_found(db: str) -> None:
    runner = child_handlers.decorated
    handler = child_handlers.under_a_decorator
    await internals_of(runner).start(store=open_engine(db))
    try:
        assert await (await handler.submit(1)).result(30) == 2
    finally:
        await runner.stop()


@pytest.mark.parametrize(
    "handler",
    [lambda item: item, functools.partial(child_handlers.square), child_handlers.in_the_loop, len],
    ids=["lambda", "partial", "async", "builtin"],
)
def test_a_handler_that_a_child_could_not_find_is_refused_at_registration(handler: Any) -> None:
    with pytest.raises(ConfigurationError, match='run_in="process"'):
        Runner().handler(run_in="process", batch="b")(handler)


def test_an_async_handler_does_not_run_in_threads() -> None:
    with pytest.raises(ConfigurationError, match="runs in the event loop"):
        Runner().handler(run_in="thread")(child_handlers.in_the_loop)
    with pytest.raises(ConfigurationError, match="give one of 'thread', 'process'"):
        Runner().handler(run_in="fork")(child_handlers.square)  # type: ignore[call-overload]


SCRIPT = """
import asyncio, os
from asyncrunner import run_batch

class MyError(Exception):
    pass

def work(n: int) -> int:
    if n == 2:
        raise MyError("two")
    return n * 10

async def main() -> None:
    from asyncrunner import RetryPolicy
    report = await run_batch(range(4), work, db="jobs.db", run_in="process", retry=RetryPolicy(permanent=MyError))
    async for outcome in report.outcomes():
        print(outcome.id, outcome.result, outcome.error, outcome.attempts)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.sqlite_file
def test_a_script_may_run_its_own_functions_and_leaves_no_process_running(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    # asyncio logs this harmless warning when its transport reaps a child before its watcher (python/cpython#86276).
    said = [line for line in done.stderr.splitlines() if not line.startswith("Unknown child process pid")]
    assert (done.returncode, said) == (0, [])
    assert done.stdout.splitlines() == ["0 0 None 1", "1 10 None 1", "2 None __main__.MyError: two 1", "3 30 None 1"]


async def test_a_stop_releases_the_item_and_kills_the_child(db: str, tmp_path: Path, monkeypatch: Any, until: Until) -> None:
    pid_file = tmp_path / "pid"
    monkeypatch.setenv("PID_FILE", str(pid_file))
    runner = Runner(db, shutdown_timeout=0)
    handler = runner.handler(run_in="process")(child_handlers.forever)
    async with runner:
        await handler.submit(1)
        await until(lambda: pid_file.exists() and pid_file.read_text())
    assert rows_of(db, "SELECT status, attempts FROM items") == [("pending", 0)]
    await until(lambda: not _runs(int(pid_file.read_text())))


def run_here(name: str, payload: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the code of a child in this process and return its answer."""
    monkeypatch.setattr(process_handler, "leave_signals_to_parent", lambda: None)
    return process_handler._run_here("tests.support.child_handlers", None, name, "b", (1, 1, "k", payload, 1, 2, 0, '"saved"'), 3)


@pytest.mark.parametrize("kind", ["value", "fail", "retry", "odd", "http", "exit", "lambda", "local"])
def test_every_answer_of_a_child_can_be_pickled(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = run_here("raises", f'"{kind}"', monkeypatch)
    again = pickle.loads(pickle.dumps(answer))
    assert again == answer


def test_a_child_answers_with_json_and_gets_its_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_here("square", '{"number":3}', monkeypatch) == '{"number":9}'
    assert run_here("whoami", "1", monkeypatch) == f'[{os.getpid()},2,"k","b/k","saved"]'
    assert run_here("under_a_decorator", "1", monkeypatch) == "2"
    assert (
        run_here("missing", "1", monkeypatch)
        .info[1]
        .startswith("the process cannot find missing in tests.support.child_handlers")
    )
    assert run_here("square", '"x"', monkeypatch).info[0] == "PayloadUnreadable"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
