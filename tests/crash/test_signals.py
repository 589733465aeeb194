"""Signals and broken streams, with real processes: a stop never depends on output, on a handler, or on a child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.processes import Jobs

HANDLERS = """
import signal, socket, subprocess, threading

async def blocks(n: int) -> None:
    note("start", n)
    time.sleep(3600)

async def blocks_in_recv(n: int) -> None:
    pair = socket.socketpair()
    note("start", n)
    pair[0].recv(1)

async def blocks_in_lock(n: int) -> None:
    lock = threading.Lock()
    lock.acquire()
    note("start", n)
    lock.acquire()

async def blocks_in_run(n: int) -> None:
    note("start", n)
    subprocess.run(["cat"], stdin=os.pipe()[0])  # it ends with this process, which has the writing end

async def blocks_in_print(n: int) -> None:
    note("start", n)
    print("x" * 10_000_000, flush=True)

async def blocks_after_setting_a_wakeup_descriptor(n: int) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
    await blocks(n)

async def gated(n: int) -> int:
    note("start", n)
    while not os.path.exists("gate"):
        await asyncio.sleep(0.01)
    print("the handler prints", n)
    print("and writes an error", n, file=sys.stderr)
    note("end", n)
    return n
"""

STATES = "SELECT status, attempts, count(*) FROM items GROUP BY 1, 2 ORDER BY 1"


def start(jobs: Jobs, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command line in a session of its own, without pipes by default."""
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncrunner", *arguments],
        cwd=jobs.folder,
        start_new_session=True,
        **{"env": {**os.environ, "LOG": str(jobs.log)}, **streams, **options},
    )
    jobs.processes.append(process)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_row_54_a_signal_stops_a_run_whose_reader_is_dead_and_handlers_may_print(number: signal.Signals, jobs: Jobs) -> None:
    jobs.handlers(HANDLERS)
    reading, writing = os.pipe()
    process = start(jobs, "run", "h.py:gated", jobs.items(8), "-c", "3", stdout=writing, stderr=writing)
    os.close(writing)
    jobs.until(lambda: len(jobs.lines("start")) == 3)
    os.close(reading)
    process.send_signal(number)
    # The drain has begun once the worker has stopped claiming; a run that continues would complete all eight.
    (jobs.folder / "gate").touch()
    assert process.wait(60) == 130
    finished = len(jobs.lines("end"))
    assert jobs.runs("start") == jobs.runs("end")
    assert jobs.query(STATES) == [("completed", 1, finished), ("pending", 0, 8 - finished)]


def closing(*descriptors: int) -> Callable[[], None]:
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return close


@pytest.mark.parametrize("closed", [(0, 1, 2), (2,), (1,)])
def test_row_54_streams_that_were_closed_from_the_start_change_nothing(closed: tuple[int, ...], jobs: Jobs) -> None:
    jobs.handlers(HANDLERS)
    (jobs.folder / "gate").touch()
    streams = {("stdin", "stdout", "stderr")[each]: None for each in closed}
    process = start(jobs, "run", "h.py:gated", jobs.items(3), preexec_fn=closing(*closed), **streams)
    assert process.wait(60) == 0
    assert jobs.query(STATES) == [("completed", 1, 3)]
    process = start(
        jobs, "run", "h.py:forever", "--batch", "h:gated", jobs.items(5), "--shutdown-timeout", "0.1",
        preexec_fn=closing(*closed), **streams,
    )  # fmt: skip
    jobs.until(lambda: len(jobs.lines("start")) == 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert jobs.query("PRAGMA integrity_check") == [("ok",)]
    assert jobs.query(STATES) == [("completed", 1, 3), ("pending", 0, 2)]


def test_a_hangup_that_nohup_ignores_does_not_stop_a_run(jobs: Jobs) -> None:
    jobs.handlers(HANDLERS)
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    process = start(jobs, "run", "h.py:gated", jobs.items(8), "-c", "2", preexec_fn=ignore)
    jobs.until(lambda: len(jobs.lines("start")) == 2)
    process.send_signal(signal.SIGHUP)
    (jobs.folder / "gate").touch()
    assert process.wait(60) == 0
    assert jobs.query(STATES) == [("completed", 1, 8)]


UNMEASURED = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}


def default_actions() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def end_blocked(process: subprocess.Popen[bytes], jobs: Jobs) -> None:
    """Send SIGINT until *process* has ended, and check its exit code."""
    jobs.until(lambda: len(jobs.lines("start")) == 1)

    def has_ended_after_another_one() -> bool:
        process.send_signal(signal.SIGINT)
        return process.poll() is not None

    jobs.until(has_ended_after_another_one)
    assert process.returncode == 130


@pytest.mark.parametrize(
    "handler",
    [
        "blocks",
        "blocks_in_recv",
        "blocks_in_lock",
        "blocks_in_run",
        "blocks_in_print",
        "blocks_after_setting_a_wakeup_descriptor",
    ],
)
def test_the_third_signal_ends_a_process_whose_event_loop_a_handler_blocks(handler: str, jobs: Jobs) -> None:
    jobs.handlers(HANDLERS)
    env = {**os.environ, "LOG": str(jobs.log), **UNMEASURED}
    process = start(
        jobs, "run", f"h.py:{handler}", "--batch", "b", jobs.items(1),
        stdout=subprocess.PIPE, preexec_fn=default_actions, env=env,
    )  # fmt: skip
    end_blocked(process, jobs)
    code, said = jobs.run("run", "h.py:work", "--batch", "b")
    assert (code, jobs.query(STATES)) == (0, [("completed", 2, 1)]), said


WORKER = """
from asyncrunner import Runner

runner = Runner("asyncrunner.db")
runner.handler(batch="b")(blocks_in_recv)
"""

SUBMITTING = """
import asyncio, h
from asyncrunner import Client

async def main():
    async with Client("asyncrunner.db") as client:
        await client.submit(h.runner.handlers["b"], 1)

asyncio.run(main())
"""


def test_the_third_signal_ends_a_worker_that_a_system_call_blocks(jobs: Jobs) -> None:
    jobs.handlers(HANDLERS + WORKER)
    (jobs.folder / "submit.py").write_text(SUBMITTING)
    env = {**os.environ, "LOG": str(jobs.log), **UNMEASURED}
    subprocess.run([sys.executable, "submit.py"], cwd=jobs.folder, env=env, check=True, timeout=60)
    end_blocked(start(jobs, "work", "h:runner", preexec_fn=default_actions, env=env), jobs)
    assert jobs.query(STATES) == [("processing", 1, 1)]


def test_further_signals_do_not_end_a_process_whose_event_loop_handles_them(jobs: Jobs) -> None:
    jobs.handlers(HANDLERS)
    env = {**os.environ, "LOG": str(jobs.log), **UNMEASURED}
    process = start(jobs, "run", "h.py:stubborn", jobs.items(1), preexec_fn=default_actions, env=env)
    jobs.until(lambda: len(jobs.lines("start")) == 1)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)  # signals that arrive together are one
    assert process.wait(60) == 130
    assert jobs.query(STATES) == [("pending", 0, 1)]  # it was released after the grace period of 3 s


STOPPED_AT_THE_START = """
import signal
from asyncrunner.batch.batch_run import BatchRun

begin = BatchRun._begin

async def begin_after_the_stop(run):
    for _ in range(2 if os.environ["WHEN"] == "cancelled" else 1):
        os.kill(os.getpid(), signal.SIGTERM)
        while run._stopped is None:
            await asyncio.sleep(0)
    if os.environ["WHEN"] != "draining":
        await asyncio.wait({run._internals.engine_task})
    await begin(run)

if "WHEN" in os.environ:
    BatchRun._begin = begin_after_the_stop
"""


@pytest.mark.parametrize("when", ["draining", "closed", "cancelled"])
def test_a_signal_between_the_opening_of_the_file_and_the_first_item_stops_the_run_in_order(when: str, jobs: Jobs) -> None:
    jobs.handlers(STOPPED_AT_THE_START)
    assert jobs.run("run", "h.py:work", "--batch", "b", jobs.items(2))[0] == 0
    env = {**os.environ, "LOG": str(jobs.log), "WHEN": when, **UNMEASURED}
    process = start(
        jobs, "run", "h.py:work", "--batch", "b", jobs.items(5),
        stderr=subprocess.PIPE, preexec_fn=default_actions, env=env,
    )  # fmt: skip
    _, output = process.communicate(timeout=60)
    text = output.decode()
    assert process.returncode == 130, text
    assert "b: 0 completed in " in text
    assert "The input was not read to its end: the counts include only the items that were read." in text
    assert "Stopped early: interrupted. No item is lost; run the same command again to continue." in text
    assert "Error" not in text
    assert jobs.run("run", "h.py:work", "--batch", "b", "items.txt")[0] == 0
    assert jobs.query(STATES) == [("completed", 1, 5)]


CHILDREN = """
def in_a_child(n: int) -> int:
    note("start", n)
    wait_for("gate")
    note("end", n)
    return n

def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.01)
"""

AT_STARTUP = """
import os, time
if os.environ.setdefault("FIRST_PID", str(os.getpid())) != str(os.getpid()) and not os.path.exists("started"):
    log = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND)
    os.write(log, f"interpreter {os.getpid()}\\n".encode())
    while not os.path.exists("gate"):
        time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("stage", ["interpreter", "start"])
def test_row_53_a_signal_to_the_whole_group_fails_no_item_of_a_child(stage: str, number: signal.Signals, jobs: Jobs) -> None:
    jobs.handlers(CHILDREN)
    if stage == "interpreter":  # the signal arrives while the interpreter of the child still starts
        (jobs.folder / "sitecustomize.py").write_text(AT_STARTUP)
    env = {**os.environ, "LOG": str(jobs.log), "PYTHONPATH": str(jobs.folder), "COVERAGE_PROCESS_CONFIG": ""}
    process = start(
        jobs, "run", "h.py:in_a_child", jobs.items(5), "--run-in", "process", "-c", "1", "--max-attempts", "1", env=env
    )
    jobs.until(lambda: len(jobs.lines(stage)) == 1)
    os.killpg(process.pid, number)
    (jobs.folder / "gate").touch()
    assert process.wait(60) == 130
    assert jobs.runs("start") == jobs.runs("end")
    finished = len(jobs.lines("end"))
    assert jobs.query(STATES) == [("completed", 1, finished), ("pending", 0, 5 - finished)]
    assert jobs.query("SELECT count(*) FROM failures") == [(0,)]
