"""A read whose caller was cancelled still runs in its thread. To close its connection before its end crashes the interpreter."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from asyncrunner.domain.item import NewItem
from asyncrunner.sqlite.admin import inspection
from asyncrunner.sqlite.admin.plan import SeenKeys
from asyncrunner.sqlite.admin.store import SQLiteAdminStore
from asyncrunner.sqlite.file.opening import connect_reader
from asyncrunner.sqlite.store import SQLiteStore
from tests.conftest import Until


class Reading:
    """A connection whose read lasts until it is interrupted."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.interrupted = threading.Event()
        self.events: list[str] = []

    def read(self) -> None:
        self.has_begun.set()
        self.interrupted.wait(20)
        self.events.append("the read ended")

    def interrupt(self) -> None:
        self.interrupted.set()

    def close(self) -> None:
        self.events.append("the connection was closed")


async def test_a_read_whose_caller_was_cancelled_is_interrupted_and_ends_before_its_connection_is_closed(
    db: Path, until: Until
) -> None:
    engine = SQLiteStore(db)
    await engine.open()
    await engine.close()
    store = SQLiteAdminStore(db)
    await store.open()
    assert store._reader is not None
    store._reader.close()
    connection = Reading()
    store._reader = cast("Any", connection)
    caller = asyncio.ensure_future(store._read(lambda reader: cast("Any", reader).read()))
    await until(connection.has_begun.is_set)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await store.close()
    connection.interrupted.set()
    assert connection.events == ["the read ended", "the connection was closed"]


class Held(list[NewItem]):
    """Items whose first use waits for the test."""

    def __init__(self, *items: NewItem) -> None:
        super().__init__(items)
        self.is_used = threading.Event()
        self.release = threading.Event()

    def __iter__(self) -> Iterator[NewItem]:
        self.is_used.set()
        self.release.wait(20)
        return super().__iter__()


def test_the_keys_of_a_cancelled_dry_run_are_closed_after_the_call_that_uses_them() -> None:
    seen = SeenKeys()
    items = Held(NewItem("a", "1"))
    first: list[NewItem] = []
    using = threading.Thread(target=lambda: first.extend(seen.first_ones(items)[0]))
    using.start()
    items.is_used.wait(20)
    closing = threading.Thread(target=seen.close)
    closing.start()
    closing.join(0.1)  # long enough for a close that does not wait
    items.release.set()
    using.join(20)
    closing.join(20)
    assert [item.id for item in first] == ["a"]


async def test_a_file_whose_opening_is_cancelled_is_closed_when_it_is_open(
    monkeypatch: pytest.MonkeyPatch, until: Until, tmp_path: Path
) -> None:
    db = tmp_path / "jobs.db"
    store = SQLiteStore(db)
    await store.open()
    await store.close()
    began, go = threading.Event(), threading.Event()
    opened: list[sqlite3.Connection] = []

    def slow(path: Path) -> sqlite3.Connection:
        began.set()
        go.wait(20)
        opened.append(connect_reader(path))
        return opened[0]

    def is_closed() -> bool:
        try:
            opened[0].execute("SELECT 1")
        except sqlite3.ProgrammingError as error:
            return "closed" in str(error)
        return False

    monkeypatch.setattr(inspection, "connect_reader", slow)
    opening = asyncio.ensure_future(inspection.SQLiteInspectionStore(db).open())
    await until(began.is_set)
    opening.cancel()
    await asyncio.wait({opening})
    go.set()
    await until(lambda: bool(opened) and is_closed())
