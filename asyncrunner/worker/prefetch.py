"""Compute from measurements how many items a worker prefetches beyond its free slots. No I/O."""

from __future__ import annotations

import math
from typing import Final

_MIN_ITEM_SECONDS: Final = 5e-6  # the time that the event loop needs for an item whose handler does nothing
_WEIGHT: Final = 0.2  # the weight of the newest measurement in a moving average
_MAX_PREFETCH_CHARACTERS: Final = 16 * 1024 * 1024  # of payload, in all prefetched items together


class Prefetch:
    """The prefetch for *limit* slots: the number of items that the slots can finish during one turn.

    The number is 0 when an average handler takes at least as long as an average turn, so that slow items stay in the
    store for other workers. It is at most ten items per slot, but that maximum is never below ``MOST``, so that even a
    single slot has work during a commit, and never above twice ``MOST``. The payloads of the prefetched items have at
    most 16 Mi characters together.
    """

    MOST: Final = 1000

    def __init__(self, limit: int) -> None:
        self.set_limit(limit)
        self._item_seconds = math.inf
        self._turn_seconds = 0.0
        self._item_size = 0.0

    def set_limit(self, limit: int) -> None:
        """Set the number of slots."""
        self._limit = limit
        self._max_items = min(max(10 * limit, self.MOST), 2 * self.MOST)

    def record_turn(self, seconds: float) -> None:
        """Record the duration of a turn."""
        self._turn_seconds += _WEIGHT * (seconds - self._turn_seconds)

    def record_items(self, seconds: float, count: int) -> None:
        """Record that *count* handlers ran; *seconds* is the sum of their durations."""
        mean = seconds / count
        if self._item_seconds == math.inf:
            self._item_seconds = mean
        else:
            self._item_seconds += (1.0 - (1.0 - _WEIGHT) ** count) * (mean - self._item_seconds)

    def record_sizes(self, size: int, count: int) -> None:
        """Record that *count* items were claimed, with *size* characters of payload in total."""
        self._item_size = max(size / count, self._item_size * (1.0 - _WEIGHT))

    def assume_slow(self) -> None:
        """Assume that a handler takes at least a second, because claims have waited too long for a slot."""
        self._item_seconds = max(self._item_seconds, 1.0)

    def ahead(self) -> int:
        """Return how many items to claim beyond the free slots."""
        if self._item_seconds >= self._turn_seconds:
            return 0
        max_items = min(self._max_items, int(_MAX_PREFETCH_CHARACTERS / max(self._item_size, 1.0)))
        return min(max_items, int(self._limit * self._turn_seconds / max(self._item_seconds, _MIN_ITEM_SECONDS)))
