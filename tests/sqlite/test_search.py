"""A search of an operator reads a bounded number of rows, also if the batch's items are far behind those of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncrunner.backends import open_admin, open_engine
from asyncrunner.sqlite.admin import items
from asyncrunner.store.admin_protocol import Filter
from tests.contract.stores import batch_of

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_a_search_passes_only_so_many_rows_of_other_batches(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(str(db))
    await engine.open()
    batch_id = await batch_of(engine, ["far", "near"])
    await batch_of(engine, ["x", "y", "z"], name="other")
    await engine.close()
    admin = open_admin(str(db))
    await admin.open()
    for rows, found, last in ((5, ["near", "far"], None), (4, ["near"], None), (3, [], None)):
        monkeypatch.setattr(items, "_SEARCH_ROWS", rows)
        matches = await admin.search(batch_id, Filter(), "ar", after=None, limit=10)
        assert matches is not None
        assert ([item.id for item in matches.rows], matches.looked_at, matches.of, matches.last) == (found, len(found), 2, last)
    await admin.close()
