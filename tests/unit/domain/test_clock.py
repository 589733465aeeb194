"""Times are stored to the millisecond, also those given by a user or a handler."""

from __future__ import annotations

import math
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrunner.text.timestamps import from_text, to_text


@given(st.integers(0, 253_402_300_799_999))
def test_a_time_that_was_read_back_is_written_the_same(milliseconds: int) -> None:
    text = to_text(milliseconds / 1000)
    found = from_text(text)
    assert found is not None
    assert to_text(found) == text
    assert round(found * 1000) == milliseconds


@pytest.mark.parametrize("instant", [1e300, math.inf, -math.inf, -1e300])
@pytest.mark.sqlite_file
def test_a_time_beyond_the_calendar_is_its_first_or_last_instant(instant: float) -> None:
    text = to_text(instant)
    assert len(text) == 23
    connection = sqlite3.connect(":memory:")
    assert connection.execute("SELECT julianday(?)", (text,)).fetchone()[0] is not None
    connection.close()


def test_no_number_is_no_time() -> None:
    with pytest.raises(ValueError, match="NaN"):
        to_text(math.nan)


def test_an_offset_in_a_time_written_by_hand_is_respected() -> None:
    assert from_text("2026-11-23 12:00:00+02:00") == from_text("2026-11-23 10:00:00")
