"""OpenTelemetry: a span per attempt, and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asyncrunner import Runner
from asyncrunner.otel import instrument
from asyncrunner.runner.runner import internals_of, run_until_idle
from asyncrunner.testing import FakeClock
from tests.conftest import Until
from tests.support.handlers import failing_once

InMemory = Callable[[Runner], Awaitable[FakeClock]]


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


async def test_every_attempt_is_a_span_that_contains_the_spans_of_its_handler(run_in_memory: InMemory) -> None:
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
    await handler.submit(1, key=1)
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
    handle = await in_thread.submit(1, key=1)
    result = await handle.result(20)
    await run_until_idle(runner)
    assert result == f"{telemetry.spans.get_finished_spans()[-1].context.span_id:x}"


async def test_metrics_count_the_events(run_in_memory: InMemory) -> None:
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
    assert internals_of(runner).around == []
    await handler.submit(4)
    await run_until_idle(runner)
    assert telemetry.metrics()["asyncrunner.items.accepted"] == [(batch, 3)]


async def test_an_attempt_that_is_stopped_is_no_error(db: str, until: Until) -> None:
    runner = Runner(db, shutdown_timeout=0)
    telemetry = Telemetry(runner)
    running: list[int] = []

    @runner.handler(batch="handler")
    async def handler(number: int) -> None:
        running.append(number)
        await asyncio.Event().wait()

    async with runner:
        await handler.submit(1)
        await until(lambda: running)
    (span,) = telemetry.spans.get_finished_spans()
    assert span.status.status_code.name == "UNSET"
