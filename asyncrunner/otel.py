"""Trace submits and attempts with spans, and measure attempts and batches, with OpenTelemetry.

Install with ``pip install 'asyncrunner[otel]'`` and call ``instrument(runner)``. The span of an attempt is the current span
while the handler runs, so the spans of an instrumented HTTP or database client become its children. It has a link to the
span of the submit, whose context is stored with the item. The names follow OpenTelemetry's semantic conventions for
messaging where the conventions define a name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec
from opentelemetry import metrics, trace
from opentelemetry.metrics import Observation
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from asyncrunner.admin.live_status import LiveStatus
from asyncrunner.admin.read_models import BatchStatus
from asyncrunner.backends import MEMORY
from asyncrunner.domain.item import NewItem
from asyncrunner.domain.outcome import Failed, PutOff, Retrying
from asyncrunner.errors import AsyncRunnerError
from asyncrunner.events import Accepted, Recovered, Settled
from asyncrunner.execution.execution import Execution, Interruption
from asyncrunner.runner.runner import Runner, internals_of
from asyncrunner.submission.client import Client, submitter_of

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

    from asyncrunner.submission.submitter import ItemSubmitter

__all__ = ["instrument", "instrument_client"]
log = logging.getLogger("asyncrunner")
_NAME: Final = "asyncrunner"
_BATCH: Final = "messaging.destination.name"
_TRACEPARENT: Final = "traceparent"
_PROPAGATOR: Final = TraceContextTextMapPropagator()


def instrument(
    runner: Runner, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> Callable[[], None]:
    """Trace and measure the submits and attempts of *runner*; return a function that ends the instrumentation.

    Uses the global providers unless others are given. Each call of ``submit``, ``submit_many`` and ``submit_in`` is a
    producer span, each attempt a consumer span with a link to it. Call ``instrument`` before the runner is started.

    Metrics of this process: ``asyncrunner.items.accepted``, ``asyncrunner.attempts`` (by outcome),
    ``asyncrunner.attempt.duration`` in seconds, ``asyncrunner.attempts.running``, ``asyncrunner.items.recovered``. Metrics of
    the runner's file, which is read for each export: ``asyncrunner.items.pending`` (the depth of the batch),
    ``asyncrunner.items.oldest`` (seconds since the oldest item that is due was added), ``asyncrunner.items.failed``,
    ``asyncrunner.workers`` (live workers that serve the batch). If several processes export these, take their maximum.
    Each metric except ``asyncrunner.items.recovered`` has the batch as ``messaging.destination.name``; those of attempts
    have ``error.type`` after a failure.
    """
    tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
    meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
    ends = [*_trace_attempts(runner, tracer), *_measure_attempts(runner, meter), _measure_file(runner, meter)]
    ends.append(_trace_submits(internals_of(runner).submitter, tracer))

    def end() -> None:
        for each in ends:
            each()
        ends.clear()

    return end


def instrument_client(client: Client, *, tracer_provider: TracerProvider | None = None) -> Callable[[], None]:
    """Trace the submits of *client* with producer spans; return a function that ends the instrumentation."""
    return _trace_submits(submitter_of(client), trace.get_tracer(_NAME, tracer_provider=tracer_provider))


def _attributes(batch: str, operation: str, kind: str) -> dict[str, str | int]:
    return {
        "messaging.system": _NAME,
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        _BATCH: batch,
    }


def _record(span: Span, error: BaseException) -> None:
    span.record_exception(error)
    span.set_attribute("error.type", _type_of(error))
    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))


def _type_of(error: BaseException) -> str:
    kind = type(error)
    is_ours = kind.__module__ in ("builtins", "asyncrunner.errors")
    return kind.__qualname__ if is_ours else f"{kind.__module__}.{kind.__qualname__}"


# --- submits -----------------------------------------------------------------------------------------------------


def _trace_submits(submitter: ItemSubmitter, tracer: Tracer) -> Callable[[], None]:
    @contextmanager
    def surround(batch: str, entries: Sequence[NewItem]) -> Generator[Sequence[NewItem], None, None]:
        attributes = _attributes(batch, "submit", "send")
        if len(entries) == 1:
            attributes["messaging.message.id"] = entries[0].id
        else:
            attributes["messaging.batch.message_count"] = len(entries)
        with tracer.start_as_current_span(
            f"submit {batch}",
            kind=SpanKind.PRODUCER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            carrier: dict[str, str] = {}
            _PROPAGATOR.inject(carrier)
            traceparent = carrier.get(_TRACEPARENT)
            try:
                yield [msgspec.structs.replace(entry, traceparent=traceparent) for entry in entries]
            except Exception as error:
                _record(span, error)
                raise

    submitter.surround = surround

    def end() -> None:
        if submitter.surround is surround:
            submitter.surround = None

    return end


# --- attempts ----------------------------------------------------------------------------------------------------


def _trace_attempts(runner: Runner, tracer: Tracer) -> list[Callable[[], None]]:
    @contextmanager
    def span(execution: Execution) -> Generator[None, None, None]:
        attributes = _attributes(execution.batch, "process", "process")
        attributes |= {"messaging.message.id": execution.key, "asyncrunner.attempt": execution.claim.attempt}
        with tracer.start_as_current_span(
            f"process {execution.batch}",
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=_links(execution.claim.traceparent),
            record_exception=False,
            set_status_on_exception=False,
        ) as current:
            try:
                yield
            except BaseException as error:
                if execution.interruption in (None, Interruption.TIMEOUT):  # a stop or a cancellation is not a failure
                    _record(current, error)
                raise

    around = internals_of(runner).around
    around.append(span)
    return [lambda: around.remove(span)]


def _links(traceparent: str | None) -> list[Link]:
    """Return the link to the span of the submit; none for a text that is no trace context, for example written by hand."""
    if traceparent is None:
        return []
    context = trace.get_current_span(_PROPAGATOR.extract({_TRACEPARENT: traceparent})).get_span_context()
    return [Link(context)] if context.is_valid and context.is_remote else []


def _outcome_name(event: Settled) -> str:
    return "put_off" if isinstance(event.outcome, PutOff) else type(event.outcome).__name__.lower()


def _measure_attempts(runner: Runner, meter: Meter) -> list[Callable[[], None]]:
    accepted = meter.create_counter("asyncrunner.items.accepted", "{item}", "Items added to the store")
    attempts = meter.create_counter("asyncrunner.attempts", "{attempt}", "Attempts that ended, by outcome")
    duration = meter.create_histogram("asyncrunner.attempt.duration", "s", "Seconds that handlers ran")
    running = meter.create_up_down_counter("asyncrunner.attempts.running", "{attempt}", "Handlers that are running")
    recovered = meter.create_counter("asyncrunner.items.recovered", "{item}", "Items recovered from lost workers")

    def on_settled(event: Settled) -> None:
        attributes = {_BATCH: event.batch, "asyncrunner.outcome": _outcome_name(event)}
        if isinstance(event.outcome, Failed | Retrying | PutOff):
            attributes["error.type"] = event.outcome.error.type
        attempts.add(1, attributes)
        duration.record(event.seconds, attributes)

    @contextmanager
    def count(execution: Execution) -> Generator[None, None, None]:
        running.add(1, {_BATCH: execution.batch})
        try:
            yield
        finally:
            running.add(-1, {_BATCH: execution.batch})

    internals = internals_of(runner)
    internals.around.append(count)
    return [
        lambda: internals.around.remove(count),
        internals.events.on(Settled, on_settled),
        internals.events.on(Accepted, lambda event: accepted.add(event.added, {_BATCH: event.batch})),
        internals.events.on(Recovered, lambda event: recovered.add(event.items)),
    ]


# --- the file ----------------------------------------------------------------------------------------------------


def _measure_file(runner: Runner, meter: Meter) -> Callable[[], None]:
    status = LiveStatus(runner.db)
    has_ended = False

    def observing(value: Callable[[BatchStatus], float]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            if has_ended or internals_of(runner).store.location == MEMORY:
                return []
            try:
                batches = status().batches
            except AsyncRunnerError as error:  # the runner creates the file when it starts
                log.debug("no metrics of %s: %s", runner.db, error)
                return []
            return [Observation(value(batch), {_BATCH: batch.name}) for batch in batches]

        return observe

    gauge = meter.create_observable_gauge
    gauge("asyncrunner.items.pending", [observing(_pending)], "{item}", "Items that wait for a worker or for their time")
    gauge("asyncrunner.items.oldest", [observing(_oldest)], "s", "Seconds since the oldest item that is due was added")
    gauge("asyncrunner.items.failed", [observing(_failed)], "{item}", "Failed items")
    gauge("asyncrunner.workers", [observing(_workers)], "{worker}", "Live workers that serve the batch")

    def end() -> None:
        nonlocal has_ended
        has_ended = True

    return end


def _pending(batch: BatchStatus) -> int:
    return batch.counts.pending


def _oldest(batch: BatchStatus) -> float:
    return batch.oldest or 0.0


def _failed(batch: BatchStatus) -> int:
    return batch.counts.failed


def _workers(batch: BatchStatus) -> int:
    return batch.workers
