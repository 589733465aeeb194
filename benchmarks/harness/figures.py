"""The figures of a benchmark with their targets, and the command line that every benchmark has."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar

import msgspec

from benchmarks.harness.machine import describe_machine

__all__ = ["RATIO", "Benchmark", "Figure", "Result", "Section", "figure", "not_measured", "table"]

S = TypeVar("S")

RATIO: Final = "x"
"""The unit of a ratio of two values measured in the same run; ``--check`` compares only ratios."""

_DIGITS: Final = {RATIO: 2, "ms": 2, "us/item": 2, "us/call": 1, "s": 2, "%": 1, "MB": 1}


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A measured value: the median of ``rounds`` rounds; ``low`` and ``high`` are their extremes.

    ``value`` is None if it was not measured; then ``note`` gives the reason.
    """

    name: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    rounds: int = 1
    better: Literal["higher", "lower"] = "higher"
    target: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, ``not measured``, or an empty text if the figure has no target."""
        if self.target is None:
            return ""
        if self.value is None:
            return "not measured"
        met = self.value >= self.target if self.better == "higher" else self.value <= self.target
        return "met" if met else "missed"

    @property
    def target_text(self) -> str:
        if self.target is None:
            return ""
        return f"{'>=' if self.better == 'higher' else '<='} {self.text(self.target)}"

    def text(self, value: float | None) -> str:
        """Format *value* with the unit of this figure."""
        if value is None:
            return "-"
        number = f"{value:,.{_DIGITS.get(self.unit, 0)}f}"
        return number if self.unit == RATIO else f"{number} {self.unit}"


class Result(msgspec.Struct, frozen=True):
    """The result of one benchmark run. ``series``: points for the plots. ``broken``: failed checks, for example of lost items."""

    figures: list[Figure]
    series: dict[str, list[tuple[float, float]]] = {}
    notes: list[str] = []
    broken: list[str] = []


class Section(msgspec.Struct, frozen=True):
    """A result with its question, command, machine and sizes. ``seconds``: how long the measurement took."""

    question: str
    command: str
    machine: str
    quick: bool
    sizes: dict[str, int | float]
    seconds: float
    result: Result


def figure(
    name: str, unit: str, values: Sequence[float], *, at_least: float | None = None, at_most: float | None = None,
    lower_is_better: bool = False, note: str = "",
) -> Figure:  # fmt: skip
    """Return the figure with the median of *values*, one per round, and the target *at_least* or *at_most*, if any."""
    return Figure(
        name=name,
        unit=unit,
        value=statistics.median(values),
        low=min(values),
        high=max(values),
        rounds=len(values),
        better="lower" if lower_is_better or at_most is not None else "higher",
        target=at_least if at_most is None else at_most,
        note=note,
    )


def not_measured(name: str, unit: str, reason: str, *, at_least: float | None = None, at_most: float | None = None) -> Figure:
    """Return a figure without a value, with the *reason* as its note."""
    return Figure(
        name=name, unit=unit, value=None, rounds=0, better="higher" if at_most is None else "lower",
        target=at_least if at_most is None else at_most, note=reason,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Benchmark(Generic[S]):
    """A question and the function that measures the answer, with two sizes: *full* for results, *quick* to test that it runs.

    The sizes are frozen dataclasses of numbers; each of their fields is an option of the command. A field of text is one too; the
    results do not have it, because a URL may have a password.
    """

    question: str
    full: S
    quick: S
    measure: Callable[[S], Result]

    @property
    def name(self) -> str:
        """The name of the module that asks the question."""
        return self.measure.__module__.rpartition(".")[2]

    def main(self) -> None:
        """Parse the options, measure and print the figures. Exits 1 if a check of the benchmark failed."""
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks {self.name}", description=self.question)
        for field in dataclasses.fields(self.full):  # type: ignore[arg-type]
            kind = type(getattr(self.full, field.name))
            option, default = f"--{field.name.replace('_', '-')}", getattr(self.full, field.name)
            metavar, shown = ("URL", "") if kind is str else ("N", f"{default:,}")
            parser.add_argument(option, type=kind, metavar=metavar, help=shown, default=argparse.SUPPRESS)
        parser.add_argument("--quick", action="store_true", help="tiny sizes, to test that the benchmark runs")
        parser.add_argument("--json", type=Path, help="also write the result to this file")
        options = vars(parser.parse_args())
        quick, path = options.pop("quick"), options.pop("json")
        size = dataclasses.replace(self.quick if quick else self.full, **options)  # type: ignore[type-var]
        section = self.section(size, quick=quick)
        print(f"\n{self.question}\n{section.machine}\n{sizes_text(section)}\n")
        print(table(section.result))
        if path is not None:
            path.write_bytes(msgspec.json.encode(section))
        sys.exit(1 if section.result.broken else 0)

    def section(self, size: S, *, quick: bool) -> Section:
        """Measure with *size* and return the result with its circumstances. Disables log messages up to WARNING."""
        logging.disable(logging.WARNING)
        began = time.monotonic()
        result = self.measure(size)
        return Section(
            question=self.question,
            command=f"python -m benchmarks {self.name}",
            machine=describe_machine(),
            quick=quick,
            sizes={name: value for name, value in dataclasses.asdict(size).items() if not isinstance(value, str)},  # type: ignore[call-overload]
            seconds=time.monotonic() - began,
            result=result,
        )


def sizes_text(section: Section) -> str:
    """Return the sizes and the duration of a measurement as text."""
    parts = [f"{name.replace('_', ' ')} {value:,}" for name, value in section.sizes.items()]
    return ", ".join(parts) + f"; took {section.seconds:,.0f} s" + ("; QUICK: the numbers mean nothing" if section.quick else "")


def table(result: Result) -> str:
    """Return the figures, notes and failed checks as a table for a terminal."""
    rows = [("", "median", "low", "high", "rounds", "target", "")]
    rows += [
        (one.name, one.text(one.value), one.text(one.low), one.text(one.high), str(one.rounds), one.target_text, one.verdict)
        for one in result.figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines += [f"{one.name}: {one.note}" for one in result.figures if one.note]
    lines += result.notes
    lines += [f"BROKEN: {check}" for check in result.broken]
    return "\n".join(line.rstrip() for line in lines)
