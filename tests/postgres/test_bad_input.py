"""Servers and URLs that cannot work: one clear error at the start, with what to do; and failures of a server later on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from asyncrunner import Client, Control, Runner, run_batch
from asyncrunner.errors import AsyncRunnerError, NotAStore, StoreError, StoreReplaced
from tests.support.cli import run_command
from tests.support.kinds import KINDS
from tests.support.postgres_kind import schema_of
from tests.support.postgres_server import PostgresServer, wheel_binaries
from tests.support.state import changing, execute, exists, rows_of

needs_own_server = pytest.mark.skipif(wheel_binaries() is None, reason="the extra server is not installed")


@pytest.fixture
def location(server_dsn: str, tmp_path: Path) -> str:
    return KINDS["postgres"].new_location(tmp_path, "bad input")


@pytest.fixture(scope="module")
def own() -> Iterator[PostgresServer]:
    """A server with few connections, and a password for the user ``guarded``."""
    with PostgresServer(settings={"max_connections": 12}) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
            connection.execute("CREATE ROLE shut LOGIN")
        hba = server.data / "pg_hba.conf"
        hba.write_text(f"host all guarded all scram-sha-256\nhost all shut all reject\n{hba.read_text()}")
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")
        yield server


async def double(number: int) -> int:
    return 2 * number


async def refused(url: str, message: str, kind: type[AsyncRunnerError] = AsyncRunnerError) -> None:
    """Expect the same error of each way to begin, on one line, with the exit code 2 on the command line."""
    with pytest.raises(kind) as raised:
        await run_batch([1], double, db=url)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(kind) as raised:
        await Runner(url).start()
    assert message in str(raised.value)


def refused_command(folder: Path, url: str, message: str) -> None:
    (folder / "shop.py").write_text("async def double(n: int) -> int:\n    return 2 * n\n")
    (folder / "items.txt").write_text("1\n")
    for command in (["run", "shop.py:double", "items.txt"], ["status"]):
        ended = run_command(folder, *command, "--db", url)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert message in ended.stderr
        assert (ended.stderr.startswith("Error: "), ended.stderr.count("\n")) == (True, 1), ended.stderr


def changed(location: str, **parts: Any) -> str:
    return urlunsplit(urlsplit(location)._replace(**parts))


async def test_no_server(location: str, tmp_path: Path) -> None:
    url = changed(location, netloc="app@127.0.0.1:1")
    await refused(url, "the server cannot be reached", StoreError)
    await asyncio.to_thread(refused_command, tmp_path, url, "check that it runs, and the host and port of the URL")


async def test_a_host_that_does_not_exist(location: str) -> None:
    await refused(changed(location, netloc="app@no-such-host.invalid"), "the server cannot be reached", StoreError)


async def test_a_database_that_does_not_exist(location: str, tmp_path: Path) -> None:
    url = changed(location, path="/no_such_database")
    await refused(url, "the database does not exist; create it with createdb, or correct the URL", StoreError)
    await asyncio.to_thread(refused_command, tmp_path, url, "the database does not exist")


async def test_a_port_on_which_another_program_listens(location: str) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(other, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await refused(changed(location, netloc=f"app@127.0.0.1:{port}"), "the server cannot be reached", StoreError)


@needs_own_server
async def test_a_wrong_password_and_a_user_who_may_not_log_in(own: PostgresServer, tmp_path: Path) -> None:
    wrong = own.dsn.replace("postgres@", "guarded:wrong@", 1)
    await refused(wrong, "the server refused the password; check the user and the password, PGPASSWORD or ~/.pgpass", StoreError)
    await asyncio.to_thread(refused_command, tmp_path, wrong, "the server refused the password")
    shut = own.dsn.replace("postgres@", "shut@", 1)
    await refused(shut, "the server refused the user; check the user, and pg_hba.conf of the server", StoreError)
    missing = own.dsn.replace("postgres@", "no_such_user@", 1)
    await refused(missing, "the server refused the user", StoreError)


async def test_a_server_without_tls(location: str, tmp_path: Path) -> None:
    url = f"{location}&sslmode=require"
    message = "the server does not offer TLS, which sslmode requires; turn on ssl in its configuration, or give sslmode=prefer"
    await refused(url, message, StoreError)
    await asyncio.to_thread(refused_command, tmp_path, url, message)


async def test_a_schema_that_is_created_is_in_the_log(location: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asyncrunner")
    for _ in range(2):
        async with Client(location):
            pass
    assert caplog.messages == [f"created the schema {schema_of(location)} in {location}"]


@pytest.mark.parametrize("text", ["the run", "a client", "an operator"])
async def test_a_schema_that_is_dropped_meanwhile(location: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    def drop() -> None:
        with psycopg.connect(changed(location, query=""), autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA {schema_of(location)} CASCADE".encode())

    async def dropping(number: int) -> int:
        if number == 3:
            await asyncio.to_thread(drop)
        return number

    await run_batch([1], double, db=location, batch="jobs")
    with pytest.raises(StoreReplaced) as raised:
        if text == "the run":
            await run_batch(range(100), dropping, db=location, batch="drop", concurrency=2)
        elif text == "a client":
            async with Client(location) as client:
                await asyncio.to_thread(drop)
                await client.submit("jobs", 1)
        else:
            async with Control(location) as control:
                await asyncio.to_thread(drop)
                await control.status()
    message = f"the schema {schema_of(location)!r} was dropped while this program used it. Restore it, as with pg_restore"
    assert message in str(raised.value)
    assert "HINT" not in caplog.text
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == (text == "the run")


@needs_own_server
async def test_no_right_to_create_the_schema(own: PostgresServer, tmp_path: Path) -> None:
    url = own.dsn.replace("postgres@", "guarded:right@", 1) + "?schema=not_mine"
    await refused(url, "the user lacks a right; `asyncrunner schema", StoreError)


@needs_own_server
async def test_all_connections_are_used(own: PostgresServer, tmp_path: Path) -> None:
    connections: list[psycopg.Connection] = []
    with suppress(psycopg.OperationalError):
        while True:
            connections.append(psycopg.connect(own.dsn))
    try:
        message = "the server has no free connection; close some, or raise max_connections"
        await refused(own.dsn, message, StoreError)
        await asyncio.to_thread(refused_command, tmp_path, own.dsn, message)
    finally:
        for connection in connections:
            connection.close()


async def test_a_schema_of_another_program(location: str, tmp_path: Path) -> None:
    with psycopg.connect(changed(location, query="")) as connection:
        connection.execute(f"CREATE SCHEMA {schema_of(location)}".encode())
        connection.execute(f"CREATE TABLE {schema_of(location)}.items (id int, name text)".encode())
    await refused(location, "has tables of another program; name another schema, as in ?schema=jobs", NotAStore)
    await asyncio.to_thread(refused_command, tmp_path, location, "has tables of another program")
    assert rows_of(location, "SELECT count(*) FROM items") == [(0,)]


async def test_a_table_meta_of_another_program(location: str) -> None:
    with psycopg.connect(changed(location, query="")) as connection:
        connection.execute(f"CREATE SCHEMA {schema_of(location)}".encode())
        connection.execute(f"CREATE TABLE {schema_of(location)}.meta (key text)".encode())
    await refused(location, "was not made by asyncrunner; name another schema", NotAStore)


@needs_own_server
async def test_a_server_that_only_reads(own: PostgresServer, tmp_path: Path) -> None:
    url = f"{own.dsn}?schema=read_only"
    await run_batch([1], double, db=url)
    own.stop()
    (own.data / "standby.signal").touch()
    own.settings["primary_conninfo"] = ""
    own.start()
    try:
        message = "the server only reads, as a replica does; connect to the primary server"
        await refused(url, message, StoreError)
        ended = await asyncio.to_thread(run_command, tmp_path, "status", "--db", url)
        assert (ended.returncode, "completed" in ended.stdout) == (0, True), ended.stderr
        ended = await asyncio.to_thread(run_command, tmp_path, "pause", "--db", url)
        assert (ended.returncode, message in ended.stderr) == (2, True)
    finally:
        own.stop()
        (own.data / "standby.signal").unlink()
        own.start()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgres:/app@127.0.0.1/jobs", "begins with postgresql:// (lower case, a colon and two slashes, no driver)"),
        ("postgresql:app@127.0.0.1/jobs", "begins with postgresql:// (lower case, a colon and two slashes, no driver)"),
        ("postgresql//app@127.0.0.1/jobs", "begins with postgresql:// (lower case, a colon and two slashes, no driver)"),
        ("postgresql://app@127.0.0.1/jobs?schema=a&schema=b", "the parameter 'schema' is given more than once; give it once"),
        ("postgresql://app@127.0.0.1:54x2/jobs", "the port is not a number from 1 to 65535"),
        ("postgresql://app@127.0.0.1/jobs?shcema=mails", "the parameter 'shcema' is unknown; did you mean 'schema'?"),
        ("postgresql://app@127.0.0.1/jobs?schema=", "the parameter 'schema' is empty"),
        ("postgresql://app@127.0.0.1/jobs?schema=My-Jobs", "give a name of its own for the schema"),
    ],
)
async def test_a_url_with_a_mistake(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(AsyncRunnerError) as raised:
        await run_batch([1], double, db=url)
    assert message in str(raised.value)
    await asyncio.to_thread(refused_command, tmp_path, url, message)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["items.txt", "shop.py"]


async def test_a_parameter_that_the_server_does_not_know(location: str) -> None:
    await refused(f"{location}&no_such_setting=1", "no_such_setting", StoreError)


async def test_a_full_disk_later_waits_and_continues(location: str, until: Callable[[Callable[[], object]], Any]) -> None:
    """The server reports a full disk for each turn while the test wants it to."""
    await run_batch([0], double, db=location, batch="disk")
    schema = schema_of(location)
    with changing(location) as connection:
        connection.execute("CREATE TABLE disk (is_full boolean)")
        connection.execute("INSERT INTO disk VALUES (false)")
        connection.execute(
            f"CREATE FUNCTION fail_if_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF (SELECT is_full FROM {schema}.disk) THEN "
            f"RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END IF; RETURN NULL; END $$"
        )
        connection.execute(
            "CREATE TRIGGER full_disk AFTER UPDATE ON turn_marks FOR EACH STATEMENT EXECUTE FUNCTION fail_if_full()"
        )
    ran: list[int] = []

    async def handler(number: int) -> int:
        ran.append(number)
        if number == 20:
            await asyncio.to_thread(execute, location, "UPDATE disk SET is_full = true")
        return number

    running = asyncio.ensure_future(run_batch(range(100), handler, batch="disk", db=location, concurrency=2))
    await until(lambda: 20 in ran)
    assert not (await asyncio.wait([running], timeout=1.5))[0]
    with changing(location) as connection:
        connection.execute("UPDATE disk SET is_full = false")
    report = await running
    assert report.completed + report.skipped == 100
    assert len(ran) == len(set(ran)), "an item ran twice"
    assert exists(location)
