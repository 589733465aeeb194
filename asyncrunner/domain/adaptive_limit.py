"""Adapt the number of handlers that run at the same time to a service that puts items off. No I/O, no clock.

The limit follows "additive increase, multiplicative decrease" (Chiu and Jain, "Analysis of the Increase and Decrease
Algorithms for Congestion Avoidance in Computer Networks", 1989), with the growth of CUBIC (RFC 9438, section 4.2): fast
while it is far below the limit at which the service last refused, slow near that limit, and then fast again.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

_WINDOW: Final = 50
"""The number of newest answers that decide whether refusals are common."""

_COMMON: Final = 0.25
"""The share of refusals, among the newest answers, from which the limit is decreased.

A crawl in which a few hosts refuse stays below this share, and its limit stays as it is.
"""

_MIN_ANSWERS: Final = 4
"""The minimum number of answers that decide whether most answers are refusals."""

_REPEATED: Final = 0.1
"""The weight of a refusal of an item that was put off before.

Such items return again and again; with full weight, the items of one host that always refuses would decide for all.
"""

_DECREASE: Final = 0.5
"""The factor of a decrease while some answers are refusals."""

_SHARP_DECREASE: Final = 0.35
"""The factor of a decrease while most answers are refusals."""

_GROWTH: Final = 1.5
"""The constant C of CUBIC, in handlers per second cubed."""

_FIRST_REST: Final = 1.0
"""The seconds of the first rest if the service does not state a time. Each further rest doubles them."""

_MAX_REST: Final = 60.0
"""The maximum seconds of a rest if the service does not state a time."""


_LATELY: Final = 60.0
"""The seconds without a refusal after which a limit that is at its ceiling is no longer adapted."""


class AdaptiveLimit:
    """How many handlers of a batch run at the same time while a service puts items off.

    ``limit`` is a number from 1 to ``ceiling``, and ``ceiling`` until the first refusal. ``is_active``: a service has
    refused lately, so that successes must be recorded too. ``rest_end``: no handler starts before that time, because
    most answers were refusals. ``refused_at``: the time of the last refusal, or None. All times are seconds on a
    monotonic clock.

    Only attempts that began after the last decrease cause another one, so that the limit is decreased at most once per
    round trip.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.is_active = False
        self.rest_end = -math.inf
        self.refused_at: float | None = None
        self._value = float(ceiling)
        self._decreased_at = -math.inf
        self._at_refusal = float(ceiling)  # the limit at which the service last refused
        self._after_decrease = float(ceiling)
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._rest = _FIRST_REST

    @property
    def limit(self) -> int:
        return max(1, min(self.ceiling, int(self._value)))

    def set_ceiling(self, ceiling: int) -> None:
        """Set the maximum; a limit that was at the old maximum follows."""
        if self._value >= self.ceiling:
            self._value = float(ceiling)
        self.ceiling = ceiling

    def begin(self, successes: int) -> None:
        """Start to adapt the limit at the first refusal; *successes* answers before it were no refusals."""
        self.is_active = True
        self._recent.extend([0.0] * min(successes, _WINDOW))

    def is_resting(self, now: float) -> bool:
        """Return whether no handler may start at *now*."""
        return now < self.rest_end

    def record_success(self, began: float, now: float, running: int) -> None:
        """Record an answer that was no refusal, of an attempt that began at *began*; *running* others still run."""
        self._recent.append(0.0)
        if began > self._decreased_at:
            self._rest = _FIRST_REST
        is_used = running + 1 >= self.limit
        if self._value < self.ceiling and is_used:
            self._value = min(self._value + 1, max(self._value, self._grown(now)), self.ceiling)
        elif self._value >= self.ceiling and self.refused_at is not None and now - self.refused_at > _LATELY:
            self.is_active = False

    def record_refusal(self, began: float, now: float, after: float | None, *, is_repeated: bool) -> None:
        """Record a refusal of an attempt that began at *began*.

        *after*: the seconds that the service asks for, or None. *is_repeated*: the item was put off before.
        """
        self.refused_at = now
        self._recent.append(_REPEATED if is_repeated else 1.0)
        newest = list(self._recent)[-max(_MIN_ANSWERS, min(self.limit, _WINDOW)) :]
        are_most = sum(newest) > len(newest) / 2
        is_new = began > self._decreased_at
        if are_most:
            self._extend_rest(now, after, is_new=is_new)
        if is_new and (are_most or sum(self._recent) >= _COMMON * len(self._recent)):
            factor = _SHARP_DECREASE if are_most else _DECREASE
            # Below the last maximum the capacity has shrunk, so the limit returns to less ("fast convergence", section 4.7).
            self._at_refusal = self._value * (1 + factor) / 2 if self._value < self._at_refusal else self._value
            self._value = max(1.0, self._value * factor)
            self._after_decrease = self._value
            self._decreased_at = now

    def _extend_rest(self, now: float, after: float | None, *, is_new: bool) -> None:
        end = now + (self._rest if after is None else after)
        if self.is_resting(now):
            self.rest_end = min(self.rest_end, end)
            return
        self.rest_end = end
        if after is None and is_new:
            self._rest = min(_MAX_REST, self._rest * 2)

    def _grown(self, now: float) -> float:
        """Return the limit of CUBIC at *now*: W(t) = C (t - K)^3 + W_max with K = cbrt((W_max - W_0) / C)."""
        seconds = max(0.0, now - max(self._decreased_at, self.rest_end))
        to_refusal = (max(0.0, self._at_refusal - self._after_decrease) / _GROWTH) ** (1 / 3)
        return float(_GROWTH * (seconds - to_refusal) ** 3 + self._at_refusal)
