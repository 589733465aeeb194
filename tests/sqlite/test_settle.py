"""What a settlement stores beside the item."""

from __future__ import annotations

from asyncrunner.domain.item import Claim
from asyncrunner.domain.outcome import Completed, Settlement
from asyncrunner.sqlite.claims.statistics import _MAX_DURATIONS, _sample_durations

CLAIM = Claim(1, 1, "k", "1", 1, 1, 0)


def test_a_sampled_duration_is_in_microseconds_and_never_negative() -> None:
    group = [Settlement(CLAIM, Completed("1"), 10.0, 10.5), Settlement(CLAIM, Completed("1"), 10.0, 5.0)]
    assert _sample_durations(group) == [500_000, 0]


def test_a_large_group_is_sampled_evenly() -> None:
    group = [Settlement(CLAIM, Completed("1"), 0.0, float(number)) for number in range(10 * _MAX_DURATIONS)]
    sample = _sample_durations(group)
    assert len(sample) == _MAX_DURATIONS
    assert sample[:3] == [0, 10_000_000, 20_000_000]
