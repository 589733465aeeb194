"""Durations are shown in the units that people use."""

from __future__ import annotations

import pytest

from asyncrunner.text.durations import duration_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4 ms"),
        (0.05, "50.0 ms"),
        (2.54, "2.5 s"),
        (42, "42 s"),
        (250, "4 min 10 s"),
        (11_100, "3 h 05 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_are_in_units_people_use(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
