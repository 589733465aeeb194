"""Submitting items, and their handles, keys, times, priorities and results."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import anyio.from_thread
import pytest

from asyncrunner import (
    Client,
    ConfigurationError,
    Fail,
    Handle,
    ItemCancelled,
    ItemFailed,
    ItemNotFound,
    ItemNotStorable,
    KeyConflict,
    Later,
    Runner,
    Status,
    StoreClosed,
)
from asyncrunner.errors import StoreUnavailable
from asyncrunner.events import Settled
from asyncrunner.runner.runner import internals_of, run_until_idle
from asyncrunner.serialization.keys import new_key
from asyncrunner.store.items import ItemRow
from asyncrunner.submission import result_waiter
from asyncrunner.testing import FakeClock
from asyncrunner.worker.batch_queue import Prefetch
from tests.conftest import Until
from tests.support.state import execute, rows_of
from tests.support.stores import Overridden

InMemory = Callable[[Runner], Awaitable[FakeClock]]


@dataclass
class Square:
    number: int
    square: int


def squares(db: str | str = "unused.db", **options: int) -> tuple[Runner, object]:
    runner = Runner(db, **options)  # type: ignore[arg-type]

    @runner.handler(batch="squares", max_attempts=2)
    async def square(number: int) -> Square:
        if number < 0:
            raise Fail("a negative number")
        return Square(number, number * number)

    return runner, square


async def test_a_handle_gives_the_typed_result(run_in_memory: InMemory) -> None:
    runner = Runner()

    @runner.handler
    async def square(number: int) -> Square:
        return Square(number, number * number)

    await run_in_memory(runner)
    handle = await square.submit(7, key=7)
    assert await handle.result(timeout=20) == Square(7, 49)
    assert await handle.result() == Square(7, 49)  # of a completed item
    assert await handle.status() is Status.COMPLETED
    assert (handle.key, handle.batch, "'7'" in repr(handle)) == ("7", square.batch, True)


async def test_a_key_that_exists_is_the_same_handle_and_its_item_runs_once(run_in_memory: InMemory) -> None:
    runner = Runner()
    ran: list[int] = []

    @runner.handler(batch="handler")
    async def handler(number: int) -> int:
        ran.append(number)
        return number

    await run_in_memory(runner)
    first = await handler.submit(1, key="one")
    assert await first.result() == 1
    again = await handler.submit(1, key="one")
    assert (again == first, len({again, first}), await again.result()) == (True, 1, 1)
    assert await handler.handle("one") == first
    assert first != await handler.submit(2)
    with pytest.raises(KeyConflict):
        await handler.submit(3, key="one")
    with pytest.raises(ItemNotFound, match="there is no item 'two'"):
        await handler.handle("two")
    assert ran == [1, 2]


async def test_the_result_of_a_failed_item_is_its_stored_error(run_in_memory: InMemory) -> None:
    runner = Runner()

    @runner.handler(max_attempts=2, batch="b")
    async def handler(number: int) -> None:
        raise ValueError(f"not {number}")

    await run_in_memory(runner)
    handle = await handler.submit(5, key=5)
    waiting = asyncio.ensure_future(handle.result())
    await run_until_idle(runner)
    with pytest.raises(ItemFailed, match=r"item '5' of 'b' failed in attempt 2: ValueError: not 5") as caught:
        await waiting
    assert (caught.value.error, caught.value.attempts, caught.value.key, caught.value.batch) == ("ValueError: not 5", 2, "5", "b")


async def test_a_result_that_takes_too_long_is_a_timeout_and_the_item_still_runs(run_in_memory: InMemory) -> None:
    runner = Runner()
    release = asyncio.Event()

    @runner.handler(batch="b")
    async def handler(number: int) -> int:
        await release.wait()
        return number

    await run_in_memory(runner)
    handle = await handler.submit(1, key=1)
    with pytest.raises(TimeoutError, match=r"item '1' of 'b' is not done after 0\.01 s; it is not cancelled"):
        await handle.result(timeout=0.01)
    for bad in (-1, float("nan"), "x"):
        with pytest.raises(ConfigurationError, match="give seconds, 0 or more, or None"):
            await handle.result(timeout=bad)  # type: ignore[arg-type]
    release.set()
    assert await handle.result() == 1


@pytest.mark.parametrize("timeout", [0, 0.01])
async def test_a_timeout_covers_a_first_read_that_does_not_end(timeout: float, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreadable(Overridden):
        is_readable = True

        async def items(self, batch_id: int, keys: Sequence[str]) -> Sequence[ItemRow]:
            if not self.is_readable:
                raise StoreUnavailable("the disk is full")  # retried without end
            return await super().items(batch_id, keys)

    monkeypatch.setattr(result_waiter, "_MIN_READ_SECONDS", 0.02)
    store = Unreadable(db)
    async with Client(db, store=store) as client:
        _, square = squares(db)
        handle = await client.submit(square, 7)  # type: ignore[call-overload]
        store.is_readable = False
        with pytest.raises(TimeoutError, match=f"is not done after {timeout:g} s; it is not cancelled"):
            await asyncio.wait_for(handle.result(timeout), 20)
        store.is_readable = True


async def test_a_timeout_of_zero_returns_the_result_of_an_item_that_is_done(db: str) -> None:
    runner, square = squares(db)
    async with runner:
        handle = await square.submit(7)  # type: ignore[attr-defined]
        assert await handle.result(20) == await handle.result(0)


async def test_a_wait_for_an_item_that_is_deleted_ends_with_an_error(db: str, until: Until) -> None:
    _, square = squares(db)
    async with Client(db) as client:
        handles = [await client.submit(square, number, key=number) for number in (1, 2)]  # type: ignore[call-overload]
        waiting = [asyncio.ensure_future(handle.result()) for handle in handles]
        await until(lambda: client._submitter.results._watching)
        execute(db, "DELETE FROM items WHERE id = '1'")
        with pytest.raises(ItemNotFound, match="item '1' of 'squares' was deleted during the wait for its result"):
            await asyncio.wait_for(waiting[0], 20)
        assert not waiting[1].done(), "the other item is there"
        waiting[1].cancel()
        with pytest.raises(ItemNotFound, match="there is no item '1'"):
            await handles[0].result()


async def test_many_callers_may_wait_for_one_item_and_a_cancelled_one_does_not_disturb_the_others(
    run_in_memory: InMemory,
) -> None:
    runner = Runner()
    release = asyncio.Event()

    @runner.handler(batch="handler")
    async def handler(number: int) -> int:
        await release.wait()
        return number

    await run_in_memory(runner)
    handle = await handler.submit(1)
    waiting = [asyncio.ensure_future(handle.result()) for _ in range(3)]
    await asyncio.sleep(0.01)
    waiting[0].cancel()
    release.set()
    assert await asyncio.gather(*waiting[1:]) == [1, 1]
    assert waiting[0].cancelled()


async def test_a_stop_of_the_runner_ends_each_wait_with_an_error(db: str, until: Until) -> None:
    runner = Runner(db, shutdown_timeout=0)
    running: list[int] = []

    @runner.handler(batch="handler")
    async def handler(number: int) -> None:
        running.append(number)
        await asyncio.Event().wait()

    await runner.start()
    handle = await handler.submit(1)
    waiting = asyncio.ensure_future(handle.result())
    await until(lambda: running)
    await runner.stop()
    with pytest.raises(StoreClosed, match=r"is stopped; .*submitted items stay stored"):
        await waiting
    for call in (handle.result, handle.status, handle.cancel):
        with pytest.raises(StoreClosed, match="is stopped"):
            await call()


async def test_many_items_are_one_transaction_and_come_back_in_order(db: str) -> None:
    runner = Runner(db)

    @runner.handler(batch="b", key=lambda number: number)
    async def handler(number: int) -> int:
        return number + 1

    async with runner:
        handles = await handler.submit_many(range(50), priority=3)
        assert [handle.key for handle in handles] == [str(number) for number in range(50)]
        assert [await handle.result() for handle in handles] == list(range(1, 51))
        assert await handler.submit_many([]) == []
        with pytest.raises(ItemNotStorable):
            await handler.submit_many([100, "no number"])  # type: ignore[list-item]
        with pytest.raises(ConfigurationError, match="takes no key"):
            await handler.submit_many([1], key="k")  # type: ignore[call-arg]
        for bad in ("abc", 5):
            with pytest.raises(ConfigurationError, match="a list or another iterable of items"):
                await handler.submit_many(bad)  # type: ignore[arg-type]
    assert rows_of(db, "SELECT count(*), min(priority), count(DISTINCT created_at) FROM items") == [(50, 3, 1)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"delay": -1}, "delay=-1: give seconds, 0 or more"),
        ({"delay": float("nan")}, "delay=nan"),
        ({"delay": "5"}, "delay='5'"),
        ({"delay": True}, "delay=True"),
        ({"delay": 1e12}, r"delay=1000000000000.0 ends after the year 9999, .*; give from 0 to \d+,\d+,\d+,\d+ seconds"),
        ({"delay": 1e300}, "delay=1e\\+300 ends after the year 9999"),
        ({"run_at": datetime(2030, 1, 1)}, "has no time zone"),  # noqa: DTZ001
        ({"run_at": 5.0}, "give a datetime with a time zone"),
        ({"delay": 1, "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, "not both"),
        ({"priority": 1.5}, "priority=1.5: give a whole number"),
        ({"priority": 2**40}, "give a whole number"),
    ],
)  # fmt: skip
async def test_meaningless_times_and_priorities_are_refused_at_the_call(
    options: dict[str, object], said: str, run_in_memory: InMemory
) -> None:
    runner = Runner()

    @runner.handler
    async def handler(number: int) -> None: ...

    await run_in_memory(runner)
    with pytest.raises(ConfigurationError, match=said):
        await handler.submit(1, **options)  # type: ignore[arg-type]
    with pytest.raises(ItemNotFound):
        await handler.handle("1")


async def test_an_option_that_does_not_exist_is_named() -> None:
    runner = Runner()

    @runner.handler
    async def handler(number: int) -> None: ...

    with pytest.raises(TypeError, match=r"submit\(\) got an unexpected option 'dealy'; did you mean 'delay'"):
        await handler.submit(1, dealy=5)  # type: ignore[call-arg]


async def test_run_at_holds_over_a_restart(db: str) -> None:
    clock = FakeClock()
    runner = Runner(db, clock=clock)
    ran: list[str] = []

    @runner.handler(batch="handler")
    async def handler(name: str) -> None:
        ran.append(name)

    moment = datetime.fromtimestamp(clock.now() + 3600, UTC).astimezone(timezone(timedelta(hours=9)))
    async with runner:
        await handler.submit("later", run_at=moment, key="later")
        await handler.submit("past", run_at=datetime(1999, 1, 1, tzinfo=UTC), key="past")
        await run_until_idle(runner, delayed=False)
    assert ran == ["past"]
    assert rows_of(db, "SELECT due_at FROM items WHERE id = 'later'") == [("2027-01-15 09:00:00.000",)]
    await clock.advance(3599)
    async with runner:
        await run_until_idle(runner, delayed=False)
        assert ran == ["past"]
        await clock.advance(1.01)
        await run_until_idle(runner, delayed=False)
    assert ran == ["past", "later"]


async def test_the_higher_priority_runs_first(run_in_memory: InMemory) -> None:
    runner = Runner(concurrency=1)
    ran: list[str] = []
    release = asyncio.Event()

    @runner.handler(batch="handler")
    async def handler(name: str) -> None:
        await release.wait()
        ran.append(name)

    await run_in_memory(runner)
    await handler.submit("first")
    for name, priority in (("low", -1), ("normal", 0), ("high", 9), ("normal too", 0)):
        await handler.submit(name, priority=priority)
    release.set()
    await run_until_idle(runner)
    assert ran == ["first", "high", "normal", "normal too", "low"]


async def test_a_small_batch_is_not_starved_by_a_large_one(db: str, until: Until) -> None:
    runner = Runner(db, concurrency=10)
    large = 0
    small: list[int] = []

    @runner.handler(batch="large")
    async def many(number: int) -> None:
        nonlocal large
        large += 1
        await asyncio.sleep(0.0005)

    @runner.handler(batch="small")
    async def few(number: int) -> None:
        small.append(large)
        await asyncio.sleep(0.0005)

    async with runner:
        await many.submit_many(range(8_000))
        await until(lambda: large > 1000)
        before = large
        await few.submit_many(range(10))
        await until(lambda: len(small) == 10)
        assert small[-1] - before < 500
        await runner.stop(drain=False)


async def test_free_slots_go_to_the_batch_that_holds_least(db: str, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prefetch, "record_items", lambda *_: None)  # the handlers are slow, however soon the test ends them
    runner = Runner(db, concurrency=4)
    running: dict[str, int] = {"large": 0, "small": 0}
    gates = [asyncio.Event() for _ in range(20)]

    async def hold(name: str, number: int) -> None:
        running[name] += 1
        await gates[number].wait()
        running[name] -= 1

    @runner.handler(batch="large")
    async def many(number: int) -> None:
        await hold("large", number)

    @runner.handler(batch="small")
    async def few(number: int) -> None:
        await hold("small", number)

    async with runner:
        await many.submit_many(range(10))
        await until(lambda: running == {"large": 4, "small": 0})
        await few.submit_many(range(10, 20))
        for number, expected in enumerate([(3, 1), (2, 2)]):
            gates[number].set()
            await until(lambda: running == dict(zip(running, expected, strict=True)))  # noqa: B023
        for gate in gates:
            gate.set()
        await run_until_idle(runner)


async def test_a_pending_item_that_is_cancelled_never_runs(run_in_memory: InMemory) -> None:
    runner = Runner()
    ran: list[int] = []

    @runner.handler(batch="b")
    async def handler(number: int) -> None:
        ran.append(number)

    await run_in_memory(runner)
    handle = await handler.submit(1, delay=60, key=1)
    waiting = asyncio.ensure_future(handle.result())
    await asyncio.sleep(0.01)
    assert await handle.cancel()
    with pytest.raises(ItemCancelled) as caught:
        await waiting
    assert (caught.value.key, caught.value.batch) == ("1", "b")
    await run_until_idle(runner)
    assert (ran, await handle.status()) == ([], Status.CANCELLED)


async def test_another_event_loop_is_refused_and_a_thread_of_this_one_may_submit(run_in_memory: InMemory) -> None:
    runner = Runner()

    @runner.handler(batch="inner")
    async def inner(number: int) -> int:
        return number + 1

    @runner.handler(batch="outer")
    def outer(number: int) -> int:
        handle = anyio.from_thread.run(inner.submit, number)
        return anyio.from_thread.run(handle.result)

    await run_in_memory(runner)
    with pytest.raises(ConfigurationError, match="this event loop is not that of the runner"):
        await asyncio.to_thread(lambda: asyncio.run(inner.submit(1)))
    assert await (await outer.submit(5)).result(20) == 6


async def test_an_item_that_is_cancelled_before_it_starts_is_not_started(db: str, until: Until) -> None:
    runner = Runner(db, concurrency=1)
    ran: list[int] = []
    release = asyncio.Event()

    @runner.handler(batch="handler")
    async def handler(number: int) -> None:
        ran.append(number)
        if number == 300:
            await release.wait()

    async with runner:
        handles = await handler.submit_many(range(400))
        await until(lambda: ran and ran[-1] == 300)
        assert rows_of(db, "SELECT count(*) > 10 FROM items WHERE status = 'processing'") == [(1,)]  # claimed ahead
        assert await handles[305].cancel()
        release.set()
        await handles[-1].result(20)
    assert 305 not in ran
    assert len(ran) == 399


# --- a handler that waits for another item ------------------------------------------------------------------------


async def test_a_handler_may_wait_for_an_item_that_another_slot_runs(run_in_memory: InMemory) -> None:
    runner = Runner(concurrency=2)

    @runner.handler(batch="inner")
    async def inner(number: int) -> int:
        return number * 2

    @runner.handler(batch="outer", concurrency=1)
    async def outer(number: int) -> int:
        return await (await inner.submit(number)).result() + 1

    await run_in_memory(runner)
    assert await (await outer.submit(5)).result(20) == 11


@pytest.mark.parametrize(("concurrency", "own"), [(1, None), (5, 1), (5, 3)])
async def test_waiting_for_ones_own_only_slot_is_an_error_at_the_call(
    concurrency: int, own: int | None, run_in_memory: InMemory
) -> None:
    runner = Runner(concurrency=concurrency)
    all_in = asyncio.Event()
    inside = 0

    @runner.handler(batch="b", concurrency=own or concurrency, max_attempts=1)
    async def handler(number: int) -> int:
        nonlocal inside
        inside += 1
        if inside >= (own or concurrency):
            all_in.set()
        await all_in.wait()
        waited_for: Handle[int] = await handler.submit(number + 1000)
        return await waited_for.result()

    await run_in_memory(runner)
    handles = [await handler.submit(number) for number in range(own or concurrency)]
    ended = await asyncio.gather(*(handle.result(20) for handle in handles), return_exceptions=True)
    assert any("would never end" in str(error) for error in ended)
    assert any("Raise concurrency=" in str(error) for error in ended)


async def test_waiting_for_oneself_is_an_error(run_in_memory: InMemory) -> None:
    runner = Runner(concurrency=5)

    @runner.handler(batch="b", max_attempts=1)
    async def handler(number: int) -> int:
        return await (await handler.handle(number)).result()

    await run_in_memory(runner)
    with pytest.raises(ItemFailed, match="would never end"):
        await (await handler.submit(1, key=1)).result(20)


async def test_every_submit_without_a_key_is_a_new_job(run_in_memory: InMemory) -> None:
    runner = Runner()
    ran: list[str] = []

    @runner.handler(batch="send")
    async def send(message: str) -> None:
        ran.append(message)

    await run_in_memory(runner)
    handles = [await send.submit("ok") for _ in range(3)] + await send.submit_many(["ok", "ok"])
    await run_until_idle(runner)
    assert ran == ["ok"] * 5
    assert all(handle.created for handle in handles)
    keys = [handle.key for handle in handles]
    assert len(set(keys)) == 5
    assert all(UUID(key).version == 7 for key in keys), keys


async def test_the_keys_of_new_jobs_sort_by_time() -> None:
    moments = [1_700_000_000.0 + n / 1000 for n in range(50)] + [1_700_000_000.0501, 1_700_000_000.0505]
    keys = [new_key(moment) for moment in moments]
    assert keys == sorted(keys)


async def test_a_key_of_the_call_or_the_handler_identifies_a_job(run_in_memory: InMemory) -> None:
    runner = Runner()
    ran: list[int] = []

    @runner.handler(batch="keyed", key=lambda number: number % 10)
    async def keyed(number: int) -> None:
        ran.append(number)

    await run_in_memory(runner)
    first = await keyed.submit(1)
    again = await keyed.submit(1)
    many = await keyed.submit_many([1, 2, 2])
    own = await keyed.submit(1, key="own")
    await run_until_idle(runner)
    assert (first.created, again.created, [handle.created for handle in many], own.created) == (
        True,
        False,
        [False, True, False],
        True,
    )
    assert (await keyed.handle("1")).created is False
    assert sorted(ran) == [1, 1, 2]


async def test_a_given_key_is_text_so_an_int_and_its_decimal_text_are_one_key(run_in_memory: InMemory) -> None:
    runner = Runner()

    @runner.handler(batch="b")
    async def work(item: int | str) -> int | str:
        return item

    await run_in_memory(runner)
    handle = await work.submit(1, key=7)
    again = await work.submit(1, key="7")
    assert (again, again.created, again.key, await work.handle(7)) == (handle, False, "7", await work.handle("7"))


async def test_if_exists_decides_about_a_known_key(run_in_memory: InMemory) -> None:
    runner = Runner()
    ran: list[int] = []

    @runner.handler(batch="b")
    async def work(number: int) -> int:
        ran.append(number)
        return number

    await run_in_memory(runner)
    assert await (await work.submit(1, key="k", if_exists="error")).result() == 1
    for number in (1, 2):
        kept = await work.submit(number, key="k", if_exists="keep")
        assert (kept.created, await kept.result()) == (False, 1)
        with pytest.raises(KeyConflict, match="if_exists is"):
            await work.submit(number, key="k", if_exists="error")
    again = await work.submit(1, key="k", if_exists="rerun")
    await run_until_idle(runner)
    assert (again.created, await again.result(), ran) == (False, 1, [1, 1]), "a done key runs again"

    await work.submit(3, key="later", delay=3600)
    await work.submit(4, key="later", if_exists="rerun")
    await run_until_idle(runner)
    assert ran == [1, 1, 4], "a pending one takes the new payload and the new time"
    (many,) = await work.submit_many([5], if_exists="rerun")
    assert many.created
    with pytest.raises(ConfigurationError, match="if_exists"):
        await work.submit(5, if_exists="replace")  # type: ignore[arg-type]


@dataclass
class Step:
    """A step of a handler that the test controls: it has started, and may go on."""

    started: asyncio.Event
    goes_on: asyncio.Event


@pytest.mark.parametrize("error", [None, Fail("no"), OSError("try again"), Later("busy", after=60)])
async def test_if_exists_rerun_lets_a_running_attempt_end_and_runs_the_item_once_more(
    error: Exception | None, run_in_memory: InMemory
) -> None:
    runner = Runner()
    ran: list[int] = []
    ended: list[int] = []
    settled: list[Settled] = []
    step = Step(asyncio.Event(), asyncio.Event())
    internals_of(runner).events.on(Settled, settled.append)  # synchronous: an observer would get the event later

    @runner.handler(batch="b", max_attempts=3)
    async def work(number: int) -> int:
        ran.append(number)
        if number == 1:
            step.started.set()
            await step.goes_on.wait()
            if error is not None:
                raise error
        ended.append(number)
        return number

    await run_in_memory(runner)
    before = await work.submit(1, key="k")
    await step.started.wait()
    result = asyncio.ensure_future(before.result())
    for number in (2, 3):
        again = await work.submit(number, key="k", if_exists="rerun")
        assert (again, again.created) == (before, False)
    assert await before.status() is Status.PROCESSING
    step.goes_on.set()
    await run_until_idle(runner)
    assert ran == [1, 3], "the newest payload runs, once, and no retry of the first one"
    assert ended == ([1, 3] if error is None else [3]), "the running attempt is left alone"
    assert (await result, await again.result(), await before.status()) == (3, 3, Status.COMPLETED)
    assert [(event.id, event.status, event.claim.payload) for event in settled] == [("k", Status.COMPLETED, "3")]


async def test_cancelling_a_running_item_cancels_its_rerun_too(run_in_memory: InMemory) -> None:
    runner = Runner()
    ran: list[int] = []
    started = asyncio.Event()

    @runner.handler(batch="b")
    async def work(number: int) -> None:
        ran.append(number)
        started.set()
        await asyncio.Event().wait()

    await run_in_memory(runner)
    handle = await work.submit(1, key="k")
    await started.wait()
    await work.submit(2, key="k", if_exists="rerun")
    assert await handle.cancel()
    await run_until_idle(runner)
    assert (await handle.status(), ran) == (Status.CANCELLED, [1])


async def test_a_rerun_of_a_running_item_waits_for_its_own_delay(run_in_memory: InMemory) -> None:
    runner = Runner()
    ran: list[int] = []
    step = Step(asyncio.Event(), asyncio.Event())

    @runner.handler(batch="b")
    async def work(number: int) -> int:
        ran.append(number)
        step.started.set()
        await step.goes_on.wait()
        return number

    clock = await run_in_memory(runner)
    handle = await work.submit(1, key="k")
    await step.started.wait()
    await work.submit(2, key="k", if_exists="rerun", delay=3600)
    step.goes_on.set()
    await run_until_idle(runner, delayed=False)
    assert (ran, await handle.status()) == ([1], Status.PENDING)
    began = clock.now()
    await run_until_idle(runner)
    assert (ran, await handle.result(), clock.now() - began >= 3590) == ([1, 2], 2, True)


async def test_a_client_may_submit_equal_items_and_choose_what_a_known_key_does(db: str) -> None:
    runner, _ = squares(db)
    async with runner:
        pass
    async with Client(db) as client:
        first, second = await client.submit("squares", 7), await client.submit("squares", 7)
        assert (first.created, second.created, first == second) == (True, True, False)
        one = await client.submit("squares", 7, key="seven")
        with pytest.raises(KeyConflict):
            await client.submit("squares", 7, key="seven", if_exists="error")
        again = await client.submit("squares", 8, key="seven", if_exists="rerun")
    assert (one.created, again.created) == (True, False)
    assert rows_of(db, "SELECT payload FROM items ORDER BY seq") == [("7",), ("7",), ("8",)]
