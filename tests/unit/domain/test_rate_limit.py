"""rate_limit: its parser, and a rate that no period exceeds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrunner import ConfigurationError
from asyncrunner.domain.options import HandlerOptions
from asyncrunner.domain.rate_limit import Rate

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50/s", (50.0, 1)), ("100/min", (100 / 60, 1)), ("3600 / hour", (1.0, 1)), ("10/2s", (5.0, 1)), ("5000/second", (5000.0, 100)),
        ("0.5/s", (0.5, 1)), ("86400/day", (1.0, 1)),
    ],
)  # fmt: skip
def test_rates_are_read(text: str, expected: tuple[float, int]) -> None:
    assert Rate.parse(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "50", "50/x", "/s", "0/s", "-1/s", "5/0s", "99999999/s", "1/99999999d", 50])
def test_meaningless_rates_are_refused(text: Any) -> None:
    with pytest.raises(ConfigurationError, match="rate_limit="):
        HandlerOptions(rate_limit=text)


@given(
    rate=st.floats(0.1, 20_000),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(0, 500)), max_size=60),
    start=st.floats(0, 2e9),
)
def test_no_period_has_more_starts_than_the_rate_and_a_burst_allow(
    rate: float, steps: list[tuple[float, int]], start: float
) -> None:
    limit = Rate(rate, max(1, int(rate * 0.02)))
    spent: float | None = None
    now = start
    starts: list[tuple[float, int]] = []
    for pause, wanted in steps:
        now += pause
        count = min(wanted, max(0, limit.allowed(spent, now)))
        spent = limit.spend(spent, now, count)
        starts.append((now, count))
    for first, (since, _) in enumerate(starts):
        total = 0
        for until, count in starts[first:]:
            total += count
            assert total <= (until - since) * rate + limit.burst + 0.01 * limit.burst + 1e-3 * total + 1e-3


def test_a_clock_that_was_set_back_delays_no_start() -> None:
    limit = Rate(50.0, 1)
    spent = limit.spend(None, NOW, 1)
    assert limit.allowed(spent, NOW) == 0
    assert limit.allowed(spent, NOW + 0.02) == 1
    assert limit.allowed(spent, NOW - 86_400) == 1
