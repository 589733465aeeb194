"""A person who stops a command while the server cannot be reached does not wait for the server, and learns what holds."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.support.cli import run_command
from tests.support.kinds import KINDS
from tests.support.postgres_kind import new_location, schema_of
from tests.support.tcp_proxy import TcpProxy

SERVICE = """
import asyncio
from asyncrunner import Runner

runner = Runner({location!r})

@runner.handler(batch="jobs")
async def job(n: int) -> int:
    await asyncio.sleep(0.01)
    return n
"""
RUN = ("run", "service.py:plain", "items.jsonl", "--batch", "jobs")
COMMANDS = {
    "run": RUN,
    "run --processes": (*RUN, "--processes", "2"),
    "work": ("work", "service.py:runner"),
    "work --processes": ("work", "service.py:runner", "--processes", "2"),
}


class Started:
    """A command that works through the proxy; its standard error is a file."""

    def __init__(self, folder: Path, proxy: TcpProxy, command: str) -> None:
        direct = new_location(folder, "db")
        location = f"{proxy.url(direct.partition('?')[0])}?schema={schema_of(direct)}"
        plain = "\n\nasync def plain(n: int) -> int:\n    return await job.function(n)\n"
        (folder / "service.py").write_text(SERVICE.format(location=location) + plain)
        (folder / "items.jsonl").write_text("\n".join(map(str, range(20_000))))
        self.direct = direct
        self._stderr = folder / "stderr"
        self._workers = {"run --processes": 3, "work --processes": 2}.get(command, 1)
        arguments = [*COMMANDS[command], "--db", location]
        if command.startswith("work"):
            for seed in ([*RUN, "--deadline", "0.1", "-q"], ["resume"]):
                run_command(folder, *seed, "--db", direct)
        self._before: int | None = None
        with self._stderr.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "asyncrunner", *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=stderr
            )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + 30
        while not condition():
            assert self._process.poll() is None, self.stderr
            assert time.monotonic() < give_up_at, self.stderr
            time.sleep(0.02)

    def has_worked(self) -> bool:
        """Whether every process has joined, and items were completed."""
        try:
            with KINDS["postgres"].connect(self.direct, True) as connection:
                workers = connection.execute("SELECT count(*) FROM workers WHERE ended_at IS NULL").fetchone()[0]
                completed = connection.execute("SELECT count(*) FROM items WHERE status = 'completed'").fetchone()[0]
        except psycopg.Error:  # there is no schema yet
            return False
        self._before = completed if self._before is None else self._before
        return bool(workers == self._workers and completed > self._before)

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, float]:
        """Return the exit code, and the seconds until the end."""
        began = time.monotonic()
        code = self._process.wait(50)
        return code, time.monotonic() - began

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _in_outage(folder: Path, proxy: TcpProxy, command: str) -> Started:
    started = Started(folder, proxy, command)
    started.wait_until(started.has_worked)
    proxy.refuse()
    proxy.cut()
    started.wait_until(lambda: "the store has been unavailable for" in started.stderr)
    return started


HOLDS = "Items that ended since then could not be saved, and run again. The next start recovers the items of this process"


@pytest.mark.parametrize("command", COMMANDS)
def test_one_ctrl_c_ends_a_command_within_seconds_while_the_server_is_down(tmp_path: Path, proxy: TcpProxy, command: str) -> None:
    started = _in_outage(tmp_path, proxy, command)
    try:
        started.signal(signal.SIGINT)
        code, seconds = started.end()
    finally:
        started.kill()
    assert code == 130, started.stderr
    assert 4 < seconds < 15  # 5 s, in which a short outage may end
    if command != "work --processes":  # the parent of those children has no store; each of them logs the same
        assert started.stderr.count(HOLDS) == 1
        assert "run the same command again when the store is available" in started.stderr
    assert "the next start recovers the items of this process" in started.stderr
    assert "Error:" not in started.stderr
    assert "Traceback" not in started.stderr


@pytest.mark.parametrize("command", ["run", "work"])
def test_two_signals_end_a_command_immediately_while_the_server_is_down(tmp_path: Path, proxy: TcpProxy, command: str) -> None:
    started = _in_outage(tmp_path, proxy, command)
    try:
        started.signal(signal.SIGINT)
        started.wait_until(lambda: "Stopping" in started.stderr)
        started.signal(signal.SIGINT)
        code, seconds = started.end()
    finally:
        started.kill()
    assert code == 130, started.stderr
    assert seconds < 4
    assert HOLDS in started.stderr


def test_a_sigterm_in_an_outage_ends_a_worker_with_exit_code_0_as_always(tmp_path: Path, proxy: TcpProxy) -> None:
    started = _in_outage(tmp_path, proxy, "work")
    try:
        started.signal(signal.SIGTERM)
        code, _ = started.end()
    finally:
        started.kill()
    assert code == 0, started.stderr
    assert HOLDS in started.stderr


def test_a_server_that_is_back_in_time_gets_every_outcome(tmp_path: Path, proxy: TcpProxy) -> None:
    started = _in_outage(tmp_path, proxy, "run")
    try:
        started.signal(signal.SIGINT)
        started.wait_until(lambda: "Stopping" in started.stderr)
        proxy.accept()
        code, _ = started.end()
    finally:
        started.kill()
    assert code == 130, started.stderr
    assert HOLDS not in started.stderr
    assert "the store is available again after" in started.stderr
    with KINDS["postgres"].connect(started.direct, True) as connection:
        assert connection.execute("SELECT count(*) FROM items WHERE status = 'processing'").fetchone() == (0,)
