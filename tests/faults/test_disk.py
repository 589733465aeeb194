"""Full and broken disks, locks that other processes hold for long, and long readers."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asyncrunner import Runner
from tests.conftest import Until
from tests.support.processes import Jobs
from tests.support.state import counts, rows_of

pytestmark = pytest.mark.sqlite_file

ONCE_EACH = "SELECT status, count(*), min(attempts), max(attempts), sum(crashes) FROM items GROUP BY 1"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_idle(pid: int, seconds: float) -> bool:
    """Return whether the process uses less than a third of a core during *seconds*."""
    before = cpu_seconds(pid)
    time.sleep(seconds)
    return cpu_seconds(pid) - before < seconds / 3


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

# A separate disk: it is filled when a file "fill" exists, and has space again when a file "free" exists.
SMALL_DISK = """
mount -t tmpfs -o size=16m tmpfs disk || exit 99
(
    while [ ! -e fill ]; do sleep 0.02; done
    cat /dev/zero > disk/ballast 2> ballast
    while [ ! -e free ]; do sleep 0.02; done
    rm disk/ballast
) &
"$@" 2> said
code=$?
cp disk/asyncrunner.db .
exit $code
"""


def test_row_23_a_full_disk_delays_outcomes_and_loses_none(jobs: Jobs) -> None:
    tried = subprocess.run(
        ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", str(jobs.folder)], capture_output=True, text=True, check=False
    )
    if tried.returncode != 0:
        pytest.skip(f"no disk of our own here: {tried.stderr.strip()}")
    (jobs.folder / "disk").mkdir()
    said = jobs.folder / "said"
    process = jobs.start(
        "run", "h.py:work", jobs.items(600), "-c", "4", "--db", "disk/asyncrunner.db",
        seconds=0.02, under=("unshare", "-Urm", "sh", "-c", SMALL_DISK, "sh"),
    )  # fmt: skip
    jobs.until(lambda: len(jobs.lines("end")) > 50)
    (jobs.folder / "fill").touch()
    jobs.until(lambda: "the store has been unavailable for" in said.read_text())
    pid = int(jobs.lines("start")[0][2])
    finished = len(jobs.lines("end"))
    assert is_idle(pid, 1.0)
    assert finished < 600
    assert len(jobs.lines("start")) == len(jobs.lines("end")) == finished, "the claimed items have ended, and no more are claimed"
    assert "the disk is full; free some space; asyncrunner retries" in said.read_text()
    assert said.read_text().count("the store has been unavailable for") < 5
    (jobs.folder / "free").touch()
    assert process.wait(30) == 0, said.read_text()
    assert "the store is available again after" in said.read_text()
    assert jobs.query(ONCE_EACH) == [("completed", 600, 1, 1, 0)]
    assert jobs.runs("start") == jobs.runs("end") == dict.fromkeys(range(600), 1)
    assert jobs.query("PRAGMA integrity_check") == [("ok",)]


@needs_strace
def test_row_23_a_group_that_does_not_fit_on_the_disk_is_written_later_as_a_whole(jobs: Jobs) -> None:
    under = (
        "strace", "-f", "-qq", "--seccomp-bpf", "-o", "trace", "-e", "trace=pwrite64", "-e", "inject=pwrite64:error=ENOSPC:when=90..96",
    )  # fmt: skip
    code, said = jobs.run("run", "h.py:work", jobs.items(100), "-c", "4", under=under, seconds=0.005)
    assert (jobs.folder / "trace").read_text().count("INJECTED") == 7
    assert code == 0, said
    assert jobs.query(ONCE_EACH) == [("completed", 100, 1, 1, 0)]
    assert jobs.runs("end") == dict.fromkeys(range(100), 1)


@needs_strace
@pytest.mark.parametrize("number", [1, 3, 6, 10])
def test_row_24_after_a_failed_fsync_no_outcome_is_acknowledged_and_the_runner_stops(number: int, jobs: Jobs) -> None:
    assert jobs.run("run", "h.py:work", jobs.items(1), "--batch", "b", "--quiet")[0] == 0
    under = (
        "strace", "-f", "-qq", "--seccomp-bpf", "-o", "trace",
        "-e", "trace=fdatasync", "-e", f"inject=fdatasync:error=EIO:when={number}",
    )  # fmt: skip
    items = jobs.items(60)
    code, said = jobs.run("run", "h.py:work", items, "-c", "4", "--batch", "b", under=under, seconds=0.01)
    assert (jobs.folder / "trace").read_text().count("INJECTED") == 1
    assert code == 2, said
    assert "asyncrunner.db cannot be read or written; check the disk (disk I/O error)" in said
    assert "Traceback" not in said
    assert "completed" not in said, "the outcome is unknown, so there is no summary"
    done = {int(key) for (key,) in jobs.query("SELECT id FROM items WHERE status = 'completed'")}
    assert done <= set(jobs.runs("end"))
    assert len(done) < 60
    code, said = jobs.run("run", "h.py:work", items, "-c", "4", "--batch", "b", seconds=0.0)
    assert code == 0, said
    assert f"{len(done)} skipped" in said
    assert jobs.query("SELECT status, count(*) FROM items GROUP BY 1") == [("completed", 60)]
    assert all(jobs.runs("end")[key] == 1 for key in done)
    assert jobs.query("PRAGMA integrity_check") == [("ok",)]


@needs_strace
def test_row_24_a_failed_fsync_during_a_wal_checkpoint_keeps_the_log_and_is_reported(jobs: Jobs) -> None:
    assert jobs.run("run", "h.py:work", jobs.items(1), "--batch", "b", "--quiet")[0] == 0
    under = (
        "strace", "-f", "-qq", "-o", "trace", "-P", str(jobs.db.resolve()),
        "-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO:when=1",
    )  # fmt: skip
    items = jobs.items(60)
    code, said = jobs.run("run", "h.py:work", items, "-c", "4", "--batch", "b", under=under)
    assert (jobs.folder / "trace").read_text().count("sync(") == 1, "the fsync is not retried: a second one might seem to succeed"
    assert code == 2, said
    assert "cannot be read or written; check the disk" in said
    assert jobs.db.with_name(jobs.db.name + "-wal").stat().st_size > 0
    code, said = jobs.run("run", "h.py:work", items, "-c", "4", "--batch", "b")
    assert code == 0, said
    assert "60 skipped" in said
    assert jobs.query("PRAGMA integrity_check") == [("ok",)]


def wait_until_nothing_is_started(jobs: Jobs) -> None:
    """Wait until all claimed items have started and ended; one moment without a start could lie between two items."""
    began = time.monotonic()
    seen: list[list[str]] = []
    while len(now := jobs.lines("start")) > len(seen) or len(jobs.lines("end")) < len(now):
        assert time.monotonic() < began + 30, "items are started under the lock"
        seen = now
        time.sleep(1.0)


LOCK = """
import sqlite3, sys
connection = sqlite3.connect("asyncrunner.db", isolation_level=None, timeout=20)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
connection.execute("ROLLBACK")
"""


def locked_by_another(jobs: Jobs) -> subprocess.Popen[str]:
    """A process that holds the write lock until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK], cwd=jobs.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    jobs.processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


@pytest.mark.parametrize("stale_after", ["300", "2"])
def test_row_25_a_lock_that_another_process_holds_for_long_costs_no_attempt(stale_after: str, jobs: Jobs) -> None:
    items = jobs.items(300)
    runs = [jobs.start("run", "h.py:work", items, "-c", "2", "--stale-after", stale_after, seconds=0.03) for _ in range(2)]
    jobs.until(lambda: len({line[2] for line in jobs.lines("end")}) == 2 and len(jobs.lines("end")) > 20)
    locker = locked_by_another(jobs)
    wait_until_nothing_is_started(jobs)
    finished = len(jobs.lines("end"))
    assert is_idle(runs[0].pid, 4.0)
    assert is_idle(runs[1].pid, 4.0)
    assert len(jobs.lines("start")) == finished < 300, "outcomes wait, and no more items are claimed"
    assert all(run.poll() is None for run in runs)
    locker.communicate("")
    said = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert jobs.query(ONCE_EACH) == [("completed", 300, 1, 1, 0)]
    assert jobs.runs("start") == dict.fromkeys(range(300), 1)
    assert jobs.query("SELECT sum(lost) FROM workers") == [(0,)]
    assert "write lock" in said[0], "of this program's other process, or of the other program, whichever failed first"


async def test_row_33_a_long_reader_delays_no_worker_and_the_log_is_written_back_after_its_end(
    db: str, until: Until, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("asyncrunner.sqlite.file.wal.CHECKPOINT_BYTES", 200_000)
    runner = Runner(db, concurrency=4)
    wal = Path(f"{db}-wal")

    @runner.handler
    async def handler(number: int) -> str:
        await asyncio.sleep(0)
        return "x" * 10_000

    async with runner:
        await handler.submit_many(range(20))
        await until(lambda: counts(db)["completed"] == 20)
        reader = sqlite3.connect(db)
        cursor = reader.execute("SELECT id FROM items")
        assert cursor.fetchone() is not None  # and not the other rows, so that the cursor stays open
        for count in range(1, 9):
            await handler.submit_many(range(100 * count, 100 * count + 20))
            done = 20 + 20 * count
            await until(lambda: counts(db)["completed"] == done)  # noqa: B023
        assert wal.stat().st_size > 1_000_000
        reports = [record.getMessage() for record in caplog.records if "write-ahead log" in record.getMessage()]
        assert 1 <= len(reports) <= 6, "the warning comes once, not after every commit"
        assert re.search(r"has grown to \d+ MB because another program keeps a read transaction open", reports[-1])
        assert "end that transaction or close its cursor" in reports[-1]
        cursor.close()  # a connection that is closed before its cursor lives on
        reader.close()
        largest = wal.stat().st_size
        await handler.submit_many(range(10_000, 10_000 + largest // 10_000))
        await until(lambda: wal.stat().st_size < 400_000)
        await until(lambda: rows_of(db, "SELECT count(*) FROM items WHERE status <> 'completed'") == [(0,)])
    assert not wal.exists()
    assert rows_of(db, "PRAGMA integrity_check") == [("ok",)]
