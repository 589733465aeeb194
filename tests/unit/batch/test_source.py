"""The source of a run: its own errors, sources that block, and their end."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncrunner import SourceCancelled, plan_batch, run_batch, stream_batch
from asyncrunner.batch.source import reader as source_module
from asyncrunner.batch.source.background_iterator import BackgroundIterator
from asyncrunner.domain.item import NewItem
from asyncrunner.sqlite.store import SQLiteStore
from tests.conftest import Until
from tests.support.state import rows_of


async def double(number: int) -> int:
    return 2 * number


# --- a source that ends by CancelledError or GeneratorExit ----------------------------------------------------------


async def async_source(end: BaseException) -> AsyncIterator[int]:
    for number in range(3):
        yield number
    raise end


def sync_source(end: BaseException) -> Iterator[int]:
    yield from range(3)
    raise end


async def source_that_awaits_a_cancelled_task() -> AsyncIterator[int]:
    for number in range(3):
        yield number
    task = asyncio.ensure_future(asyncio.Event().wait())
    task.cancel()
    await task


async def source_that_cancels_its_own_task() -> AsyncIterator[int]:
    for number in range(3):
        yield number
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()


SOURCES: dict[str, Callable[[], Any]] = {
    "async generator, CancelledError": lambda: async_source(asyncio.CancelledError()),
    "async generator, GeneratorExit": lambda: async_source(GeneratorExit()),
    "generator, CancelledError": lambda: sync_source(asyncio.CancelledError()),
    "generator, GeneratorExit": lambda: sync_source(GeneratorExit()),
    "a cancelled task that it awaits": source_that_awaits_a_cancelled_task,
    "its own task": source_that_cancels_its_own_task,
}


@pytest.mark.parametrize("name", SOURCES)
async def test_a_source_that_ends_by_a_cancellation_of_its_own_is_an_error_of_the_source(name: str, db: str) -> None:
    with pytest.raises(SourceCancelled, match=r"the source of the items raised \w+ after 3 items") as caught:
        await asyncio.wait_for(run_batch(SOURCES[name](), double, db=db), 20)
    assert isinstance(caught.value.__cause__, asyncio.CancelledError | GeneratorExit)
    assert rows_of(db, "SELECT id, status FROM items ORDER BY seq") == [(str(n), "completed") for n in range(3)]
    with pytest.raises(SourceCancelled):
        await asyncio.wait_for(plan_batch(SOURCES[name](), double, db=db), 20)


@pytest.mark.parametrize("end", [asyncio.CancelledError, GeneratorExit])
async def test_a_key_function_that_raises_a_cancellation_is_an_error_of_the_source(end: type[BaseException], db: str) -> None:
    def key(number: int) -> int:
        if number == 2:
            raise end
        return number

    with pytest.raises(SourceCancelled, match=r"the key function raised \w+ after 2 items"):
        await asyncio.wait_for(run_batch(range(5), double, key=key, db=db), 20)
    assert rows_of(db, "SELECT id, status FROM items ORDER BY seq") == [("0", "completed"), ("1", "completed")]


async def test_a_reading_task_that_other_code_cancels_is_an_error_of_the_run(db: str, until: Until) -> None:
    never = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 1
        await never.wait()

    running = asyncio.ensure_future(run_batch(source(), double, db=db))
    await until(lambda: [task for task in asyncio.all_tasks() if task.get_name() == "asyncrunner source"])
    (reading,) = [task for task in asyncio.all_tasks() if task.get_name() == "asyncrunner source"]
    reading.cancel()
    with pytest.raises(SourceCancelled, match="the task that reads the source"):
        await asyncio.wait_for(running, 20)


async def test_a_stream_raises_the_cancellation_of_its_source_too(db: str) -> None:
    results: list[int | None] = []
    with pytest.raises(SourceCancelled):
        async with asyncio.timeout(20), stream_batch(async_source(asyncio.CancelledError()), double, db=db) as outcomes:
            results += [outcome.result async for outcome in outcomes]
    assert results == []
    assert rows_of(db, "SELECT count(*) FROM items WHERE status = 'completed'") == [(3,)]


async def test_a_cancelled_run_is_cancelled_and_not_an_error_of_its_source(db: str) -> None:
    waits, never = asyncio.Event(), asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 1
        waits.set()
        await never.wait()

    running = asyncio.ensure_future(run_batch(source(), double, db=db))
    await waits.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


# --- a source that blocks -------------------------------------------------------------------------------------------


class Clock:
    """The time that the source reader sees."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(source_module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


async def test_a_generator_that_blocks_the_loop_is_read_in_a_thread_from_then_on(db: str, clock: Clock) -> None:
    loop = asyncio.get_running_loop()
    threads: list[int] = []
    is_free = threading.Event()

    def source() -> Iterator[int]:
        for number in range(5):
            threads.append(threading.get_ident())
            if number == 1:
                clock.now += 0.2
            if number == 3:
                loop.call_soon_threadsafe(is_free.set)
                assert is_free.wait(10), "the loop is blocked"
            yield number
        threads.append(threading.get_ident())

    report = await run_batch(source(), double, db=db)
    assert report.completed == 5
    assert threads[:2] == [threading.get_ident()] * 2
    assert threading.get_ident() not in threads[2:]
    assert len(set(threads[2:])) == 1, "one thread reads all the rest"


async def test_a_generator_that_does_not_block_stays_in_the_thread_of_the_loop(db: str, clock: Clock) -> None:
    threads: set[int] = set()

    def source() -> Iterator[int]:
        for number in range(5):
            threads.add(threading.get_ident())
            clock.now += 0.09
            yield number

    assert (await run_batch(source(), double, db=db)).completed == 5
    assert threads == {threading.get_ident()}


async def test_the_cursor_of_a_database_is_read_in_its_own_thread_although_it_blocks(db: str, clock: Clock) -> None:
    connection = sqlite3.connect(":memory:")

    def source() -> Iterator[int]:
        rows = connection.execute("VALUES (0), (1), (2)")
        for (number,) in rows:
            clock.now += 0.2
            yield number

    assert (await run_batch(source(), double, db=db)).completed == 3
    connection.close()


@pytest.mark.parametrize("error", [OSError("the network is gone"), asyncio.CancelledError()])
async def test_an_error_of_a_source_in_a_thread_is_raised_after_its_items_are_settled(
    error: BaseException, db: str, clock: Clock
) -> None:
    def source() -> Iterator[int]:
        for number in range(3):
            clock.now += 0.2
            yield number
        raise error

    with pytest.raises(SourceCancelled if isinstance(error, asyncio.CancelledError) else OSError):
        await asyncio.wait_for(run_batch(source(), double, db=db), 20)
    assert rows_of(db, "SELECT count(*) FROM items WHERE status = 'completed'") == [(3,)]


async def test_a_background_iterator_reads_a_limited_number_of_items_ahead(until: Until) -> None:
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    reader = BackgroundIterator(endless())
    first = await reader.take()
    await until(lambda: read == len(first) + 101)
    assert await reader.take() == list(range(len(first) + 1, len(first) + 101))
    assert await reader.aclose(10)


# --- the end of a source --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["generator", "generator in a thread", "async generator"])
async def test_a_source_is_closed_when_the_run_is_left_early(kind: str, db: str, clock: Clock) -> None:
    closed = 0

    def source() -> Iterator[int]:
        nonlocal closed
        number = 0
        try:
            while True:
                clock.now += 0.2 if kind == "generator in a thread" else 0
                yield number
                number += 1
        finally:
            closed += 1

    async def slow_to_close() -> AsyncIterator[int]:
        nonlocal closed
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            await asyncio.sleep(0)
            closed += 1

    items: Any = slow_to_close() if kind == "async generator" else source()
    async with stream_batch(items, double, db=db) as outcomes:
        async for _ in outcomes:
            break
    assert closed == 1


async def test_a_source_is_closed_when_an_item_is_refused(db: str) -> None:
    closed = False

    def source() -> Iterator[Any]:
        nonlocal closed
        try:
            yield object()
        finally:
            closed = True

    with pytest.raises(TypeError, match="item 0 of the input"):
        await run_batch(source(), double, db=db)
    assert closed


@pytest.mark.parametrize("is_left_early", [False, True])
async def test_an_open_file_stays_open_for_its_owner(is_left_early: bool, tmp_path: Path, db: str) -> None:
    async def upper(line: str) -> str:
        return line.upper()

    def key(line: str) -> str:
        if is_left_early:
            raise OSError("no key")
        return line

    (tmp_path / "lines").write_text("a\nb\n")
    with (tmp_path / "lines").open() as lines:
        with pytest.raises(OSError, match="no key") if is_left_early else nullcontext():
            await run_batch(lines, upper, key=key, db=db)
        assert not lines.closed


async def test_an_error_in_the_end_of_a_source_is_logged_and_the_run_keeps_its_own_end(
    db: str, caplog: pytest.LogCaptureFixture
) -> None:
    def source() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            raise OSError("cannot close")

    async with stream_batch(source(), double, db=db) as outcomes:
        async for _ in outcomes:
            break
    assert "raised an exception when it was closed" in caplog.text


@pytest.mark.sqlite_file
async def test_the_chunks_of_a_source_grow_so_that_the_first_handlers_start_soon(
    db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    add = SQLiteStore.add

    async def noted(self: SQLiteStore, batch_id: int, items: Sequence[NewItem], **options: Any) -> Any:
        sizes.append(len(items))
        return await add(self, batch_id, items, **options)

    async def wait(number: int) -> None:
        del number
        while sum(sizes) < 12_000:
            await asyncio.sleep(0.001)

    monkeypatch.setattr(SQLiteStore, "add", noted)
    report = await run_batch(range(12_000), wait, db=db, batch="b", concurrency=10)
    assert report.completed == 12_000
    largest = [min(250 * 2**number, source_module.CHUNK) for number in range(len(sizes))]
    assert all(size <= most for size, most in zip(sizes, largest, strict=True))
    assert (sizes[0], max(sizes) > 1000, sum(sizes)) == (250, True, 12_000)
