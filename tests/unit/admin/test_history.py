"""``Control.history``: the attempts of each minute or hour, with zeros in the gaps, exactly."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from asyncrunner import ConfigurationError, Control, Fail, HistoryPoint, Later, RetryPolicy, Runner
from asyncrunner.admin.inspection.history import MAX_MINUTES, history_of, last_hour, span_of
from asyncrunner.domain.outcome import Completed, Failed, PutOff, Retrying
from asyncrunner.events import Settled
from asyncrunner.runner.runner import run_until_idle
from asyncrunner.store.snapshot import HistoryRow
from asyncrunner.testing import FakeClock
from asyncrunner.text.timestamps import to_text
from tests.support.state import execute, rows_of

NOW = 1_800_000_000  # the beginning of an hour
AT = NOW + 1830.5  # half past
RUNNING = NOW + 1800


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@pytest.mark.parametrize(
    ("arguments", "since", "until"),
    [
        ({}, RUNNING - 59 * 60, RUNNING + 60),
        ({"minutes": 1}, RUNNING, RUNNING + 60),
        ({"minutes": 60, "step": "1h"}, NOW - 3600, NOW + 3600),
        ({"minutes": 2, "until": at(NOW)}, NOW - 120, NOW),
        ({"minutes": 2, "until": at(NOW + 1)}, NOW - 60, NOW + 60),
        ({"since": at(NOW + 61)}, NOW + 60, RUNNING + 60),
        ({"since": timedelta(minutes=5)}, RUNNING - 300, RUNNING + 60),
        ({"since": timedelta(hours=2), "until": timedelta(hours=1), "step": "1h"}, NOW - 7200, NOW),
        ({"since": timedelta(days=14)}, RUNNING + 60 - 60 * MAX_MINUTES, RUNNING + 60),
        ({"minutes": MAX_MINUTES}, RUNNING + 60 - 60 * MAX_MINUTES, RUNNING + 60),
    ],
)
def test_a_range_is_of_whole_steps_and_ends_with_the_running_one(arguments: dict[str, Any], since: int, until: int) -> None:
    span = span_of(**({"minutes": None, "since": None, "until": None, "step": "1m"} | arguments), now=AT)
    assert (span.since, span.until) == (since, until)
    assert (span.until - span.since) // span.step <= MAX_MINUTES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": "1d"}, "step='1d': give one of '1m', '1h'"),
        ({"minutes": 0}, "minutes=0: give a whole number of at least 1"),
        ({"minutes": MAX_MINUTES + 1}, "give at most 20,160"),
        ({"minutes": 5, "since": timedelta(minutes=5)}, "give either minutes or since"),
        ({"since": datetime(2026, 1, 1)}, "has no time zone"),  # noqa: DTZ001
        ({"since": timedelta(days=15)}, "more than 20,160 minutes apart"),
        ({"since": timedelta(minutes=5), "until": timedelta(minutes=10)}, "give a since before until"),
        ({"until": at(AT + 5)}, "is in the future"),
    ],
)
def test_a_range_that_has_no_history_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        span_of(**({"minutes": None, "since": None, "until": None, "step": "1m"} | arguments), now=AT)


def test_a_gap_has_points_with_zeros() -> None:
    span = span_of(3, None, None, "1m", AT)
    history = history_of("b", [HistoryRow(RUNNING - 60, 1, 2, 3, 4.5)], span)
    assert (history.batch, history.step) == ("b", "1m")
    assert [(point.at, point.completed, point.seconds) for point in history.points] == [
        (to_text(RUNNING - 120), 0, 0.0), (to_text(RUNNING - 60), 1, 4.5), (to_text(RUNNING), 0, 0.0),
    ]  # fmt: skip
    assert msgspec.json.encode(history.points[0]).decode() == (
        f'{{"at":"{to_text(RUNNING - 120)}","completed":0,"failed":0,"retried":0,"seconds":0.0}}'
    )


def test_the_last_hour_is_sixty_minutes_up_to_the_running_one() -> None:
    rows = [HistoryRow(RUNNING - 3600, 9, 0, 0, 0.0), HistoryRow(RUNNING - 3540, 1, 0, 0, 0.0), HistoryRow(RUNNING, 2, 0, 0, 0.0)]
    assert last_hour(rows, AT) == [1, *[0] * 58, 2]


async def test_the_history_of_a_run_equals_its_events(db: str) -> None:
    clock = FakeClock(AT)
    runner = Runner(db, clock=clock)
    events: Counter[type] = Counter()
    seconds = 0.0

    def count(settled: Settled) -> None:
        nonlocal seconds
        events[type(settled.outcome)] += 1
        seconds += 0.25 * isinstance(settled.outcome, Completed | Failed | Retrying)

    runner.on(Settled, count)

    @runner.handler(batch="b", retry=RetryPolicy(initial=50, factor=1, jitter="none"), max_attempts=3)
    async def work(number: int) -> None:
        clock.jump(0.25)  # the handler never waits, so it "takes" this long
        if number % 5 == 0:
            raise Fail("no")
        if number % 5 == 1:
            raise ValueError
        if number % 50 == 2 and clock.now() < AT + 60:
            raise Later(after=70)

    async with runner:
        await work.submit_many(list(range(300)))
        await run_until_idle(runner)
    async with Control(db, clock=clock) as control:
        points = (await control.history()).points
        hours = (await control.history("b", minutes=120, step="1h")).points
        (status,) = (await control.status()).batches
    for sums in (points, hours):
        assert {
            Completed: sum(point.completed for point in sums),
            Failed: sum(point.failed for point in sums),
            Retrying: sum(point.retried for point in sums),
            PutOff: events[PutOff],
        } == events
        assert sum(point.seconds for point in sums) == pytest.approx(seconds)
    assert events[PutOff] > 0
    assert sum(point.completed > 0 for point in points) > 1, "the run takes more than one minute"
    assert sum(status.last_hour) == events[Completed] == 180


async def test_a_batch_without_turns_has_zeros(db: str) -> None:
    runner = Runner(db, clock=FakeClock(AT))
    runner.handler(batch="b")(print)
    async with runner:
        pass
    async with Control(db, clock=FakeClock(AT)) as control:
        history = await control.history()
    assert history.points == [HistoryPoint(to_text(RUNNING - 60 * ago), 0, 0, 0, 0.0) for ago in reversed(range(60))]
    assert rows_of(db, "SELECT count(*) FROM history") == [(0,)]
    execute(db, "DELETE FROM batches")
