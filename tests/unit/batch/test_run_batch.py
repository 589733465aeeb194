"""run_batch: from the items to the report."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pandas as pd
import pytest

from asyncrunner import (
    BatchFailed,
    BatchNotFound,
    ConfigurationError,
    Counts,
    Fail,
    InvalidKey,
    ItemNotStorable,
    KeyConflict,
    ProgressUpdate,
    Retry,
    RetryPolicy,
    Status,
    StoreError,
    StoreNotFound,
    StoreReplaced,
    plan_batch,
    run_batch,
    stream_batch,
)
from asyncrunner.backends import open_engine
from asyncrunner.batch.batch_run import BatchRun
from asyncrunner.batch.report import BatchReport
from asyncrunner.domain.options import RunOptions
from asyncrunner.domain.outcome import ErrorInfo
from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.turn import Want
from asyncrunner.store.workers import WorkerInfo
from tests.conftest import NewDb, Until
from tests.support.state import execute, exists, rows_of

AT_ONCE = RetryPolicy(initial=0)


async def double(number: int) -> int:
    return 2 * number


async def results_of(report: BatchReport[Any, Any]) -> list[Any]:
    return [outcome.result async for outcome in report.outcomes()]


# --- sources --------------------------------------------------------------------------------------------------------


async def an_async_generator() -> AsyncIterator[int]:
    for number in range(5):
        await asyncio.sleep(0)
        yield number


@pytest.mark.parametrize(
    "items", [[0, 1, 2, 3, 4], range(5), (n for n in range(5)), {0, 1, 2, 3, 4}, an_async_generator()],
    ids=["list", "range", "generator", "set", "async generator"],
)  # fmt: skip
async def test_any_source_runs_to_its_end(items: Any, db: str) -> None:
    report = await run_batch(items, double, db=db)
    assert (report.completed, report.skipped, report.failed, report.pending) == (5, 0, 0, 0)
    assert await results_of(report) == [0, 2, 4, 6, 8]
    assert report.ok


async def test_no_items_are_a_finished_batch(db: str) -> None:
    nothing: list[int] = []
    report = await run_batch(nothing, double, db=db)
    assert report.batch_counts == Counts()
    assert report.raise_for_failures() is report


async def test_a_store_in_memory_reports_too(tmp_path: Path) -> None:
    report = await run_batch(range(3), double, db=":memory:")
    assert await results_of(report) == [0, 2, 4]


async def test_an_error_of_the_source_is_raised_after_the_earlier_items_are_settled(db: str) -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise OSError("the network is gone")

    with pytest.raises(OSError, match="the network is gone"):
        await run_batch(source(), double, db=db)
    assert rows_of(db, "SELECT id, status FROM items ORDER BY seq") == [(str(n), "completed") for n in range(3)]


async def test_an_item_that_cannot_be_stored_stops_the_run_and_is_named(db: str) -> None:
    with pytest.raises(ItemNotStorable, match="item 2 of the input") as caught:
        await run_batch([1, 2, object()], double, db=db)  # type: ignore[arg-type]
    assert caught.value.position == 2
    assert (await run_batch(None, double, db=db)).total == 2


async def test_a_key_with_another_payload_stops_the_run(db: str) -> None:
    await run_batch([{"n": 1, "v": "old"}], _value, key="n", db=db)
    with pytest.raises(KeyConflict, match='keep the stored payload with "keep"'):
        await run_batch([{"n": 1, "v": "new"}], _value, key="n", db=db)
    kept = await run_batch([{"n": 1, "v": "new"}], _value, key="n", db=db, on_change="keep")
    assert await results_of(kept) == ["old"]
    rerun = await run_batch([{"n": 1, "v": "new"}], _value, key="n", db=db, on_change="rerun")
    assert (await results_of(rerun), rerun.completed) == (["new"], 1)


async def _value(item: dict[str, Any]) -> Any:
    return item["v"]


async def test_a_payload_that_changes_while_its_item_runs_runs_after_the_attempt(db: str) -> None:
    ran: list[str] = []
    is_running, is_changed = asyncio.Event(), asyncio.Event()

    async def value(item: dict[str, Any]) -> Any:
        ran.append(item["v"])
        if item["v"] == "old":
            is_running.set()
            await is_changed.wait()
        return item["v"]

    async def source() -> AsyncIterator[dict[str, Any]]:
        yield {"n": 1, "v": "old"}
        await is_running.wait()
        yield {"n": 1, "v": "new"}
        yield {"n": 2, "v": "beside"}
        while len(rows_of(db, "SELECT id FROM items")) < 2:  # the chunk with the changed payload is stored
            await asyncio.sleep(0)
        is_changed.set()

    report = await run_batch(source(), value, key="n", db=db, batch="b", on_change="rerun")
    assert await results_of(report) == ["new", "new", "beside"], "the item that was given twice has two outcomes"
    assert (report.completed, report.skipped, report.duplicates, report.total) == (2, 0, 1, 2)
    assert sorted(ran) == ["beside", "new", "old"]


async def test_a_key_may_be_a_function_and_must_identify_the_item(db: str) -> None:
    report = await run_batch([{"n": 1, "v": 5}], _value, key=lambda item: f"number-{item['n']}", db=db)
    assert [outcome.id async for outcome in report.outcomes()] == ["number-1"]
    with pytest.raises(InvalidKey, match="no field 'nothing'"):
        await run_batch([{"n": 1, "v": 5}], _value, key="nothing", db=db, batch="other")


async def test_a_repeated_item_runs_once(db: str) -> None:
    ran: list[int] = []

    async def handler(item: int) -> None:
        ran.append(item)

    report = await run_batch([1, 2, 1, 1, 2], handler, db=db, batch="handler")
    assert (sorted(ran), report.total, report.duplicates) == ([1, 2], 2, 3)


async def test_the_report_counts_the_items_that_were_given_more_than_once_in_the_call(db: str) -> None:
    async def handler(item: int) -> None:
        pass

    first = await run_batch([*range(3000), *range(100), *range(2990, 3010)], handler, db=db)
    again = await run_batch([*range(3000), *range(50)], handler, db=db)
    other = await run_batch([5000, 1, 5000], handler, db=db)
    assert (first.total, first.duplicates, again.duplicates, other.duplicates) == (3010, 110, 50, 1)


async def test_an_endless_source_is_read_only_so_far_ahead_and_can_be_cancelled(db: str, until: Until) -> None:
    read = 0

    def source() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    never = asyncio.Event()

    async def handler(item: int) -> None:
        await never.wait()

    running = asyncio.ensure_future(run_batch(source(), handler, db=db, batch="handler"))
    await until(lambda: read >= 10_000)
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert read < 20_000


@dataclass
class Order:
    number: int
    amount: float


async def test_items_and_results_have_the_annotated_types(db: str) -> None:
    async def book(order: Order) -> Order:
        return Order(order.number, order.amount * 2)

    report = await run_batch([Order(1, 2.5)], book, db=db)
    (outcome,) = [outcome async for outcome in report.outcomes()]
    assert (outcome.item, outcome.result) == (Order(1, 2.5), Order(1, 5.0))


# --- retries and failures -------------------------------------------------------------------------------------------


async def test_a_transient_error_is_retried_and_a_permanent_one_is_not(db: str) -> None:
    runs: dict[int, int] = {}

    async def handler(item: int) -> str:
        runs[item] = runs.get(item, 0) + 1
        if item == 1 and runs[item] < 3:
            raise ValueError("not yet")
        if item == 2:
            raise Fail("never")
        return "done"

    report = await run_batch([1, 2, 3], handler, db=db, retry=AT_ONCE, batch="handler")
    assert runs == {1: 3, 2: 1, 3: 1}
    assert (report.completed, report.failed, report.attempts, report.retried) == (2, 1, 5, 2)
    assert [(group.error, group.items, group.example) for group in report.failures] == [("Fail: never", 1, "2")]
    with pytest.raises(BatchFailed, match=r"1 of 3 items .* failed: 1 x Fail: never") as caught:
        report.raise_for_failures()
    assert (caught.value.failed, caught.value.total) == (1, 3)


async def test_every_failed_attempt_has_a_row_in_failures(db: str) -> None:
    async def handler(item: int) -> None:
        raise ValueError(f"number {item}")

    await run_batch([7], handler, db=db, retry=AT_ONCE)
    found = rows_of(db, "SELECT id, attempt, error_type, message, fingerprint <> '' FROM failures ORDER BY attempt")
    assert found == [("7", attempt, "ValueError", "number 7", 1) for attempt in range(1, 6)]


async def test_a_second_call_continues_where_the_first_stopped(db: str) -> None:
    ran: list[int] = []
    broken = True

    async def handler(item: int) -> int:
        ran.append(item)
        if item == 2 and broken:
            raise ValueError("broken")
        return item

    first = await run_batch([1, 2], handler, db=db, max_attempts=1, batch="handler")
    assert (first.completed, first.failed) == (1, 1)
    broken = False
    same = await run_batch([1, 2, 3], handler, db=db, max_attempts=1, batch="handler")
    assert (same.completed, same.skipped, same.failed) == (1, 1, 1)
    more = await run_batch(None, handler, db=db, max_attempts=2, batch="handler")
    assert (more.completed, more.skipped, more.failed) == (1, 2, 0)
    assert ran == [1, 2, 3, 2]


async def test_retry_failed_gives_a_fresh_start_also_after_a_permanent_error(db: str) -> None:
    async def fails(item: int) -> None:
        raise Fail("no")

    await run_batch([1], fails, db=db, batch="b")
    assert (await run_batch(None, fails, db=db, batch="b")).attempts == 0
    report = await run_batch(None, double, db=db, batch="b", retry_failed=True)
    assert (report.completed, report.failed) == (1, 0)


async def test_a_pause_lets_every_item_of_the_batch_wait(db: str) -> None:
    times: list[float] = []

    async def handler(item: int) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise Retry(after=0.2, pause=True)

    await run_batch(range(3), handler, db=db, concurrency=1, batch="handler")
    assert len(times) == 4
    assert times[-1] - times[0] >= 0.2


async def test_max_failures_stops_and_the_rest_stays_pending(db: str) -> None:
    async def handler(item: int) -> None:
        await asyncio.sleep(0.001)
        raise Fail("all wrong")

    report = await run_batch(range(500), handler, db=db, concurrency=2, max_failures=5)
    assert re.fullmatch(r"\d+ items failed: the limit max_failures=5 is reached", report.stopped or "")
    assert 5 <= report.failed < 100
    assert report.failed < report.failed + report.pending == report.total <= 500, "the source is read until the stop"


# --- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["task.cancel", "anyio scope", "asyncio timeout"])
async def test_a_cancelled_run_commits_its_outcomes_and_releases_the_rest_with_the_attempt_refunded(
    way: str, db: str, until: Until
) -> None:
    threads = threading.active_count()
    done: list[int] = []

    async def handler(item: int) -> int:
        if item >= 5:
            await asyncio.Event().wait()
        done.append(item)
        return item

    def run() -> Any:
        return run_batch(range(100), handler, db=db, concurrency=10, batch="handler")

    async def when_five_are_done(cancel: Callable[[], object]) -> None:
        await until(lambda: len(done) == 5)
        await asyncio.sleep(0.05)
        cancel()

    if way == "task.cancel":
        task = asyncio.ensure_future(run())
        await when_five_are_done(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
    elif way == "anyio scope":
        with anyio.CancelScope() as scope:
            cancelling = asyncio.ensure_future(when_five_are_done(scope.cancel))
            await run()
        assert cancelling.done()
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as timeout:
                cancelling = asyncio.ensure_future(when_five_are_done(lambda: timeout.reschedule(0)))
                await run()
        assert cancelling.done()
    assert rows_of(db, "SELECT status, attempts, count(*) FROM items GROUP BY 1, 2 ORDER BY 1") == [
        ("completed", 1, 5),
        ("pending", 0, 95),
    ]
    assert rows_of(db, "SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)]
    assert threading.active_count() <= threads
    assert [task.get_name() for task in asyncio.all_tasks() if "asyncrunner" in task.get_name()] == []


async def test_an_interrupted_run_reports_the_remaining_items(db: str, until: Until) -> None:
    release = asyncio.Event()
    started: list[int] = []

    async def handler(item: int) -> None:
        started.append(item)
        await release.wait()

    run: BatchRun[int, None] = BatchRun(
        range(10), handler, RunOptions.of("run_batch", {"db": db, "concurrency": 2, "batch": "handler"})
    )
    async with run:
        await until(lambda: len(started) == 2)
        run.request_stop("enough")
        release.set()
        report = await run.finish()
    assert (report.completed, report.pending, report.stopped) == (2, 8, "enough")


async def test_a_handler_that_never_ends_does_not_keep_a_cancelled_run(db: str, until: Until) -> None:
    started: list[int] = []

    async def handler(item: int) -> None:
        started.append(item)
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    task = asyncio.ensure_future(run_batch([1], handler, db=db, batch="handler"))
    await until(lambda: started)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 15)
    assert rows_of(db, "SELECT status, attempts FROM items") == [("pending", 0)]


def test_a_run_ends_with_asyncio_run_that_is_torn_down(db: str) -> None:
    async def main() -> None:
        running = [asyncio.Event(), asyncio.Event()]

        async def handler(item: int) -> None:
            running[item].set()
            await asyncio.Event().wait()

        asyncio.ensure_future(run_batch([0, 1], handler, db=db, batch="b"))  # noqa: RUF006 - the task is never awaited
        for each in running:
            await each.wait()

    asyncio.run(main())
    assert rows_of(db, "SELECT DISTINCT status, attempts FROM items") == [("pending", 0)]


async def test_a_handler_that_swallows_its_timeout_is_left_behind_and_the_batch_ends(
    db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncrunner.runner.internals.GRACE_SECONDS", 0.02)

    async def handler(item: int) -> int:
        while item % 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
        return item

    report = await asyncio.wait_for(run_batch(range(10), handler, db=db, concurrency=2, timeout=0.02, max_attempts=1), 15)
    assert (report.completed, report.failed) == (5, 5)
    assert [group.error for group in report.failures] == [
        "HandlerUnresponsive: ran longer than its timeout of 0.02 s and did not end when it was cancelled"
    ]


# --- several runs, recovery -----------------------------------------------------------------------------------------


async def test_two_runs_of_one_batch_share_the_work(db: str) -> None:
    ran: list[int] = []

    async def handler(item: int) -> int:
        ran.append(item)
        await asyncio.sleep(0.002)
        return item

    reports = await asyncio.gather(*(run_batch(range(60), handler, db=db, concurrency=3, batch="handler") for _ in range(2)))
    assert sorted(ran) == list(range(60))
    assert [report.batch_counts for report in reports] == [Counts(completed=60)] * 2


async def test_a_handler_may_start_a_run(db: str, new_db: NewDb) -> None:
    async def outer(item: int) -> int:
        report = await run_batch(range(item), double, db=new_db(f"inner-{item}.db"))
        return report.completed

    assert await results_of(await run_batch([1, 2, 3], outer, db=db, batch="outer")) == [1, 2, 3]


@pytest.mark.sqlite_file  # a server frees the lock of a session, so a worker is dead only after a moment; see tests/postgres
async def test_items_of_a_dead_worker_run_immediately(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncrunner.runner.engine._WATCHDOG_SECONDS", 3600.0)  # not only at a later check of the watchdog
    store = open_engine(db)
    await store.open()
    batch = await store.open_batch("b", "m:h", BatchOptions())
    await run_batch([1, 2], double, db=":memory:")
    from asyncrunner.domain.item import NewItem

    await store.add(batch.batch_id, [NewItem("1", "1"), NewItem("2", "2")], on_change="error")
    await store.join(WorkerInfo("dead", "here", 1))
    await store.turn("dead", [], [Want(batch.batch_id, 2, 3)])
    await store.close()  # its lock is free, and it was not deregistered
    report = await asyncio.wait_for(run_batch(None, double, db=db, batch="b"), 5)
    assert report.completed == 2
    assert rows_of(db, "SELECT attempts, crashes FROM items") == [(2, 1), (2, 1)]
    (message,) = rows_of(db, "SELECT DISTINCT message FROM failures")[0]
    assert "worker dead" in message


async def test_items_of_a_worker_that_is_not_known_are_adopted(db: str) -> None:
    await run_batch([1], double, db=db)
    execute(db, "UPDATE items SET status = 'processing', worker_id = NULL, attempts = 1")
    report = await asyncio.wait_for(run_batch(None, double, db=db), 10)
    assert report.batch_counts == Counts(completed=1)


async def test_rows_that_a_person_puts_back_while_it_runs_are_run_again(db: str, until: Until) -> None:
    ran: list[int] = []
    go_on = asyncio.Event()

    async def handler(item: int) -> int:
        ran.append(item)
        if item == 2:
            await go_on.wait()
        return len(ran)

    task = asyncio.ensure_future(run_batch([1, 2], handler, db=db, batch="handler"))
    await until(lambda: len(ran) == 2 and rows_of(db, "SELECT 1 FROM items WHERE status = 'completed'"))
    execute(db, "UPDATE items SET status = 'pending' WHERE id = '1'")
    await until(lambda: ran.count(1) == 2)
    go_on.set()
    report = await task
    assert report.batch_counts == Counts(completed=2)


@pytest.mark.sqlite_file
async def test_a_file_that_is_replaced_stops_the_run_loudly(db: str, until: Until) -> None:
    started: list[int] = []

    async def handler(item: int) -> None:
        started.append(item)
        await asyncio.Event().wait()

    task = asyncio.ensure_future(run_batch([1], handler, db=db, batch="handler"))
    await until(lambda: started)
    Path(db).rename(f"{db}.moved")
    with pytest.raises(StoreReplaced, match="deleted, moved or replaced"):
        await asyncio.wait_for(task, 20)


# --- what is refused ------------------------------------------------------------------------------------------------


async def test_a_lambda_needs_a_batch_name(db: str) -> None:
    with pytest.raises(ConfigurationError, match="batch='prices'"):
        await run_batch([1], lambda item: item, db=db)
    assert (await run_batch([1], lambda item: item, db=db, batch="b")).completed == 1


async def test_a_mistyped_option_names_the_right_one(db: str) -> None:
    with pytest.raises(TypeError, match="did you mean 'concurrency'"):
        await run_batch([1], double, db=db, concurency=3)  # type: ignore[call-overload]


async def test_a_text_a_dict_and_a_data_frame_are_no_lists_of_items(db: str) -> None:
    with pytest.raises(ConfigurationError, match=r"items is dict, of which .* give items\.items\(\), or items\.keys\(\)"):
        await run_batch({"a": 1}, str, db=db, batch="b")
    with pytest.raises(ConfigurationError, match=r'items is DataFrame, .*; give items\.to_dict\("records"\)'):
        await run_batch(pd.DataFrame({"a": [1, 2]}), str, db=db, batch="b")
    with pytest.raises(ConfigurationError, match="items is str"):
        await run_batch("abc", double, db=db)  # type: ignore[arg-type]
    assert not exists(db)


@pytest.mark.sqlite_file
async def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match="there is no folder"):
        await run_batch([1], double, db=tmp_path / "no" / "jobs.db")


@pytest.mark.sqlite_file
async def test_a_file_of_another_program_is_left_unchanged(db: str) -> None:
    file = Path(db)
    file.write_bytes(b"not a database at all" * 100)
    before = file.read_bytes()
    with pytest.raises(StoreError):
        await run_batch([1], double, db=db)
    assert file.read_bytes() == before


# --- progress -------------------------------------------------------------------------------------------------------


async def test_progress_ends_with_the_final_counts(db: str) -> None:
    seen: list[ProgressUpdate] = []

    async def handler(item: int) -> None:
        if item == 3:
            raise Fail("three")

    await run_batch(range(10), handler, db=db, progress=seen.append)
    last = seen[-1]
    assert (last.done, last.total, last.completed, last.failed, last.total_is_known) == (10, 10, 9, 1, True)
    assert seen[0].total == 10


async def test_a_progress_function_that_raises_does_not_hurt_the_run(db: str) -> None:
    def show(update: ProgressUpdate) -> None:
        raise RuntimeError("a broken display")

    assert (await run_batch(range(3), double, db=db, progress=show)).completed == 3


def test_it_runs_under_anyio_run(db: str) -> None:
    async def main() -> int:
        return (await run_batch(range(3), double, db=db)).completed

    assert anyio.run(main) == 3


async def test_the_outcomes_have_status_error_attempts_and_duration(db: str) -> None:
    async def handler(item: int) -> None:
        await asyncio.sleep(0.01)
        raise Fail("no")

    report = await run_batch([1], handler, db=db)
    (outcome,) = [outcome async for outcome in report.outcomes()]
    assert (outcome.status, outcome.error, outcome.attempts, outcome.ok) == (Status.FAILED, "Fail: no", 1, False)
    assert outcome.duration >= 0.009


def test_an_error_info_reads_as_one_line() -> None:
    assert (str(ErrorInfo("E", "m")), str(ErrorInfo("E", ""))) == ("E: m", "E")


async def test_warnings_of_the_loop_are_errors_too(db: str) -> None:
    with contextlib.ExitStack():
        assert (await run_batch(range(3000), double, db=db, concurrency=200)).completed == 3000


async def test_a_run_that_is_cancelled_while_its_slots_are_being_filled_ends(db: str) -> None:
    started = asyncio.Event()

    async def handler(item: int) -> None:
        started.set()
        await asyncio.Event().wait()

    running = asyncio.ensure_future(run_batch(range(2000), handler, db=db, batch="b", concurrency=100))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 20)
    assert rows_of(db, "SELECT max(attempts), count(*) FROM items WHERE status <> 'pending'") == [(None, 0)]
    assert rows_of(db, "SELECT max(attempts) FROM items") == [(0,)]


async def test_a_run_on_a_store_of_the_programs_own_gives_its_outcomes_after_the_end(tmp_path: Path) -> None:
    unused = tmp_path / "unused.db"
    options = RunOptions.of("run_batch", {"db": unused, "batch": "b"})
    run: BatchRun[int, int] = BatchRun(range(3), double, options, store=open_engine(":memory:"))
    async with run:
        report = await run.finish()
    assert [(outcome.item, outcome.result) async for outcome in report.outcomes()] == [(0, 0), (1, 2), (2, 4)]
    assert [(outcome.item, outcome.result) async for outcome in report.outcomes()] == [(0, 0), (1, 2), (2, 4)], "and again"
    assert not unused.exists()


async def _streamed(items: None, handler: Any, **options: Any) -> None:
    async with stream_batch(items, handler, **options):
        pass


@pytest.mark.sqlite_file
@pytest.mark.parametrize("call", [run_batch, _streamed, plan_batch])
async def test_a_run_without_items_of_a_mistyped_file_or_batch_is_refused_and_makes_nothing(call: Any, tmp_path: Path) -> None:
    db = tmp_path / "prices.db"
    await run_batch([1], double, db=db, batch="prices")
    with pytest.raises(StoreNotFound) as no_file:
        await call(None, double, db=tmp_path / "price.db", batch="prices")
    assert f"no store at {tmp_path / 'price.db'} to continue with; did you mean db={str(db)!r}?" in str(no_file.value)
    assert str(no_file.value).endswith("Give the items of a new batch, or the location of an existing batch with db=")
    with pytest.raises(BatchNotFound, match=r"has no batch 'price'; did you mean 'prices'\?.*existing batch with batch="):
        await call(None, double, db=db, batch="price")
    with pytest.raises(ConfigurationError, match="a file or server with db="):
        await call(None, double, db=":memory:")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("prices.db")] == []
    assert rows_of(db, "SELECT name FROM batches") == [("prices",)]
