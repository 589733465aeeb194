"""pgqueuer, the package for PostgreSQL and asyncio to compare with, as its documentation shows it, with durable tables."""

from __future__ import annotations

import asyncio
import time
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import asyncpg

from asyncrunner.postgres.connection.address import parse_address

__all__ = ["is_installed", "listen", "load", "run_jobs", "submit_one_by_one"]

_ENTRYPOINT: Final = "job"
_SETTLED_SECONDS: Final = 0.2


def is_installed() -> bool:
    return find_spec("pgqueuer") is not None


def load() -> None:
    """Import the package."""
    import_module("pgqueuer.domain.types")


async def _open(url: str, *, create: bool) -> tuple[Any, Any]:
    from pgqueuer import AsyncpgDriver, PgQueuer

    address = parse_address(url)
    connection = await asyncpg.connect(address.dsn, server_settings={"search_path": address.schema})
    if create:
        await connection.execute(f"CREATE SCHEMA {address.schema}")
    queuer = PgQueuer(AsyncpgDriver(connection))
    if create:
        await queuer.qm.queries.install()
    return connection, queuer


def run_jobs(url: str, items: int, batch_size: int) -> float:
    """Return the seconds of adding the jobs, 1,000 in a call, and running them until none is left."""
    from pgqueuer.domain.types import QueueExecutionMode

    async def run() -> float:
        began = time.perf_counter()
        connection, queuer = await _open(url, create=True)
        ran = 0

        @queuer.entrypoint(_ENTRYPOINT)  # type: ignore[untyped-decorator]
        async def job(job: object) -> None:
            del job
            nonlocal ran
            ran += 1

        for first in range(0, items, 1000):
            payloads = [str(number).encode() for number in range(first, min(first + 1000, items))]
            await queuer.qm.queries.enqueue([_ENTRYPOINT] * len(payloads), payloads, [0] * len(payloads))
        await queuer.qm.run(batch_size=batch_size, mode=QueueExecutionMode.drain)
        seconds = time.perf_counter() - began
        assert ran == items, ran
        await connection.close()
        return seconds

    return asyncio.run(run())


def listen(url: str, items: int) -> list[float]:
    """Create the tables, print a line, run *items* jobs of others, and return the milliseconds to each start."""

    async def run() -> list[float]:
        connection, queuer = await _open(url, create=True)
        waits: list[float] = []

        @queuer.entrypoint(_ENTRYPOINT)  # type: ignore[untyped-decorator]
        async def job(job: Any) -> None:
            waits.append((time.monotonic() - float(job.payload)) * 1e3)
            if len(waits) == items:
                queuer.qm.shutdown.set()

        running = asyncio.create_task(queuer.qm.run())
        await asyncio.sleep(_SETTLED_SECONDS)
        print("ready", flush=True)
        await running
        await connection.close()
        return waits

    return asyncio.run(run())


def submit_one_by_one(url: str, items: int, pause: float) -> None:
    """Submit *items* jobs with their times, each *pause* seconds after the one before."""

    async def run() -> None:
        connection, queuer = await _open(url, create=False)
        for _ in range(items):
            await queuer.qm.queries.enqueue(_ENTRYPOINT, str(time.monotonic()).encode())
            await asyncio.sleep(pause)
        await connection.close()

    asyncio.run(run())
