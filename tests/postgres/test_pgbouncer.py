"""The pooler of the tests: it is the real one, and the facts about it that the package depends on hold."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.pgbouncer import MISSING, PgBouncer, program
from tests.support.postgres_server import ServerFailedError

pytestmark = pytest.mark.skipif(program() is None, reason=MISSING)


def backend(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def test_in_transaction_mode_two_clients_share_a_session_which_is_not_the_one_of_the_protocol(server_dsn: str) -> None:
    with PgBouncer(server_dsn, "transaction", settings={"default_pool_size": 1}) as pooler:
        url = pooler.url(server_dsn)
        with psycopg.connect(url, autocommit=True) as first, psycopg.connect(url, autocommit=True) as second:
            assert backend(first) == backend(second)
            assert first.info.backend_pid != backend(first)


def test_in_session_mode_a_client_has_a_session_for_itself_until_the_pooler_restarts(server_dsn: str) -> None:
    with PgBouncer(server_dsn, "session") as pooler:
        url = pooler.url(server_dsn)
        with psycopg.connect(url, autocommit=True) as first, psycopg.connect(url, autocommit=True) as second:
            assert backend(first) != backend(second)
            pooler.stop()
            with pytest.raises(psycopg.OperationalError):
                backend(first)
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(url)
        pooler.start()
        with psycopg.connect(url) as again:
            assert backend(again)


def test_a_pooler_that_does_not_start_says_why_and_leaves_no_folder(server_dsn: str) -> None:
    pooler = PgBouncer(server_dsn, "session", settings={"pool_mode": "wrong"})
    with pytest.raises(ServerFailedError, match="pool_mode"):
        pooler.__enter__()
    assert not pooler.folder.exists()
