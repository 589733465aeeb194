"""Rows that a user changes or deletes with SQL while workers run."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from asyncrunner import Control, RetryPolicy, run_batch
from asyncrunner.domain.item import Counts, NewItem
from asyncrunner.domain.outcome import Completed, ErrorInfo, Failed, PutOff, Settlement
from asyncrunner.errors import StoreError
from asyncrunner.serialization.codec import Codec
from asyncrunner.sqlite.admin.store import SQLiteAdminStore
from asyncrunner.sqlite.file import opening
from asyncrunner.sqlite.queries import recent_turns
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.rules.purge_walk import Walk, Window
from asyncrunner.store.turn import Checkpoint, Want
from asyncrunner.store.workers import Vitals, WorkerInfo
from asyncrunner.testing import FakeClock
from tests.sqlite.conftest import STUCK, Prepared
from tests.support.files import opened
from tests.support.state import execute, rows_of

NOW = 1_800_000_000.0


async def test_a_worker_whose_row_was_deleted_by_hand_is_back_after_a_beat(db: Path) -> None:
    store = await opened(db)
    await store.join(WorkerInfo("w", "here", 7))
    other = sqlite3.connect(db)
    with other:
        other.execute("DELETE FROM workers")
    assert not (await store.beat("w", Vitals())).outcast
    assert rows_of(db, "SELECT worker_id, pid, ended_at FROM workers") == [("w", 7, None)]
    assert other.execute("SELECT worker_id, pid FROM workers").fetchall() == [("w", 7)]
    other.close()
    await store.close()


async def test_options_that_were_damaged_by_hand_do_not_stop_a_recovery(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions(max_attempts=1))
    await store.join(WorkerInfo("w", "here", 1))
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    await store.turn("w", [], [Want(batch.batch_id, 1, 1)])
    other = sqlite3.connect(db)
    with other:
        other.execute("UPDATE batches SET options = '{'")
        other.execute("UPDATE items SET started_at = 'yesterday'")
    other.close()
    assert await store.recover("w", ErrorInfo("WorkerLost", "gone")) == 1
    assert (await store.counts(batch.batch_id)).pending == 1
    await store.close()


async def test_a_requested_rerun_outlives_an_item_put_back_by_hand_and_is_applied_in_a_backup(db: Path, tmp_path: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.join(WorkerInfo("w", "here", 1))
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    (held,) = (await store.turn("w", [], [Want(batch.batch_id, 1, 3)])).claims
    await store.turn("w", [], [], checkpoints=[Checkpoint(held, "[]")])
    await store.add(batch.batch_id, [NewItem("a", "2")], on_change="rerun")
    async with Control(db) as control:
        await control.backup(tmp_path / "copy.db")
    columns = "SELECT status, payload, rerun_payload, attempts, checkpoint FROM items"
    assert rows_of(tmp_path / "copy.db", columns) == [("pending", "2", None, 0, None)]

    execute(db, "UPDATE items SET status = 'pending', worker_id = NULL")
    (again,) = (await store.turn("w", [], [Want(batch.batch_id, 1, 3)])).claims
    assert again.payload == "1"
    await store.turn("w", [Settlement(again, Completed("1"), NOW, NOW)], [])
    assert rows_of(db, columns) == [("pending", "2", None, 0, None)]

    execute(db, "UPDATE items SET rerun_payload = '3'")
    await store.add(batch.batch_id, [NewItem("a", "4")], on_change="rerun")
    assert rows_of(db, columns) == [("pending", "4", None, 0, None)]
    await store.close()


async def test_an_item_that_failed_and_is_put_back_by_hand_was_not_put_off(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.join(WorkerInfo("w", "here", 1))
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    error = ErrorInfo("E", "429")
    put_offs: list[float | None] = []
    for outcome in (PutOff(error, 0.0), Failed(error, permanent=False), None):
        (claim,) = (await store.turn("w", [], [Want(batch.batch_id, 1, 3)])).claims
        put_offs.append(claim.put_off_at)
        if outcome is not None:
            await store.turn("w", [Settlement(claim, outcome, NOW, NOW)], [])
        execute(str(db), "UPDATE items SET status = 'pending' WHERE status = 'failed'")
    assert [put_off_at is None for put_off_at in put_offs] == [True, False, True]
    await store.close()


async def test_a_settlement_of_an_item_that_was_deleted_is_lost(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.join(WorkerInfo("w", "here", 1))
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    (claim,) = (await store.turn("w", [], [Want(batch.batch_id, 1, 3)])).claims
    other = sqlite3.connect(db)
    with other:
        other.execute("DELETE FROM items")
    other.close()
    assert list((await store.turn("w", [Settlement(claim, Completed("1"), NOW, NOW)], [])).lost) == [claim]
    assert (await store.counts(batch.batch_id)).total == 0
    await store.close()


async def test_a_stuck_item_put_back_by_hand_is_claimed_again_and_the_old_holder_is_fenced_off(prepared: Prepared) -> None:
    store, now = prepared.store, prepared.now
    held = Settlement((await _claim_of(prepared, "stuck")), Completed('"late"'), now, now)
    prepared.ask(f"UPDATE items SET status = 'pending', worker_id = NULL WHERE {STUCK}")
    assert (await prepared.counts()).pending == 2
    assert [claim.id for claim in (await store.turn("w", [held], [])).lost] == ["stuck"]
    claims = (await store.turn("w", [], [Want(prepared.batch_id, 5, 3)])).claims
    assert [claim.id for claim in claims] == ["stuck", "waiting"]
    assert [claim.id for claim in (await store.turn("w", [held], [])).lost] == ["stuck"]
    assert (await prepared.counts()).processing == 2


async def _claim_of(prepared: Prepared, key: str):  # type: ignore[no-untyped-def]
    from asyncrunner.domain.item import Claim

    return Claim(*prepared.ask(f"SELECT seq, batch_id, id, payload, claim, attempts, crashes FROM items WHERE id = '{key}'")[0])


async def test_a_failed_item_put_back_by_hand_runs_once_more_even_if_its_attempts_are_used_up(prepared: Prepared) -> None:
    prepared.ask("UPDATE items SET status = 'pending' WHERE id = 'some-id' AND status = 'failed'")
    prepared.ask("UPDATE items SET status = 'pending' WHERE id = 'used up' AND status = 'failed'")
    assert (await prepared.counts()).failed == 0
    claims = (await prepared.store.turn("w", [], [Want(prepared.batch_id, 5, 3)])).claims
    assert {claim.id: claim.attempt for claim in claims} == {"used up": 3, "some-id": 2, "waiting": 1}


async def test_rows_inserted_and_deleted_by_hand_are_counted_and_run(prepared: Prepared) -> None:
    prepared.ask(f"INSERT INTO items (batch_id, id, payload) VALUES ({prepared.batch_id}, 'by hand', '7')")
    prepared.ask("DELETE FROM items WHERE id = 'done'")
    assert await prepared.counts() == Counts(pending=2, processing=1, failed=2)
    claims = (await prepared.store.turn("w", [], [Want(prepared.batch_id, 5, 3)])).claims
    assert [claim.id for claim in claims] == ["waiting", "by hand"]


async def test_a_key_that_is_there_uses_no_number_up(db: Path) -> None:
    def last() -> int:
        return int(rows_of(db, "SELECT seq FROM sqlite_sequence WHERE name = 'items'")[0][0])

    store = SQLiteStore(db)
    await store.open()
    batch_id = (await store.open_batch("b", "h", BatchOptions())).batch_id
    entries = [NewItem(str(number), "1") for number in range(5)]
    for _ in range(3):
        await store.add(batch_id, entries, on_change="error")
        assert last() == 5
    await store.add(batch_id, [*entries[:2], NewItem("new", "1"), *entries], on_change="error")
    assert rows_of(db, "SELECT max(seq) FROM items") == [(last(),)]
    with sqlite3.connect(db) as connection:
        connection.execute("DELETE FROM items WHERE id = 'new'")
    connection.close()
    before = last()
    await store.add(batch_id, [*entries, NewItem("new", "1")], on_change="error")
    assert rows_of(db, f"SELECT seq > {before} FROM items WHERE id = 'new'") == [(1,)], (
        "the number of a deleted row is not reused"
    )
    await store.close()


async def test_a_row_number_is_not_reused_so_a_late_outcome_changes_no_item(db: Path) -> None:
    store = SQLiteStore(db)
    await store.open()
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.add(batch.batch_id, [NewItem("old", "1")], on_change="error")
    await store.join(WorkerInfo("w", "here", 1))
    want = Want(batch.batch_id, 1, 3)
    (held,) = (await store.turn("w", [], [want])).claims
    with sqlite3.connect(db) as connection:
        connection.execute("DELETE FROM items WHERE id = 'old'")
    connection.close()
    await store.add(batch.batch_id, [NewItem("old", "2")], on_change="error")
    (again,) = (await store.turn("w", [], [want])).claims
    turn = await store.turn("w", [Settlement(held, Completed('"late"'), NOW, NOW)], [])
    assert list(turn.lost) == [held]
    assert again.seq > held.seq
    assert rows_of(db, "SELECT status, result FROM items") == [("processing", None)]
    await store.close()


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("2027-01-15T08:00:10", "2027-01-15 08:00:10.000"),
        ("2027-01-15 10:00:10.5+02:00", "2027-01-15 08:00:10.500"),
        ("2027-01-15 08:00:10", "2027-01-15 08:00:10.000"),
        ("2027-01-15 08:00:10.123", "2027-01-15 08:00:10.123"),
        ("soon", None),
        (None, None),
    ],
)
async def test_a_time_written_by_hand_is_read_in_every_form(db: Path, written: str | None, kept: str | None) -> None:
    clock = FakeClock(NOW)
    store = SQLiteStore(db, clock=clock)
    await store.open()
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    connection = sqlite3.connect(db)
    connection.execute("UPDATE items SET due_at = ?", (written,))
    connection.execute("INSERT INTO items (batch_id, id, payload, due_at) VALUES (?, 'b', '2', ?)", (batch.batch_id, written))
    connection.commit()
    connection.close()
    assert rows_of(db, "SELECT due_at FROM items") == [(kept,), (kept,)]
    await store.join(WorkerInfo("w", "here", 1))
    want = Want(batch.batch_id, 5, 3)
    assert len((await store.turn("w", [], [want])).claims) == (0 if kept else 2)
    clock.jump(11)
    assert len((await store.turn("w", [], [want])).claims) == (2 if kept else 0)
    await store.close()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT OR REPLACE INTO items (batch_id, id, payload) VALUES (1, '1', '7')",
        "REPLACE INTO items (seq, batch_id, id, payload) VALUES (1, 1, '0', '7')",
        "REPLACE INTO items (seq, batch_id, id, payload) VALUES (1, 1, '2', '7')",
        "INSERT OR IGNORE INTO items (batch_id, id, payload) VALUES (1, '1', '7')",
        "INSERT INTO items (batch_id, id, payload) VALUES (1, '1', '7') ON CONFLICT (batch_id, id) DO UPDATE SET payload = '9'",
        "INSERT OR REPLACE INTO items (batch_id, id, payload) VALUES (1, '1', '7'), (1, 'new', '8'), (1, 'new', '9')",
    ],
)
async def test_rows_replaced_by_hand_are_counted_once(db: Path, statement: str) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.add(batch.batch_id, [NewItem(str(number), "1") for number in range(3)], on_change="error")
    execute(str(db), "INSERT OR IGNORE INTO items (batch_id, id, payload) VALUES (1, '0', '7')")
    execute(str(db), statement)
    execute(str(db), "INSERT INTO items (batch_id, id, payload) VALUES (1, 'later', '7')")
    assert rows_of(db, "SELECT total FROM batches") == rows_of(db, "SELECT count(*) FROM items")
    await store.close()


@pytest.mark.parametrize("cell", ["no json", "", "[1]", '{"completed": ["x"]}', '{"completed": null}', b"\xff"])
async def test_a_turn_that_was_damaged_by_hand_has_no_durations(db: Path, cell: str | bytes) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.join(WorkerInfo("w", "here", 1))
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    (claim,) = (await store.turn("w", [], [Want(batch.batch_id, 1, 3)])).claims
    await store.turn("w", [Settlement(claim, Completed("1"), NOW, NOW)], [])
    connection = sqlite3.connect(db)
    with connection:
        connection.execute("UPDATE turns SET at = 'soon', durations = CAST(? AS TEXT)", (cell,))
    connection.close()
    assert await store.recent_rate(batch.batch_id) is None
    await store.close()
    with closing(opening.connect_reader(db)) as reader:
        assert [(turn.at, turn.completed, turn.durations) for turn in recent_turns(reader, batch.batch_id)] == [(0.0, 1, {})]


@pytest.mark.parametrize("cell", ["no json", "", "[1]", '{"b": {"limit": "x"}}', "null", b"[\xff]", b'{"\xff": 1}'])
async def test_a_worker_that_was_damaged_by_hand_has_no_batches_and_no_throttles(db: Path, cell: str | bytes) -> None:
    store = await opened(db)
    await store.join(WorkerInfo("w", "here", 1, batches=["b"]))
    connection = sqlite3.connect(db)
    with connection:
        connection.execute("UPDATE workers SET batches = CAST(?1 AS TEXT), throttles = CAST(?1 AS TEXT)", (cell,))
    connection.close()
    admin = SQLiteAdminStore(db)
    await admin.open()
    assert [(worker.worker_id, list(worker.batches), dict(worker.throttles)) for worker in await admin.workers()] == [
        ("w", [], {})
    ]
    await admin.close()
    await store.close()


async def test_a_huge_seq_written_by_hand_runs_and_without_a_free_seq_the_error_names_it(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.join(WorkerInfo("w", "here", 1))
    for seq in (2**36, 2**53 + 1, 2**63 - 1):
        execute(str(db), f"INSERT INTO items (seq, batch_id, id, payload) VALUES ({seq}, 1, '{seq}', '1')")
        (claim,) = (await store.turn("w", [], [Want(batch.batch_id, 5, 3)])).claims
        assert (await store.turn("w", [Settlement(claim, Completed("1"), NOW, NOW)], [])).lost == []
    with pytest.raises(StoreError, match=f"no seq is left for new items, because a row of items has or had the seq {2**63 - 1}"):
        await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    execute(str(db), f"UPDATE items SET seq = 7 WHERE seq = {2**63 - 1}")
    execute(str(db), "UPDATE sqlite_sequence SET seq = (SELECT max(seq) FROM items) WHERE name = 'items'")
    assert (await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")).new == 1
    await store.close()


def test_one_huge_seq_does_not_keep_the_walks_of_a_purge_from_the_other_rows() -> None:
    begins = {Walk.at(Walk().next(Window(0, "[]", 1000, 2**36))).after or 0 for _ in range(2000)}
    assert min(begins) < 100_000, "a random seq up to the newest one is behind every other row"
    assert max(begins) > 2**30


async def test_a_large_result_that_is_put_back_by_hand_is_kept_until_another_one_replaces_it(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.join(WorkerInfo("w", "here", 1))
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    want = Want(batch.batch_id, 1, 3)
    (claim,) = (await store.turn("w", [], [want])).claims
    await store.stage_result(claim, 0, '"whole"')
    await store.turn("w", [Settlement(claim, Completed("", kept=True), NOW, NOW)], [])
    execute(str(db), "UPDATE items SET status = 'pending'")
    await store.join(WorkerInfo("other", "here", 1))  # this deletes orphaned pieces
    execute(str(db), "UPDATE items SET status = 'completed'")
    assert [row.result for row in await store.items(batch.batch_id, ["a"])] == ['"whole"']
    execute(str(db), "UPDATE items SET status = 'pending'")
    (claim,) = (await store.turn("w", [], [want])).claims
    await store.turn("w", [Settlement(claim, Failed(ErrorInfo("E", "no"), permanent=True), NOW, NOW)], [])
    await store.join(WorkerInfo("third", "here", 1))
    execute(str(db), "UPDATE items SET status = 'completed', error = NULL")
    assert rows_of(db, "SELECT result, result_claim FROM items") == [("", 1)], "the pieces are of the first claim"
    assert [row.result for row in await store.items(batch.batch_id, ["a"])] == ['"whole"']
    execute(str(db), "DELETE FROM result_pieces")
    reader = await store.reader()
    (row,) = await reader.items(batch.batch_id, ["a"])
    with pytest.raises(StoreError, match="is empty, so its rows in result_pieces were deleted"):
        Codec(str, owner="h").decode_result(str(row.result))
    with pytest.raises(StoreError, match=r"is not JSON .*, so another program changed it"):
        Codec(str, owner="h").decode_result("{")
    await store.close()


async def test_the_attempts_of_a_cause_are_counted_after_changes_of_its_failures_by_hand(db: Path) -> None:
    await failing_run(db)
    same = "SELECT * FROM causes ORDER BY 1, 2"
    counted = "SELECT batch_id, fingerprint, count(*) FROM failures GROUP BY 1, 2 ORDER BY 1, 2"
    for statement in (
        "DELETE FROM failures WHERE failure_id = 1",
        "UPDATE failures SET fingerprint = 'mine' WHERE failure_id = 2",
        "UPDATE failures SET batch_id = 7 WHERE failure_id = 3",
        "DELETE FROM failures WHERE fingerprint = 'mine'",
    ):
        execute(db, statement)
        assert rows_of(db, same) == rows_of(db, counted) != []
    execute(db, "DELETE FROM failures")
    assert rows_of(db, same) == []


async def failing_run(db: Path) -> None:
    async def fails(n: int) -> None:
        raise (ValueError if n % 2 else KeyError)("no")

    await run_batch(range(4), fails, db=db, max_attempts=2, retry=RetryPolicy(initial=0))


UPDATE_BY_HAND = "UPDATE items SET status = 'pending' WHERE id = 'some-id' AND status = 'failed'"


@pytest.mark.parametrize(("pragma", "checkpoints"), [("", True), ("PRAGMA wal_autocheckpoint = 0", False)])
def test_a_program_runs_a_wal_checkpoint_after_its_commit_unless_it_turns_that_off(
    pragma: str, checkpoints: bool, tmp_path: Path
) -> None:
    # The README's advice for SQLite versions that lose a commit if two WAL checkpoints run at the same time.
    db = tmp_path / "a.db"
    worker = sqlite3.connect(db, isolation_level=None)
    worker.execute("PRAGMA journal_mode = WAL")
    worker.execute("PRAGMA wal_autocheckpoint = 0")
    worker.execute("CREATE TABLE items (id TEXT, status TEXT, payload TEXT)")
    worker.execute("INSERT INTO items VALUES ('some-id', 'failed', '')")
    worker.execute("BEGIN")
    worker.executemany("INSERT INTO items VALUES ('x', 'pending', hex(zeroblob(2000)))", [()] * 2000)  # more than 1,000 pages
    worker.execute("COMMIT")
    before = db.stat().st_size
    tool = sqlite3.connect(db, isolation_level=None)
    tool.execute(pragma)
    tool.execute(UPDATE_BY_HAND)
    assert (db.stat().st_size > before) is checkpoints
    assert worker.execute("SELECT status FROM items WHERE id = 'some-id'").fetchone() == ("pending",)
    tool.close()
    worker.close()
