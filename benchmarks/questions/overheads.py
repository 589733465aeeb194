"""What does observing a run cost?

Runs a list of no-op items, in turns: without observers; with ``progress``; with an observer of every settled item, registered
with ``runner.on``; with OpenTelemetry instrumented but without a provider; and with the OpenTelemetry SDK without an exporter.
Without ``instrument(runner)`` OpenTelemetry is not imported, so a program without OpenTelemetry is the first case. The figures
are the time with the observer divided by the time without, in the same round.

``python -m benchmarks overheads [--items N] [--rounds N]``
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asyncrunner.batch.batch_run import BatchRun
from asyncrunner.domain.options import RunOptions
from asyncrunner.events import Settled
from benchmarks.harness.figures import RATIO, Benchmark, Result, figure, not_measured
from benchmarks.harness.measuring import each_over, interleaved
from benchmarks.questions.throughput import no_op

if TYPE_CHECKING:
    from asyncrunner import ProgressUpdate, Runner

__all__ = ["BENCHMARK"]

BASE: Final = "no progress, no observer"
PROGRESS: Final = "progress"
OBSERVER: Final = "an observer of every item"
OTEL_OFF: Final = "OpenTelemetry, nothing behind it"
OTEL_SDK: Final = "OpenTelemetry, SDK"


@dataclass(frozen=True)
class Size:
    items: int = 50_000
    rounds: int = 9


def seconds_of(items: int, watch: Callable[[Runner], object] | None, progress: bool, folder: Path) -> float:
    """Return the seconds of a whole run with *watch* applied to its runner and, if *progress*, a progress callback."""

    def ignore(update: ProgressUpdate) -> None:
        del update

    async def everything() -> None:
        options = RunOptions.of(
            "run_batch",
            {"db": folder / "runner.db", "batch": "bench", "concurrency": 100, "progress": ignore if progress else None},
        )
        run: BatchRun[int, None] = BatchRun(range(items), no_op, options)
        if watch is not None:
            watch(run.runner)
        async with run:
            report = await run.finish()
        assert report.completed == items, report

    began = time.perf_counter()
    asyncio.run(everything())
    return time.perf_counter() - began


def observe(runner: Runner) -> None:
    """Register an observer of every settled item."""

    async def ignore(event: Settled) -> None:
        del event

    runner.on(Settled, ignore)


def instrument_off(runner: Runner) -> None:
    """Instrument *runner* without any OpenTelemetry provider."""
    from asyncrunner.otel import instrument

    instrument(runner)


def instrument_sdk(runner: Runner) -> None:
    """Instrument *runner* with SDK providers that export nothing."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

    from asyncrunner.otel import instrument

    instrument(runner, tracer_provider=TracerProvider(), meter_provider=MeterProvider())


def measure(size: Size) -> Result:
    """Measure the time with each observer, divided by the time without."""
    ways: dict[str, Callable[[Path], float]] = {
        BASE: partial(seconds_of, size.items, None, False),
        PROGRESS: partial(seconds_of, size.items, None, True),
        OBSERVER: partial(seconds_of, size.items, observe, False),
    }
    absent: list[str] = []
    for name, watch, package in (
        (OTEL_OFF, instrument_off, "opentelemetry.trace"),
        (OTEL_SDK, instrument_sdk, "opentelemetry.sdk"),
    ):
        if _is_importable(package):
            ways[name] = partial(seconds_of, size.items, watch, False)
        else:
            absent.append(name)
    seconds = interleaved(size.rounds, ways)
    base = seconds[BASE]
    figures = [figure(f"{PROGRESS}: time with over time without", RATIO, each_over(seconds[PROGRESS], base), at_most=1.03)]
    figures += [
        figure(f"{name}: time with over time without", RATIO, each_over(times, base), lower_is_better=True)
        for name, times in seconds.items()
        if name not in (BASE, PROGRESS)
    ]
    figures += [not_measured(name, RATIO, "OpenTelemetry is not installed (extra bench)") for name in absent]
    figures += [figure(name, "items/s", [size.items / each for each in times]) for name, times in seconds.items()]
    return Result(figures)


def _is_importable(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


BENCHMARK = Benchmark("What does observing a run cost?", Size(), Size(500, 1), measure)
