"""The numbers of the charts: what became of attempts in each minute or hour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from asyncrunner.admin.read_models import History


class Span(NamedTuple):
    """A span of time that charts show: its length in minutes, the step of its points, and the step in words."""

    minutes: int
    step: str
    words: str


SPANS: Final = {
    "1h": Span(60, "1m", "per minute, in the last hour"),
    "24h": Span(24 * 60, "1h", "per hour, in the last 24 hours"),
    "14d": Span(14 * 24 * 60, "1h", "per hour, in the last 14 days"),
}
DEFAULT_SPAN: Final = "1h"


class ChartRow(NamedTuple):
    """The attempts that ended in a step that begins at ``at``. ``average``: their average duration in seconds, or None."""

    at: str
    completed: int
    failed: int
    retried: int
    average: float | None


def chart_rows(histories: Sequence[History]) -> list[ChartRow]:
    """Return the sums of the *histories* of batches for each step; they begin at the same time, but for the newest step."""
    by_time: dict[str, list[float]] = {}
    for history in histories:
        for point in history.points:
            sums = by_time.setdefault(point.at, [0, 0, 0, 0.0])
            for column, value in enumerate((point.completed, point.failed, point.retried, point.seconds)):
                sums[column] += value
    rows: list[ChartRow] = []
    for at, (completed, failed, retried, seconds) in sorted(by_time.items()):
        attempts = completed + failed + retried
        rows.append(ChartRow(at, int(completed), int(failed), int(retried), seconds / attempts if attempts else None))
    return rows
