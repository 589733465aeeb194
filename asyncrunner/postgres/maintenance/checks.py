"""Check a server and a schema for ``asyncrunner doctor``. The checks only read; repairs.py makes the safe repairs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

import asyncpg

from asyncrunner.postgres import sql
from asyncrunner.postgres.admin.queries import one_moment, workers
from asyncrunner.postgres.connection.pooler import has_pooler
from asyncrunner.postgres.connection.session import KEEPALIVE_SETTINGS
from asyncrunner.store.maintenance import CheckLevel, CheckResult, resting_batches
from asyncrunner.text.escaping import counted, counted_are

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection, Record

    from asyncrunner.domain.clock import Clock
    from asyncrunner.postgres.connection.address import Address

_OLDEST_VERSION: Final = 14
_NEWEST_VERSION: Final = 18
_TRIGGERS: Final = 9  # of version_1/changes_by_hand.sql
_MAX_USED_CONNECTIONS: Final = 0.8
_CONNECTIONS_OF_A_WORKER: Final = 3
_CLOCK_SLACK_SECONDS: Final = 5.0


async def examine(connection: Connection[Record], address: Address, clock: Clock, batch: str | None) -> Sequence[CheckResult]:
    """Run every check and return the findings, in the order of the report.

    With *batch*, the checks of counts and controls cover only that batch. If the server cannot run a check, the report has a
    finding about it.
    """
    checks: dict[str, Callable[[], AsyncIterator[CheckResult]]] = {
        "server": lambda: _server(connection),
        "autovacuum": lambda: _autovacuum(connection),
        "keepalives": lambda: _keepalives(connection),
        "pooler": lambda: _pooler(connection),
        "rights": lambda: _rights(connection),
        "schema": lambda: _schema(connection, address),
        "side tables": lambda: _side_tables(connection),
        "counts": lambda: _counts(connection, batch),
        "causes": lambda: _causes(connection, batch),
        "results": lambda: _results(connection),
        "workers": lambda: _workers(connection),
        "clock": lambda: _clock(connection, clock),
        "batches": lambda: _batches(connection, batch),
    }
    findings: list[CheckResult] = []
    for name, check in checks.items():
        try:
            results = [each async for each in check()]
        except asyncpg.PostgresError as error:
            results = [CheckResult(name, CheckLevel.WRONG, f"cannot be checked: {error}")]
        findings += results or [CheckResult(name, CheckLevel.OK, "no problems")]
    return findings


async def _server(connection: Connection[Record]) -> AsyncIterator[CheckResult]:
    row = await connection.fetchrow(sql.doctor.SERVER)
    assert row is not None
    version, number, used, available, is_replica, has_fsync, writes_pages, replicas, synchronous, encoding, now = row
    if number < 10_000 * _OLDEST_VERSION:
        message = f"PostgreSQL {version} is too old; asyncrunner needs {_OLDEST_VERSION} or later"
        yield CheckResult("server", CheckLevel.WRONG, message)
    elif number >= 10_000 * (_NEWEST_VERSION + 1):
        message = f"PostgreSQL {version} is newer than {_NEWEST_VERSION}, the newest one that this asyncrunner was tested with"
        yield CheckResult("server", CheckLevel.NOTE, message)
    else:
        yield CheckResult("server", CheckLevel.OK, f"PostgreSQL {version}")
    if is_replica:
        message = "the server only reads, as a replica does; connect to the primary server"
        yield CheckResult("server", CheckLevel.WRONG, message)
    if encoding != "UTF8":
        message = f"the database has the encoding {encoding}, which cannot store every text; create it with UTF8"
        yield CheckResult("server", CheckLevel.WRONG, message)
    if used > _MAX_USED_CONNECTIONS * available:
        yield CheckResult(
            "server",
            CheckLevel.NOTE,
            f"{used} of {available} connections are used, and each process needs {_CONNECTIONS_OF_A_WORKER}; raise "
            "max_connections",
        )
    for name, is_on in (("fsync", has_fsync), ("full_page_writes", writes_pages)):
        if not is_on:
            message = f"{name} is off, so a crash of the machine can damage the database"
            yield CheckResult("server", CheckLevel.WRONG, message)
    if replicas and not synchronous:
        yield CheckResult(
            "server",
            CheckLevel.NOTE,
            f"{counted(replicas, 'replica')} and no synchronous one: a failover can lose the newest outcomes, whose items then "
            "run again; synchronous_standby_names prevents it",
        )
    skew = now - time.time()
    if abs(skew) > _CLOCK_SLACK_SECONDS:
        message = f"the clock of the server is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} that of this machine"
        yield CheckResult("server", CheckLevel.NOTE, f"{message}; all times are those of the server")


async def _autovacuum(connection: Connection[Record]) -> AsyncIterator[CheckResult]:
    row = await connection.fetchrow(sql.doctor.AUTOVACUUM)
    assert row is not None
    is_on, disabled = row
    if not is_on:
        yield CheckResult(
            "autovacuum",
            CheckLevel.WRONG,
            "autovacuum is off, so the tables grow with each change of an item; set autovacuum and track_counts to on in the "
            "configuration of the server",
        )
    if disabled:
        yield CheckResult(
            "autovacuum",
            CheckLevel.WRONG,
            f"autovacuum is disabled for {', '.join(disabled)}, so they grow with each change of an item; ALTER TABLE ... RESET "
            "(autovacuum_enabled)",
        )


async def _keepalives(connection: Connection[Record]) -> AsyncIterator[CheckResult]:
    row = await connection.fetchrow(sql.doctor.KEEPALIVES, list(KEEPALIVE_SETTINGS), list(KEEPALIVE_SETTINGS.values()))
    assert row is not None
    is_remote, others = row
    if is_remote and others is not None:
        yield CheckResult(
            "keepalives",
            CheckLevel.NOTE,
            f"the server does not accept the settings that end the session of a machine without power or network ({others}), so "
            "the items of such a machine wait longer than 10 s for another one",
        )


async def _pooler(connection: Connection[Record]) -> AsyncIterator[CheckResult]:
    if await has_pooler(connection):
        message = "a pooler in session mode is in front of the server; its pool needs 3 connections for each process"
        yield CheckResult("pooler", CheckLevel.NOTE, message)
    else:
        yield CheckResult("pooler", CheckLevel.OK, "none")


async def _rights(connection: Connection[Record]) -> AsyncIterator[CheckResult]:
    tables: dict[str, list[str]] = {}
    for table, missing in await connection.fetch(sql.doctor.MISSING_RIGHTS):
        tables.setdefault(missing, []).append(table)
    if tables:
        lacks = "; ".join(f"{missing} in {', '.join(names)}" for missing, names in tables.items())
        yield CheckResult(
            "rights",
            CheckLevel.NOTE,
            f"this user cannot run items, as a worker does; it lacks {lacks}. For a worker, the owner of the database runs "
            "`asyncrunner schema --db URL --role worker=NAME | psql URL`; a reader needs no more",
        )


async def _schema(connection: Connection[Record], address: Address) -> AsyncIterator[CheckResult]:
    for trigger, table in await connection.fetch(sql.doctor.DISABLED_TRIGGERS):
        yield CheckResult(
            "schema",
            CheckLevel.WRONG,
            f"the trigger {trigger} is disabled; ALTER TABLE {address.schema}.{table} ENABLE TRIGGER {trigger}, then run "
            "`asyncrunner doctor --fix`",
        )
    count: int = await connection.fetchval(sql.doctor.TRIGGERS)
    if count < _TRIGGERS:
        message = f"{_TRIGGERS - count} of {_TRIGGERS} triggers are missing; restore the schema from a backup"
        yield CheckResult("schema", CheckLevel.WRONG, message)


async def _side_tables(connection: Connection[Record]) -> AsyncIterator[CheckResult]:
    async with one_moment(connection):
        await connection.execute(sql.doctor.WHOLE_TABLES)
        for table, statement in sql.doctor.DIFFERENCES.items():
            row = await connection.fetchrow(statement)
            assert row is not None
            missing, surplus = row
            if missing or surplus:
                yield CheckResult(
                    "side tables",
                    CheckLevel.WRONG,
                    f"the table {table} does not agree with items: rows missing: {missing:,}, rows wrong: {surplus:,}, so items "
                    "may wait forever; were rows changed with disabled triggers?",
                    can_fix=True,
                )


async def _counts(connection: Connection[Record], batch: str | None) -> AsyncIterator[CheckResult]:
    async with one_moment(connection):
        await connection.execute(sql.doctor.WHOLE_TABLES)
        for name, *differences in await connection.fetch(sql.doctor.WRONG_COUNTS, batch):
            states = ("pending", "processing", "completed", "failed", "cancelled")
            wrong = ", ".join(f"{state} by {-each:+,}" for state, each in zip(states, differences, strict=True) if each)
            yield CheckResult("counts", CheckLevel.WRONG, f"batch {name!r} counts wrong: {wrong}", can_fix=True)


async def _causes(connection: Connection[Record], batch: str | None) -> AsyncIterator[CheckResult]:
    async with one_moment(connection):
        await connection.execute(sql.doctor.WHOLE_TABLES)
        for name, wrong in await connection.fetch(sql.doctor.WRONG_CAUSES, batch):
            yield CheckResult(
                "causes",
                CheckLevel.WRONG,
                f"batch {name!r}: for {counted(wrong, 'cause')}, the table causes has another number of failed attempts than the "
                "table failures, so `asyncrunner failures` shows a wrong number; --fix counts the attempts again",
                can_fix=True,
            )


async def _results(connection: Connection[Record]) -> AsyncIterator[CheckResult]:
    async with one_moment(connection):
        await connection.execute(sql.doctor.WHOLE_TABLES)
        for name, key in await connection.fetch(sql.doctor.INCOMPLETE_RESULTS):
            yield CheckResult(
                "results",
                CheckLevel.WRONG,
                f"the result of item {key!r} of {name!r} is incomplete: rows of result_pieces were deleted. To run the item "
                "again, delete its row in items and add it again",
            )
        orphaned: int = await connection.fetchval(sql.doctor.ORPHANED_PIECES)
        if orphaned:
            message = f"{counted(orphaned, 'orphaned piece')} of large results; the next run deletes them"
            yield CheckResult("results", CheckLevel.NOTE, message, can_fix=True)


async def _workers(connection: Connection[Record]) -> AsyncIterator[CheckResult]:
    alive = 0
    for worker in await workers(connection):
        if worker.alive:
            alive += 1
            continue
        yield CheckResult(
            "workers",
            CheckLevel.WRONG,
            f"no session holds the lock of worker {worker.worker_id} (pid {worker.pid} on {worker.host}), which holds "
            f"{counted(worker.holding, 'item')}. If the worker is alive, it reconnects within a second; otherwise the next run, "
            "or `asyncrunner recover`, recovers the items",
        )
    orphaned = len(await connection.fetch(sql.workers.ORPHANS))
    if orphaned:
        yield CheckResult(
            "workers", CheckLevel.WRONG, f"{counted_are(orphaned, 'item')} processing but held by no known worker", can_fix=True
        )
    if alive:
        yield CheckResult("workers", CheckLevel.OK, f"{alive} alive")


async def _clock(connection: Connection[Record], clock: Clock) -> AsyncIterator[CheckResult]:
    newest: float | None = await connection.fetchval(sql.doctor.NEWEST_BEAT)
    now = clock.now()
    if newest is not None and newest - now > _CLOCK_SLACK_SECONDS:
        yield CheckResult(
            "clock",
            CheckLevel.WRONG,
            f"the newest heartbeat is {newest - now:.0f} s in the future: the clock of the server was set back; the next run "
            "sets stored times back too",
        )


async def _batches(connection: Connection[Record], batch: str | None) -> AsyncIterator[CheckResult]:
    for finding in resting_batches([tuple(row) for row in await connection.fetch(sql.doctor.PAUSED_OR_STOPPED, batch)]):
        yield finding
