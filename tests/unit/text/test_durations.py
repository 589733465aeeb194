"""One grammar for durations, whether they are a retention, an age, a date's alternative or the period of a rate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncrunner import ConfigurationError
from asyncrunner.domain.rate_limit import Rate
from asyncrunner.text.durations import age, duration_text, moment_before, parse_duration, parse_period, seconds_of

DAY = 86400.0

NOW = datetime(2026, 11, 26, tzinfo=UTC).timestamp()

DURATIONS = [
    ("90", 90.0), ("1.5", 1.5), ("90s", 90.0), ("15m", 900.0), ("15 min", 900.0), ("12h", 43200.0), ("30d", 30 * DAY),
    ("2w", 14 * DAY), ("1d12h", 1.5 * DAY), ("1d 12h", 1.5 * DAY), (" 1.5 h ", 5400.0), ("2 HOURS", 7200.0), ("1w1d1h1m1s", 694_861.0),
]  # fmt: skip

NO_DURATIONS = ["", " ", "soon", "3 fortnights", "1d2", "d", "-1d", "1.d", "1,5h", "1d-12h", "²d", "1 month", "30d!"]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_every_place_reads_a_duration_alike(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert seconds_of("retention", text) == seconds
    assert age(text, option="--older-than") == seconds
    assert moment_before(text, option="--before", now=NOW) == NOW - seconds


@pytest.mark.parametrize("text", NO_DURATIONS)
def test_every_place_refuses_the_same_texts(text: str) -> None:
    assert parse_duration(text) is None
    with pytest.raises(ConfigurationError, match=r"^retention="):
        seconds_of("retention", text)
    with pytest.raises(ConfigurationError, match=r"^--older-than '.*': give an age, as in 90s"):
        age(text, option="--older-than")
    with pytest.raises(ConfigurationError, match=r"^--before '.*': give an age, as in 30d.* or a date"):
        moment_before(text, option="--before", now=NOW)


@pytest.mark.parametrize(("text", "seconds"), [("s", 1.0), (" min ", 60.0), ("2s", 2.0), ("1d12h", 1.5 * DAY), ("hours", 3600.0)])
def test_a_period_may_leave_out_its_one(text: str, seconds: float) -> None:
    assert parse_period(text) == seconds
    assert Rate.parse(f"1000/{text}").per_second == pytest.approx(1000 / seconds)


@pytest.mark.parametrize("text", ["", "60", "x", "1d2", "-1s", "s/s"])
def test_a_period_has_a_unit(text: str) -> None:
    assert parse_period(text) is None
    with pytest.raises(ConfigurationError, match=r"^rate_limit="):
        Rate.parse(f"50/{text}")


@pytest.mark.parametrize(("value", "seconds"), [(90, 90.0), (1.5, 1.5), (timedelta(days=2), 2 * DAY)])
def test_seconds_are_also_given_as_numbers_and_timedeltas(value: Any, seconds: float) -> None:
    assert seconds_of("retention", value) == seconds


@pytest.mark.parametrize("value", [0, -1, True, float("nan"), float("inf"), timedelta(0), None, "0s", "9" * 400, "9" * 400 + "d"])
def test_a_duration_of_an_option_is_finite_and_above_zero(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^retention="):
        seconds_of("retention", value)


@pytest.mark.parametrize("text", ["1000001d", "9" * 400 + "d"])
def test_an_age_is_limited(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is too long ago; give at most 1000000d"):
        age(text, option="--older-than")


def test_a_moment_is_also_given_as_a_date() -> None:
    assert moment_before("2026-11-25", option="--before", now=NOW) == NOW - DAY
    assert moment_before("2026-11-25T01:00:00+01:00", option="--before", now=NOW) == NOW - DAY
    assert moment_before("1000000d", option="--before", now=NOW) == 0.0
    assert moment_before("1960-01-01", option="--before", now=NOW) == 0.0
    with pytest.raises(ConfigurationError, match=r"^--before '2999-01-01' is in the future"):
        moment_before("2999-01-01", option="--before", now=NOW)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4 ms"), (0.05, "50.0 ms"), (2.54, "2.5 s"), (42, "42 s"), (250, "4 min 10 s"), (11_100, "3 h 05 min"),
        (187_200, "2 d 4 h"),
    ],
)  # fmt: skip
def test_durations_are_shown_in_units_people_use(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
