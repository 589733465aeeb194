"""Timestamps of rows are UTC text that sorts by time and that SQLite's date functions read."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncrunner.text.timestamps import from_text, span_to_text, to_text


@given(st.integers(0, 4_000_000_000_000))
def test_a_time_is_kept_to_the_millisecond(milliseconds: int) -> None:
    text = to_text((milliseconds + 0.5) / 1000)
    found = from_text(text)
    assert found is not None
    assert round(found * 1000) == milliseconds
    assert len(text) == 23


@given(st.floats(0, 4e9), st.floats(0, 4e9))
def test_texts_sort_like_times(one: float, other: float) -> None:
    if one <= other:
        assert to_text(one) <= to_text(other)


@pytest.mark.sqlite_file
def test_sqlite_reads_our_times_and_we_read_its_own() -> None:
    connection = sqlite3.connect(":memory:")
    assert connection.execute("SELECT datetime(?, '-5 minutes')", (to_text(1_800_000_000.5),)).fetchone() == (
        "2027-01-15 07:55:00",
    )
    (now,) = connection.execute("SELECT datetime('now')").fetchone()
    assert from_text(now) is not None
    connection.close()


@pytest.mark.parametrize("text", [None, "", "tomorrow", "2026-13-45", "9" * 50])
def test_an_invalid_time_is_none(text: str | None) -> None:
    assert from_text(text) is None


@given(st.floats(-1e12, 1e12), st.floats(-1, 1e12))
@example(1_800_000_000.0, 0.0004)
@example(1_800_000_000.0, 0.0011)
def test_a_span_has_the_texts_of_its_ends(first: float, seconds: float) -> None:
    assert span_to_text(first, first + seconds) == (to_text(first), to_text(first + seconds))
