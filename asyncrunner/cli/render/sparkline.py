"""Draw numbers as a line of bars, one character each. No I/O."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, TextIO

from asyncrunner.text.cells import can_draw_blocks

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_ASCII: Final = "_.:-=+*#"


def sparkline(values: Sequence[int], *, plain: bool = False) -> str:
    """Return a character for each of *values*: the lowest for 0, the highest for the maximum; with *plain*, in ASCII."""
    levels = _ASCII if plain else _BLOCKS
    most = max(values, default=0)
    # Round up, so that every value above 0 differs from 0.
    return "".join(levels[-(-value * (len(levels) - 1) // most) if value > 0 else 0] for value in values)


def is_plain(stream: TextIO) -> bool:
    """Return whether bars on *stream* must be ASCII: its encoding has no blocks, or its terminal is dumb."""
    return not can_draw_blocks(stream.encoding) or os.environ.get("TERM") == "dumb"
