"""Detached runs, and stopping runs and workers from outside, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import Runner, run_batch
from asyncrunner.admin.changes.stop import Stopping, stop_workers, workers_to_stop
from asyncrunner.backends import open_admin
from asyncrunner.cli.render.stop import stop_lines
from asyncrunner.domain.clock import SystemClock
from asyncrunner.runner.runner import internals_of
from asyncrunner.store.snapshot import WorkerRow
from asyncrunner.store.workers import Stop
from asyncrunner.testing import FakeClock
from tests.support.processes import Jobs

SERVICE = """
from asyncrunner import Runner

runner = Runner("asyncrunner.db")
both = Runner("asyncrunner.db")

@runner.handler(batch="jobs")
async def job(n: int) -> int:
    note("start", n)
    await asyncio.sleep(SECONDS)
    note("end", n)
    return n

both.handler(batch="jobs")(work)
both.handler(batch="other")(forever)
"""


class Detaching(Jobs):
    """A folder that also kills the detached processes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pids: list[int] = []
        self.handlers(SERVICE)

    def call(self, *arguments: str, seconds: float = 0.0, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, seconds=seconds, env=environment)
        out, said = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, said)

    def detach(self, *arguments: str, seconds: float = 0.0, **environment: str) -> dict[str, Any]:
        done = self.call("run", *arguments, "--detach", "--json", seconds=seconds, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        said: dict[str, Any] = json.loads(done.stdout)
        self.pids.append(said["pid"])
        return said

    def workers(self) -> int:
        found: int = self.query("SELECT count(*) FROM workers WHERE ended_at IS NULL")[0][0]
        return found

    def kill(self) -> None:
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super().kill()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Detaching]:
    made = Detaching(tmp_path)
    yield made
    made.kill()


def is_gone(pid: int) -> bool:
    """Return whether the process has ended; a zombie has ended too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# --- run --detach ---------------------------------------------------------------------------------------------------


def test_a_detached_run_continues_without_its_caller_and_logs_beside_the_file(folder: Detaching) -> None:
    said = folder.detach("h.py:work", folder.items(20), seconds=0.01)
    assert (said["batch"], said["db"]) == ("h:work", "asyncrunner.db")
    log = Path(said["log"])
    assert log == folder.folder / "asyncrunner.db.h-work.log"
    folder.until(lambda: is_gone(said["pid"]))
    assert folder.runs("end") == dict.fromkeys(range(20), 1)
    assert log.stat().st_mode & 0o777 == 0o600
    assert "h:work: 20 completed in " in log.read_text()


def test_the_output_has_the_commands_to_watch_and_to_stop(folder: Detaching) -> None:
    done = folder.call("run", "h.py:forever", folder.items(1), "--detach")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    folder.pids.append(int(lines[0].rpartition(" ")[2]))
    assert lines[0].startswith("h:forever runs in the background as process ")
    stop = lines[3].partition("asyncrunner ")[2]
    assert stop == "stop --db asyncrunner.db --batch h:forever"
    assert folder.call(*lines[1].partition("asyncrunner ")[2].split()).returncode == 0
    assert folder.call(*stop.split(), "--now").returncode == 0


def test_a_detached_run_survives_the_end_of_its_terminal(folder: Detaching) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncrunner", "run", "h.py:forever", folder.items(1), "--detach", "--json"],
        cwd=folder.folder, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True, start_new_session=True,
        env={**os.environ, "LOG": str(folder.log)},
    )  # fmt: skip
    os.close(theirs)
    said, _ = process.communicate(timeout=60)
    pid = json.loads(said)["pid"]
    folder.pids.append(pid)
    os.close(ours)  # the terminal is gone: its processes get SIGHUP
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path(os.devnull)
    folder.until(lambda: folder.runs("start") == {0: 1})
    assert folder.call("stop", "--now").returncode == 0
    folder.until(lambda: is_gone(pid))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["h.py:wrok", "items.txt"], "did you mean 'work'?"),
        (["h.py:work", "nothing.txt"], "does not exist"),
        (["h.py:work", "items.txt", "--concurrency", "0"], "concurrency=0"),
        (["h.py:work", "items.txt", "--db", "broken.db"], "is not an intact SQLite database"),
        (["h.py:work", "items.txt", "--log-file", "no/folder.log"], "the log no/folder.log cannot be written"),
        (["h.py:work", "-"], "a detached run cannot read stdin"),
        (["h.py:work", "items.txt", "--run-in", "thread"], "is for a `def`"),
    ],
)
def test_the_caller_gets_the_error_of_a_detached_run(arguments: list[str], said: str, folder: Detaching) -> None:
    folder.items(1)
    (folder.folder / "broken.db").write_text("no database at all, but long enough")
    done = folder.call("run", *arguments, "--detach")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not list(folder.folder.glob("*.log"))


def test_the_prints_of_handlers_go_to_the_requested_log(folder: Detaching) -> None:
    folder.handlers("\nasync def says(n: int) -> None:\n    print('saying', n)\n    raise ValueError('no \\x1b[31m')\n")
    said = folder.detach("h.py:says", folder.items(2), "--max-attempts", "1", ASYNCRUNNER_LOG_FILE="my.log")
    folder.until(lambda: is_gone(said["pid"]))
    log = (folder.folder / "my.log").read_text()
    assert said["log"] == str(folder.folder / "my.log")
    assert "saying 0\n" in log
    assert "WARNING item '0' of 'h:says', attempt 1: failed: ValueError: no \\x1b[31m" in log
    assert "\x1b" not in log


def test_a_log_file_of_a_run_in_the_foreground_has_the_log_and_is_private(folder: Detaching) -> None:
    folder.handlers("\nasync def fails(n: int) -> None:\n    raise ValueError('no')\n")
    done = folder.call("run", "h.py:fails", folder.items(1), "--max-attempts", "1", "--log-file", "my.log")
    log = folder.folder / "my.log"
    text = log.read_text()
    assert "failed: ValueError: no" in text
    assert re.search(r"^[\d-]+ [\d:]+ h:fails: 1 of 1 done \(100 %\), 1 failed$", text, re.MULTILINE)
    assert "\nh:fails: 0 completed, 1 failed in " in text
    assert "WARNING" not in done.stderr
    assert log.stat().st_mode & 0o777 == 0o600


# --- stop -----------------------------------------------------------------------------------------------------------


def test_a_stop_lets_handlers_end_and_the_next_run_continues(folder: Detaching) -> None:
    process = folder.start(
        "run", "h.py:work", folder.items(1500), "--quiet", seconds=0.1
    )  # 15 s, so that the stop arrives before the end
    folder.until(lambda: folder.runs("end"))
    done = folder.call("stop", "--batch", "h:work")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == (
        "requested a stop of 1 process of h:work in asyncrunner.db; 1 ended, unfinished items are kept"
    )
    assert process.wait(timeout=60) == 130
    assert "another process requested a stop of the run" in process.communicate()[1]
    assert folder.runs("start") == folder.runs("end")  # no handler was interrupted
    assert 0 < len(folder.runs("end")) < 1500
    assert folder.query("SELECT count(*) FROM items WHERE status = 'processing' OR attempts > 1") == [(0,)]
    assert folder.call("run", "h.py:work", "--quiet").returncode == 0
    assert folder.runs("end") == dict.fromkeys(range(1500), 1)


def test_a_stop_now_cancels_handlers_and_refunds_their_attempts(folder: Detaching) -> None:
    process = folder.start("run", "h.py:forever", folder.items(3))
    folder.until(lambda: len(folder.runs("start")) == 3)
    waited = folder.call("stop", "--wait", "0", "--json")  # they would run forever
    assert waited.returncode == 1
    document = json.loads(waited.stdout)
    assert [each["pid"] for each in document["asked"]] == [process.pid]
    assert document["running"] == document["asked"]
    assert folder.call("stop", "--now").returncode == 0
    assert process.wait(timeout=60) == 130
    assert folder.query("SELECT status, sum(attempts) FROM items") == [("pending", 0)]


def test_workers_are_stopped_with_the_file_and_end_well(folder: Detaching) -> None:
    workers = [folder.start("work", "h.py:both") for _ in range(2)]
    folder.until(lambda: folder.db.exists() and folder.query("SELECT count(*) FROM sqlite_schema") and folder.workers() == 2)
    done = folder.call("stop", "--batch", "jobs")
    assert done.returncode == 0
    assert done.stdout.startswith("nothing to stop: no run or worker of jobs in asyncrunner.db\n")
    assert done.stdout.count("which also has other batches") == 2
    done = folder.call("stop")
    assert done.returncode == 0
    assert done.stdout.count("\n  ended: ") == 2
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]


async def test_a_run_in_a_script_is_stopped_too_and_a_runner_in_a_service_is_not(db: str) -> None:
    began = asyncio.Event()

    async def waits(n: int) -> None:
        began.set()
        await asyncio.Event().wait()

    service = Runner(db)
    service.handler(batch="jobs")(waits)
    running = asyncio.ensure_future(run_batch([1], waits, db=db, batch="b"))
    store = open_admin(str(db))
    async with service:
        await began.wait()
        await store.open()
        done = await stop_workers(store, SystemClock(), None, Stop.CANCEL, timeout=20)
        await store.close()
        report = await running
        assert [each.role for each in done.asked] == ["run"]
        assert [each.role for each in done.left] == ["service"]
        assert not done.running
        assert (report.stopped, report.pending) == ("another process requested a stop", 1)
        engine_task = internals_of(service).engine_task
        assert engine_task is not None
        assert not engine_task.done()


def test_a_stop_without_workers_and_of_a_missing_file(folder: Detaching) -> None:
    missing = folder.call("stop")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "there is no database" in missing.stderr
    assert not folder.db.exists()
    folder.call("run", "h.py:work", folder.items(1))
    nothing = folder.call("stop")
    assert (nothing.returncode, nothing.stderr) == (0, "")
    assert nothing.stdout == "nothing to stop: no run or worker on asyncrunner.db\n"
    wrong = folder.call("stop", "--batch", "h:wrk")
    assert wrong.returncode == 2
    assert "did you mean 'h:work'?" in wrong.stderr
    assert folder.call("stop", "--wait", "-1").returncode == 2


def test_workers_whose_state_is_unknown_are_named_and_not_called_running(folder: Detaching) -> None:
    process = folder.start("run", "h.py:forever", folder.items(1))
    folder.until(lambda: folder.runs("start"))
    process.kill()
    process.wait()
    shutil.rmtree(folder.folder / "asyncrunner.db-locks")
    done = folder.call("stop", "--wait", "0.2")
    assert done.returncode == 0
    assert "1 worker may be dead, because nothing holds its lock: if no worker runs, run `asyncrunner recover`" in done.stdout
    assert "still running" not in done.stdout
    assert "nothing to stop" not in done.stdout


@pytest.mark.sqlite_file
def test_a_stop_does_not_change_a_file_of_another_program_or_of_an_older_schema(folder: Detaching) -> None:
    foreign = sqlite3.connect(folder.db)
    foreign.execute("CREATE TABLE mine (x)")
    foreign.close()
    before = folder.db.read_bytes()
    assert folder.call("stop").returncode == 2
    assert (folder.db.read_bytes(), (folder.folder / "asyncrunner.db-locks").exists()) == (before, False)
    folder.db.unlink()
    folder.call("run", "h.py:work", folder.items(1))
    with closing(sqlite3.connect(folder.db)) as connection:
        connection.execute("PRAGMA user_version = 4")
    shutil.rmtree(folder.folder / "asyncrunner.db-locks")
    done = folder.call("stop")
    assert (done.returncode, "older schema 4" in done.stderr) == (2, True)
    assert not (folder.folder / "asyncrunner.db-locks").exists()
    assert folder.query("PRAGMA user_version") == [(4,)]


def test_a_dead_process_is_not_waited_for(folder: Detaching) -> None:
    process = folder.start("run", "h.py:forever", folder.items(1))
    folder.until(lambda: folder.runs("start"))
    process.kill()
    process.wait()
    assert folder.workers() == 1
    assert folder.call("stop", "--batch", "h:forever").stdout.startswith("nothing to stop")


# --- whom a stop is for ---------------------------------------------------------------------------------------------


def worker(name: str, role: str, *batches: str, alive: bool | None = True, pulse: str = "") -> WorkerRow:
    return WorkerRow(name, "here", 1, role, batches, alive, "", "", "", pulse=pulse)


@pytest.mark.parametrize(
    ("batch", "asked", "left"),
    [(None, ["run a", "run b", "work a", "work ab", "unknown lock"], ["service", "old"]),
     ("a", ["run a", "work a", "unknown lock"], ["work ab", "service"])],
)  # fmt: skip
def test_the_workers_that_a_stop_reaches(batch: str | None, asked: list[str], left: list[str]) -> None:
    workers = [
        worker("run a", "run", "a"), worker("run b", "run", "b"), worker("work a", "work", "a"), worker("work ab", "work", "a", "b"),
        worker("unknown lock", "run", "a", alive=None), worker("service", "service", "a"), worker("dead", "run", "a", alive=False),
        worker("old", ""),
    ]  # fmt: skip
    to_stop, left_alone = workers_to_stop(workers, batch)
    assert [each.worker_id for each in to_stop] == asked
    assert [each.worker_id for each in left_alone] == left


async def test_a_stop_waits_until_its_timeout_and_reports_the_workers_that_still_run() -> None:
    class Slow:
        asked: Sequence[str] = ()

        async def workers(self) -> list[WorkerRow]:
            return [worker("w", "run", "a"), worker("v", "run", "a", alive=None if not self.asked else False)]

        async def request_stop(self, worker_ids: Sequence[str], how: Stop) -> int:
            self.asked = worker_ids
            return len(worker_ids)

    clock = FakeClock()
    stopping = asyncio.ensure_future(stop_workers(Slow(), clock, None, Stop.DRAIN, timeout=10))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await clock.advance(9.9)
    assert not stopping.done()
    await clock.advance(0.2)
    done = await stopping
    assert ([each.worker_id for each in done.asked], [each.worker_id for each in done.running]) == (["w", "v"], ["w"])


def test_a_process_whose_heartbeat_has_changed_is_not_printed_as_ended() -> None:
    asked = [worker("w", "run", "a", pulse="before"), worker("v", "run", "a")]
    lines = stop_lines(Stopping(asked, [worker("w", "run", "a", pulse="after")], []), "jobs.db", None, now=False, timeout=10)
    assert lines[0] == "requested a stop of 2 processes on jobs.db; 1 ended, unfinished items are kept"
    assert [line.partition(":")[0].strip() for line in lines[1:3]] == ["still running", "ended"]


def test_a_stop_of_workers_that_cannot_be_proven_alive_does_not_report_that_there_was_nothing_to_stop() -> None:
    worker = WorkerRow("w", "here", 1, "run", ["b"], None, "it has no lock file", "", "")
    lines = stop_lines(Stopping([], [], [], [worker]), "jobs.db", None, now=False, timeout=5.0)
    assert len(lines) == 1
    assert lines[0].startswith("1 worker may be dead")
