"""The schema: a DBA's script, the least rights of workers and readers, creation once, and versions of one schema that are in use."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from asyncrunner import Client, Control, Runner, run_batch
from asyncrunner.backends import creation_script
from asyncrunner.errors import ConfigurationError, SchemaTooNew, StoreError
from asyncrunner.postgres.connection import schema as schema_module
from asyncrunner.postgres.connection.address import parse_address
from asyncrunner.postgres.reader import PostgresReader
from asyncrunner.postgres.store import PostgresStore
from tests.support.cli import run_command
from tests.support.kinds import KINDS
from tests.support.postgres_kind import schema_of
from tests.support.postgres_server import wheel_binaries
from tests.support.state import execute, rows_of
from tests.support.tcp_proxy import TcpProxy

LOCK = "SELECT pg_advisory_lock(7240, hashtext(%s))"


@pytest.fixture
def location(server_dsn: str, tmp_path: Path) -> str:
    return KINDS["postgres"].new_location(tmp_path, "rights")


@pytest.fixture
def roles(server_dsn: str, location: str) -> Iterator[tuple[str, str]]:
    """A role of a worker, whose name needs quotes, and one of a reader; neither may create anything."""
    names = f'{schema_of(location)} "W"', f"{schema_of(location)}_r"
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        for name in names:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        yield names
        for name in names:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def as_role(location: str, role: str) -> str:
    parts = urlsplit(location)
    user = role.replace(" ", "%20").replace('"', "%22")
    return urlunsplit(parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}"))


def psql(script: str, dsn: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("psql") or str((wheel_binaries() or Path()) / "psql")
    if not Path(program).exists():
        pytest.skip("no psql: install the package postgresql-client")
    return subprocess.run([program, "-qX", dsn], input=script, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def created(location: str, roles: tuple[str, str], server_dsn: str, tmp_path: Path) -> str:
    """A schema that the command's script created, with the rights of the roles."""
    worker, reader = roles
    printed = run_command(tmp_path, "schema", "--db", location, "--role", f"worker={worker}", "--role", f"reader={reader}")
    assert (printed.returncode, printed.stderr) == (0, "")
    for _ in range(2):  # it may run again
        ended = psql(printed.stdout, server_dsn)
        assert (ended.returncode, ended.stderr) == (0, "")
    return location


async def even(number: int) -> int:
    if number % 2:
        raise ValueError("odd")
    return number


async def test_a_worker_without_the_right_to_create_runs_and_operates_a_batch(created: str, roles: tuple[str, str]) -> None:
    url = as_role(created, roles[0])
    report = await run_batch(range(10), even, db=url, max_attempts=1)
    assert (report.completed, report.failed) == (5, 5)
    report = await run_batch([20, 22], even, db=url, leftovers="leave")  # has a temporary table
    assert report.completed == 2
    runner = Runner(url)
    handler = runner.handler()(even)
    async with runner, Client(url) as client:
        assert await (await client.submit(handler, 24)).result() == 24
    async with Control(url) as control:
        await control.pause(handler.batch)
        await control.resume(handler.batch)
        assert (await control.retry(failed=True)).changed == 5


def test_a_worker_cannot_change_the_schema(created: str, roles: tuple[str, str]) -> None:
    for statement in ("UPDATE meta SET version = 9", "TRUNCATE items", "DROP TABLE items", "CREATE TABLE more (n int)"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(as_role(created, roles[0]), statement)


def test_a_reader_reads_and_is_refused_where_it_would_write(created: str, roles: tuple[str, str], tmp_path: Path) -> None:
    url = as_role(created, roles[1])
    asyncio.run(run_batch(range(10), even, db=as_role(created, roles[0]), max_attempts=1))
    for command in ("status", "list", "failures", "workers", "stuck", "metrics", "export", "show 3", "check"):
        ended = run_command(tmp_path, *command.split(), "--db", url)
        assert ended.returncode == (1 if command == "check" else 0), ended.stderr
    assert "odd" in run_command(tmp_path, "failures", "--db", url).stdout
    assert asyncio.run(PostgresReader(parse_address(url), None).batch_names()) == ["tests.postgres.test_rights:even"]
    for arguments in (["retry", "--failed"], ["pause"], ["purge", "--before", "0s"]):
        ended = run_command(tmp_path, *arguments, "--db", url)
        assert ended.returncode == 2, arguments
        assert (
            "the user lacks a right; `asyncrunner schema --db URL --role worker=NAME | psql URL`, run by the owner"
            in ended.stderr
        )
        assert ended.stderr.count("\n") == 1
    ended = run_command(tmp_path, "doctor", "--json", "--db", url)
    notes = [each["message"] for each in json.loads(ended.stdout)["findings"] if each["check"] == "rights"]
    assert len(notes) == 1
    assert "it lacks DELETE, INSERT, UPDATE in " in notes[0], notes
    assert "`asyncrunner schema --db URL --role worker=NAME | psql URL`; a reader needs no more" in notes[0]
    with pytest.raises(StoreError, match="the user lacks a right"):
        asyncio.run(run_batch([1], even, db=url))
    assert rows_of(created, "SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]


async def test_a_worker_that_may_not_create_the_schema_names_the_command(location: str, roles: tuple[str, str]) -> None:
    with pytest.raises(StoreError, match=r"the user lacks a right; `asyncrunner schema --db URL --role worker=NAME \| psql URL`"):
        await run_batch([1], even, db=as_role(location, roles[0]))


async def test_a_worker_that_owns_an_empty_schema_fills_it(location: str, roles: tuple[str, str], server_dsn: str) -> None:
    with psycopg.connect(server_dsn) as connection:
        names = sql.Identifier(schema_of(location)), sql.Identifier(roles[0])
        connection.execute(sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(*names))
    assert (await run_batch([2], even, db=as_role(location, roles[0]))).completed == 1


def test_the_command_refuses_what_it_cannot_print(tmp_path: Path) -> None:
    for arguments, message in (
        (["--db", "jobs.db"], "a SQLite file needs no script"),
        (["--db", "postgresql://h/d", "--role", "admin=me"], "--role admin=me: write worker=NAME or reader=NAME"),
        (["--db", "postgresql://h/d", "--role", "worker="], "is not the name of a role"),
        (["--db", "postgresql://h/d", "--role", f"worker={'x' * 64}"], "is not the name of a role"),
    ):
        ended = run_command(tmp_path, "schema", *arguments)
        assert (ended.returncode, message in ended.stderr) == (2, True), ended.stderr


def test_a_script_that_fails_creates_nothing_and_ends_with_an_error(location: str, server_dsn: str) -> None:
    ended = psql(creation_script(location, workers=["no such role"]), server_dsn)
    assert ended.returncode != 0
    assert 'role "no such role" does not exist' in ended.stderr
    assert not KINDS["postgres"].exists(location)


async def test_many_processes_that_open_a_new_database_create_the_schema_once(
    location: str, server_dsn: str, until: Callable[[Callable[[], object]], Any]
) -> None:
    stores = [PostgresStore(location) for _ in range(6)]
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute(LOCK, [schema_of(location)])  # all of them find no schema, and then wait for the lock
        opening = [asyncio.ensure_future(store.open()) for store in stores]
        waiting = "SELECT count(*) FROM pg_locks WHERE classid = 7240 AND objid = hashtext(%s)::oid AND NOT granted"
        await until(lambda: connection.execute(waiting, [schema_of(location)]).fetchone() == (6,))
    await asyncio.gather(*opening)
    for store in stores:
        assert await store.batch_names() == []
        await store.close()
    assert rows_of(location, "SELECT product, version FROM meta") == [("asyncrunner", schema_module.VERSION)]


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Makes the package a newer one, with a second version of the schema, or again what it is."""
    script_text, version = schema_module.script_text, schema_module.VERSION
    second = f"""
        ALTER TABLE items ADD COLUMN tenant text NOT NULL DEFAULT '';
        ALTER TABLE workers ADD COLUMN region text;
        CREATE FUNCTION of_tenant(name text) RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM items WHERE tenant = name';
        UPDATE meta SET version = {version + 1};"""

    def become(is_newer: bool) -> None:
        monkeypatch.setattr(schema_module, "VERSION", version + is_newer)
        monkeypatch.setattr(schema_module, "script_text", lambda number: second if number > version else script_text(number))

    return become


async def test_a_worker_continues_while_a_newer_version_migrates_the_schema(
    location: str, newer: Callable[[bool], None], server_dsn: str
) -> None:
    parts = urlsplit(server_dsn)
    assert parts.hostname is not None
    assert parts.port is not None
    migrated = False

    async def migrate(number: int) -> int:
        nonlocal migrated
        if number == 30 and not migrated:
            migrated = True
            newer(True)
            store = PostgresStore(location)
            await store.open()
            await store.close()
            newer(False)
            proxy.cut()  # the older worker also connects again
        return number

    with TcpProxy((parts.hostname, parts.port)) as proxy:
        report = await run_batch(range(300), migrate, batch="rolling", db=proxy.url(location), concurrency=5)
        results = await report.results()
    assert results == list(range(300))
    assert rows_of(location, "SELECT count(*) FROM items WHERE tenant = '' AND status = 'completed'") == [(300,)]


async def test_a_newer_schema_is_refused_at_the_start(location: str, newer: Callable[[bool], None], tmp_path: Path) -> None:
    newer(True)
    await run_batch([2], even, db=location)
    newer(False)
    with pytest.raises(SchemaTooNew, match=r"has schema 2, but .* up to 1; upgrade asyncrunner"):
        await run_batch([2], even, db=location)
    with pytest.raises(SchemaTooNew):
        await Runner(location).start()
    ended = await asyncio.to_thread(run_command, tmp_path, "status", "--db", location)
    assert (ended.returncode, "upgrade asyncrunner" in ended.stderr) == (2, True)


async def test_an_operator_of_a_newer_version_does_not_migrate(location: str, newer: Callable[[bool], None]) -> None:
    await run_batch([2], even, db=location)
    newer(True)
    with pytest.raises(StoreError, match="an older one; start a worker or a client of this version on it once"):
        async with Control(location):
            pass


def test_the_script_migrates_a_schema(location: str, newer: Callable[[bool], None], server_dsn: str) -> None:
    assert psql(creation_script(location), server_dsn).returncode == 0
    newer(True)
    for _ in range(2):
        ended = psql(creation_script(location), server_dsn)
        assert (ended.returncode, ended.stderr) == (0, "")
    assert rows_of(location, "SELECT version FROM meta") == [(2,)]


def test_a_name_that_could_end_the_script_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is not the name of a role"):
        creation_script("postgresql://h/d", workers=["a$role$"])
