"""Runs with ``processes=``, and the deaths of their children and of the parent, with real processes and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Jobs

SCRIPT = """
import asyncio, json, sys
from asyncrunner import run_batch
import h

async def own(n: int) -> int:
    return await h.until_go(n)

async def main():
    handler = own if sys.argv[2] == "own" else getattr(h, sys.argv[2])
    report = await run_batch(range(int(sys.argv[1])), handler, db="asyncrunner.db", batch="b", **json.loads(sys.argv[3]))
    print(json.dumps([report.total, report.completed, report.failed, report.pending, report.attempts, report.stopped]))

if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(77)
"""

STATES = "SELECT status, attempts, count(*) FROM items GROUP BY 1, 2 ORDER BY 1, 2"
LIVE_WORKERS = "SELECT count(*) FROM workers WHERE ended_at IS NULL"


def start(
    jobs: Jobs, count: int, handler: str, *, name: str = "script.py", text: str = SCRIPT, **options: Any
) -> subprocess.Popen[str]:
    """Start a program that runs *count* items with two children, in a process group of its own."""
    (jobs.folder / name).write_text(text)
    process = subprocess.Popen(
        [sys.executable, name, str(count), handler, json.dumps({"processes": 2, "concurrency": 4, **options})],
        cwd=jobs.folder,
        env={**os.environ, "LOG": str(jobs.log)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    jobs.processes.append(process)
    return process


def pids(jobs: Jobs, what: str = "start") -> list[int]:
    """Return the process ids of the children that have run items, in the order in which they began."""
    return list(dict.fromkeys(int(line[2]) for line in jobs.lines(what)))


def report_of(process: subprocess.Popen[str]) -> list[Any]:
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    report: list[Any] = json.loads(output)
    return report


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, also if nothing has read its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_both_children_run_items_of_a_handler_in_the_script_itself_and_share_the_concurrency(jobs: Jobs) -> None:
    process = start(jobs, 30, "own", concurrency=5)
    jobs.until(lambda: len(jobs.lines("start")) == 5)
    by_child = [[line[2] for line in jobs.lines("start")].count(str(pid)) for pid in pids(jobs)]
    assert sorted(by_child) == [2, 3]
    assert process.pid not in pids(jobs)
    jobs.go()
    assert report_of(process) == [30, 30, 0, 0, 30, None]
    assert jobs.runs("start") == jobs.runs("end") == dict.fromkeys(range(30), 1)
    assert jobs.query(LIVE_WORKERS) == [(0,)]


def test_a_killed_child_is_replaced_and_nothing_is_lost(jobs: Jobs) -> None:
    process = start(jobs, 30, "until_go")
    jobs.until(lambda: len(jobs.lines("start")) == 4)
    os.kill(pids(jobs)[0], signal.SIGKILL)
    jobs.until(lambda: len(pids(jobs)) == 3)  # the two items of the killed child run again in another one
    jobs.until(lambda: sum(jobs.runs("start").values()) == 6)
    jobs.go()
    total, completed, failed, pending, _, stopped = report_of(process)
    assert (total, completed, failed, pending, stopped) == (30, 30, 0, 0, None)
    assert jobs.runs("end") == dict.fromkeys(range(30), 1)
    assert jobs.query("SELECT crashes, count(*) FROM items GROUP BY 1 ORDER BY 1") == [(0, 28), (1, 2)]
    assert jobs.query(LIVE_WORKERS) == [(0,)]


def test_an_item_that_kills_its_child_fails_and_the_others_complete(jobs: Jobs) -> None:
    process = start(jobs, 6, "killer", max_attempts=2, concurrency=2)
    total, completed, failed, *_ = report_of(process)
    assert (total, completed, failed) == (6, 5, 1)
    assert jobs.query("SELECT id, error LIKE 'WorkerLost: worker%' FROM items WHERE status = 'failed'") == [("3", 1)]


@pytest.mark.parametrize("to_group", [False, True])
def test_ctrl_c_releases_the_items_of_every_child(to_group: bool, jobs: Jobs) -> None:
    process = start(jobs, 30, "until_go")
    jobs.until(lambda: len(jobs.lines("start")) == 4)
    (os.killpg if to_group else os.kill)(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 77
    assert "Traceback" not in errors
    assert jobs.query(STATES) == [("pending", 0, 30)]
    assert jobs.query(LIVE_WORKERS) == [(0,)]
    assert all(map(has_ended, pids(jobs)))


def test_children_ignore_the_signals_of_their_group(jobs: Jobs) -> None:
    process = start(jobs, 10, "until_go")
    jobs.until(lambda: len(jobs.lines("start")) == 4)
    for pid in pids(jobs):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
    jobs.go()
    assert report_of(process) == [10, 10, 0, 0, 10, None]
    assert jobs.runs("start") == dict.fromkeys(range(10), 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_in_order_when_their_parent_is_killed(number: signal.Signals, jobs: Jobs) -> None:
    process = start(jobs, 30, "until_go")
    jobs.until(lambda: len(jobs.lines("start")) == 4)
    process.send_signal(number)
    process.wait(60)
    # The children drain: they claim no more items, and the running handlers end.
    jobs.until(lambda: jobs.query("SELECT count(*) FROM items WHERE status = 'processing'") == [(4,)])
    jobs.go()
    jobs.until(lambda: all(map(has_ended, pids(jobs))))
    done = sum(jobs.runs("end").values())
    assert jobs.query(STATES) == [("completed", 1, done), ("pending", 0, 30 - done)]
    assert 4 <= done < 30
    code, errors = jobs.run("run", "h.py:work", "--batch", "b")
    assert (code, jobs.query("SELECT DISTINCT status FROM items")) == (0, [("completed",)]), errors
    assert jobs.runs("end") == dict.fromkeys(range(30), 1)


def test_children_whose_parent_is_killed_cancel_handlers_after_the_shutdown_timeout(jobs: Jobs) -> None:
    process = start(jobs, 30, "forever", shutdown_timeout=0.1)
    jobs.until(lambda: len(jobs.lines("start")) == 4)
    process.kill()
    process.wait(60)
    jobs.until(lambda: all(map(has_ended, pids(jobs))))
    assert jobs.query(STATES) == [("pending", 0, 30)]


ONLY_IN_THE_PARENT = """
import sys
if "asyncrunner.batch.processes.child" in " ".join(sys.orig_argv):
    {action}
"""


def test_a_handler_that_a_child_cannot_import_ends_the_run(jobs: Jobs) -> None:
    jobs.handlers(ONLY_IN_THE_PARENT.format(action="import no_such_module"))
    _, errors = start(jobs, 5, "work").communicate(timeout=60)
    assert "ProcessesFailed: a child process (pid " in errors
    assert "failed: ModuleNotFoundError: No module named 'no_such_module', line " in errors
    assert jobs.query(LIVE_WORKERS) == [(0,)]


def test_children_that_die_at_each_start_end_the_run(jobs: Jobs) -> None:
    jobs.handlers(ONLY_IN_THE_PARENT.format(action="os._exit(3)"))
    _, errors = start(jobs, 5, "work").communicate(timeout=60)
    assert (
        "ProcessesFailed: 5 child processes in succession ended before they could run a handler, the last one with exit code 3"
    ) in errors


UNGUARDED = """
import asyncio, sys
from asyncrunner import run_batch
import h

async def own(n: int) -> int:
    return n

asyncio.run(run_batch(range(5), own, db="asyncrunner.db", processes=2))
"""


OWN_ERROR = """
from asyncrunner import RetryPolicy, run_batch_sync

class Wrong(Exception):
    pass

async def refuse(n: int) -> None:
    raise Wrong(n)

if __name__ == "__main__":
    report = run_batch_sync(
        range(4), refuse, processes=2, max_attempts=3, retry=RetryPolicy(permanent=Wrong, initial=0.01)
    )
    print([report.total, report.failed, report.attempts])
"""


def test_an_error_type_of_the_script_itself_is_that_of_its_handler(jobs: Jobs) -> None:
    assert report_of(start(jobs, 4, "refuse", text=OWN_ERROR)) == [4, 4, 4]


def test_a_setup_in_the_file_of_the_handler(jobs: Jobs) -> None:
    jobs.handlers("""
import contextlib

@contextlib.asynccontextmanager
async def opened():
    yield 10

async def add(n: int, more: int) -> int:
    return n + more
""")
    code, errors = jobs.run("run", "h.py:add", jobs.items(6), "--setup", "h.py:opened", "--processes", "2")
    assert code == 0, errors
    assert jobs.query("SELECT result FROM items ORDER BY seq") == [(str(n + 10),) for n in range(6)]


def test_a_script_without_a_guard_ends_with_an_error_that_names_it(jobs: Jobs) -> None:
    _, errors = start(jobs, 5, "own", text=UNGUARDED).communicate(timeout=60)
    assert "the file of the handler begins a run when it is imported" in errors
    assert "put the call under `if __name__ == '__main__':`" in errors
    assert "importing.py" not in errors, "the error of this package has no place in the code of the user"


def test_a_module_of_a_package_that_runs_with_python_m_has_children(jobs: Jobs) -> None:
    (jobs.folder / "shop").mkdir()
    (jobs.folder / "shop" / "__init__.py").touch()
    (jobs.folder / "shop" / "prices.py").write_text(SCRIPT)
    jobs.go()
    output = subprocess.run(
        [sys.executable, "-m", "shop.prices", "6", "own", '{"processes": 2}'],
        cwd=jobs.folder, env={**os.environ, "LOG": str(jobs.log)}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(output.stdout) == [6, 6, 0, 0, 6, None]


def test_a_script_with_the_name_of_a_module_of_the_standard_library_has_children(jobs: Jobs) -> None:
    jobs.go()
    assert report_of(start(jobs, 6, "own", name="csv.py")) == [6, 6, 0, 0, 6, None]


def test_a_child_whose_event_loop_is_blocked_is_killed_after_a_cancellation(jobs: Jobs) -> None:
    jobs.handlers("\nasync def blocks(n: int) -> None:\n    note('start', n)\n    time.sleep(3600)\n")
    process = start(jobs, 2, "blocks", concurrency=2)
    jobs.until(lambda: len(jobs.lines("start")) == 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 77
    jobs.until(lambda: all(map(has_ended, pids(jobs))))
    assert jobs.query("SELECT status, crashes FROM items") == [("pending", 1), ("pending", 1)]


# --- the command line ------------------------------------------------------------------------------------------------

TWO = ("--processes", "2", "-c", "4")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_lets_the_handlers_of_children_end_and_names_the_command_to_resume(
    number: signal.Signals, jobs: Jobs
) -> None:
    process = jobs.start("run", "h.py:until_go", jobs.items(30), *TWO)
    jobs.until(lambda: len(jobs.lines("start")) == 4)
    process.send_signal(number)
    assert process.stderr is not None
    while "Stopping: running handlers have 30 s to finish" not in process.stderr.readline():
        assert process.poll() is None
    jobs.go()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    done = sum(jobs.runs("end").values())
    assert f"{done} completed, {30 - done} pending" in said
    assert "Stopped early: interrupted. No item is lost; run the same command again to continue." in said
    assert jobs.runs("start") == jobs.runs("end")
    assert jobs.query(STATES) == [("completed", 1, done), ("pending", 0, 30 - done)]
    assert jobs.query(LIVE_WORKERS) == [(0,)]


def test_the_second_signal_cancels_the_handlers_of_children(jobs: Jobs) -> None:
    process = jobs.start("run", "h.py:stubborn", jobs.items(10), *TWO)
    jobs.until(lambda: len(jobs.lines("start")) == 4)
    process.terminate()
    assert process.stderr is not None
    while "Stopping" not in process.stderr.readline():
        assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert jobs.query(STATES) == [("pending", 0, 10)]


def test_the_third_signal_kills_a_child_whose_event_loop_a_handler_blocks(jobs: Jobs) -> None:
    jobs.handlers("\nasync def blocks(n: int) -> None:\n    note('start', n)\n    time.sleep(3600)\n")
    process = jobs.start("run", "h.py:blocks", jobs.items(2), "--processes", "2", "-c", "2")
    jobs.until(lambda: len(jobs.lines("start")) == 2)

    def has_ended_after_another_one() -> bool:
        process.send_signal(signal.SIGINT)
        return process.poll() is not None

    jobs.until(has_ended_after_another_one)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)  # the last one may arrive after asyncio.run() has ended
    assert "a handler blocks the event loop of a child process (pid " in said
    assert jobs.query("SELECT status, crashes FROM items") == [("pending", 1), ("pending", 1)]


def test_a_stop_from_another_process_ends_parent_and_children(jobs: Jobs) -> None:
    process = jobs.start("run", "h.py:until_go", jobs.items(30), *TWO)
    jobs.until(lambda: len(jobs.lines("start")) == 4)
    stopping = jobs.start("stop")
    assert process.stderr is not None
    while "another process requested a stop" not in process.stderr.readline():
        assert process.poll() is None
    assert jobs.query("SELECT count(*) FROM workers WHERE stop = 1") == [(3,)]
    jobs.go()
    assert stopping.wait(60) == 0
    _, said = process.communicate(timeout=60)
    assert (process.returncode, "Stopped early: another process requested a stop" in said) == (130, True)
    assert jobs.query("SELECT count(*) FROM items WHERE status = 'processing'") == [(0,)]


def test_arguments_and_names_of_errors_reach_the_children(jobs: Jobs) -> None:
    jobs.handlers(
        "\nasync def check(n: int, *, least: int) -> int:\n    if n < least:\n        raise KeyError(n)\n    return n\n"
    )
    code, said = jobs.run(
        "run", "h.py:check", jobs.items(6), *TWO, "--batch", "b", "--set", "least=2", "--permanent", "KeyError", "--quiet"
    )
    assert code == 1, said
    assert jobs.query(STATES) == [("completed", 1, 4), ("failed", 1, 2)]


def test_what_children_cannot_import_is_refused_in_the_words_of_the_command_line(jobs: Jobs) -> None:
    jobs.handlers("\nfrom pathlib import Path\nasync def check(n: int, *, place: Path) -> int:\n    return n\n")
    code, said = jobs.run("run", "h.py:check", jobs.items(6), *TWO, "--batch", "b", "--set", "place=x")
    assert (code, "--processes 2 runs handlers in other processes" in said) == (2, True)
    assert "is a functools.partial with place=PosixPath('x')" in said


# --- asyncrunner work ------------------------------------------------------------------------------------------------

SERVICE = """
import asyncio, sys
from asyncrunner import Client, Runner
import h

runner = Runner("asyncrunner.db", concurrency=4)
gated = runner.handler(batch="b")(h.until_go)

async def submit():
    async with Client("asyncrunner.db") as client:
        await client.submit_many(gated, range(30))

if __name__ == "__main__":
    asyncio.run(submit())
"""


def start_work(jobs: Jobs, *options: str) -> subprocess.Popen[str]:
    """Submit 30 items, and start workers of them with two children; return once four handlers run."""
    (jobs.folder / "service.py").write_text(SERVICE)
    env = {**os.environ, "LOG": str(jobs.log)}
    subprocess.run([sys.executable, "service.py"], cwd=jobs.folder, env=env, check=True, timeout=60)
    process = jobs.start("work", "service:runner", "--processes", "2", *options)
    jobs.until(lambda: len(jobs.lines("start")) == 4)
    assert len(pids(jobs)) == 2
    assert process.pid not in pids(jobs)
    return process


def test_a_worker_with_children_runs_all_items_and_replaces_a_child_that_is_killed(jobs: Jobs) -> None:
    process = start_work(jobs, "--until-idle")
    os.kill(pids(jobs)[0], signal.SIGKILL)
    jobs.until(lambda: len(pids(jobs)) == 3 and sum(jobs.runs("start").values()) == 6)
    jobs.go()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert said.count("Working on ") == 1
    assert f"(2 processes of pid {process.pid}): b. Stop with Ctrl-C or SIGTERM." in said
    assert jobs.runs("end") == dict.fromkeys(range(30), 1)
    assert jobs.query(LIVE_WORKERS) == [(0,)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_the_children_of_a_worker_end(number: signal.Signals, code: int, jobs: Jobs) -> None:
    process = start_work(jobs)
    process.send_signal(number)
    assert process.stderr is not None
    while "Stopping" not in process.stderr.readline():
        assert process.poll() is None
    jobs.go()
    process.communicate(timeout=60)
    assert process.returncode == code
    done = sum(jobs.runs("end").values())
    assert jobs.query(STATES) == [("completed", 1, done), ("pending", 0, 30 - done)]
    assert jobs.query(LIVE_WORKERS) == [(0,)]


def test_a_stop_from_another_process_ends_a_worker_with_children(jobs: Jobs) -> None:
    process = start_work(jobs)
    stopping = jobs.start("stop", "--now")
    assert stopping.wait(60) == 0
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert jobs.query(STATES) == [("pending", 0, 30)]


def test_children_of_a_worker_that_is_killed_end(jobs: Jobs) -> None:
    process = start_work(jobs, "--shutdown-timeout", "0.1")
    process.kill()
    process.wait(60)
    jobs.until(lambda: all(map(has_ended, pids(jobs))))
    assert jobs.query(STATES) == [("pending", 0, 30)]
