"""A turn looks behind the items that were claimed before, but never past an item with a higher priority."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncrunner.domain.item import NewItem
from asyncrunner.postgres.connection.session import Session
from asyncrunner.postgres.sql import claims
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.protocols import Store
from tests.contract.stores import claim, joined
from tests.support.kinds import KINDS


@pytest.fixture
def db(server_dsn: str, tmp_path: Path) -> str:
    return KINDS["postgres"].new_location(tmp_path, "jobs.db")


async def test_an_item_that_is_stored_during_a_turn_is_claimed_before_those_of_lower_priority(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = (await store.open_batch("b", "m:h", BatchOptions())).batch_id
    await store.add(batch_id, [NewItem("normal 1", "1"), NewItem("normal 2", "1")], on_change="error")
    await joined(store, "w")
    fetch, urgent = Session.fetch, [NewItem("urgent", "1", priority=1)]

    async def slow(self: Session, statement: str, *arguments: Any) -> Any:
        rows = await fetch(self, statement, *arguments)
        if statement == claims.TURN and urgent:
            await store.add(batch_id, [urgent.pop()], on_change="error")  # after the turn, before its answer
        return rows

    monkeypatch.setattr(Session, "fetch", slow)
    assert [[each.id for each in await claim(store, batch_id, 1)] for _ in range(3)] == [["normal 1"], ["urgent"], ["normal 2"]]
