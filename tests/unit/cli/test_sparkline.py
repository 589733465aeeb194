"""The bars of `status`: one character for each number."""

from __future__ import annotations

import io

import pytest

from asyncrunner.cli.render.sparkline import is_plain, sparkline


@pytest.mark.parametrize(
    ("values", "bars", "ascii_bars"),
    [
        ([], "", ""),
        ([0, 0], "▁▁", "__"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█", "_.:-=+*#"),
        ([1_000_000, 1, 0], "█▂▁", "#._"),
        ([5], "█", "#"),
        ([-3, 2], "▁█", "_#"),
    ],
    ids=["none", "zeros", "each level", "one of a million is no zero", "one", "a person wrote a negative number"],
)
def test_the_highest_bar_is_the_maximum_and_only_0_has_the_lowest(values: list[int], bars: str, ascii_bars: str) -> None:
    assert (sparkline(values), sparkline(values, plain=True)) == (bars, ascii_bars)


@pytest.mark.parametrize(
    ("encoding", "terminal", "plain"),
    [
        ("utf-8", "xterm", False),
        ("UTF-8", "", False),
        ("utf-8", "dumb", True),
        ("ascii", "xterm", True),
        ("latin-1", "xterm", True),
    ],
)
def test_bars_are_ascii_where_the_terminal_cannot_show_blocks(
    encoding: str, terminal: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", terminal)
    assert is_plain(io.TextIOWrapper(io.BytesIO(), encoding=encoding)) is plain
