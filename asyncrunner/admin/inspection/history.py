"""Compute the history of a batch from its rows: check the range of time, and fill the gaps with zeros. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from asyncrunner.admin.read_models import History, HistoryPoint
from asyncrunner.errors import ConfigurationError
from asyncrunner.store.snapshot import HistoryRow
from asyncrunner.text.timestamps import to_text
from asyncrunner.text.validation import checked_choice, checked_count, checked_past

MAX_MINUTES: Final = 14 * 24 * 60
"""The number of minutes for which a store keeps the history."""

_DEFAULT_MINUTES: Final = 60
_STEPS: Final = {"1m": 60, "1h": 3600}  # seconds


class Span(NamedTuple):
    """A range of time in epoch seconds, from ``since`` to before ``until``, in steps of ``step`` seconds."""

    since: int
    until: int
    step: int


def span_of(
    minutes: int | None, since: datetime | timedelta | None, until: datetime | timedelta | None, step: str, now: float
) -> Span:
    """Return the steps that a caller requests; see ``Control.history``. Raises ConfigurationError."""
    seconds = _STEPS[checked_choice("step", step, list(_STEPS))]
    end = int(now // 60 + 1) * 60 if until is None else -int(-checked_past("until", until, now) // 60) * 60
    if since is None:
        count = checked_count("minutes", _DEFAULT_MINUTES if minutes is None else minutes, at_most=MAX_MINUTES)
        begin = end - 60 * count
    elif minutes is not None:
        raise ConfigurationError("give either minutes or since")
    else:
        begin = int(checked_past("since", since, now) // 60) * 60
        if begin >= end:
            raise ConfigurationError("the history would end before it begins: give a since before until")
        if end - begin > 60 * (MAX_MINUTES + 1):
            raise ConfigurationError(
                f"since and until are more than {MAX_MINUTES:,} minutes apart, and only these 14 days are kept; give a "
                "later since"
            )
        begin = max(begin, end - 60 * MAX_MINUTES)
    return Span(max(0, begin // seconds * seconds), -(-end // seconds) * seconds, seconds)


def history_of(batch: str, rows: Sequence[HistoryRow], span: Span) -> History:
    """Return the history of *batch* with a point for each step of *span*, from the rows of the steps that have any."""
    (step,) = (name for name, seconds in _STEPS.items() if seconds == span.step)
    by_time = {row.at: row for row in rows}
    steps = (by_time.get(at, HistoryRow(at, 0, 0, 0, 0.0)) for at in range(span.since, span.until, span.step))
    return History(batch, step, [HistoryPoint(to_text(row.at), *row[1:]) for row in steps])


def last_hour(rows: Sequence[HistoryRow], now: float) -> list[int]:
    """Return the completed items of each of the last 60 minutes; the last one is the running minute."""
    completed = {row.at: row.completed for row in rows}
    return [completed.get(at, 0) for at in _minutes(now)]


def last_minutes(now: float) -> list[str]:
    """Return the beginnings of the last 60 minutes as rows have them, without seconds; the last one is the running minute."""
    return [to_text(at)[:16] for at in _minutes(now)]


def _minutes(now: float) -> range:
    running = int(now // 60) * 60
    return range(running - 3540, running + 60, 60)
