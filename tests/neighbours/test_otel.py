"""OpenTelemetry: a span for each submit and attempt, with a link between them, and metrics of attempts and of the file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asyncrunner import Client, KeyConflict, RetryPolicy, Runner, current_attempt
from asyncrunner.otel import _links, instrument, instrument_client
from asyncrunner.runner.runner import internals_of, run_until_idle
from asyncrunner.testing import FakeClock
from tests.conftest import Until
from tests.support.handlers import failing_once
from tests.support.state import rows_of

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
        if current_attempt().number == 1:
            raise ValueError("once")
        return number

    @runner.handler(batch="thread")
    def in_thread(number: int) -> str:
        return f"{trace.get_current_span().get_span_context().span_id:x}"

    await run_in_memory(runner)
    await handler.submit(1, key=1)
    await run_until_idle(runner)
    _, inner, first, _, second = telemetry.spans.get_finished_spans()
    assert (first.name, first.kind, first.status.status_code.name) == ("process b", trace.SpanKind.CONSUMER, "ERROR")
    assert second.status.status_code.name == "UNSET"
    assert dict(first.attributes or {}) == {
        "messaging.system": "asyncrunner",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "b",
        "messaging.message.id": "1",
        "asyncrunner.attempt": 1,
        "error.type": "ValueError",
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
    _, span = telemetry.spans.get_finished_spans()
    assert span.status.status_code.name == "UNSET"


# --- submit and attempt are one trace by a link ----------------------------------------------------------------------


def link_of(attempt: ReadableSpan) -> tuple[int, int]:
    (link,) = attempt.links
    return link.context.trace_id, link.context.span_id


def id_of(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def named(telemetry: Telemetry, name: str) -> list[ReadableSpan]:
    return [span for span in telemetry.spans.get_finished_spans() if span.name == name]


async def test_a_submit_is_a_producer_span_to_which_every_attempt_has_a_link(db: str) -> None:
    runner = Runner(db)
    telemetry = Telemetry(runner)

    @runner.handler(batch="b", retry=RetryPolicy(initial=0))
    async def handler(number: int) -> None:
        if current_attempt().number == 1:
            raise ValueError("once")

    async with runner:
        with telemetry.tracers.get_tracer("mine").start_as_current_span("request") as request:
            await handler.submit(1, key=1)
        await run_until_idle(runner)
    (submit,) = named(telemetry, "submit b")
    assert submit.kind is trace.SpanKind.PRODUCER
    assert submit.parent is not None
    assert submit.parent.span_id == request.get_span_context().span_id
    assert dict(submit.attributes or {}) == {
        "messaging.system": "asyncrunner",
        "messaging.operation.name": "submit",
        "messaging.operation.type": "send",
        "messaging.destination.name": "b",
        "messaging.message.id": "1",
    }
    assert [link_of(attempt) for attempt in named(telemetry, "process b")] == [id_of(submit)] * 2


async def test_items_of_one_call_have_one_span_and_a_rerun_has_that_of_its_submit(db: str) -> None:
    runner = Runner(db)
    telemetry = Telemetry(runner)

    @runner.handler(batch="b")
    async def handler(number: int) -> None: ...

    async with runner:
        await handler.submit(1, key="1")
        await run_until_idle(runner)
        await handler.submit_many([2, 3])
        await run_until_idle(runner)
        await handler.submit(4, key="1", if_exists="rerun")
        await run_until_idle(runner)
    first, many, again = named(telemetry, "submit b")
    assert (many.attributes or {})["messaging.batch.message_count"] == 2
    expected = [id_of(first), id_of(many), id_of(many), id_of(again)]
    assert [link_of(attempt) for attempt in named(telemetry, "process b")] == expected


async def test_the_context_survives_in_the_file_from_a_client_to_another_process(db: str) -> None:
    telemetry = Telemetry(Runner("unused.db"))
    other = Runner(db)

    @other.handler(batch="b")
    async def handler(number: int) -> None: ...

    async with Client(db) as client:
        end = instrument_client(client, tracer_provider=telemetry.tracers)
        await client.submit(handler, 1)
        end()
        await client.submit(handler, 2)
    (submit,) = named(telemetry, "submit b")
    instrument(other, tracer_provider=telemetry.tracers)
    async with other:
        await run_until_idle(other)
    linked, unlinked = named(telemetry, "process b")
    assert link_of(linked) == id_of(submit)
    assert list(unlinked.links) == []


async def test_submit_in_is_a_producer_span_and_the_error_of_a_submit_has_its_type(db: str) -> None:
    runner = Runner(db)
    telemetry = Telemetry(runner)

    @runner.handler(batch="b", on_change="error")
    async def handler(number: int) -> None: ...

    async with runner:
        connection = sqlite3.connect(db)
        handler.submit_in(connection, 1, key="1")
        connection.commit()
        connection.close()
        with pytest.raises(KeyConflict):
            await handler.submit(2, key="1")
        await run_until_idle(runner)
    inside, refused = named(telemetry, "submit b")
    assert link_of(named(telemetry, "process b")[0]) == id_of(inside)
    assert (refused.attributes or {})["error.type"] == "KeyConflict"
    assert refused.status.status_code.name == "ERROR"


@pytest.mark.parametrize("text", [None, "", "00-0-0-0", "x" * 1000, "00-00000000000000000000000000000000-0000000000000000-01"])
def test_a_text_that_is_no_trace_context_is_no_link(text: str | None) -> None:
    with trace.use_span(TracerProvider().get_tracer("mine").start_span("current")):
        assert _links(text) == []


async def test_without_opentelemetry_no_context_is_stored(db: str) -> None:
    runner = Runner(db)

    @runner.handler(batch="b")
    async def handler(number: int) -> None: ...

    async with runner:
        await handler.submit_many([1, 2])
        await run_until_idle(runner)
    assert rows_of(db, "SELECT DISTINCT traceparent FROM items") == [(None,)]


async def test_gauges_show_the_file_of_all_processes(db: str) -> None:
    runner = Runner(db)
    telemetry = Telemetry(runner)
    assert telemetry.reader.get_metrics_data() is None, "there is no file yet"

    @runner.handler(batch="b", max_attempts=1)
    async def handler(number: int) -> None:
        raise ValueError(number)

    async with runner:
        await handler.submit_many([1, 2])
        await run_until_idle(runner)
        await handler.submit(3, delay=3600)
        metrics = telemetry.metrics()
    batch = {"messaging.destination.name": "b"}
    assert metrics["asyncrunner.items.failed"] == [(batch, 2)]
    assert metrics["asyncrunner.items.pending"] == [(batch, 1)]
    assert metrics["asyncrunner.workers"] == [(batch, 1)]
    assert metrics["asyncrunner.items.oldest"] == [(batch, 0)]
    ended = [point for point, _ in metrics["asyncrunner.attempts"]]
    assert ended == [{**batch, "asyncrunner.outcome": "failed", "error.type": "ValueError"}]
    telemetry.end()
    assert internals_of(runner).submitter.surround is None
    assert "asyncrunner.workers" not in telemetry.metrics()
