"""The shared reads: one connection while a page is open, one read for all, and a store that is found again."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import run_batch
from asyncrunner.admin.inspection.inspection import Inspection
from asyncrunner.dashboard import Dashboard, dashboard
from asyncrunner.dashboard.reads import Reads, _Pace
from asyncrunner.errors import BatchNotFound, StoreClosed, StoreError
from tests.conftest import NewDb, Until
from tests.support.kinds import chosen
from tests.unit.dashboard.browser import TOKEN, Visitor, call, scope_of
from tests.unit.dashboard.conftest import Open, Visit


async def returned(item: Any) -> Any:
    return item


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each method of ``Inspection`` was called."""
    counted: Counter[str] = Counter()
    for name in ("open", "close", "status", "status_and_problems", "failures", "history", "show"):
        original = getattr(Inspection, name)

        def counting(self: Inspection, *args: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            counted[name] += 1
            return original(self, *args, **options)

        monkeypatch.setattr(Inspection, name, counting)
    return counted


@pytest.fixture
async def reads(made: str) -> AsyncIterator[Reads]:
    opened = Reads(made)
    yield opened
    await opened.close()


def remove(store: str) -> None:
    """Delete the store, as a person does."""
    if store.startswith("postgresql://"):
        chosen().remove()
        return
    file = Path(store)
    for path in file.parent.glob(f"{file.name}*"):
        if path.is_file():
            path.unlink()


def forget(visitor: Visitor) -> None:
    """Let the next request read the store."""
    assert isinstance(visitor.app, Dashboard)
    visitor.app._pages.reads.forget()


# --- the connection -------------------------------------------------------------------------------------------------


async def test_nothing_is_open_before_the_first_request_that_is_let_in(
    made: str, open_dashboard: Open, calls: Counter[str]
) -> None:
    app = open_dashboard(made)
    assert (await call(app, scope_of(headers={"cookie": ""}))).status == 401
    assert (await call(app, scope_of("/nowhere"))).status == 404
    assert (await call(app, scope_of("/live", "of=nothing"))).status == 400
    assert (calls["open"], app._pages.reads.is_open) == (0, False)
    for _ in range(3):
        assert (await call(app, scope_of())).status == 200
    assert (calls["open"], calls["close"], app._pages.reads.is_open) == (1, 0, True)
    await app.close()
    assert (calls["close"], app._pages.reads.is_open) == (1, False)
    await app.close()
    assert calls["close"] == 1
    assert (await call(app, scope_of())).status == 200
    assert calls["open"] == 2


async def test_a_connection_that_is_not_used_is_closed_and_opened_again(made: str, until: Until, calls: Counter[str]) -> None:
    reads = Reads(made, idle_seconds=0.01)

    async def look_and_leave(times: int) -> None:
        assert len((await reads.status()).batches) == 1
        await until(lambda: calls["close"] == times and not reads.is_open)
        reads.forget()

    await look_and_leave(1)
    await look_and_leave(2)
    assert calls["open"] == 2


async def test_a_connection_stays_open_during_a_read_that_takes_long(made: str, until: Until, calls: Counter[str]) -> None:
    reads = Reads(made, idle_seconds=0.01)
    released = asyncio.Event()

    async def read(store: Inspection) -> list[str]:
        await released.wait()
        return await store.batches()

    task = asyncio.create_task(reads.read(read))
    for _ in range(5):
        await asyncio.sleep(0.02)  # longer than it may be idle
        assert not task.done()
        assert calls["close"] == 0
    released.set()
    assert await task == ["shop"]
    await until(lambda: calls["close"] == 1)


async def test_a_read_that_is_under_way_ends_with_an_error_of_the_store_when_it_is_closed(reads: Reads) -> None:
    waiting, released = asyncio.Event(), asyncio.Event()

    async def read(store: Inspection) -> list[str]:
        waiting.set()
        await released.wait()
        return await store.batches()

    task = asyncio.create_task(reads.read(read))
    await waiting.wait()
    await reads.close()
    assert (await reads.status()).batches, "it is open again"
    released.set()
    with pytest.raises(StoreClosed):
        await task
    assert reads.is_open, "the error of an earlier connection does not close the newer one"


async def test_many_reads_are_under_way_when_the_connection_is_closed(made: str) -> None:
    for _ in range(20):
        reads = Reads(made)
        tasks = [asyncio.create_task(reads.read(lambda store: store.failures())) for _ in range(10)]
        while not reads.is_open:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await reads.close()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, list | StoreError), repr(outcome)
        await reads.close()


@pytest.mark.sqlite_file
async def test_a_read_that_waits_for_its_turn_ends_when_the_file_is_closed(made: str) -> None:
    """Not with an error of sqlite3, which no caller expects."""
    inspection, released = Inspection(made), threading.Event()
    await inspection.open()
    store: Any = inspection._admin_store
    busy = asyncio.get_running_loop().run_in_executor(store._thread, released.wait)
    reading = asyncio.create_task(inspection.batches())
    await asyncio.sleep(0)
    await inspection.close()
    released.set()
    await busy
    with pytest.raises(StoreClosed):
        await reading


async def test_a_read_ends_that_waits_for_a_store_whose_opening_was_cancelled(made: str) -> None:
    for steps in range(5):
        reads = Reads(made)
        waiting = asyncio.create_task(reads.read(lambda store: store.batches()))
        for _ in range(steps):
            await asyncio.sleep(0)
        await reads.close()
        (outcome,) = await asyncio.wait_for(asyncio.gather(waiting, return_exceptions=True), 10)
        assert outcome == ["shop"] or isinstance(outcome, StoreError), repr(outcome)
        await reads.close()


def test_a_loop_that_ends_closes_the_connection_and_the_next_loop_opens_one(made: str, calls: Counter[str]) -> None:
    app = dashboard(made, token=TOKEN)

    async def look() -> int:
        answers = await asyncio.gather(*(call(app, scope_of()) for _ in range(5)))
        return sum(answer.status == 200 for answer in answers)

    for number in (1, 2, 3):
        assert asyncio.run(look()) == 5
        assert (calls["open"], calls["close"]) == (number, number)


def test_an_app_is_closed_in_another_loop_than_it_was_used_in(made: str, calls: Counter[str]) -> None:
    app = dashboard(made, token=TOKEN)

    async def look() -> None:
        assert (await call(app, scope_of())).status == 200

    asyncio.run(look())
    asyncio.run(app.close())
    asyncio.run(look())
    assert calls["open"] == calls["close"] == 2


# --- one read for all -----------------------------------------------------------------------------------------------


async def test_fifty_equal_reads_at_the_same_time_are_one(made: str, calls: Counter[str]) -> None:
    reads = Reads(made)
    found = await asyncio.gather(*(reads.status() for _ in range(50)), *(reads.failures() for _ in range(50)))
    assert len({id(each) for each in found}) == 2
    assert (calls["open"], calls["status_and_problems"], calls["failures"]) == (1, 1, 1)
    shown = await asyncio.gather(reads.status("shop"), reads.check(), *(reads.history("shop", 60, "1m") for _ in range(9)))
    assert (calls["status_and_problems"], calls["history"]) == (1, 1), "the status of all has that of each batch"
    assert shown[0] == found[0]
    reads.forget()
    await asyncio.gather(*(reads.status("shop") for _ in range(9)), *(reads.history("shop", 60, "1h") for _ in range(9)))
    assert (calls["status_and_problems"], calls["history"]) == (2, 2)
    await reads.close()


async def test_a_read_is_shared_until_it_is_old_or_something_was_changed(
    reads: Reads, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, ahead = asyncio.get_running_loop(), 0.0
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + ahead)
    first = await reads.status()
    assert await reads.status() is first
    reads.forget()
    second = await reads.status()
    assert second is not first
    ahead = 3_600
    assert await reads.status() is not second
    assert calls["status_and_problems"] == 3


async def test_a_slow_read_is_not_begun_again_while_it_is_under_way(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, ahead, released = asyncio.get_running_loop(), 0.0, asyncio.Event()
    time, begun = loop.time, 0
    await reads.failures()  # so that it is open
    monkeypatch.setattr(loop, "time", lambda: time() + ahead)

    async def slow(self: Inspection, *_: object) -> tuple[object, list[object]]:
        nonlocal begun
        begun += 1
        await released.wait()
        return begun, []

    monkeypatch.setattr(Inspection, "status_and_problems", slow)
    tasks = [asyncio.create_task(reads.status())]
    while not begun:
        await asyncio.sleep(0)
    ahead = 30
    tasks.append(asyncio.create_task(reads.status()))
    await asyncio.sleep(0)
    released.set()
    results: list[object] = list(await asyncio.gather(*tasks))
    assert (results, begun) == ([1, 1], 1)


async def test_a_visitor_who_leaves_does_not_cancel_the_read_of_the_others(reads: Reads, calls: Counter[str]) -> None:
    impatient = asyncio.create_task(reads.status())
    patient = asyncio.create_task(reads.status())
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).batches
    assert (impatient.cancelled(), calls["status_and_problems"]) == (True, 1)


async def test_an_error_of_a_read_is_not_kept(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    original, errors = Inspection.failures, iter([BatchNotFound("gone"), StoreError("broken"), ValueError("a fault")])

    async def failing(self: Inspection, *args: Any, **options: Any) -> Any:
        for error in errors:
            raise error
        return await original(self, *args, **options)

    monkeypatch.setattr(Inspection, "failures", failing)
    for expected in (BatchNotFound, StoreError, ValueError):
        with pytest.raises(expected):
            await reads.failures()
    assert len(await reads.failures()) == 2
    with pytest.raises(BatchNotFound):
        await reads.status("nothing")
    await run_batch(["a"], returned, db=reads.db, batch="nothing")
    assert (await reads.status("nothing")).batches[0].total == 1


async def test_an_unknown_batch_or_item_does_not_close_the_connection(made: str, visit: Visit, calls: Counter[str]) -> None:
    visitor = visit(made)
    for path in (
        "",
        "batch?batch=x",
        "item?batch=shop&id=x",
        "items?batch=shop&after=x",
        "items?batch=shop&status=x",
        "raw?batch=shop&id=x",
    ):
        await visitor.get(path)
    assert (calls["open"], calls["close"]) == (1, 0)


# --- a store that goes and comes ------------------------------------------------------------------------------------


async def test_a_store_that_does_not_exist_is_shown_as_soon_as_it_does(db: str, visit: Visit) -> None:
    visitor = visit(db)
    for path, kind in (
        ("", "text/html"),
        ("batch?batch=shop", "text/html"),
        ("api/status.json", "application/json"),
        ("healthz", "application/json"),
    ):
        response = await visitor.get(path)
        assert response.status_code == 503, path
        assert response.headers["content-type"].startswith(kind)
    assert (await visitor.post("pause", {"batch": "shop"})).status_code == 503
    await run_batch(["a"], returned, db=db, batch="shop")
    assert (await visitor.get("healthz")).text == "ok\n"
    assert "shop" in (await visitor.page("")).text


async def test_a_store_that_is_deleted_and_made_again_is_found_again(made: str, visit: Visit) -> None:
    visitor = visit(made)
    assert "shop" in (await visitor.page("")).text
    remove(made)
    forget(visitor)
    for _ in range(2):
        assert (await visitor.get("")).status_code == 503
    await run_batch(["a"], returned, db=made, batch="another")
    answers = [(await visitor.get("")).status_code for _ in range(2)]
    assert answers[-1] == 200, answers
    page = await visitor.page("")
    assert "another" in page.text
    assert "shop" not in [text.strip() for text in page.texts]


@pytest.mark.sqlite_file
async def test_a_file_that_is_replaced_is_read_from_the_next_request(made: str, new_db: NewDb, visit: Visit) -> None:
    visitor = visit(made)
    await visitor.page("")
    other = new_db("other.db")
    await run_batch(["a"], returned, db=other, batch="another")
    remove(made)
    Path(other).rename(made)
    forget(visitor)
    assert "another" in (await visitor.page("")).text


async def test_a_connection_that_broke_is_opened_again(
    made: str, visit: Visit, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart of the server: one request says so, and the next one works."""
    visitor = visit(made)
    await visitor.page("")

    async def broken(self: Inspection, *_: object) -> None:
        raise StoreError("the server went away")

    with monkeypatch.context() as patched:
        patched.setattr(Inspection, "show", broken)
        response = await visitor.get("item?batch=shop&id=wrong-1")
    assert (response.status_code, "The store cannot be read" in response.text, "the server went away" in response.text) == (
        503,
        True,
        True,
    )
    assert (await visitor.get("item?batch=shop&id=wrong-1")).status_code == 200
    assert (calls["open"], calls["close"]) == (2, 1)


def test_one_slow_read_hardly_delays_the_next_one_and_many_do_for_at_most_five_seconds() -> None:
    pace = _Pace()
    assert pace.rest == 0.5
    pace.learn(3.0)  # it opened the store, on a busy machine
    assert pace.rest == pytest.approx(0.75)
    pace.learn(0.001)
    assert pace.rest == pytest.approx(0.1)
    for _ in range(20):
        pace.learn(0.034)  # ten million items
    assert pace.rest == pytest.approx(3.4)
    for _ in range(20):
        pace.learn(0.3)
    assert pace.rest == 5.0


async def test_a_read_that_takes_long_is_repeated_less_often(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Pace, "rest", property(lambda _: 1_000.0))
    first = await reads.status()
    reads._answers[("status", None)]._began -= 999
    assert await reads.status() is first
    reads._answers[("status", None)]._began -= 2
    assert await reads.status() is not first


def test_a_read_that_the_end_of_the_loop_cancels_before_it_begins_leaves_nothing_behind(made: str) -> None:
    """A coroutine that is never awaited would be a warning, in whatever runs when it is collected."""

    async def leave_at_once() -> None:
        reads = Reads(made)
        waiting = asyncio.create_task(reads.status())
        await asyncio.sleep(0)
        (answer,) = reads._answers.values()
        answer.value.cancel()  # as the end of the loop does, here for certain before the first step
        await asyncio.wait([waiting])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(leave_at_once())
        gc.collect()
    assert [str(each.message) for each in caught] == []
