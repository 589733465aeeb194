"""What ``asyncrunner doctor`` finds out about a server: its settings, the way to it, and its replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest

from asyncrunner import run_batch
from asyncrunner.backends import open_maintenance
from asyncrunner.postgres.connection import session
from asyncrunner.postgres.maintenance import checks
from asyncrunner.store.maintenance import CheckLevel, CheckResult
from tests.support.pgbouncer import MISSING, PgBouncer, program
from tests.support.postgres_server import PostgresServer, wheel_binaries

pytestmark = pytest.mark.skipif(wheel_binaries() is None, reason="the extra server is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(durable=True) as made:
        asyncio.run(run_batch([1], double, db=made.dsn))
        yield made


async def double(number: int) -> int:
    return 2 * number


def examined(location: str, check: str) -> list[CheckResult]:
    return [each for each in asyncio.run(open_maintenance(location).check(full=False)) if each.check == check]


def change(server: PostgresServer, *statements: str) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def setting(server: PostgresServer, text: str) -> None:
    """Change a setting of the server until the end of the test, or reset it."""
    change(server, f"ALTER SYSTEM {text}", "SELECT pg_reload_conf()")
    name = text.split()[1]
    while text.startswith("SET"):
        with psycopg.connect(server.dsn) as connection:
            row = connection.execute("SELECT source FROM pg_settings WHERE name = %s", [name]).fetchone()
            if row == ("configuration file",):
                return


def test_a_sound_server_has_no_problem(server: PostgresServer) -> None:
    found = asyncio.run(open_maintenance(server.dsn).check(full=False))
    assert [each for each in found if each.level is not CheckLevel.OK] == []
    assert {"server", "autovacuum", "keepalives", "pooler", "rights", "schema", "side tables", "counts"} <= {
        each.check for each in found
    }


def test_autovacuum_must_run(server: PostgresServer) -> None:
    setting(server, "SET autovacuum = off")
    try:
        (finding,) = examined(server.dsn, "autovacuum")
        assert (finding.level, "autovacuum is off" in finding.message) == (CheckLevel.WRONG, True)
    finally:
        setting(server, "RESET autovacuum")
    change(server, "ALTER TABLE asyncrunner.items SET (autovacuum_enabled = off)")
    try:
        (finding,) = [each for each in examined(server.dsn, "autovacuum") if "disabled for" in each.message]
        assert "autovacuum is disabled for items" in finding.message
    finally:
        change(server, "ALTER TABLE asyncrunner.items RESET (autovacuum_enabled)")


def test_settings_that_end_a_lost_session_are_in_effect_over_tcp_and_needless_on_a_socket(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = dict(session.KEEPALIVE_SETTINGS)
    assert examined(server.dsn, "keepalives")[0].level is CheckLevel.OK
    monkeypatch.setitem(expected, "tcp_user_timeout", "5001")
    monkeypatch.setattr(checks, "KEEPALIVE_SETTINGS", expected)
    (finding,) = examined(server.dsn, "keepalives")
    assert (finding.level, "(tcp_user_timeout = 5000)" in finding.message) == (CheckLevel.NOTE, True)
    socket = f"postgresql://postgres@/postgres?host={server.folder}&port={server.port}"
    assert examined(socket, "keepalives")[0].level is CheckLevel.OK


def test_the_versions_that_were_tested_are_named(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examined(server.dsn, "server")[0].message.startswith("PostgreSQL 18")
    monkeypatch.setattr(checks, "_NEWEST_VERSION", 17)
    assert (examined(server.dsn, "server")[0].level, examined(server.dsn, "server")[0].message.endswith("tested with")) == (
        CheckLevel.NOTE, True,
    )  # fmt: skip
    monkeypatch.setattr(checks, "_OLDEST_VERSION", 19)
    monkeypatch.setattr(checks, "_NEWEST_VERSION", 20)
    finding = examined(server.dsn, "server")[0]
    assert (finding.level, "needs 19 or later" in finding.message) == (CheckLevel.WRONG, True)


def test_a_server_that_may_be_damaged_by_a_crash_is_wrong(server: PostgresServer) -> None:
    setting(server, "SET full_page_writes = off")
    try:
        (finding,) = [each for each in examined(server.dsn, "server") if each.level is CheckLevel.WRONG]
    finally:
        setting(server, "RESET full_page_writes")
    assert finding.message == "full_page_writes is off, so a crash of the machine can damage the database"


def test_connections_that_run_short_are_a_note(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_MAX_USED_CONNECTIONS", 0.001)
    (finding,) = [each for each in examined(server.dsn, "server") if "connections are used" in each.message]
    assert (finding.level, "each process needs 3; raise max_connections" in finding.message) == (CheckLevel.NOTE, True)


@pytest.mark.skipif(program() is None, reason=MISSING)
def test_a_pooler_in_session_mode_is_a_note(server: PostgresServer) -> None:
    with PgBouncer(server.dsn, "session", users=(urlsplit(server.dsn).username or "",)) as pooler:
        (finding,) = examined(pooler.url(server.dsn), "pooler")
    assert (finding.level, "its pool needs 3 connections for each process" in finding.message) == (CheckLevel.NOTE, True)
