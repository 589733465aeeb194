"""Text in the cells of a terminal: wide characters take two, combining ones none."""

from __future__ import annotations

import pytest

from asyncrunner.cli.render.tables import Column, table
from asyncrunner.text.cells import cell_width, fit, padded, wrapped


@pytest.mark.parametrize(
    ("text", "width"),
    [("", 0), ("abc", 3), ("\u30ab\u30bf", 4), ("e\u0301", 1), ("\U0001f600", 2), ("\uff21x", 3), ("\u00e9", 1)],
)
def test_a_wide_character_takes_two_cells(text: str, width: int) -> None:
    assert cell_width(text) == width


def test_a_cut_line_never_exceeds_its_width() -> None:
    assert fit("abcdef", 6) == "abcdef"
    assert fit("abcdefg", 6) == "abc..."
    assert fit("\u30ab\u30bf\u30ed\u30b0", 8) == "\u30ab\u30bf\u30ed\u30b0"
    assert fit("\u30ab\u30bf\u30ed\u30b0", 7) == "\u30ab\u30bf..."
    assert fit("\u30ab\u30bf\u30ed\u30b0", 6) == "\u30ab..."
    assert fit("abc", None) == "abc"


def test_text_is_padded_to_cells() -> None:
    assert padded("\u30ab", 4) == "\u30ab  "
    assert padded("\u30ab", 4, right=True) == "  \u30ab"


def test_a_long_line_is_broken_at_spaces_and_indented() -> None:
    assert wrapped("  one two three", None) == ["  one two three"]
    assert wrapped("  one two three", 15) == ["  one two three"]
    assert wrapped("  one two three", 12) == ["  one two", "      three"]
    assert wrapped("one \u30ab\u30bf x", 8) == ["one \u30ab\u30bf", "    x"]
    assert wrapped("averyverylongword x", 10) == ["averyve...", "    x"]


def test_the_columns_of_a_table_with_wide_characters_are_aligned() -> None:
    lines = table([Column("id"), Column("error")], [("\u30ab\u30bf", "x"), ("abc", "y")], 80)
    assert lines == ["ID    ERROR", "\u30ab\u30bf  x", "abc   y"]
