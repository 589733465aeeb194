"""Text from items is shown on one line, without characters that control the terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncrunner
from asyncrunner.text.escaping import counted, counted_are, safe_text


@given(st.text(), st.integers(10, 300))
def test_a_safe_text_has_nothing_that_a_terminal_obeys(text: str, limit: int) -> None:
    shown = safe_text(text, limit=limit)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 or character in "\u202e\u2028" for character in shown)
    shown.encode()


def test_a_long_text_loses_its_middle() -> None:
    shown = safe_text("a" * 100 + "b" * 100, limit=50)
    assert (len(shown), shown[:10], shown[-10:]) == (50, "a" * 10, "b" * 10)


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "item", "0 items"), (1, "item", "1 item"), (2_000, "item", "2,000 items"), (1, "retry", "1 retry"),
        (2, "retry", "2 retries"), (1, "batch", "1 batch"), (3, "batch", "3 batches"), (2, "process", "2 processes"),
    ],
)  # fmt: skip
def test_a_count_has_the_form_of_its_noun(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text
    assert counted_are(number, noun) == f"{text} {'is' if number == 1 else 'are'}"


_PLURALS = "attempts|batches|bytes|causes|duplicates|events|failures|ids|items|pieces|put-offs|retries|rows|slots|times|workers"
_FIXED = (  # numbers that are never 1, and what is no number
    "of the {batches} batches", "{len(rows)} batches", "{_MAX_COLUMNS:,} columns", "{put_offs:,} times", "{len(data):,} bytes",
    "{MAX_CHECKPOINT_BYTES:,} bytes", "{MAX_BODY_BYTES:,} bytes", "{MAX_QUERY_BYTES:,} bytes",
    "{self.status.value} items",
)  # fmt: skip


def test_no_message_counts_without_the_form_of_the_noun() -> None:
    """A message such as ``1 retries`` comes from a number and a plural that are side by side in the source."""
    uncounted = [
        f"{path.name}: {found[0]}"
        for path in Path(asyncrunner.__file__).parent.rglob("*.py")
        for found in re.finditer(rf"(of the )?(\{{[^{{}}]*\}}|%d) (more )?({_PLURALS})\b", path.read_text())
        if found[0] not in _FIXED and found[2] != "{verb}"
    ]
    assert not uncounted
