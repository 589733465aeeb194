"""Django: ``submit_in`` in ``transaction.atomic()`` stores an item if and only if the transaction commits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import django
import pytest
from django.conf import settings
from django.db import connections, transaction
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.utils.connection import ConnectionProxy

from asyncrunner import ConfigurationError, Runner
from asyncrunner.runner.runner import run_until_idle
from tests.support.state import rows_of

if not settings.configured:
    settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}, SECRET_KEY="x" * 50)
    django.setup()


class Site:
    """A site on the file of a runner, with a table of its own and a handler."""

    def __init__(self, db: Path) -> None:
        self.db = db
        self.sent: list[int] = []
        self.runner = Runner(db)

        @self.runner.handler(batch="mail")
        async def send(number: int) -> None:
            self.sent.append(number)

        self.send = send
        self.work()
        database = {**connections.databases["default"], "NAME": str(db)}
        self.connection = DatabaseWrapper(database, "jobs")
        connections["jobs"] = self.connection
        with self.connection.cursor() as cursor:
            cursor.execute("CREATE TABLE orders (number INTEGER PRIMARY KEY)")

    def work(self) -> None:
        async def work() -> None:
            async with self.runner:
                await run_until_idle(self.runner)

        asyncio.run(work())

    def order(self, number: int) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES (%s)", [number])
        self.send.submit_in(self.connection, number, key=number)

    def stored(self) -> tuple[list[int], list[str]]:
        """Return the orders and the keys of the items, as another connection reads them."""
        orders = [row[0] for row in rows_of(self.db, "SELECT number FROM orders ORDER BY number")]
        return orders, [row[0] for row in rows_of(self.db, "SELECT id FROM items ORDER BY seq")]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "jobs.db")
    yield made
    made.connection.close()
    del connections["jobs"]


def test_an_item_exists_once_the_transaction_commits_and_then_runs(site: Site) -> None:
    with transaction.atomic(using="jobs"):
        site.order(1)
        assert site.stored() == ([], []), "not before the commit"
    assert site.stored() == ([1], ["1"])
    site.work()
    assert site.sent == [1]


def test_an_item_of_a_transaction_that_is_rolled_back_does_not_exist(site: Site) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic(using="jobs"):
        site.order(1)
        1 / 0  # noqa: B018
    assert site.stored() == ([], [])


def test_an_inner_block_that_is_rolled_back_takes_only_its_items_with_it(site: Site) -> None:
    with transaction.atomic(using="jobs"):
        site.order(1)
        with pytest.raises(ZeroDivisionError), transaction.atomic(using="jobs"):
            site.order(2)
            1 / 0  # noqa: B018
        site.order(3)
    assert site.stored() == ([1, 3], ["1", "3"])


def test_outside_of_a_transaction_nothing_is_stored(site: Site) -> None:
    with pytest.raises(ConfigurationError, match=r"call it inside `with transaction.atomic\(\):`"):
        site.send.submit_in(site.connection, 1)
    assert site.stored() == ([], [])


def test_a_doomed_transaction_stores_nothing(site: Site) -> None:
    with transaction.atomic(using="jobs"):
        transaction.set_rollback(True, using="jobs")
        with pytest.raises(transaction.TransactionManagementError):
            site.send.submit_in(site.connection, 1)
    assert site.stored() == ([], [])


def test_the_connection_to_another_database_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with transaction.atomic(), pytest.raises(ConfigurationError, match="the connection is open on"):
        site.send.submit_in(connections["default"], 1)
    monkeypatch.setattr(type(site.connection), "vendor", "postgresql")
    with transaction.atomic(using="jobs"), pytest.raises(ConfigurationError, match="is open on postgresql"):
        site.send.submit_in(site.connection, 1)


def test_the_proxy_that_views_import_is_a_connection_too(site: Site) -> None:
    with transaction.atomic(using="jobs"):
        site.send.submit_in(ConnectionProxy(connections, "jobs"), 1, key=1)
    assert site.stored() == ([], ["1"])
