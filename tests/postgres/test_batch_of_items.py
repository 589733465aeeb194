"""Items without a batch cannot exist, as with a foreign key, which would cost a third of an addition."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg.errors import ForeignKeyViolation

from asyncrunner.backends import open_engine
from asyncrunner.domain.item import NewItem
from asyncrunner.errors import StoreError
from asyncrunner.store.batches import BatchOptions
from tests.support.kinds import KINDS
from tests.support.postgres_kind import schema_of


async def test_a_batch_with_items_stays_and_an_item_needs_a_batch(server_dsn: str, tmp_path: Path) -> None:
    location = KINDS["postgres"].new_location(tmp_path, "jobs.db")
    store = open_engine(location)
    await store.open()
    batch = await store.open_batch("jobs", "m:h", BatchOptions())
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute(f"SET search_path = {schema_of(location)}".encode())
        for statement in (
            "DELETE FROM batches",
            "UPDATE batches SET batch_id = 77",
            "INSERT INTO items (batch_id, id, payload) VALUES (77, 'b', '1')",
            "UPDATE items SET batch_id = 77",
        ):
            with pytest.raises(ForeignKeyViolation):
                connection.execute(statement)
        connection.execute("UPDATE batches SET batch_id = batch_id, concurrency = 3")
        connection.execute("DELETE FROM items")
        connection.execute("DELETE FROM batches")
    with pytest.raises(StoreError, match="there is no batch"):
        await store.add(batch.batch_id, [NewItem("c", "1")], on_change="error")
    await store.close()


async def test_a_batch_is_not_deleted_while_a_transaction_adds_its_first_item(server_dsn: str, tmp_path: Path) -> None:
    location = KINDS["postgres"].new_location(tmp_path, "jobs.db")
    store = open_engine(location)
    await store.open()
    batch = await store.open_batch("jobs", "m:h", BatchOptions())
    with psycopg.connect(server_dsn) as adding, psycopg.connect(server_dsn, autocommit=True) as deleting:
        for connection in (adding, deleting):
            connection.execute(f"SET search_path = {schema_of(location)}".encode())
        adding.execute("INSERT INTO items (batch_id, id, payload) VALUES (%s, 'a', '1')", (batch.batch_id,))
        deleting.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            deleting.execute("DELETE FROM batches")
        adding.commit()
        with pytest.raises(ForeignKeyViolation):
            deleting.execute("DELETE FROM batches")
    await store.close()
