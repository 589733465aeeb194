"""Operators of a store on a server: doctor and its repairs, what a file alone has, messages without passwords, liveness."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from asyncrunner import Control, Fail, run_batch
from asyncrunner.backends import exists, local_path, open_admin, open_engine, open_maintenance
from asyncrunner.errors import ConfigurationError
from asyncrunner.postgres.listener import lock_key
from asyncrunner.store.maintenance import CheckLevel
from asyncrunner.store.workers import WorkerInfo
from tests.support.cli import run_command
from tests.support.kinds import KINDS
from tests.support.postgres_kind import schema_of
from tests.support.state import execute, rows_of

SIDE_TABLES = ("ready", "waiting", "suspects", "held", "ended")


@pytest.fixture
def location(server_dsn: str, tmp_path: Path) -> str:
    return KINDS["postgres"].new_location(tmp_path, "operators")


async def handler(item: str) -> str:
    if item.startswith("bad"):
        raise Fail(f"cannot do {item}")
    return item


@pytest.fixture
def shop(location: str) -> str:
    """A store with an item in each state, which a person set by hand."""
    asyncio.run(run_batch(["good", "bad", "new", "later", "suspect", "held", "gone"], handler, db=location, batch="shop"))
    changes = {
        "new": "status = 'pending'",
        "later": "status = 'pending', due_at = now() + interval '1 day'",
        "suspect": "status = 'pending', suspect = 1",
        "held": "status = 'processing', worker_id = 'w'",
        "gone": "status = 'cancelled'",
    }
    for key, change in changes.items():
        execute(location, f"UPDATE items SET {change} WHERE id = ?", key)
    with KINDS["postgres"].connect(location, False) as connection:
        connection.execute(
            "INSERT INTO workers (worker_id, lock_key, host, pid, started_at, last_heartbeat) VALUES ('w', 1, 'h', 1, now(), now())"
        )
    return location


def findings(location: str, *, fix: bool = False) -> list[tuple[str, str]]:
    """Return the check and the message of each problem that doctor finds, after a repair with *fix*."""

    async def examine() -> list[tuple[str, str]]:
        maintenance = open_maintenance(location)
        if fix:
            await maintenance.repair(contents=True)
        found = await maintenance.check(full=False)
        # The server of the tests writes without fsync, which doctor reports.
        return [(each.check, each.message) for each in found if each.level is CheckLevel.WRONG and "fsync" not in each.message]

    return asyncio.run(examine())


def in_schema(location: str, statement: str) -> None:
    with psycopg.connect(location.partition("?")[0], autocommit=True) as connection:
        connection.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(schema_of(location))))
        connection.execute(statement.encode())


# --- doctor ---------------------------------------------------------------------------------------------------------


def test_changes_by_hand_leave_nothing_wrong_but_a_worker_without_a_session(shop: str) -> None:
    assert [check for check, _ in findings(shop)] == ["workers"]


@pytest.mark.parametrize("table", SIDE_TABLES)
def test_doctor_finds_a_row_of_a_side_table_that_is_missing_or_wrong_and_repairs_it(table: str, shop: str) -> None:
    before = rows_of(shop, f"SELECT * FROM {table} ORDER BY 1, 2, 3")
    assert before
    in_schema(shop, f"UPDATE {table} SET seq = seq + 1000")
    ((check, message),) = [each for each in findings(shop) if each[0] != "workers"]
    assert check == "side tables"
    assert f"the table {table} does not agree with items: rows missing: {len(before)}, rows wrong: {len(before)}" in message
    assert [check for check, _ in findings(shop, fix=True)] == ["workers"]
    after = rows_of(shop, f"SELECT * FROM {table} ORDER BY 1, 2, 3")
    assert [row[:3] for row in after] == [row[:3] for row in before]


def test_doctor_corrects_the_counts_of_items_and_causes(shop: str) -> None:
    counts = rows_of(shop, "SELECT sum(pending), sum(completed), sum(failed) FROM tallies")
    in_schema(shop, "UPDATE tallies SET pending = pending + 5, completed = completed - 1")
    in_schema(shop, "DELETE FROM causes")
    found = dict(findings(shop))
    assert "batch 'shop' counts wrong: pending by +" in found["counts"]
    assert "for 1 cause, the table causes has another number" in found["causes"]
    assert [check for check, _ in findings(shop, fix=True)] == ["workers"]
    assert rows_of(shop, "SELECT sum(pending), sum(completed), sum(failed) FROM tallies") == counts
    assert rows_of(shop, "SELECT sum(attempts) FROM causes") == [(1,)]


def test_an_item_that_was_added_without_triggers_runs_after_the_repair(shop: str) -> None:
    in_schema(shop, "ALTER TABLE items DISABLE TRIGGER items_inserted_by_hand")
    execute(shop, "INSERT INTO items (batch_id, id, payload) VALUES (1, 'hidden', '\"hidden\"')")
    checks = dict(findings(shop))
    assert checks.keys() == {"schema", "side tables", "counts", "workers"}
    assert "the trigger items_inserted_by_hand is disabled; ALTER TABLE" in checks["schema"]
    in_schema(shop, "ALTER TABLE items ENABLE TRIGGER items_inserted_by_hand")
    assert [check for check, _ in findings(shop, fix=True)] == ["workers"]
    asyncio.run(run_batch(["hidden"], handler, db=shop, batch="shop", leftovers="leave"))
    assert rows_of(shop, "SELECT status FROM items WHERE id = 'hidden'") == [("completed",)]


def test_doctor_recovers_orphaned_items(shop: str) -> None:
    execute(shop, "DELETE FROM workers")
    assert [check for check, _ in findings(shop)] == ["workers"]
    assert findings(shop, fix=True) == []
    assert rows_of(shop, "SELECT status, crashes FROM items WHERE id = 'held'") == [("pending", 1)]


@pytest.fixture
def reader(shop: str) -> Iterator[str]:
    name = f"{schema_of(shop)}_reader"
    in_schema(shop, f"CREATE ROLE {name} LOGIN")
    in_schema(
        shop,
        f"GRANT USAGE ON SCHEMA {schema_of(shop)} TO {name}; GRANT SELECT ON ALL TABLES IN SCHEMA {schema_of(shop)} TO {name}",
    )
    yield name
    in_schema(shop, f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_doctor_names_the_rights_that_a_worker_would_need(shop: str, reader: str, tmp_path: Path) -> None:
    as_reader = shop.replace("//", f"//{reader}@", 1) if "@" not in shop else f"postgresql://{reader}@{shop.partition('@')[2]}"
    document = json.loads(run_command(tmp_path, "doctor", "--db", as_reader, "--json").stdout)
    notes = [each["message"] for each in document["findings"] if each["check"] == "rights"]
    (note,) = notes
    assert "lacks DELETE, INSERT, UPDATE in batches, calls, " in note
    assert "`asyncrunner schema --db URL --role worker=NAME | psql URL`" in note


# --- what a file alone has ------------------------------------------------------------------------------------------


def test_commands_for_files_name_the_tools_of_the_server(shop: str, tmp_path: Path) -> None:
    (tmp_path / "copy").touch()
    for arguments, said in (
        (("backup", "new"), f"pg_dump -Fc -n {schema_of(shop)} "),
        (("restore", "copy"), f"pg_restore --clean --if-exists -n {schema_of(shop)} "),
        (("purge", "--before", "1d", "--vacuum"), f"run VACUUM FULL {schema_of(shop)}.items"),
    ):
        done = run_command(tmp_path, *arguments, "--db", shop)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
    assert not (tmp_path / "new").exists()


async def test_a_refused_vacuum_purges_nothing(shop: str) -> None:
    async with Control(shop) as control:
        with pytest.raises(ConfigurationError, match="autovacuum"):
            await control.check_unused()
        with pytest.raises(ConfigurationError, match="VACUUM FULL"):
            await control.vacuum()


def test_work_reports_that_it_created_the_schema(location: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import asyncrunner\nrunner = asyncrunner.Runner()\n@runner.handler()\nasync def job(item): pass\n"
    )
    assert not exists(location)
    first = run_command(tmp_path, "work", "app:runner", "--db", location, "--until-idle")
    assert f"There was no store at {location}, so one was created." in first.stderr
    assert exists(location)
    assert "There was no" not in run_command(tmp_path, "work", "app:runner", "--db", location, "--until-idle").stderr


def test_a_detached_run_keeps_its_log_in_the_current_folder() -> None:
    assert local_path("postgresql://user:secret@host/db?schema=jobs") == Path("jobs")
    assert local_path("folder/jobs.db") == Path("folder/jobs.db")


# --- passwords ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    ["status", "status --json", "show good", "failures", "list", "doctor", "doctor --json", "stop", "stop --json", "pause --batch nothing",
     "backup copy", "restore copy", "check", "plan:"],
)  # fmt: skip
def test_no_command_prints_the_password(arguments: str, shop: str, tmp_path: Path) -> None:
    user = shop.partition("//")[2].partition("@")[0] if "@" in shop else "app"
    url = f"postgresql://{user.partition(':')[0]}:hush-hush@{shop.rpartition('@')[2].removeprefix('postgresql://')}"
    if arguments == "plan:":
        (tmp_path / "app.py").write_text("async def job(item): pass\n")
        done = run_command(tmp_path, "run", "app:job", "--db", url, "--batch", "nothing")
        assert "has no batch 'nothing'" in done.stderr
    else:
        done = run_command(tmp_path, *arguments.split(), "--db", url)
    assert "hush" not in done.stdout + done.stderr
    assert done.stdout + done.stderr


def test_control_does_not_show_the_password() -> None:
    control = Control("postgresql://user:hush-hush@host/db")
    assert repr(control) == "<Control of postgresql://user@host/db>"


# --- liveness -------------------------------------------------------------------------------------------------------


async def test_a_worker_without_a_session_has_a_pulse_and_one_with_a_session_has_none(location: str) -> None:
    engine, admin = open_engine(location), open_admin(location)
    await engine.open()
    await admin.open()
    try:
        await engine.join(WorkerInfo("alive", "h", 1))
        await engine.join(WorkerInfo("dead", "h", 1))
        assert dict(await admin.pulses()) == {}
        # The lock of the second one is released, as by the end of its session.
        execute(location, "UPDATE workers SET lock_key = ? WHERE worker_id = 'dead'", lock_key("another", "dead"))
        assert [(each.worker_id, each.alive) for each in await admin.workers()] == [("alive", True), ("dead", None)]
        assert dict(await admin.pulses()) == {"dead": "0"}
    finally:
        await admin.close()
        await engine.close()


async def test_a_change_waits_for_a_lock_no_longer_than_the_given_time(shop: str) -> None:
    admin = open_admin(shop, retry_seconds=0.2)
    await admin.open()
    with psycopg.connect(shop.partition("?")[0]) as connection:
        connection.execute(sql.SQL("LOCK TABLE {}.batches IN EXCLUSIVE MODE").format(sql.Identifier(schema_of(shop))))
        with pytest.raises(Exception, match="lock timeout"):
            await admin.set_controls(1, paused=True)
        connection.rollback()
    assert await admin.set_controls(1, paused=True)
    await admin.close()
