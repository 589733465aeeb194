"""Stopped, busy, isolated and racing processes: a live worker keeps its items, and a death counts once."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from asyncrunner.backends import open_engine
from asyncrunner.domain.item import NewItem
from asyncrunner.domain.outcome import Completed, ErrorInfo, Settlement
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.protocols import Store
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import Vitals, WorkerInfo
from asyncrunner.testing import FakeClock
from tests.support.processes import Jobs
from tests.support.state import rows_of

HANDLERS = """
import re

async def matches(n: int) -> int:
    # One C call that holds the GIL. Each letter doubles its time, until it takes longer than a heartbeat.
    note("start", n)
    if n == 0:
        seconds, letters = 0.0, 18
        while seconds < 1.5:
            letters += 1
            began = time.monotonic()
            re.match("(a+)+$", "a" * letters + "b")
            seconds = time.monotonic() - began
        note("held", round(seconds * 1000))
    else:
        await asyncio.sleep(SECONDS)
    note("end", n)
    return n

async def until_told(n: int) -> None:
    note("start", n)
    while not os.path.exists("go"):
        await asyncio.sleep(0.02)
    note("end", n)

async def whose(n: int) -> str:
    note("start", n)
    try:
        if "WAITS" in os.environ:
            await (asyncio.sleep(0.5) if n % 2 else asyncio.Event().wait())
    except asyncio.CancelledError as error:
        note("cancelled", n)
        raise
    note("end", n)
    return str(os.getpid())
"""

LOST = "SELECT id, attempt, message FROM failures WHERE error_type = 'WorkerLost' ORDER BY id"
BEATS = "SELECT pid, last_heartbeat FROM workers ORDER BY pid"


@pytest.fixture(autouse=True)
def _handlers(jobs: Jobs) -> None:
    jobs.handlers(HANDLERS)


def beat_of(jobs: Jobs, process: subprocess.Popen[str]) -> str:
    return str(dict(jobs.query(BEATS))[process.pid])


def wait_for_beats(jobs: Jobs, process: subprocess.Popen[str], count: int) -> None:
    """Wait for two heartbeats; between them a watchdog checks at least twice."""
    for _ in range(count):
        seen = beat_of(jobs, process)
        jobs.until(lambda: beat_of(jobs, process) != seen)  # noqa: B023


def test_row_15_a_process_whose_c_call_holds_the_gil_longer_than_a_heartbeat_keeps_its_items(jobs: Jobs) -> None:
    items = jobs.items(20)
    busy = jobs.start("run", "h.py:matches", items, "-c", "1", "--batch", "b", "--quiet", seconds=0.3)
    jobs.until(lambda: jobs.runs("start")[0] == 1)
    other = jobs.start("run", "h.py:matches", "-c", "1", "--batch", "b", "--quiet", seconds=0.2)
    assert (busy.wait(60), other.wait(60)) == (0, 0)
    ((_, milliseconds, pid, _),) = jobs.lines("held")
    assert int(milliseconds) >= 1500
    assert int(pid) == busy.pid
    assert jobs.runs("start") == jobs.runs("end") == dict.fromkeys(range(20), 1)
    assert {line[2] for line in jobs.lines("end")} == {str(busy.pid), str(other.pid)}, "both were at work"
    assert jobs.query("SELECT sum(crashes), max(attempts) FROM items") == [(0, 1)]
    assert jobs.query("SELECT sum(lost) FROM workers") == [(0,)]


def test_row_16_no_worker_is_declared_dead_after_all_were_stopped(jobs: Jobs) -> None:
    items = jobs.items(4)
    runs = [jobs.start("run", "h.py:until_told", items, "-c", "2", "--stale-after", "2") for _ in range(2)]
    jobs.until(lambda: len(jobs.lines("start")) == 4)
    for run in runs:
        wait_for_beats(jobs, run, 1)
    time.sleep(
        0.6
    )  # longer than the interval of checks, shorter than that of heartbeats: each process has read the other's last heartbeat
    for run in runs:
        os.kill(run.pid, signal.SIGSTOP)
    time.sleep(2.5)  # the fault itself: longer than stale_after and than many checks of a watchdog
    first, second = runs
    os.kill(first.pid, signal.SIGCONT)
    wait_for_beats(jobs, first, 1)  # it checks right after SIGCONT; its evidence about the other is as old as the stop
    os.kill(second.pid, signal.SIGCONT)
    wait_for_beats(jobs, second, 1)
    (jobs.folder / "go").touch()
    said = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert jobs.runs("end") == jobs.runs("start") == dict.fromkeys(range(4), 1)
    assert jobs.query("SELECT sum(lost) FROM workers") == [(0,)]
    assert jobs.query("SELECT sum(crashes), max(attempts) FROM items") == [(0, 1)]


def test_row_17_a_worker_that_was_stopped_for_too_long_changes_no_item(jobs: Jobs) -> None:
    items = jobs.items(4)
    options = ("--batch", "b", "-c", "4", "--stale-after", "1")
    stopped = jobs.start("run", "h.py:whose", items, *options, env={"WAITS": "1"})
    jobs.until(lambda: len(jobs.lines("start")) == 4)
    os.kill(stopped.pid, signal.SIGSTOP)
    assert jobs.lines("end") == []
    other = jobs.start("run", "h.py:whose", *options, "--quiet")
    assert other.wait(30) == 0
    records = "SELECT * FROM items ORDER BY seq"
    left_by_the_other = jobs.query(records)
    os.kill(stopped.pid, signal.SIGCONT)
    _, said = stopped.communicate(timeout=30)
    assert stopped.returncode == 0, said
    assert jobs.query(records) == left_by_the_other
    assert jobs.query("SELECT DISTINCT status, result, attempts, crashes FROM items") == [("completed", f'"{other.pid}"', 2, 1)]
    assert [(key, attempt) for key, attempt, _ in jobs.query(LOST)] == [(str(n), 1) for n in range(4)]
    assert all("its heartbeat has not changed" in message for _, _, message in jobs.query(LOST))
    # Two handlers had time to end, but their outcomes were dropped; the two that wait forever were cancelled.
    mine = str(stopped.pid)
    assert sorted(int(line[1]) for line in jobs.lines("end") if line[2] == mine) == [1, 3]
    assert sorted(int(line[1]) for line in jobs.lines("cancelled") if line[2] == mine) == [0, 2]
    assert "was declared lost" in said


def test_row_55_a_folder_of_locks_that_is_copied_over_living_workers_makes_no_item_start_twice(jobs: Jobs) -> None:
    items = jobs.items(4)
    runs = [jobs.start("run", "h.py:until_told", items, "-c", "2", "--batch", "b") for _ in range(2)]
    jobs.until(lambda: len(jobs.lines("start")) == 4)
    locks = jobs.db.with_name(jobs.db.name + "-locks")
    backup = shutil.copytree(locks, jobs.folder / "backup")
    for _ in range(8):  # longer than several checks of each watchdog
        for path in backup.iterdir():
            shutil.copy2(path, jobs.folder / "copy")
            (jobs.folder / "copy").replace(locks / path.name)
        time.sleep(0.25)
    for run in runs:
        wait_for_beats(jobs, run, 1)
    (jobs.folder / "go").touch()
    said = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert jobs.runs("start") == jobs.runs("end") == dict.fromkeys(range(4), 1)
    assert jobs.query("SELECT sum(lost) FROM workers") == [(0,)]


UNSHARE = ("unshare", "-Urpf", "--kill-child=KILL")


def test_row_19_equal_process_ids_in_two_containers_are_two_workers_and_a_death_is_noticed(jobs: Jobs) -> None:
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no PID namespaces here: {tried.stderr.strip()}")
    items = jobs.items(30)
    victim = jobs.start("run", "h.py:forever", items, "-c", "3", "--batch", "b", under=UNSHARE)
    jobs.until(lambda: len(jobs.lines("start")) == 3)
    other = jobs.start("run", "h.py:work", "-c", "3", "--batch", "b", "--quiet", under=UNSHARE)
    jobs.until(lambda: len(jobs.lines("end")) == 27)
    beats = "SELECT worker_id, last_heartbeat FROM workers"
    seen = set(jobs.query(beats))
    jobs.until(lambda: not seen & set(jobs.query(beats)))
    assert jobs.query("SELECT count(DISTINCT worker_id), count(*), min(pid), max(pid) FROM workers") == [(2, 2, 1, 1)]
    assert jobs.query("SELECT count(*) FROM items WHERE status = 'processing'") == [(3,)], "the live process keeps its items"
    victim.kill()
    jobs.until(lambda: len(jobs.lines("end")) == 30)
    assert other.wait(30) == 0
    assert jobs.query("SELECT status, count(*) FROM items GROUP BY 1") == [("completed", 30)]
    lost = jobs.query(LOST)
    assert len(lost) == 3
    assert all("(pid 1 on " in message and "its lock is free" in message for _, _, message in lost)


NOW = 1_800_000_000.0


async def two_stores(db: str, keys: int = 1) -> tuple[Store, Store, int, FakeClock]:
    """Return two stores on one file; worker "a" has joined the first, "b" the second."""
    clock = FakeClock(NOW)
    first, second = open_engine(db, clock=clock), open_engine(db, clock=clock)
    await first.open()
    await second.open()
    batch = await first.open_batch("b", "m:h", BatchOptions(max_attempts=1000))
    await first.add(batch.batch_id, [NewItem(str(n), "0") for n in range(keys)], on_change="error")
    await first.join(WorkerInfo("a", "here", 1))
    await second.join(WorkerInfo("b", "here", 2))
    return first, second, batch.batch_id, clock


@pytest.mark.parametrize("first_is", ["the outcome", "the recovery"])
async def test_row_20_an_outcome_and_a_recovery_of_one_claim_one_wins(first_is: str, db: str) -> None:
    holder, watcher, batch_id, clock = await two_stores(db)
    (claim,) = (await holder.turn("a", [], [Want(batch_id, 1, 3)])).claims
    done = Settlement(claim, Completed("1"), NOW, NOW + 1)
    evidence = ErrorInfo("WorkerLost", "its heartbeat has not changed")
    row = "SELECT status, result, attempts, crashes, worker_id IS NULL FROM items"
    if first_is == "the outcome":
        assert (await holder.turn("a", [done], [])).lost == []
        assert await watcher.recover("a", evidence) == 0
        assert rows_of(db, row) == [("completed", "1", 1, 0, 0)]
        assert rows_of(db, "SELECT count(*) FROM failures") == [(0,)]
    else:
        assert await watcher.recover("a", evidence) == 1
        turn = await holder.turn("a", [done], [Want(batch_id, 1, 3)])
        assert (turn.outcast, list(turn.lost), list(turn.claims)) == (True, [claim], [])
        assert rows_of(db, row) == [("pending", None, 1, 1, 1)]
        clock.jump(1)
        # The outcome is also refused after the worker has joined again, and while another worker holds the item.
        await holder.beat("a", Vitals(0, 0, 0, 0.0))
        assert (await holder.turn("a", [done], [])).lost == [claim]
        (again,) = (await watcher.turn("b", [], [Want(batch_id, 1, 3)])).claims
        assert (await holder.turn("a", [done], [])).lost == [claim]
        assert (await watcher.turn("b", [Settlement(again, Completed("2"), NOW, NOW)], [])).lost == []
        assert rows_of(db, row) == [("completed", "2", 2, 1, 0)]
        assert rows_of(db, "SELECT count(*) FROM failures") == [(1,)]
    await holder.close()
    await watcher.close()


async def test_row_20_the_loser_of_the_race_changes_no_row(db: str) -> None:
    rounds = 60
    holder, watcher, batch_id, clock = await two_stores(db, rounds)
    evidence = ErrorInfo("WorkerLost", "its heartbeat has not changed")
    crashes: dict[int, int] = {}
    for number in range(rounds):
        await holder.beat("a", Vitals(0, 0, 0, 0.0))
        clock.jump(1000)
        (claim,) = (await holder.turn("a", [], [Want(batch_id, 1, 1000)])).claims  # an item that was lost twice is left out
        done = Settlement(claim, Completed(str(number)), NOW, NOW)
        settling = holder.turn("a", [done], [])
        recovering = watcher.recover("a", evidence)
        if number % 2:  # each of them is sometimes the first
            turn, recovered = await asyncio.gather(settling, recovering)
        else:
            recovered, turn = await asyncio.gather(recovering, settling)
        won = not turn.lost
        assert recovered == (0 if won else 1)
        crashes[claim.seq] = crashes.get(claim.seq, 0) + (not won)
        ((status, counted),) = rows_of(db, f"SELECT status, crashes FROM items WHERE seq = {claim.seq}")
        assert (status, counted) == ("completed" if won else "pending", crashes[claim.seq])
    assert rows_of(db, "SELECT count(*) FROM failures") == [(sum(crashes.values()),)]
    await holder.close()
    await watcher.close()


def test_row_21_two_watchdogs_that_see_a_death_at_the_same_time_count_it_once(jobs: Jobs) -> None:
    items = jobs.items(14)
    victims = [jobs.start("run", "h.py:forever", items, "-c", "3", "--batch", "b", "--quiet") for _ in range(4)]
    jobs.until(lambda: len(jobs.lines("start")) == 12)
    held = {int(line[1]) for line in jobs.lines("start")}
    watching = [jobs.start("run", "h.py:work", "-c", "1", "--batch", "b", seconds=0.0) for _ in range(2)]
    jobs.until(lambda: len(jobs.lines("end")) == 2)
    jobs.until(lambda: len(jobs.query("SELECT 1 FROM workers")) == 6)
    for process in watching:
        wait_for_beats(jobs, process, 1)
        os.kill(process.pid, signal.SIGSTOP)
    for victim in victims:
        victim.kill()
        victim.wait()
    for process in watching:  # both are late for their next check, so both check now
        os.kill(process.pid, signal.SIGCONT)
    said = "".join(process.communicate(timeout=30)[1] for process in watching)
    assert [process.returncode for process in watching] == [0, 0], said
    assert jobs.query("SELECT status, count(*) FROM items GROUP BY 1") == [("completed", 14)]
    assert {int(key): attempt for key, attempt, _ in jobs.query(LOST)} == dict.fromkeys(held, 1)
    assert len(jobs.query(LOST)) == 12
    assert jobs.query("SELECT DISTINCT crashes, attempts FROM items WHERE attempts > 1") == [(1, 2)]
    assert jobs.runs("end") == dict.fromkeys(range(14), 1)
    # Each killed process was recovered once, although several watchdogs tried.
    recovered = [int(number) for number in re.findall(r"recovered (\d+) items", said)]
    assert [number for number in recovered if number] == [3] * 4
