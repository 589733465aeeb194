"""Results that are too large for one transaction: their pieces in the file, and the deletion of the pieces."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from asyncrunner import Control, Runner, StoreError, StoreUnavailable, run_batch, stream_batch
from asyncrunner.domain.item import Claim, NewItem
from asyncrunner.domain.outcome import LARGE_RESULT, RESULT_PIECE, Completed, ErrorInfo, Settlement
from asyncrunner.sqlite import large_results
from asyncrunner.sqlite.file import wal
from asyncrunner.sqlite.maintenance import backup
from asyncrunner.sqlite.maintenance.maintenance import SQLiteMaintenance
from asyncrunner.sqlite.store import SQLiteStore
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.maintenance import CheckLevel
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from asyncrunner.testing import FakeClock
from tests.support.state import execute, rows_of

NOW = 1_800_000_000.0
PIECES = "SELECT seq, claim, piece, length(text) FROM result_pieces ORDER BY seq, claim, piece"


async def large(size: int) -> str:
    return "x" * size


async def test_a_large_result_is_in_pieces_and_is_read_whole_by_everyone(db: Path, tmp_path: Path) -> None:
    sizes = [10, LARGE_RESULT - 2, LARGE_RESULT - 1, 2 * RESULT_PIECE + 5]
    report = await run_batch(sizes, large, db=db, batch="b", concurrency=2)
    assert [len(outcome.result or "") async for outcome in report.outcomes()] == sizes
    in_row = dict(rows_of(db, "SELECT id, length(result) FROM items"))
    assert in_row == {"10": 12, str(LARGE_RESULT - 2): LARGE_RESULT, str(LARGE_RESULT - 1): 0, str(2 * RESULT_PIECE + 5): 0}
    assert [length for *_, length in rows_of(db, PIECES)] == [RESULT_PIECE, RESULT_PIECE, 1, RESULT_PIECE, RESULT_PIECE, 7]
    async with Control(db) as control:
        for size in sizes:
            item = await control.show(str(size))
            assert item.cut.get("result", len(item.result) + len('""')) == size + len('""'), "the size of the whole result"
            (record,) = [record async for record in control.export(ids=[str(size)])]
            assert len(record.result or "") == size + len('""')
        assert [len(record.result or "") - len('""') async for record in control.export()] == sizes
        await control.backup(tmp_path / "copy.db")
    again = await run_batch(sizes, large, db=tmp_path / "copy.db", batch="b")
    assert (again.skipped, [len(outcome.result or "") async for outcome in again.outcomes()]) == (4, sizes)


async def test_the_handle_of_an_item_has_its_large_result_in_this_process_and_in_another(db: Path) -> None:
    for _ in range(2):
        runner = Runner(db)
        handler = runner.handler(batch="b")(large)
        async with runner:
            handle = await handler.submit(LARGE_RESULT, key="a")
            assert len(await handle.result(timeout=60) or "") == LARGE_RESULT
    assert rows_of(db, "SELECT attempts FROM items") == [(1,)]


@pytest.mark.parametrize("how", ["by hand", "purge", "retention"])
async def test_pieces_go_with_their_item(how: str, db: Path) -> None:
    await run_batch([LARGE_RESULT, LARGE_RESULT + 1], large, db=db, batch="b")
    with sqlite3.connect(db) as other:
        other.execute(f"UPDATE items SET completed_at = '2026-01-01 00:00:00.000' WHERE id = '{LARGE_RESULT}'")
        if how == "by hand":
            other.execute(f"DELETE FROM items WHERE id = '{LARGE_RESULT}'")
    other.close()
    if how == "purge":
        async with Control(db) as control:
            await control.purge(datetime(2026, 2, 1, tzinfo=UTC))
    else:
        await run_batch([], large, db=db, batch="b", retention="30d" if how == "retention" else None)
    assert rows_of(db, "SELECT id FROM items") == [(str(LARGE_RESULT + 1),)]
    assert {seq for seq, *_ in rows_of(db, PIECES)} == {2}


async def test_a_backup_has_no_orphaned_pieces(db: Path, tmp_path: Path) -> None:
    store = SQLiteStore(db)
    await store.open()
    claim = await held_item(store)
    await store.stage_result(claim, 0, "of a claim that is given back in the copy")
    async with Control(db) as control:
        for batch, name in ((None, "all.db"), ("b", "one.db")):
            await control.backup(tmp_path / name, batch)
            assert rows_of(tmp_path / name, PIECES) == []
    assert len(rows_of(db, PIECES)) == 1
    await store.close()


async def test_many_pieces_are_swept_a_few_a_transaction(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    sweep = large_results.delete_some_pieces

    def watched(connection: sqlite3.Connection) -> bool:
        nonlocal most
        before = connection.total_changes
        found = sweep(connection)
        most = max(most, connection.total_changes - before)
        return found

    monkeypatch.setattr(large_results, "delete_some_pieces", watched)
    store = SQLiteStore(db)
    await store.open()
    claim = await held_item(store)
    for piece in range(50):
        await store.stage_result(claim, piece, "x")
    await store.leave("w")
    assert rows_of(db, PIECES) == []
    assert most == 4
    await store.close()


async def held_item(store: SQLiteStore) -> Claim:
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    await store.join(WorkerInfo("w", "here", 1))
    (claim,) = (await store.turn("w", [], [Want(batch.batch_id, 1, 3)])).claims
    return claim


@pytest.mark.parametrize("now", ["pending", "processing by another claim", "completed in pieces of another claim"])
async def test_pieces_of_a_lost_claim_are_swept_when_a_worker_joins_and_no_others(now: str, db: Path) -> None:
    store = SQLiteStore(db)
    await store.open()
    claim = await held_item(store)
    await store.stage_result(claim, 0, '"done"')
    await store.turn("w", [Settlement(claim, Completed('"done"', kept=True), NOW, NOW)], [])
    await store.add(claim.batch_id, [NewItem("b", "1"), NewItem("c", "1")], on_change="error")
    lost, held = (await store.turn("w", [], [Want(claim.batch_id, 5, 3)])).claims
    await store.stage_result(lost, 0, "of the lost")
    await store.stage_result(held, 0, "of one that is on its way")
    with sqlite3.connect(db) as other:
        result = "" if "pieces" in now else None
        row = (now.split()[0], result)
        other.execute("UPDATE items SET claim = claim + 1, status = ?, result = ? WHERE id = 'b'", row)
    other.close()
    await store.join(WorkerInfo("x", "here", 1))
    await store.close()
    assert [seq for seq, *_ in rows_of(db, PIECES)] == [claim.seq, held.seq]


async def large_item(store: SQLiteStore) -> Claim:
    """Complete an item with a result in three pieces, and return its claim."""
    claim = await held_item(store)
    for piece in range(3):
        await store.stage_result(claim, piece, str(piece))
    await store.turn("w", [Settlement(claim, Completed("012", kept=True), NOW, NOW)], [])
    return claim


RUN_AGAIN = "DELETE FROM result_pieces; UPDATE items SET claim = claim + 1, completed_at = '2027-01-15 08:00:01.000'"


@pytest.mark.parametrize(("change", "left"), [("DELETE FROM result_pieces; DELETE FROM items", 0), (RUN_AGAIN, 1)])
@pytest.mark.parametrize("looks", [0, 1, 2])
async def test_a_result_that_is_deleted_during_its_reading_is_an_error_that_suggests_a_retry(
    change: str, left: int, looks: int, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(db)
    await store.open()
    claim = await large_item(store)
    seen = 0

    def then(look: Callable[..., object]) -> Callable[..., object]:
        def changed_before(connection: sqlite3.Connection, **which: int) -> object:
            nonlocal seen
            if seen == looks:
                connection.executescript(change)
            seen += 1
            return look(connection, **which)

        return changed_before

    monkeypatch.setattr(large_results, "pieces_of", then(large_results.pieces_of))
    monkeypatch.setattr(large_results, "read_piece", then(large_results.read_piece))
    with pytest.raises(StoreUnavailable, match="was deleted or run again while its result was read"):
        await store.items(claim.batch_id, ["a"])
    assert rows_of(db, "SELECT count(*) FROM items") == [(left,)]
    await store.close()


@pytest.mark.parametrize("gone", ["piece = 1", "TRUE"])
async def test_a_result_with_a_missing_piece_is_reported_as_damaged(gone: str, db: Path) -> None:
    store = SQLiteStore(db)
    await store.open()
    claim = await large_item(store)
    with sqlite3.connect(db) as other:
        other.execute(f"DELETE FROM result_pieces WHERE {gone}")
    other.close()
    with pytest.raises(StoreError, match="the result of item 'a' is incomplete") as caught:
        await store.items(claim.batch_id, ["a"])
    assert not isinstance(caught.value, StoreUnavailable)
    assert [row.result for row in (await store.item_page(claim.batch_id, None, 10)).rows] == [""], "a walk continues"
    await store.close()


async def test_an_item_that_was_completed_by_hand_has_no_result_although_pieces_were_stored(db: Path) -> None:
    store = SQLiteStore(db)
    await store.open()
    claim = await held_item(store)
    await store.stage_result(claim, 0, "half of i")
    with sqlite3.connect(db) as other:
        other.execute("UPDATE items SET status = 'completed'")
    other.close()
    assert [row.result for row in await store.items(claim.batch_id, ["a"])] == [None]
    await store.close()


@pytest.mark.parametrize("end", ["lost", "left", "given back by hand and joined", "run again", "run once more"])
async def test_orphaned_pieces_are_deleted(end: str, db: Path) -> None:
    store = SQLiteStore(db)
    await store.open()
    claim = await (large_item if end == "run again" else held_item)(store)
    for piece in range(40):
        await store.stage_result(claim, piece, "x")
    match end:
        case "lost":
            await store.recover("w", ErrorInfo("WorkerLost", "gone"))
        case "left":
            await store.leave("w")
        case "run again":
            await store.add(claim.batch_id, [NewItem("a", "2")], on_change="rerun")
        case "run once more":
            await store.add(claim.batch_id, [NewItem("a", "2")], on_change="rerun")
            assert len(rows_of(db, PIECES)) == 40, "the attempt is left alone"
            await store.turn("w", [Settlement(claim, Completed("x" * 40, kept=True), 0.0, 0.0)], [])
        case _:
            with sqlite3.connect(db) as other:
                other.execute("UPDATE items SET status = 'pending', worker_id = NULL")
            other.close()
            await store.join(WorkerInfo("x", "here", 1))
    assert rows_of(db, PIECES) == []
    await store.close()


async def test_the_log_is_written_back_while_pieces_come_in(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    checkpoint = wal.WalCheckpoints.run

    def watched(self: wal.WalCheckpoints, raw: sqlite3.Connection) -> bool:
        sizes.append(db.with_name(db.name + "-wal").stat().st_size)
        return checkpoint(self, raw)

    monkeypatch.setattr(wal.WalCheckpoints, "run", watched)
    await run_batch([20_000_000], large, db=db, batch="b")
    assert len(sizes) >= 3
    assert max(sizes) < large_results.PIECES_CHECKPOINT_BYTES + 2 * RESULT_PIECE, (
        "a WAL checkpoint of the usual size would delay every writer for as long as a result"
    )


async def test_a_reader_is_asked_once_to_let_the_log_be_written_back_and_not_after_every_piece(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    checkpoint = wal.WalCheckpoints.run

    def watched(self: wal.WalCheckpoints, raw: sqlite3.Connection) -> bool:
        nonlocal asked
        asked += 1
        return checkpoint(self, raw)

    store = SQLiteStore(db)
    await store.open()
    claim = await held_item(store)
    reader = sqlite3.connect(db, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM items").fetchone()
    monkeypatch.setattr(wal.WalCheckpoints, "run", watched)
    for piece in range(20):
        await store.stage_result(claim, piece, "x" * RESULT_PIECE)
    reader.close()
    assert asked == 1, "a WAL checkpoint delays every writer"
    await store.close()


async def test_a_backup_of_one_batch_ends_its_read_transaction_before_it_deletes_the_others(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_batch([LARGE_RESULT], large, db=db, batch="b")
    await run_batch([LARGE_RESULT], large, db=db, batch="other")
    forget_others = backup._delete_other_batches
    said: list[object] = []

    def watched(copy: sqlite3.Connection, batch_id: int) -> None:
        with contextlib.closing(sqlite3.connect(db)) as live:
            live.execute("UPDATE items SET priority = 1")
            live.commit()
            said.append(live.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        forget_others(copy, batch_id)

    monkeypatch.setattr(backup, "_delete_other_batches", watched)
    async with Control(db) as control:
        await control.backup(tmp_path / "copy.db", "b")
    assert said == [0]
    assert rows_of(tmp_path / "copy.db", "SELECT DISTINCT seq FROM result_pieces") == [(1,)]


class Hanging(SQLiteStore):
    """A store that stores one piece and then waits."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.hangs = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def stage_result(self, claim: Claim, piece: int, text: str) -> bool:
        if piece == 0:
            return await super().stage_result(claim, piece, text)
        self.hangs.set()
        await self.goes_on.wait()
        return await super().stage_result(claim, piece, text)


async def test_a_large_result_is_settled_immediately_when_its_loop_is_closed(db: Path) -> None:
    store = Hanging(db)
    runner = Runner(db, store=store)
    handler = runner.handler(batch="b")(large)
    await runner.start()
    await handler.submit(LARGE_RESULT)
    await store.hangs.wait()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()  # as asyncio.run() does at its end
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=30)
    await runner.stop()
    assert rows_of(db, "SELECT status, length(result), attempts FROM items") == [("completed", LARGE_RESULT + 2, 1)]


async def test_a_large_result_on_its_way_keeps_no_other_item_from_starting(db: Path) -> None:
    store = Hanging(db)
    # On a clock that stands still, the claim that waits is not released after a second.
    runner = Runner(db, store=store, clock=FakeClock(), concurrency=2)
    second = asyncio.Event()

    async def never_waits(item: str) -> str:
        if item == "second":
            second.set()
        return "x" * LARGE_RESULT

    handler = runner.handler(batch="b")(never_waits)
    async with runner:
        await handler.submit_many(["first", "second"])
        await store.hangs.wait()
        await asyncio.wait_for(second.wait(), 20)
        store.goes_on.set()


@pytest.mark.parametrize("deleted", ["1", "piece = 1"])
async def test_a_result_whose_pieces_were_deleted_is_reported_and_hides_no_other_outcome(deleted: str, db: Path) -> None:
    sizes = [1, LARGE_RESULT + 5, 2]
    report = await run_batch(sizes, large, db=db, batch="b", concurrency=1)
    execute(str(db), f"DELETE FROM result_pieces WHERE {deleted}")
    key = str(LARGE_RESULT + 5)
    expected = [("1", True, "x"), (key, False, None), ("2", True, "xx")]
    outcomes = [outcome async for outcome in report.outcomes()]
    assert [(outcome.id, outcome.ok, outcome.result) for outcome in outcomes] == expected
    assert f"the result of item '{key}' cannot be read" in str(outcomes[1].error)
    async with stream_batch(sizes, large, db=db, batch="b") as stream:
        assert sorted([(outcome.id, outcome.ok, outcome.result) async for outcome in stream]) == sorted(expected)
    text = "the result is incomplete: rows of result_pieces were deleted"
    async with Control(db) as control:
        assert [record.result async for record in control.export()] == ['"x"', text, '"xx"']
        assert (await control.show(key)).result == text
    findings = [each for each in await SQLiteMaintenance(db).check(full=False) if each.check == "results"]
    assert [(each.level, each.message.split(":")[0]) for each in findings] == [
        (CheckLevel.WRONG, f"the result of item '{key}' of 'b' is incomplete")
    ]
