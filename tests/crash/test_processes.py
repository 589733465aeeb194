"""kill -9, signals and several processes, all real and through the command line."""

from __future__ import annotations

import os
import signal

from tests.support.processes import Jobs

COUNTS = "SELECT status, COUNT(*) FROM items GROUP BY status"


def test_a_run_killed_in_the_middle_is_resumed_and_no_finished_item_runs_again(jobs: Jobs) -> None:
    items = jobs.items(2000)
    process = jobs.start("run", "h.py:work", items, "-c", "20")
    jobs.until(lambda: len(jobs.lines("end")) >= 1000)
    process.kill()
    process.wait()
    committed = {int(key) for (key,) in jobs.query("SELECT id FROM items WHERE status = 'completed'")}
    before, ended = jobs.runs("start"), jobs.runs("end")
    code, said = jobs.run("run", "h.py:work", items, "-c", "20")
    assert (code, jobs.query(COUNTS)) == (0, [("completed", 2000)]), said
    starts, ends = jobs.runs("start"), jobs.runs("end")
    assert set(ends) == set(range(2000))
    assert all(starts[key] == before[key] == 1 for key in committed)
    again = {key: count for key, count in starts.items() if count > 1}
    assert set(again.values()) <= {2}
    assert f"{len(committed):,} skipped" in said
    # Each item that was running has a recorded crash; one that had ended and was not committed may have one.
    crashed = {int(key) for (key,) in jobs.query("SELECT id FROM items WHERE crashes = 1")}
    assert set(before) - set(ended) <= crashed
    assert set(again) - crashed <= set(ended)
    assert jobs.query("SELECT count(*) FROM items WHERE attempts > 2 OR crashes > 1") == [(0,)]
    assert jobs.query("PRAGMA integrity_check") == [("ok",)]


def test_two_processes_share_a_batch_and_every_item_runs_once(jobs: Jobs) -> None:
    items = jobs.items(400)
    processes = [jobs.start("run", "h.py:until_go", items, "-c", "5", "--quiet") for _ in range(2)]
    jobs.until(lambda: len({line[2] for line in jobs.lines("start")}) == 2)  # no process ends the batch before the other starts
    jobs.go()
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert jobs.query(COUNTS) == [("completed", 400)]
    assert jobs.runs("end") == dict.fromkeys(range(400), 1)
    assert {len({line[2] for line in jobs.lines("end")})} == {2}, "both processes worked"


def test_the_items_of_a_killed_process_run_in_the_other_within_seconds(jobs: Jobs) -> None:
    items = jobs.items(30)
    victim = jobs.start("run", "h.py:forever", items, "-c", "3", "--batch", "b")
    jobs.until(lambda: len(jobs.lines("start")) == 3)
    other = jobs.start("run", "h.py:work", "--batch", "b", "-c", "3", "--quiet")
    jobs.until(lambda: len(jobs.lines("end")) == 27)
    victim.kill()
    victim.wait()
    assert other.wait(30) == 0
    assert jobs.query(COUNTS) == [("completed", 30)]
    (message,) = {message for (message,) in jobs.query("SELECT message FROM failures WHERE error_type = 'WorkerLost'")}
    assert f"(pid {victim.pid} on " in message
    assert "its lock is free: the process is dead" in message


def test_leftovers_stay_pending_over_a_kill_and_beside_another_process(jobs: Jobs) -> None:
    batch = ("--batch", "b", "--quiet")
    first, second = jobs.path / "first.jsonl", jobs.path / "second.jsonl"
    first.write_text("1\n2\n3\n")
    second.write_text("4\n5\n")
    everything = jobs.start("run", "h.py:forever", jobs.items(50), "-c", "1", *batch)
    jobs.until(lambda: jobs.lines("start") and jobs.query("SELECT count(*) FROM items") == [(50,)])
    everything.kill()
    everything.wait()
    victim = jobs.start("run", "h.py:forever", str(first), "-c", "2", "--leftovers", "leave", *batch)
    jobs.until(lambda: len(jobs.lines("start")) == 3)
    victim.kill()
    victim.wait()
    code, said = jobs.run("run", "h.py:work", str(second), "--leftovers", "leave", *batch)
    assert (code, sorted(jobs.runs("end"))) == (0, [4, 5]), said
    assert jobs.query(COUNTS) == [("completed", 2), ("pending", 48)]
    code, said = jobs.run("run", "h.py:work", str(first), "--leftovers", "leave", *batch)
    assert (code, sorted(jobs.runs("end"))) == (0, [1, 2, 3, 4, 5]), said
    assert jobs.query(COUNTS) == [("completed", 5), ("pending", 45)]
    code, said = jobs.run("run", "h.py:work", "--leftovers", "leave", *batch)
    assert (code, "--leftovers leave runs only what is given, and no items are given" in said) == (2, True)


def test_a_stopped_process_keeps_its_items(jobs: Jobs) -> None:
    items = jobs.items(10)
    stopped = jobs.start("run", "h.py:until_go", items, "-c", "2", "--batch", "b")
    jobs.until(lambda: len(jobs.lines("start")) == 2)
    os.kill(stopped.pid, signal.SIGSTOP)
    other = jobs.start("run", "h.py:work", "--batch", "b", "-c", "2", "--quiet")
    jobs.until(lambda: len(jobs.lines("end")) == 8)
    # Several checks of the watchdog later, the stopped process still holds the two items.
    beats = "SELECT max(last_heartbeat) FROM workers"
    for _ in range(2):
        seen = jobs.query(beats)
        jobs.until(lambda: jobs.query(beats) != seen)  # noqa: B023
    assert jobs.query("SELECT status, count(*) FROM items GROUP BY 1 ORDER BY 1") == [("completed", 8), ("processing", 2)]
    jobs.go()
    os.kill(stopped.pid, signal.SIGCONT)
    assert (stopped.wait(30), other.wait(30)) == (0, 0)
    assert jobs.runs("end") == dict.fromkeys(range(10), 1)
    assert jobs.query("SELECT sum(crashes) FROM items") == [(0,)]


def test_an_item_that_kills_its_process_fails_in_the_end_with_that_reason(jobs: Jobs) -> None:
    items = jobs.items(4)
    for _ in range(2):
        code, _ = jobs.run("run", "h.py:killer", items, "-c", "1", "--max-attempts", "2", "--retry-initial", "0")
        assert code == -9
    code, said = jobs.run("run", "h.py:killer", items, "-c", "1", "--max-attempts", "2")
    assert (code, jobs.query("SELECT id, error LIKE 'WorkerLost: worker%' FROM items WHERE status = 'failed'")) == (
        1,
        [("3", 1)],
    ), said
    assert jobs.runs("start") == {0: 1, 1: 1, 2: 1, 3: 2}


def test_one_sigint_lets_handlers_end_and_the_rest_waits_with_its_attempts(jobs: Jobs) -> None:
    items = jobs.items(500)
    process = jobs.start("run", "h.py:work", items, "-c", "4", seconds=0.2)
    jobs.until(lambda: len(jobs.lines("start")) >= 4)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Stopping: running handlers have 30 s to finish. Press Ctrl-C again" in said
    assert "run the same command again to continue" in said
    assert jobs.runs("start") == jobs.runs("end")
    done = len(jobs.lines("end"))
    found = jobs.query("SELECT status, attempts, count(*) FROM items GROUP BY 1, 2 ORDER BY 1")
    assert found[0] == ("completed", 1, done)
    assert [(status, attempts) for status, attempts, _ in found[1:]] == [("pending", 0)]
    assert jobs.run("run", "h.py:work", items, "-c", "50")[0] == 0
    assert jobs.runs("end") == dict.fromkeys(range(500), 1)


def test_a_shutdown_timeout_ends_a_drain(jobs: Jobs) -> None:
    process = jobs.start("run", "h.py:forever", jobs.items(5), "--shutdown-timeout", "0.1")
    jobs.until(lambda: len(jobs.lines("start")) == 5)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert jobs.query("SELECT DISTINCT status, attempts FROM items") == [("pending", 0)]


def test_a_second_sigterm_cancels_also_handlers_that_do_not_listen(jobs: Jobs) -> None:
    process = jobs.start("run", "h.py:stubborn", jobs.items(5))
    jobs.until(lambda: len(jobs.lines("start")) == 5)
    process.terminate()
    assert process.stderr is not None
    while "Stopping" not in process.stderr.readline():
        assert process.poll() is None
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert jobs.query("SELECT DISTINCT status, attempts FROM items") == [("pending", 0)]
    assert jobs.query("SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]


def test_status_works_during_a_run(jobs: Jobs) -> None:
    process = jobs.start("run", "h.py:forever", jobs.items(20), "-c", "5")
    jobs.until(lambda: len(jobs.lines("start")) == 5)
    asked = jobs.start("status")
    shown, _ = asked.communicate(timeout=30)
    assert asked.returncode == 0
    assert "processing            5" in shown
    assert f"pid {process.pid} on " in shown


def test_a_def_handler_that_hangs_in_its_thread_does_not_keep_the_program(jobs: Jobs) -> None:
    process = jobs.start("run", "h.py:in_thread", jobs.items(3), "--shutdown-timeout", "0.1")
    jobs.until(lambda: len(jobs.lines("start")) == 3)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert jobs.query("SELECT DISTINCT status, attempts FROM items") == [("pending", 0)]


SCRIPT = """
import asyncio, sys
sys.path.insert(0, ".")
from h import forever, work
from asyncrunner import run_batch

async def main():
    await run_batch(range(5), work, db="asyncrunner.db")
    await run_batch(range(5), forever, db="asyncrunner.db")

try:
    asyncio.run(main())
except KeyboardInterrupt:
    sys.exit(77)
"""


def test_ctrl_c_in_a_script_commits_its_outcomes_and_releases_the_rest(jobs: Jobs) -> None:
    process = jobs.start_script(SCRIPT)
    jobs.until(lambda: len(jobs.lines("start")) == 10)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 77, said
    assert jobs.query("SELECT status, attempts, count(*) FROM items GROUP BY 1, 2 ORDER BY 1") == [
        ("completed", 1, 5),
        ("pending", 0, 5),
    ]
    assert jobs.query("SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]


def test_a_second_ctrl_c_in_a_script_ends_it_immediately_and_loses_no_item(jobs: Jobs) -> None:
    process = jobs.start_script(SCRIPT.replace("forever", "stubborn"))
    jobs.until(lambda: len(jobs.lines("start")) == 10)
    process.send_signal(signal.SIGINT)

    def has_ended_after_another_one() -> bool:
        process.send_signal(signal.SIGINT)
        return process.poll() is not None

    jobs.until(has_ended_after_another_one)
    process.communicate(timeout=20)
    assert process.returncode != 0
    code, said = jobs.run("run", "h.py:work", "--batch", "h:stubborn")
    assert code == 0, said
    assert jobs.query(COUNTS) == [("completed", 10)]
