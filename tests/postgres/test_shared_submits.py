"""Small submits that pile up share a transaction, and each caller gets the answer for its own items."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asyncrunner import KeyConflict
from asyncrunner.domain.item import NewItem
from asyncrunner.store.batches import Added, BatchOptions
from asyncrunner.store.protocols import Store
from tests.support.kinds import KINDS
from tests.support.postgres_state import disagreements
from tests.support.state import rows_of
from tests.support.tcp_proxy import Fault, TcpProxy

CALLERS = 200


@pytest.fixture
def db(server_dsn: str, tmp_path: Path) -> str:
    """The location on the server itself, for the test's own look."""
    return KINDS["postgres"].new_location(tmp_path, "jobs.db")


async def new_batch(store: Store) -> int:
    return (await store.open_batch("b", "m:h", BatchOptions())).batch_id


def adding(store: Store, batch_id: int, keys: range, payload: str = "1") -> list[asyncio.Task[Added]]:
    return [asyncio.ensure_future(store.add(batch_id, [NewItem(str(key), payload)], on_change="error")) for key in keys]


def keys_of(db: str) -> list[int]:
    return [int(key) for (key,) in rows_of(db, "SELECT id FROM items ORDER BY seq")]


def transactions(db: str) -> int:
    """Return how many transactions have inserted the items."""
    ((count,),) = rows_of(db, "SELECT count(DISTINCT xmin::text) FROM items")
    return int(count)


async def test_concurrent_submits_use_few_transactions_and_keep_their_order(store: Store, db: str) -> None:
    batch_id = await new_batch(store)
    added = await asyncio.gather(*adding(store, batch_id, range(CALLERS)))
    assert [(each.new, each.existing, each.known) for each in added] == [(1, 0, frozenset())] * CALLERS
    assert keys_of(db) == [*range(CALLERS)]
    assert [each.seqs for each in added] == [[seq] for (seq,) in rows_of(db, "SELECT seq FROM items ORDER BY seq")]
    assert transactions(db) <= 3
    assert disagreements(db) == {}


async def test_submits_one_after_the_other_do_not_wait_for_company(store: Store, db: str) -> None:
    batch_id = await new_batch(store)
    for key in range(5):
        await store.add(batch_id, [NewItem(str(key), "1")], on_change="error")
    assert transactions(db) == 5


async def test_one_with_an_existing_key_fails_alone_with_its_own_error(store: Store, db: str) -> None:
    batch_id = await new_batch(store)
    await store.add(batch_id, [NewItem("7", '"other"'), NewItem("8", "1"), NewItem("9", '"other"')], on_change="error")
    tasks = adding(store, batch_id, range(CALLERS))
    tasks[9].cancel()
    tasks[9] = asyncio.ensure_future(store.add(batch_id, [NewItem("9", "1")], on_change="keep"))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    conflict = results.pop(7)
    assert isinstance(conflict, KeyConflict)
    assert conflict.key == "7"
    answers = dict(zip([n for n in range(CALLERS) if n != 7], results, strict=True))
    assert all(isinstance(each, Added) for each in results)
    assert {key for key, each in answers.items() if isinstance(each, Added) and each.new == 0} == {8, 9}
    assert sorted(keys_of(db)) == [*range(CALLERS)]
    assert disagreements(db) == {}


async def test_two_that_submit_the_same_key_store_it_once(store: Store, db: str) -> None:
    batch_id = await new_batch(store)
    added = await asyncio.gather(*adding(store, batch_id, range(20)), *adding(store, batch_id, range(20)))
    assert sum(each.new for each in added) == 20
    assert sum(each.existing for each in added) == 20
    results = await asyncio.gather(
        *adding(store, batch_id, range(20, 21)), *adding(store, batch_id, range(20, 21), "2"), return_exceptions=True
    )
    assert [type(each) for each in results] == [Added, KeyConflict]
    assert sorted(keys_of(db)) == [*range(21)]


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER], ids=["before", "after"])
async def test_a_connection_that_is_lost_in_between_loses_and_doubles_nothing(
    store: Store, proxy: TcpProxy, db: str, fault: Fault
) -> None:
    batch_id = await new_batch(store)
    occurrence = proxy.at("FROM add_items(", fault)
    added = await asyncio.gather(*adding(store, batch_id, range(CALLERS)))
    assert occurrence.is_set()
    assert [(each.new, each.existing) for each in added] == [(1, 0)] * CALLERS
    assert keys_of(db) == [*range(CALLERS)]
    assert transactions(db) <= 3
    assert disagreements(db) == {}


async def test_a_cancelled_caller_does_not_hurt_the_others(store: Store, proxy: TcpProxy, db: str) -> None:
    batch_id = await new_batch(store)
    occurrence = proxy.at("FROM add_items(", Fault.NO_ANSWER)
    tasks = adding(store, batch_id, range(CALLERS))
    await occurrence.happened()
    tasks[3].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[3]
    assert not any(task.done() for task in tasks[4:])
    proxy.cut()
    added = await asyncio.gather(*(task for task in tasks if task is not tasks[3]))
    assert [each.new for each in added] == [1] * (CALLERS - 1)
    assert keys_of(db) == [*range(CALLERS)], "the call had begun, so its item is stored too"
    assert (await store.add(batch_id, [NewItem("last", "1")], on_change="error")).new == 1


async def test_a_close_finishes_the_submits_that_wait(store: Store, db: str) -> None:
    batch_id = await new_batch(store)
    tasks = adding(store, batch_id, range(CALLERS))
    await asyncio.sleep(0)
    await store.close()
    assert [each.new for each in await asyncio.gather(*tasks)] == [1] * CALLERS
    assert keys_of(db) == [*range(CALLERS)]
