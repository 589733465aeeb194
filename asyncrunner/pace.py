"""How far a worker claims ahead of its free slots: pure arithmetic on what it has seen."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Pace"]

_LEAST_ITEM_SECONDS: Final = 5e-6  # what the loop needs for an item even if its handler does nothing
_WEIGHT: Final = 0.2  # of the newest observation


class Pace:
    """What *limit* slots can finish during one turn: that much is worth claiming ahead.

    Nothing when a handler takes longer than a turn, so slow work is never claimed unstarted. At most
    ``MOST`` items or ten a slot, so that a slot is fed while a commit runs, also a single one.
    """

    MOST: Final = 1000

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._most = min(max(10 * limit, self.MOST), 2 * self.MOST)
        self._item_seconds = math.inf
        self._turn_seconds = 0.0

    def turn_took(self, seconds: float) -> None:
        """A turn was answered after that long."""
        self._turn_seconds += _WEIGHT * (seconds - self._turn_seconds)

    def items_took(self, seconds: float, count: int) -> None:
        """*count* handlers ran for that long in all, one after the other or not."""
        mean = seconds / count
        if self._item_seconds == math.inf:
            self._item_seconds = mean
        else:
            self._item_seconds += (1.0 - (1.0 - _WEIGHT) ** count) * (mean - self._item_seconds)

    def is_slow(self) -> None:
        """Claims found no slot for long: handlers are slower than the finished ones have shown."""
        self._item_seconds = max(self._item_seconds, 1.0)

    def ahead(self) -> int:
        """How many items to hold beyond the free slots."""
        if self._item_seconds >= self._turn_seconds:
            return 0
        return min(self._most, int(self._limit * self._turn_seconds / max(self._item_seconds, _LEAST_ITEM_SECONDS)))
