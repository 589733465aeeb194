"""Rows that any program inserts, changes and deletes with plain SQL while workers run: counted, listed, and started immediately."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from asyncrunner import Client, Runner
from asyncrunner.backends import open_engine
from asyncrunner.domain.item import NewItem
from asyncrunner.domain.outcome import Completed, Failed, Outcome, Retrying, Settlement
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.protocols import Store
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from tests.conftest import Until
from tests.contract.stores import BOOM
from tests.support.kinds import KINDS
from tests.support.postgres_kind import schema_of
from tests.support.postgres_state import disagreements
from tests.support.state import counts, rows_of

NOW = 1_800_000_000.0


@pytest.fixture
def db(server_dsn: str, tmp_path: Path) -> str:
    return KINDS["postgres"].new_location(tmp_path, "jobs.db")


class Prepared:
    """A store with one item in each state: ready, waiting, suspect, held, completed, failed, cancelled."""

    def __init__(self, store: Store, batch_id: int, dsn: str, db: str) -> None:
        self.store = store
        self.batch_id = batch_id
        self.dsn = dsn
        self.db = db

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn, options=f"-c search_path={schema_of(self.db)}")

    def run(self, *statements: str) -> None:
        """Run statements in one transaction of another program."""
        with self.connect() as connection:
            for statement in statements:
                connection.execute(statement.encode())

    async def check(self) -> None:
        """The counts are those of the rows, and the tables beside the items say the same as the items."""
        by_status = rows_of(self.db, "SELECT batch_id, status, count(*) FROM items GROUP BY 1, 2")
        for batch_id in {self.batch_id, *(row[0] for row in by_status)}:
            stored = await self.store.counts(batch_id)
            numbers = {name: getattr(stored, name) for name in ("pending", "processing", "completed", "failed", "cancelled")}
            assert [(batch_id, name, number) for name, number in numbers.items() if number] == sorted(
                (row for row in by_status if row[0] == batch_id), key=lambda row: [*numbers].index(row[1])
            )
        assert disagreements(self.db) == {}


@pytest.fixture
async def prepared(db: str, server_dsn: str) -> AsyncIterator[Prepared]:
    store = open_engine(db)
    await store.open()
    batch = await store.open_batch("b", "m:h", BatchOptions(max_attempts=3))
    await store.join(WorkerInfo("w", "here", 1))
    keys = ["completed", "failed", "cancelled", "waiting", "suspect", "held"]
    await store.add(batch.batch_id, [NewItem(key, "1", -number) for number, key in enumerate(keys)], on_change="error")
    claims = {each.id: each for each in (await store.turn("w", [], [Want(batch.batch_id, 10, 3)])).claims}
    outcomes: dict[str, Outcome] = {
        "completed": Completed("1"),
        "failed": Failed(BOOM, permanent=False),
        "waiting": Retrying(BOOM, 3600.0),
        "suspect": Retrying(BOOM, 0.0),
    }
    await store.turn("w", [Settlement(claims[key], outcome, NOW, NOW + 1) for key, outcome in outcomes.items()], [])
    await store.cancel(batch.batch_id, ["cancelled"])
    made = Prepared(store, batch.batch_id, server_dsn, db)
    made.run("UPDATE items SET suspect = 1 WHERE id = 'suspect'", "UPDATE items SET seq = seq")
    await store.add(batch.batch_id, [NewItem("ready", "1")], on_change="error")
    states = rows_of(db, "SELECT id, status FROM items ORDER BY id")
    assert states == [
        ("cancelled", "cancelled"), ("completed", "completed"), ("failed", "failed"), ("held", "processing"),
        ("ready", "pending"), ("suspect", "pending"), ("waiting", "pending"),
    ]  # fmt: skip
    await made.check()
    yield made
    await store.close()


NEW_ITEMS = "INSERT INTO items (batch_id, id, payload) SELECT batch_id, 'new' || n, '1' FROM batches, generate_series(1, 5) AS n"

STATEMENTS = {
    "insert": NEW_ITEMS,
    "insert in each state": """INSERT INTO items (batch_id, id, payload, status, suspect, due_at, worker_id)
        SELECT batch_id, 'new' || status || suspect, '1', status, suspect, CASE suspect WHEN 2 THEN now() END, 'other'
        FROM batches, unnest('{pending,processing,completed,failed,cancelled}'::text[]) AS status, generate_series(0, 2) AS suspect""",
    "insert a due time": "INSERT INTO items (batch_id, id, payload, due_at) SELECT batch_id, 'new', '1', now() FROM batches",
    "insert or nothing": NEW_ITEMS.replace("'new' || n", "CASE n WHEN 1 THEN 'new' ELSE 'ready' END") + " ON CONFLICT DO NOTHING",
    "insert or update": """INSERT INTO items (batch_id, id, payload) SELECT batch_id, key, '2' FROM batches,
        unnest('{ready,held,failed,waiting,suspect,completed,new}'::text[]) AS key
        ON CONFLICT (batch_id, id) DO UPDATE SET payload = excluded.payload, status = 'pending', due_at = NULL, suspect = 0""",
    "update a due time": "UPDATE items SET due_at = now() + interval '1 hour'",
    "update no due time": "UPDATE items SET due_at = NULL",
    "update priorities": "UPDATE items SET priority = priority + 7",
    "update suspects": "UPDATE items SET suspect = 2 - suspect",
    "update a negative suspect": "UPDATE items SET suspect = -1",
    "update workers": "UPDATE items SET worker_id = 'other'",
    "update no worker": "UPDATE items SET worker_id = NULL",
    "update fingerprints": "UPDATE items SET fingerprint = 'mine'",
    "update everything": """UPDATE items SET status = 'pending', priority = 3, due_at = now(), suspect = 1, worker_id = NULL,
        fingerprint = 'x', payload = '9'""",
    "update payloads": "UPDATE items SET payload = '5'",
    "update numbers": "UPDATE items SET seq = seq + 100000",
    "update numbers and states": "UPDATE items SET seq = seq + 100000, status = 'pending', priority = 1",
    "update keys": "UPDATE items SET id = id || 'x'",
    "swap states": """UPDATE items SET status = CASE status WHEN 'pending' THEN 'processing' WHEN 'processing' THEN 'failed'
        WHEN 'failed' THEN 'cancelled' WHEN 'cancelled' THEN 'completed' ELSE 'pending' END""",
    "move to another batch": """WITH other AS (INSERT INTO batches (name, handler, options) VALUES ('o', 'm:h', '{}')
        RETURNING batch_id) UPDATE items SET batch_id = other.batch_id FROM other""",
    "delete": "DELETE FROM items",
    "delete one": "DELETE FROM items WHERE id = 'held'",
    "truncate": "TRUNCATE items",
    "truncate all": "TRUNCATE items, batches, failures CASCADE",
    "delete failures": "DELETE FROM failures WHERE failure_id % 2 = 0",
    "update failures": "UPDATE failures SET fingerprint = 'other'",
    "truncate failures": "TRUNCATE failures",
    **{
        f"update to {status}": f"UPDATE items SET status = '{status}'"
        for status in ("pending", "processing", "completed", "failed", "cancelled")
    },
}


@pytest.mark.parametrize("name", STATEMENTS)
async def test_the_counts_and_lists_follow_a_statement(prepared: Prepared, name: str) -> None:
    prepared.run(STATEMENTS[name])
    await prepared.check()


async def test_nothing_stays_of_a_transaction_that_is_rolled_back(prepared: Prepared) -> None:
    before = rows_of(prepared.db, "SELECT * FROM items ORDER BY seq")
    with prepared.connect() as connection:
        for statement in (NEW_ITEMS, STATEMENTS["swap states"], STATEMENTS["update priorities"], "DELETE FROM items"):
            connection.execute(statement.encode())
        connection.rollback()
    assert rows_of(prepared.db, "SELECT * FROM items ORDER BY seq") == before
    await prepared.check()


async def test_every_statement_after_the_other_in_one_transaction(prepared: Prepared) -> None:
    once = [each for name, each in STATEMENTS.items() if not name.startswith(("truncate", "delete", "insert in", "move"))]
    prepared.run(*once)
    await prepared.check()
    prepared.run("DELETE FROM items", NEW_ITEMS, "DELETE FROM items WHERE id = 'new1'", "UPDATE items SET status = 'failed'")
    await prepared.check()


async def test_rows_that_are_copied_are_items(prepared: Prepared) -> None:
    with (
        prepared.connect() as connection,
        connection.cursor().copy("COPY items (batch_id, id, payload, due_at) FROM STDIN") as copy,
    ):
        for number in range(1000):
            copy.write_row((prepared.batch_id, f"copied {number}", "1", "2020-01-01" if number % 2 else None))
    await prepared.check()
    claims = (await prepared.store.turn("w", [], [Want(prepared.batch_id, 2000, 3)])).claims
    assert len([each for each in claims if each.id.startswith("copied")]) == 1000
    await prepared.check()


async def test_an_edit_in_the_middle_of_an_attempt_is_counted_once(prepared: Prepared) -> None:
    (claim,) = (await prepared.store.turn("w", [], [Want(prepared.batch_id, 1, 3)])).claims
    prepared.run(f"UPDATE items SET status = 'pending', worker_id = NULL WHERE seq = {claim.seq}")
    await prepared.check()
    turn = await prepared.store.turn("w", [Settlement(claim, Completed("1"), NOW, NOW + 1)], [])
    assert [each.id for each in turn.lost] == [claim.id]
    await prepared.check()
    (again,) = (await prepared.store.turn("w", [], [Want(prepared.batch_id, 1, 3)])).claims
    assert (again.id, again.number) == (claim.id, claim.number + 1)
    prepared.run(f"DELETE FROM items WHERE seq = {claim.seq}")
    assert list((await prepared.store.turn("w", [Settlement(again, Completed("1"), NOW, NOW + 1)], [])).lost) == [again]
    await prepared.check()


class Service:
    """A running runner, and another program's connection."""

    def __init__(self, db: str, dsn: str) -> None:
        self.runner = Runner(db)
        self.ran: list[Any] = []
        self.connection = psycopg.connect(dsn, options=f"-c search_path={schema_of(db)}")

        @self.runner.handler(batch="b")
        async def handle(item: Any) -> Any:
            self.ran.append(item)
            return item

        self.handle = handle


@pytest.mark.parametrize(
    ("statement", "ran"),
    [
        ("INSERT INTO items (batch_id, id, payload) SELECT batch_id, 'x', '7' FROM batches", [7]),
        ("INSERT INTO items (batch_id, id, payload, due_at) SELECT batch_id, 'x', '7', now() FROM batches", [7]),
        ("INSERT INTO items (batch_id, id, payload, priority) SELECT batch_id, 'x', '7', 9 FROM batches", [7]),
        ("UPDATE items SET status = 'pending'", ["done"]),
        ("UPDATE items SET status = 'pending', payload = '8'", [8]),
    ],
)
async def test_a_worker_starts_it_after_the_commit_and_never_before(
    db: str, server_dsn: str, until: Until, statement: str, ran: list[Any]
) -> None:
    service = Service(db, server_dsn)
    async with service.runner:
        await (await service.handle.submit("done", key="done")).result(20)
        del service.ran[:]
        service.connection.execute(statement.encode())
        await (await service.handle.submit("meanwhile", key="meanwhile")).result(20)
        assert service.ran == ["meanwhile"]
        loop = asyncio.get_running_loop()
        began = loop.time()
        service.connection.commit()
        await until(lambda: service.ran[1:] == ran)
        assert loop.time() - began < 0.9, "a worker looks each second without a notification"
    service.connection.close()
    assert disagreements(db) == {}


async def test_a_due_time_that_is_cleared_by_hand_starts_the_item(db: str, server_dsn: str, until: Until) -> None:
    service = Service(db, server_dsn)
    async with service.runner:
        await service.handle.submit("later", key="later", delay=3600)
        with service.connection as connection:
            connection.execute("UPDATE items SET due_at = NULL")
        await until(lambda: service.ran == ["later"])
    assert disagreements(db) == {}


async def test_a_batch_that_is_paused_by_hand_is_left_alone_and_then_resumed(db: str, server_dsn: str, until: Until) -> None:
    service = Service(db, server_dsn)
    async with service.runner:
        service.connection.execute("UPDATE batches SET paused = true")
        service.connection.commit()
        await service.handle.submit(1, key=1)
        async with Client(db) as client:
            assert (await client.submit("b", 2, key=2)).created
        service.connection.execute("UPDATE batches SET paused = false")
        assert service.ran == []
        service.connection.commit()
        await until(lambda: sorted(service.ran) == [1, 2])
    service.connection.close()


OPERATIONS = 400
ITEMS = 300


async def test_workers_and_changes_by_hand_at_the_same_time_lose_and_hang_nothing(db: str, server_dsn: str, until: Until) -> None:
    """Two workers claim while other programs change, add and delete rows; a deadlock or a conflict only repeats a statement."""
    services = [Service(db, server_dsn), Service(db, server_dsn)]
    async with services[0].runner, services[1].runner:
        await services[0].handle.submit_many([f"item {number}" for number in range(ITEMS)])
        schema = schema_of(db)
        repeated: list[str] = []
        failures: list[BaseException] = []

        def change(seed: int) -> None:
            chosen = random.Random(seed)
            try:
                with psycopg.connect(server_dsn, options=f"-c search_path={schema}", autocommit=True) as connection:
                    for number in range(OPERATIONS):
                        operation(connection, chosen, f"{seed}-{number}")
            except BaseException as error:
                failures.append(error)

        def operation(connection: psycopg.Connection[Any], chosen: random.Random, key: str) -> None:
            some = f"id IN (SELECT id FROM items ORDER BY random() LIMIT {chosen.randint(1, 20)})"
            statement = chosen.choice(
                [
                    f"UPDATE items SET priority = {chosen.randint(-5, 5)} WHERE {some}",
                    f"UPDATE items SET status = 'pending', worker_id = NULL WHERE status IN ('completed', 'failed') AND {some}",
                    f"UPDATE items SET status = 'pending', worker_id = NULL WHERE status = 'processing' AND {some}",
                    f"UPDATE items SET due_at = now() + interval '{chosen.randint(0, 100)} ms' WHERE {some}",
                    f"UPDATE items SET suspect = {chosen.randint(0, 1)} WHERE status = 'pending' AND {some}",
                    f"DELETE FROM items WHERE {some} AND random() < 0.3",
                    f"UPDATE items SET status = 'cancelled' WHERE {some} AND random() < 0.1",
                    f"""INSERT INTO items (batch_id, id, payload, priority) SELECT batch_id, '{key}-' || n, '1',
                        {chosen.randint(-5, 5)} FROM batches, generate_series(1, 5) AS n""",
                ]
            )
            while True:
                try:
                    connection.execute(statement.encode())
                except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure) as error:
                    repeated.append(type(error).__name__)
                else:
                    return

        threads = [threading.Thread(target=change, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
        assert failures == []
        await until(lambda: not counts(db)["pending"] and not counts(db)["processing"])
        # A worker settles nothing any more, so the state is at rest.
    state = disagreements(db)
    assert state == {}
    assert {status for status in counts(db) if counts(db)[status]} <= {"completed", "cancelled"}
    assert counts(db)["completed"] > 0
    assert len(repeated) < OPERATIONS, "most statements run the first time"
    for service in services:
        service.connection.close()
