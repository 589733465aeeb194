"""``asyncrunner doctor``: every check finds its problem, and --fix repairs it without changing finished items."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncrunner import run_batch
from asyncrunner.sqlite.locks.liveness_lock import LivenessLock
from asyncrunner.sqlite.maintenance import checks
from asyncrunner.sqlite.maintenance.checks import has_wal_reset_bug, without_comments
from asyncrunner.sqlite.maintenance.maintenance import SQLiteMaintenance
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.maintenance import CheckLevel
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.testing import FakeClock
from asyncrunner.text.timestamps import to_text
from tests.support.processes import Jobs

pytestmark = pytest.mark.sqlite_file

FINISHED = "SELECT id, status, result, attempts FROM items ORDER BY seq"


async def same(n: int) -> int:
    return n


@pytest.fixture
async def sound(jobs: Jobs) -> Jobs:
    await run_batch(range(5), same, db=jobs.db, batch="b", progress=False)
    return jobs


def diagnose(jobs: Jobs, *arguments: str) -> tuple[int, dict[str, str], list[str]]:
    """Return the exit code, the message of each failed check, and the repairs."""
    process = jobs.start("doctor", "--json", *arguments)
    out, error = process.communicate(timeout=60)
    document = json.loads(out)
    assert document["ok"] == (process.returncode == 0), error
    wrong = {each["check"]: each["message"] for each in document["findings"] if each["level"] == "wrong"}
    return process.returncode, wrong, document["fixed"]


def execute(jobs: Jobs, *statements: str) -> None:
    connection = sqlite3.connect(jobs.db)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


async def test_a_sound_file_is_reported_as_sound_and_not_changed(sound: Jobs) -> None:
    before = sound.db.read_bytes()
    process = sound.start("doctor", "--full")
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert out.splitlines()[-1] == "nothing is wrong"
    for check in ("sqlite", "file system", "permissions", "schema", "integrity", "counts", "write-ahead log", "workers", "clock"):
        assert f"  {check}: " in out
    assert sound.db.read_bytes() == before


async def test_a_worker_without_a_lock_file_is_reported_and_keeps_its_items(sound: Jobs) -> None:
    execute(sound, DEAD, "UPDATE items SET status = 'processing', worker_id = 'dead' WHERE id = '3'")
    for arguments in ((), ("--fix",)):
        code, wrong, fixed = diagnose(sound, *arguments)
        assert (code, list(wrong), fixed) == (1, ["workers"], [])
        assert "has no lock file and holds 1 item" in wrong["workers"]
    assert sound.query("SELECT status, crashes FROM items WHERE id = '3'") == [("processing", 0)]


FAILED = """INSERT INTO failures (batch_id, id, attempt, claim, failed_at, error_type, message, traceback, fingerprint)
VALUES (1, '3', 1, 1, '2026-01-01 00:00:00.000', 'E', 'm', '', 'f1')"""

DEAD = """INSERT INTO workers (worker_id, host, pid, started_at, last_heartbeat)
VALUES ('dead', 'here', 1, '2026-01-01', '2026-01-01')"""


@pytest.mark.parametrize(
    ("statements", "check", "says"),
    [
        (["UPDATE batches SET total = 7"], "counts", "batch 'b' records 7 items but has 5"),
        (["DROP TRIGGER items_deleted"], "schema", "the trigger items_deleted is missing"),
        (["DROP INDEX failures_of_item"], "schema", "the index failures_of_item is missing"),
        (
            [DEAD, "UPDATE items SET status = 'processing', worker_id = 'dead' WHERE id = '3'"],
            "workers",
            "is dead and holds 1 item",
        ),
        (["UPDATE items SET status = 'processing', worker_id = 'x' WHERE id = '3'"], "workers", "held by no known worker"),
        ([FAILED, "UPDATE causes SET attempts = 7"], "causes", "batch 'b': for 1 cause, the table causes has another number"),
        ([FAILED, "DELETE FROM causes"], "causes", "--fix counts the attempts again"),
        (["INSERT INTO causes VALUES (1, 'f2', 3)"], "causes", "--fix counts the attempts again"),
    ],
)
async def test_a_problem_that_can_be_fixed_is_found_and_fixed(statements: list[str], check: str, says: str, sound: Jobs) -> None:
    LivenessLock(sound.db, "dead").drop()  # a dead process leaves an unlocked lock file
    finished = sound.query(FINISHED + " LIMIT 3")
    execute(sound, *statements)
    code, wrong, fixed = diagnose(sound)
    assert (code, list(wrong), fixed) == (1, [check], [])
    assert says in wrong[check]
    code, wrong, fixed = diagnose(sound, "--fix")
    assert (code, wrong) == (0, {})
    assert len(fixed) == 1
    assert sound.query(FINISHED + " LIMIT 3") == finished
    assert sound.query("SELECT total FROM batches") == [(5,)]
    assert sound.query("SELECT count(*) FROM items WHERE status = 'processing'") == [(0,)]
    assert diagnose(sound, "--fix") == (0, {}, [])


async def test_failed_attempts_are_counted_again_after_their_trigger_is_restored(sound: Jobs) -> None:
    execute(sound, "DROP TRIGGER failures_inserted", FAILED, FAILED)
    code, wrong, _ = diagnose(sound)
    assert (code, list(wrong)) == (1, ["schema", "causes"])
    code, wrong, fixed = diagnose(sound, "--fix")
    assert (code, wrong, len(fixed)) == (0, {}, 2)
    assert sound.query("SELECT * FROM causes") == [(1, "f1", 2)]
    execute(sound, FAILED)
    assert sound.query("SELECT * FROM causes") == [(1, "f1", 3)]


async def test_of_one_batch_the_causes_of_others_are_not_looked_at(sound: Jobs) -> None:
    execute(sound, "INSERT INTO causes VALUES (99, 'f2', 3)")
    assert diagnose(sound, "--batch", "b") == (0, {}, [])
    assert diagnose(sound)[0] == 1
    assert diagnose(sound, "--fix") == (0, {}, ["counted the failed attempts of batch '' again: 1 cause had a wrong number"])


async def test_a_file_whose_statements_have_other_comments_is_in_order(sound: Jobs) -> None:
    old = "-- not before; NULL: no delay"
    execute(
        sound,
        "PRAGMA writable_schema = ON",
        f"UPDATE sqlite_schema SET sql = replace(sql, '-- not started before; NULL: due now', '{old}') WHERE name = 'items'",
    )
    ((statement,),) = sound.query("SELECT sql FROM sqlite_schema WHERE name = 'items'")
    assert old in statement
    assert diagnose(sound, "--full") == (0, {}, [])


async def test_a_table_with_another_statement_is_found(sound: Jobs) -> None:
    execute(
        sound,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = replace(sql, 'priority     INTEGER NOT NULL DEFAULT 0', 'priority INTEGER NOT NULL DEFAULT 1') "
        "WHERE name = 'items'",
    )
    code, wrong, _ = diagnose(sound)
    assert (code, wrong) == (1, {"schema": "the table items differs from asyncrunner's schema"})


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("CREATE TABLE a (  -- one, it's\n    b TEXT\n)", "CREATE TABLE a ( b TEXT )"),
        ("CREATE TABLE a (/* two\nlines */ b TEXT)", "CREATE TABLE a ( b TEXT)"),
        ("CHECK (b <> '--') -- end", "CHECK (b <> '--')"),
        ("CHECK (b <> 'it''s -- text' AND \"--c\" = 1)", "CHECK (b <> 'it''s -- text' AND \"--c\" = 1)"),
    ],
)
def test_a_comment_of_a_statement_is_dropped_and_a_quoted_text_is_kept(statement: str, expected: str) -> None:
    assert without_comments(statement) == expected


async def test_files_that_others_may_read_are_found_and_made_private(sound: Jobs) -> None:
    sound.db.chmod(0o644)
    code, wrong, _ = diagnose(sound)
    assert (code, list(wrong)) == (1, ["permissions"])
    assert "other users can access asyncrunner.db" in wrong["permissions"]
    assert "(0644), and payloads may be secret" in wrong["permissions"]
    code, wrong, fixed = diagnose(sound, "--fix")
    assert (code, wrong, fixed[0]) == (0, {}, "asyncrunner.db is now accessible only to its owner")
    assert sound.db.stat().st_mode & 0o777 == 0o600


async def test_a_clock_that_was_set_back_is_found(sound: Jobs) -> None:
    execute(sound, "UPDATE workers SET last_heartbeat = '2999-01-01 00:00:00.000'")
    code, wrong, _ = diagnose(sound)
    assert (code, list(wrong)) == (1, ["clock"])
    assert "the clock was set back; the next run sets stored times back too" in wrong["clock"]


async def test_a_row_without_its_parent_is_found(sound: Jobs) -> None:
    execute(sound, "UPDATE items SET batch_id = 77 WHERE id = '2'")
    _, wrong, _ = diagnose(sound)
    assert "of items refers to a missing row of batches" in wrong["integrity"]


async def test_a_damaged_file_is_found_and_not_written_to(sound: Jobs) -> None:
    await run_batch(
        [{"n": n, "x": "y" * 500} for n in range(500)], _nothing, key=lambda item: item["n"], db=sound.db, progress=False
    )
    content = bytearray(sound.db.read_bytes())
    content[-40 * 4096 : -10 * 4096] = b"\x5a" * (30 * 4096)
    sound.db.write_bytes(content)
    code, wrong, fixed = diagnose(sound, "--fix")
    assert (code, fixed) == (1, [])
    assert wrong["integrity"]
    assert sound.db.read_bytes() == content


async def _nothing(item: dict[str, object]) -> None:
    del item


async def test_a_file_in_use_is_sound_too(jobs: Jobs) -> None:
    process = jobs.start("run", "h.py:forever", jobs.items(3))
    jobs.until(lambda: len(jobs.lines("start")) == 3)
    assert diagnose(jobs) == (0, {}, [])
    process.kill()
    process.wait()
    code, wrong, _ = diagnose(jobs)
    assert (code, list(wrong)) == (1, ["workers"])
    code, wrong, fixed = diagnose(jobs, "--fix")
    assert (code, wrong) == (0, {})
    assert "recovered 3 items of the dead worker" in fixed[0]
    assert jobs.query("SELECT DISTINCT status, crashes FROM items") == [("pending", 1)]


async def test_of_one_batch_the_counts_and_controls_of_others_are_not_looked_at(sound: Jobs) -> None:
    await run_batch(range(2), same, db=sound.db, batch="other", progress=False)
    execute(sound, "UPDATE batches SET total = 9, paused = 1 WHERE name = 'other'")
    assert diagnose(sound, "--batch", "b") == (0, {}, [])
    execute(sound, "UPDATE batches SET total = 8 WHERE name = 'b'")
    assert diagnose(sound, "--batch", "other") == (1, {"counts": "batch 'other' records 9 items but has 2"}, [])
    assert diagnose(sound, "--batch", "other", "--fix") == (0, {}, ["corrected the item count of batch 'other' from 9 to 2"])
    assert sound.query("SELECT total FROM batches ORDER BY name") == [(8,), (2,)]


async def test_orphaned_pieces_are_reported_and_deleted(sound: Jobs) -> None:
    execute(sound, "INSERT INTO result_pieces VALUES (99, 1, 0, 'x'), (1, 0, 0, 'of an older claim')")
    process = sound.start("doctor")
    assert "  note   results: 2 orphaned pieces of large results" in process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert diagnose(sound, "--fix") == (0, {}, ["deleted 2 orphaned pieces of large results"])
    assert sound.query("SELECT * FROM result_pieces") == []


def test_a_store_that_cannot_be_read_is_reported_without_a_traceback(jobs: Jobs) -> None:
    code, said = jobs.run("doctor")
    assert (code, "there is no database at" in said, "Traceback" in said) == (2, True, False)


@pytest.mark.parametrize(
    ("version", "bug"),
    [((3, 40, 1), True), ((3, 44, 5), True), ((3, 44, 6), False), ((3, 45, 0), True), ((3, 50, 6), True), ((3, 50, 7), False),
     ((3, 51, 0), True), ((3, 51, 2), True), ((3, 51, 3), False), ((3, 52, 0), False)],
)  # fmt: skip
def test_the_versions_with_the_wal_reset_bug(version: tuple[int, int, int], bug: bool) -> None:
    assert has_wal_reset_bug(version) is bug


async def test_a_large_log_and_a_network_are_found(sound: Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find: Callable[[], dict[str, CheckLevel]] = lambda: {  # noqa: E731
        each.check: each.level for each in checks.examine(connection, sound.db, full=False, clock=FakeClock())
    }
    connection = sqlite3.connect(sound.db)
    monkeypatch.setattr(checks, "file_system", lambda _: "nfs4")
    wal = sound.db.with_name(sound.db.name + "-wal")
    monkeypatch.setattr(checks, "CHECKPOINT_BYTES", 100)
    connection.execute("UPDATE items SET priority = 1")
    connection.commit()
    assert wal.stat().st_size > 200
    found = find()
    connection.close()
    assert (found["file system"], found["write-ahead log"]) == (CheckLevel.WRONG, CheckLevel.WRONG)


@pytest.mark.parametrize(
    ("seconds", "jumps", "level"),
    [(60.0, False, CheckLevel.OK), (60.0, True, CheckLevel.NOTE), (-60.0, True, CheckLevel.WRONG)],
)
async def test_only_a_clock_that_moves_by_other_than_the_passing_of_time_is_reported(
    seconds: float, jumps: bool, level: CheckLevel, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock(1_800_000_000.0)
    store = SQLiteStore(db, clock=clock)
    await store.open()
    await store.join(WorkerInfo("w", "here", 1))

    def slow(path: Path) -> str:
        if jumps:
            clock.jump(seconds)
        else:
            clock._pass(seconds)
        heartbeats.execute(
            "UPDATE workers SET last_heartbeat = ?", (to_text(clock.now() if seconds > 0 else clock.now() - seconds),)
        )
        heartbeats.commit()
        return "ext4"

    heartbeats = sqlite3.connect(db, check_same_thread=False)
    monkeypatch.setattr(checks, "file_system", slow)
    findings = await SQLiteMaintenance(db, clock).check(full=False)
    assert next(each.level for each in findings if each.check == "clock") is level
    heartbeats.close()
    await store.leave("w")
    await store.close()
