"""A submit to an idle store notifies the workers in its transaction; others after theirs, at most every few milliseconds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from asyncrunner.domain.item import NewItem
from asyncrunner.errors import StoreUnavailable
from asyncrunner.postgres import insert, listener
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.protocols import Store
from tests.conftest import Until
from tests.support.kinds import KINDS
from tests.support.state import rows_of
from tests.support.tcp_proxy import Fault, TcpProxy


@pytest.fixture
def db(server_dsn: str, tmp_path: Path) -> str:
    return KINDS["postgres"].new_location(tmp_path, "jobs.db")


@pytest.fixture
async def payloads(db: str) -> AsyncIterator[list[str]]:
    """What every listener of the store is notified of."""
    found: list[str] = []
    address, schema = db.split("?schema=")
    connection: asyncpg.Connection[Any] = await asyncpg.connect(address)
    await connection.add_listener(schema, lambda *received: found.append(str(received[3])))
    yield found
    await connection.close()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The notifications that follow a commit, in a call of their own; they are not sent."""
    calls: list[list[str]] = []

    async def notify(self: listener.Listener) -> None:
        calls.append(sorted(self._payloads))
        self._payloads.clear()

    monkeypatch.setattr(listener.Listener, "_notify", notify)
    return calls


async def new_batch(store: Store, later: list[list[str]], until: Until) -> int:
    batch_id = (await store.open_batch("b", "m:h", BatchOptions())).batch_id
    await until(lambda: later)
    later.clear()
    return batch_id


async def test_a_submit_to_an_idle_store_notifies_in_its_transaction(
    store: Store, payloads: list[str], later: list[list[str]], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(insert, "_SLOW_SECONDS", 60.0)
    monkeypatch.setattr(insert, "_NOTIFIED_PAUSE_SECONDS", 0.0)
    batch_id = await new_batch(store, later, until)
    await store.add(batch_id, [NewItem("1", "1")], on_change="error")
    await store.add(batch_id, [NewItem("2", "1", priority=1)], on_change="error")
    await until(lambda: len(payloads) == 2)
    assert payloads == [str(batch_id), f"{batch_id} first"]
    assert later == []


async def test_a_submit_notifies_in_its_transaction_after_one_slow_submit(
    store: Store, payloads: list[str], later: list[list[str]], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(insert, "_SLOW_SECONDS", 0.0)
    monkeypatch.setattr(insert, "_SLOW_FACTOR", 0)
    batch_id = await new_batch(store, later, until)
    for key in ("1", "2"):
        await store.add(batch_id, [NewItem(key, "1")], on_change="error")
    await until(lambda: len(payloads) == 2)
    assert later == []


def test_the_pause_between_notifying_transactions_grows_with_each_slow_one_in_a_row() -> None:
    transactions = insert.NotifyingTransactions()
    pauses: list[float] = []
    now = 0.0
    for seconds in (0.001, 0.006, 0.006, 0.006, 0.006, 0.001):
        assert transactions.may_begin(now)
        ended = now + seconds
        transactions.record(now, ended)
        now = next(ended + pause for pause in (0.02, 0.08, 0.32, 1.0) if transactions.may_begin(ended + pause))
        pauses.append(round(now - ended, 6))
    assert pauses == [0.02, 0.08, 0.32, 1.0, 1.0, 0.02]


@pytest.mark.parametrize("reason", ["a submit was a moment ago", "many items"])
async def test_a_submit_notifies_after_its_commit_where_others_would_wait_for_it(
    reason: str, store: Store, payloads: list[str], later: list[list[str]], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(insert, "_SLOW_SECONDS", 60.0)
    monkeypatch.setattr(insert, "_NOTIFIED_PAUSE_SECONDS", 60.0 if "moment" in reason else 0.0)
    batch_id = await new_batch(store, later, until)
    items = [NewItem(str(number), "1") for number in range(insert._MAX_SMALL + 1)]
    if reason != "many items":
        await store.add(batch_id, [NewItem("first", "1")], on_change="error")
        items = items[:1]
        await until(lambda: payloads)
    payloads.clear()
    await store.add(batch_id, items, on_change="error")
    await until(lambda: later)
    assert later == [[str(batch_id)]]
    assert payloads == []


async def test_a_repeated_submit_whose_answer_was_lost_notifies_after_its_commit(
    store: Store, db: str, proxy: TcpProxy, later: list[list[str]], until: Until
) -> None:
    batch_id = await new_batch(store, later, until)
    proxy.at("FROM add_items(", Fault.CUT_AFTER)
    with pytest.raises(StoreUnavailable):
        await store.add(batch_id, [NewItem("1", "1")], on_change="error")
    added = await store.add(batch_id, [NewItem("1", "1")], on_change="error")
    await until(lambda: later)
    assert (added.new, later) == (1, [[str(batch_id)]])
    assert rows_of(db, "SELECT count(*) FROM items") == [(1,)]
