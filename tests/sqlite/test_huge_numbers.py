"""Numbers at the limits of SQLite that a person writes into rows: they stop no other item, and doctor reports them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from asyncrunner import Control, run_batch, stream_batch
from asyncrunner.domain.item import NewItem, Status, Suspicion
from asyncrunner.domain.outcome import Completed, ErrorInfo, PutOff, Retrying, Settlement
from asyncrunner.errors import StoreError
from asyncrunner.sqlite.maintenance.maintenance import SQLiteMaintenance
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.maintenance import CheckLevel
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from tests.support.files import opened
from tests.support.state import execute, rows_of

NOW = 1_800_000_000.0
LARGEST = 2**63 - 1
ERROR = ErrorInfo("E", "no")


async def findings(db: Path) -> list[tuple[CheckLevel, str]]:
    return [
        (each.level, each.message)
        for each in await SQLiteMaintenance(db).check(full=False)
        if each.check in ("numbers", "results")
    ]


async def test_a_huge_seq_of_an_update_is_named_by_the_error_and_by_doctor(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.add(batch.batch_id, [NewItem("a", "1")], on_change="error")
    execute(str(db), "UPDATE items SET seq = 1000")
    added = await store.add(batch.batch_id, [NewItem("b", "1")], on_change="error")
    assert (list(added.seqs), rows_of(db, "SELECT seq FROM items WHERE id = 'b'")) == ([1001], [(1001,)])
    execute(str(db), f"UPDATE items SET seq = {LARGEST} WHERE id = 'a'")
    with pytest.raises(StoreError, match=f"no seq is left for new items, because a row of items has or had the seq {LARGEST}"):
        await store.add(batch.batch_id, [NewItem("c", "1")], on_change="error")
    level, message = (await findings(db))[0]
    assert (level, message.split(",")[0]) == (CheckLevel.WRONG, f"a row of items has or had the seq {LARGEST}")
    execute(str(db), "UPDATE items SET seq = 7 WHERE id = 'a'")
    assert (await store.add(batch.batch_id, [NewItem("c", "1")], on_change="error")).new == 1
    await store.close()
    assert await findings(db) == [(CheckLevel.OK, "no problems")] * 2


async def test_an_item_with_the_largest_claim_runs_beside_the_others(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.join(WorkerInfo("w", "here", 1))
    await store.add(batch.batch_id, [NewItem(key, "1") for key in "abcd"], on_change="error")
    execute(str(db), f"UPDATE items SET claim = {LARGEST} WHERE id IN ('b', 'd')")
    execute(str(db), f"UPDATE items SET claim = {LARGEST - 1} WHERE id = 'c'")
    assert [message for _, message in (await findings(db))][:1] == [
        f"item 'b' of 'b' has the claim {LARGEST}, which was written by hand; after {LARGEST} follows 1"
    ]
    claims = (await store.turn("w", [], [Want(batch.batch_id, 3, 3)])).claims
    assert [(claim.id, claim.number) for claim in claims] == [("a", 1), ("b", 1), ("c", LARGEST)]
    settlements = [Settlement(claim, Completed("1"), NOW, NOW) for claim in claims]
    assert (await store.turn("w", settlements, [])).lost == []
    execute(str(db), f"UPDATE items SET claim = {LARGEST}")
    await store.add(batch.batch_id, [NewItem("a", "2")], on_change="rerun")
    await store.cancel(batch.batch_id, ["d"])
    assert rows_of(db, "SELECT id, status, claim FROM items WHERE id IN ('a', 'd')") == [
        ("a", "pending", 1),
        ("d", "cancelled", 1),
    ]
    await store.close()


async def test_the_largest_counters_stay_as_they_are(db: Path) -> None:
    store = await opened(db)
    batch = await store.open_batch("b", "h", BatchOptions())
    await store.join(WorkerInfo("w", "here", 1))
    await store.add(batch.batch_id, [NewItem(key, "1") for key in "ab"], on_change="error")
    execute(str(db), f"UPDATE items SET attempts = {LARGEST}, crashes = {LARGEST}, put_offs = {LARGEST}")
    first, second = (await store.turn("w", [], [Want(batch.batch_id, 2, 3)])).claims
    settlements = [
        Settlement(first, PutOff(ERROR, 1.0), NOW, NOW),
        Settlement(second, Retrying(ERROR, 1.0, crashed=True, suspicion=Suspicion.NONE), NOW, NOW),
    ]
    assert (await store.turn("w", settlements, [])).lost == []
    assert rows_of(db, "SELECT status, crashes, put_offs FROM items") == [("pending", LARGEST, LARGEST)] * 2
    await store.close()


async def double(number: int) -> int:
    return number * 2


async def test_an_item_with_any_seq_is_in_every_walk(db: Path) -> None:
    seqs = {0: -(2**63), 1: -7, 2: 0, 3: 2**40, 4: LARGEST}
    store = await opened(db)
    await store.open_batch("b", f"{__name__}:double", BatchOptions())
    await store.close()
    for number, seq in seqs.items():
        execute(str(db), f"INSERT INTO items (seq, batch_id, id, payload) VALUES ({seq}, 1, 'k{number}', '{number}')")
    keys = [f"k{number}" for number in seqs]
    nothing: list[int] = []
    async with stream_batch(nothing, double, db=db, batch="b") as outcomes:
        assert sorted([outcome.id async for outcome in outcomes]) == keys
    report = await run_batch(None, double, db=db, batch="b")
    assert [(outcome.id, outcome.result) async for outcome in report.outcomes()] == [(f"k{n}", 2 * n) for n in seqs]
    async with Control(db) as control:
        assert [item.id for item in (await control.items("b")).items] == keys
        assert [record.id async for page in control.export_pages("b") for record in page] == keys
    store = await opened(db)
    step = await store.purge_step([1], older_than=-10.0, cursor=None)
    assert step.removed == 5
    await store.close()
    assert rows_of(db, "SELECT count(*) FROM items") == [(0,)]


async def test_a_purge_by_an_operator_begins_below_every_seq(db: Path) -> None:
    store = await opened(db)
    await store.open_batch("b", "h", BatchOptions())
    await store.close()
    execute(
        str(db),
        "INSERT INTO items (seq, batch_id, id, payload, status, completed_at) "
        "VALUES (-7, 1, 'a', '1', 'completed', '2020-01-01 00:00:00.000')",
    )
    async with Control(db) as control:
        assert (await control.purge(timedelta(days=1), "b", status=Status.COMPLETED)).items == {"completed": 1}
