"""The walk of a retention over the items of a store.

A walk begins with the oldest items, where most due items are. After a window without due items, the walk continues at a
random item up to the newest, and then reads the items that it skipped. So even the short walks of short runs reach every item
sooner or later.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

import msgspec

from asyncrunner.store.items import Cursor

STEP_ITEMS: Final = 1000
"""The number of items that one step examines, which takes 1.3 ms in a file; deleting as many takes 15 ms."""


class Walk(NamedTuple):
    """A position in a walk: the next window begins after the ``seq`` *after*; None: at the first item.

    ``end``: the ``seq`` at which this part of the walk ends; None while the walk is at the oldest items. ``rest``: where the
    next part begins and ends.
    """

    after: int | None = None
    end: int | None = None
    rest: tuple[int, int] | None = None

    @classmethod
    def at(cls, cursor: Cursor | None) -> Walk:
        return cls() if cursor is None else msgspec.json.decode(cursor, type=cls)

    def next(self, window: Window) -> Cursor | None:
        """Return the cursor of the next step after *window*, or None at the end of the walk."""
        end, rest = self.end, self.rest
        newest = window.newest if self.after is None else max(window.newest, self.after)
        after = max(newest, end or 0) if window.reached is None else window.reached
        if end is None and (after >= newest or not window.due):
            start = _random_seq(min(after, newest), newest)
            (after, end), rest = (start, newest), (after, start)
        if end is not None and after >= end and rest is not None:
            (after, end), rest = rest, None
        if end is not None and after >= end:
            return None
        return Cursor(msgspec.json.encode(Walk(after, end, rest)).decode())


def _random_seq(first: int, last: int) -> int:
    """Return a random seq from *first* to *last*. Half of the results are near *first*, as a single row may have a huge seq."""
    span = last - first
    if span and random.random() < 0.5:  # noqa: S311 - it only spreads the walks over the file
        span = int(span ** random.random())  # noqa: S311
    return first + random.randint(0, span)  # noqa: S311


class Window(NamedTuple):
    """Examined items. ``due``: how many have expired. ``expired``: the ``seq`` of each of these, as a JSON list for ``purge``.

    ``reached``: the ``seq`` of the last examined item, None if the window is empty. ``newest``: the newest ``seq`` in the file.
    """

    due: int
    expired: str
    reached: int | None
    newest: int
