"""What a program hears of its runner: events, logs, traces and metrics."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asyncrunner import AttemptFilter, ConfigurationError, Fail, RetryPolicy, Runner, Status
from asyncrunner.events import Accepted, Settled, Started
from asyncrunner.otel import instrument
from asyncrunner.runner import observers
from asyncrunner.runner.idle import run_until_idle
from asyncrunner.testing import FakeClock
from tests.conftest import Until, rows_of

InMemory = Callable[[Runner], Awaitable[FakeClock]]


def failing_once(runner: Runner) -> Any:
    @runner.handler(batch="b", max_attempts=2, retry=RetryPolicy(initial=0))
    async def handler(number: int) -> int:
        from asyncrunner import current_attempt

        logging.getLogger("mine").info("working")
        if current_attempt().number == 1:
            raise ValueError("once")
        if number == 13:
            raise Fail("never")
        return number

    return handler


# --- events ----------------------------------------------------------------------------------------------------------


async def test_functions_and_coroutines_hear_of_everything_in_order(db: Path) -> None:
    runner = Runner(db)
    in_thread: list[Any] = []
    in_loop: list[Any] = []
    threads: set[int] = set()

    def sync(event: Settled) -> None:
        threads.add(threading.get_ident())
        in_thread.append((event.batch, event.id, event.attempt, event.status, event.error))

    async def in_the_loop(event: Settled) -> None:
        await asyncio.sleep(0)
        in_loop.append((event.batch, event.id, event.attempt, event.status, event.error))

    runner.on(Settled, sync)
    runner.on(Settled, in_the_loop)
    handler = failing_once(runner)
    async with runner:
        await handler.submit(1)
        await run_until_idle(runner)
    expected = [("b", "1", 1, Status.PENDING, "ValueError: once"), ("b", "1", 2, Status.COMPLETED, None)]
    assert in_thread == in_loop == expected
    assert threading.get_ident() not in threads


async def test_what_an_observer_hears_is_in_the_file(db: Path) -> None:
    runner = Runner(db)
    seen: list[Any] = []
    runner.on(Settled, lambda event: seen.append(rows_of(db, f"SELECT status FROM items WHERE id = '{event.id}'")))

    @runner.handler
    async def handler(number: int) -> None: ...

    async with runner:
        await handler.submit_many(range(20))
        await run_until_idle(runner)
    assert seen == [[("completed",)]] * 20


async def test_an_observer_that_raises_is_logged_and_called_again(db: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner(db)
    calls = {"sync": 0, "async": 0}

    def sync(event: Started) -> None:
        calls["sync"] += 1
        raise SystemExit("observer")

    async def coroutine(event: Started) -> None:
        calls["async"] += 1
        raise (ValueError("observer"), SystemExit("observer"), asyncio.CancelledError("observer"))[calls["async"] - 1]

    runner.on(Started, sync)
    runner.on(Started, coroutine)

    @runner.handler
    async def handler(number: int) -> int:
        return number

    async with runner:
        await handler.submit_many(range(3))
        await run_until_idle(runner)
    assert calls == {"sync": 3, "async": 3}
    assert caplog.text.count("failed at Started") == 6
    assert rows_of(db, "SELECT count(*) FROM items WHERE status = 'completed'") == [(3,)]


async def test_a_slow_observer_holds_nobody_up_and_what_it_misses_is_said(
    db: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(observers, "MOST_WAITING", 50)
    runner = Runner(db)
    release = threading.Event()
    seen: list[Any] = []

    def slow(event: Settled) -> None:
        release.wait(20)
        seen.append(event.id)

    runner.on(Settled, slow)

    @runner.handler
    async def handler(number: int) -> int:
        return number

    async with runner:
        first = await handler.submit(0)
        await first.result(20)
        while runner._observers[0]._waiting:
            await asyncio.sleep(0.001)
        handles = await handler.submit_many(range(1, 200))
        await asyncio.gather(*(handle.result(20) for handle in handles))
        assert seen == []
        release.set()
    assert len(seen) == 51
    assert "is too slow: 149 events were dropped" in caplog.text


async def test_an_observer_may_come_and_go_while_it_runs(db: Path, until: Until) -> None:
    runner = Runner(db)
    seen: list[str] = []

    @runner.handler
    async def handler(number: int) -> None: ...

    async with runner:
        end = runner.on(Settled, lambda event: seen.append(event.id))
        await handler.submit(1)
        await until(lambda: seen == ["1"])
        end()
        end()
        await (await handler.submit(2)).result(20)
    assert seen == ["1"]
    with pytest.raises(ConfigurationError, match="is not callable"):
        runner.on(Settled, "print")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="cannot be called with one event"):
        runner.on(Settled, lambda: None)  # type: ignore[arg-type,misc]
    with pytest.raises(
        ConfigurationError, match=r"there is no event 'settled'; asyncrunner.events has Accepted, Started, Settled"
    ):
        runner.on("settled", print)  # type: ignore[arg-type]


async def test_observers_hear_again_after_a_restart(db: Path) -> None:
    runner = Runner(db)
    seen: list[str] = []

    @runner.handler(batch="b")
    async def handler(number: int) -> None: ...

    runner.on(Accepted, lambda event: seen.append(f"{event.batch} {event.added} {event.existing}"))
    for _ in range(2):
        async with runner:
            await handler.submit(1)
    assert seen == ["b 1 0", "b 0 1"]


# --- logging ---------------------------------------------------------------------------------------------------------


async def test_records_say_which_item_batch_and_attempt_they_are_about(
    run_in_memory: InMemory, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Runner()
    handler = failing_once(runner)
    caplog.handler.addFilter(AttemptFilter())
    logging.getLogger("mine").setLevel(logging.DEBUG)
    with caplog.at_level(logging.DEBUG, logger="asyncrunner"):
        await run_in_memory(runner)
        await handler.submit(13)
        await run_until_idle(runner)
    logging.getLogger("mine").warning("outside")
    found = [
        (record.name, record.levelname, record.item, record.batch, record.attempt, record.getMessage())  # type: ignore[attr-defined]
        for record in caplog.records
        if record.name in ("asyncrunner.items", "mine")
    ]
    assert found == [
        ("asyncrunner.items", "DEBUG", "13", "b", 1, "attempt 1 begins"),
        ("mine", "INFO", "13", "b", 1, "working"),
        ("asyncrunner.items", "INFO", "13", "b", 1, "item '13', attempt 1: retry in 0 s at the earliest: ValueError: once"),
        ("asyncrunner.items", "DEBUG", "13", "b", 2, "attempt 2 begins"),
        ("mine", "INFO", "13", "b", 2, "working"),
        ("asyncrunner.items", "WARNING", "13", "b", 2, "item '13', attempt 2: failed: Fail: never"),
        ("mine", "WARNING", None, None, None, "outside"),
    ]


# --- OpenTelemetry ---------------------------------------------------------------------------------------------------


class Telemetry:
    def __init__(self, runner: Runner) -> None:
        self.spans = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.reader = InMemoryMetricReader()
        self.end = instrument(runner, tracer_provider=self.tracers, meter_provider=MeterProvider([self.reader]))

    def metrics(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: [
                (dict(point.attributes or {}), getattr(point, "value", None) or getattr(point, "count", 0))
                for point in metric.data.data_points
            ]
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


async def test_every_attempt_is_a_span_and_what_the_handler_does_is_inside_it(run_in_memory: InMemory) -> None:
    runner = Runner()
    telemetry = Telemetry(runner)
    tracer = telemetry.tracers.get_tracer("mine")

    @runner.handler(batch="b", max_attempts=2)
    async def handler(number: int) -> int:
        with tracer.start_as_current_span("inner"):
            await asyncio.sleep(0)
        if len(telemetry.spans.get_finished_spans()) == 1:
            raise ValueError("once")
        return number

    @runner.handler(batch="thread")
    def in_thread(number: int) -> str:
        return f"{trace.get_current_span().get_span_context().span_id:x}"

    await run_in_memory(runner)
    await handler.submit(1)
    await run_until_idle(runner)
    inner, first, _, second = telemetry.spans.get_finished_spans()
    assert (first.name, first.kind, first.status.status_code.name) == ("process b", trace.SpanKind.CONSUMER, "ERROR")
    assert second.status.status_code.name == "UNSET"
    assert dict(first.attributes or {}) == {
        "messaging.system": "asyncrunner",
        "messaging.operation.type": "process",
        "messaging.destination.name": "b",
        "messaging.message.id": "1",
        "asyncrunner.attempt": 1,
    }
    assert inner.parent is not None
    assert inner.parent.span_id == first.context.span_id
    assert [event.name for event in first.events] == ["exception"]
    assert first.context.trace_id != second.context.trace_id
    handle = await in_thread.submit(1)
    result = await handle.result(20)
    await run_until_idle(runner)
    assert result == f"{telemetry.spans.get_finished_spans()[-1].context.span_id:x}"


async def test_metrics_count_what_happened(run_in_memory: InMemory) -> None:
    runner = Runner()
    telemetry = Telemetry(runner)
    handler = failing_once(runner)
    await run_in_memory(runner)
    await handler.submit_many([1, 2, 13])
    await run_until_idle(runner)
    found = telemetry.metrics()
    batch = {"messaging.destination.name": "b"}
    assert found["asyncrunner.items.accepted"] == [(batch, 3)]
    counts = {point["asyncrunner.outcome"]: value for point, value in found["asyncrunner.attempts"]}
    assert counts == {"retrying": 3, "completed": 2, "failed": 1}
    assert sum(value for _, value in found["asyncrunner.attempt.duration"]) == 6
    assert found["asyncrunner.attempts.running"] == [(batch, 0)]
    telemetry.end()
    assert runner.around == []
    await handler.submit(4)
    await run_until_idle(runner)
    assert telemetry.metrics()["asyncrunner.items.accepted"] == [(batch, 3)]


async def test_an_attempt_that_is_stopped_is_no_error(db: Path, until: Until) -> None:
    runner = Runner(db, shutdown_timeout=0)
    telemetry = Telemetry(runner)
    running: list[int] = []

    @runner.handler
    async def handler(number: int) -> None:
        running.append(number)
        await asyncio.Event().wait()

    async with runner:
        await handler.submit(1)
        await until(lambda: running)
    (span,) = telemetry.spans.get_finished_spans()
    assert span.status.status_code.name == "UNSET"
