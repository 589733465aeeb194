"""Trace every attempt with a span, and measure attempts, with OpenTelemetry.

Install with ``pip install 'asyncrunner[otel]'`` and call ``instrument(runner)``. The span is the current span while the
handler runs, so the spans of an instrumented HTTP or database client become its children. The names follow
OpenTelemetry's semantic conventions for messaging where the conventions define a name.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from asyncrunner.domain.outcome import PutOff
from asyncrunner.events import Accepted, Recovered, Settled
from asyncrunner.execution.execution import Execution, Interruption
from asyncrunner.runner.runner import Runner, internals_of

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

__all__ = ["instrument"]
_NAME: Final = "asyncrunner"
_BATCH: Final = "messaging.destination.name"


def _outcome_name(event: Settled) -> str:
    return "put_off" if isinstance(event.outcome, PutOff) else type(event.outcome).__name__.lower()


def instrument(
    runner: Runner, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> Callable[[], None]:
    """Trace and measure the attempts of *runner*; return a function that ends the instrumentation.

    Uses the global providers unless others are given. Metrics: ``asyncrunner.items.accepted``, ``asyncrunner.attempts``
    (by outcome), ``asyncrunner.attempt.duration`` in seconds, ``asyncrunner.attempts.running``,
    ``asyncrunner.items.recovered``. Each metric except the last has the batch as ``messaging.destination.name``. Call
    ``instrument`` before the runner is started.
    """
    tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
    meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
    accepted = meter.create_counter("asyncrunner.items.accepted", "{item}", "Items added to the file")
    attempts = meter.create_counter("asyncrunner.attempts", "{attempt}", "Attempts that ended, by outcome")
    duration = meter.create_histogram("asyncrunner.attempt.duration", "s", "Seconds that handlers ran")
    running = meter.create_up_down_counter("asyncrunner.attempts.running", "{attempt}", "Handlers that are running")
    recovered = meter.create_counter("asyncrunner.items.recovered", "{item}", "Items recovered from lost workers")

    @contextmanager
    def span(execution: Execution) -> Generator[None, None, None]:
        attributes: dict[str, str | int] = {
            "messaging.system": _NAME,
            "messaging.operation.type": "process",
            _BATCH: execution.batch,
            "messaging.message.id": execution.key,
            "asyncrunner.attempt": execution.claim.attempt,
        }
        with tracer.start_as_current_span(
            f"process {execution.batch}",
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as current:
            try:
                yield
            except BaseException as error:
                if execution.interruption in (None, Interruption.TIMEOUT):  # a stop or a cancellation is not a failure
                    current.record_exception(error)
                    current.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
                raise

    def on_settled(event: Settled) -> None:
        attributes = {_BATCH: event.batch, "asyncrunner.outcome": _outcome_name(event)}
        attempts.add(1, attributes)
        duration.record(event.seconds, attributes)

    @contextmanager
    def count(execution: Execution) -> Generator[None, None, None]:
        running.add(1, {_BATCH: execution.batch})
        try:
            yield
        finally:
            running.add(-1, {_BATCH: execution.batch})

    wrappers = [span, count]
    internals = internals_of(runner)
    internals.around.extend(wrappers)
    unsubscribers = [
        internals.events.on(Settled, on_settled),
        internals.events.on(Accepted, lambda event: accepted.add(event.added, {_BATCH: event.batch})),
        internals.events.on(Recovered, lambda event: recovered.add(event.items)),
    ]

    def end() -> None:
        for wrapper in wrappers:
            internals.around.remove(wrapper)
        for unsubscribe in unsubscribers:
            unsubscribe()

    return end
