"""Row 26: a file is busy at the first call of each store method, and no caller gets an error."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asyncrunner import Client, Fail, Runner, run_batch, stream_batch
from asyncrunner.backends import open_engine
from asyncrunner.errors import BatchNotFound, StoreUnavailable
from asyncrunner.store.protocols import EngineStore, ReadStore

VERBS = sorted(
    name
    for contract in (EngineStore, ReadStore)
    for name, verb in vars(contract).items()
    if inspect.iscoroutinefunction(verb) and name not in ("__init__", "close")
)


@pytest.fixture(autouse=True)
def refused(db: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the names of the methods that were refused once and work afterwards."""
    once: set[str] = set()
    store = type(open_engine(db))
    for name in VERBS:
        monkeypatch.setattr(store, name, busy_once(name, getattr(store, name), once))
    return once


def busy_once(name: str, verb: Callable[..., Awaitable[Any]], once: set[str]) -> Callable[..., Awaitable[Any]]:
    async def busy(*arguments: Any, **options: Any) -> Any:
        if name not in once:
            once.add(name)
            raise StoreUnavailable("another program holds the write lock")
        return await verb(*arguments, **options)

    return busy


async def halve(n: int) -> int:
    if n % 2:
        raise Fail("odd")
    return n // 2


async def test_row_26_run_batch_raises_no_error_of_a_busy_file(db: str, refused: set[str]) -> None:
    report = await run_batch(range(4), halve, db=db, batch="b", progress=lambda _: None)
    assert (report.completed, report.failed) == (2, 2)
    assert refused >= {"open", "open_batch", "add", "reopen_failed", "join", "leave", "turn", "peers", "recover", "counts",
                       "failure_causes", "wait_for_items", "reader"}  # fmt: skip


async def test_row_26_stream_batch_raises_no_error_of_a_busy_file(db: str, refused: set[str]) -> None:
    async with stream_batch(range(4), halve, db=db, batch="b") as outcomes:
        assert sorted([outcome.item async for outcome in outcomes]) == [0, 1, 2, 3]
    assert "item_page" in refused


async def test_row_26_a_service_raises_no_error_of_a_busy_file(db: str, refused: set[str]) -> None:
    runner = Runner(db)
    handler = runner.handler(batch="b")(halve)
    async with runner, Client(db) as client:
        assert await (await handler.submit(4)).result(timeout=20) == 2
        waiting = await client.submit("b", 8, delay=3600)
        assert await waiting.cancel()
        with pytest.raises(BatchNotFound, match="known: 'b'"):
            await client.submit("other", 1)
    assert refused >= {"items", "cancel", "find_batch", "batch_names"}
