"""Text from items is shown on one line, without characters that control the terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asyncrunner.text.escaping import safe_text


@given(st.text(), st.integers(10, 300))
def test_a_safe_text_has_nothing_that_a_terminal_obeys(text: str, limit: int) -> None:
    shown = safe_text(text, limit=limit)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 or character in "\u202e\u2028" for character in shown)
    shown.encode()


def test_a_long_text_loses_its_middle() -> None:
    shown = safe_text("a" * 100 + "b" * 100, limit=50)
    assert (len(shown), shown[:10], shown[-10:]) == (50, "a" * 10, "b" * 10)
