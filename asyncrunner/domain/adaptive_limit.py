"""Adapt the number of handlers that run at the same time to a service that puts items off. No I/O, no clock.

The limit follows "additive increase, multiplicative decrease" (Chiu and Jain, "Analysis of the Increase and Decrease
Algorithms for Congestion Avoidance in Computer Networks", 1989), with the growth of CUBIC (RFC 9438, section 4.2): fast
while it is far below the limit at which the service last refused, slow near that limit, and then fast again. After a
rest it doubles each round trip from one handler to that growth, as in "slow start" (RFC 5681, section 3.1).

A refusal has two effects. Immediately, its slot stays free until another request is accepted, so that a service that
refuses all requests receives no more of them. And once refusals are common, the limit is decreased.

An item of a host that always refuses is refused each time that it comes back; an item that a busy service refused is
accepted later. So the share of such repeated items that are accepted decides how much refusals count.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

_WINDOW: Final = 50
"""The minimum number of newest answers that decide whether refusals are common: one round trip, if that has more."""

_MAX_WINDOW: Final = 200
"""The maximum number of those answers."""

_COMMON: Final = 0.25
"""The share of refusals, among the newest answers, from which the limit is decreased.

A crawl in which a few hosts refuse stays below this share, and its limit stays as it is.
"""

_COMMON_IF_ACCEPTED_LATER: Final = 0.1
"""That share if repeated items are accepted, so that no host that always refuses causes the refusals."""

_MIN_ANSWERS: Final = 4
"""The minimum number of answers that decide whether most answers are refusals."""

_REPEATED_WEIGHT: Final = 0.05
"""The weight of the newest answer in the moving average of the repeated items that are accepted."""

_DECREASE: Final = 0.7
"""The factor of a decrease while some answers are refusals."""

_SHARP_DECREASE: Final = 0.5
"""The factor of a decrease while most answers are refusals."""

_RECOVERY: Final = 4.0
"""The seconds in which the limit returns to the limit at which the service last refused.

CUBIC has a constant C instead, in packets per second cubed. With it a small limit would return, and be refused, sooner
than a large one.
"""

_FIRST_REST: Final = 1.0
"""The seconds of the first rest if the service does not state a time. Each further rest doubles them."""

_MAX_REST: Final = 60.0
"""The maximum seconds of a rest if the service does not state a time."""

_LATELY: Final = 60.0
"""The seconds without a refusal after which a limit that is at its ceiling is no longer adapted."""


class AdaptiveLimit:
    """How many handlers of a batch run at the same time while a service puts items off.

    ``target`` is a number from 1 to ``ceiling``, and ``ceiling`` until refusals are common. ``limit`` is how many
    handlers may run now: ``target``, or less after a rest and after refusals, but never below 1. ``is_active``: a
    service has refused lately, so that successes must be recorded too. ``rest_end``: no handler starts before that
    time, because most answers were refusals. ``refused_at``: the time of the last refusal, or None. ``decreased_at``:
    the time of the last decrease. All times are seconds on a monotonic clock.

    Only attempts that began after the last decrease cause another one, so that the target is decreased at most once per
    round trip.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.is_active = False
        self.rest_end = -math.inf
        self.refused_at: float | None = None
        self.decreased_at = -math.inf
        self._value = float(ceiling)
        self._at_refusal = float(ceiling)  # the limit at which the service last refused
        self._after_decrease = float(ceiling)
        self._slow_start = math.inf  # the limit during the slow start after a rest
        self._has_accepted = True  # whether the service has accepted an attempt that began after the last decrease
        self._held_back = 0.0  # slots that stay free because their requests were refused
        self._accepted_later = 0.5  # the share of repeated items that are accepted; not known yet
        self._recent: deque[float] = deque(maxlen=_MAX_WINDOW)
        self._rest = _FIRST_REST

    @property
    def target(self) -> int:
        return max(1, min(self.ceiling, round(self._value)))

    @property
    def limit(self) -> int:
        return max(1, self._started - int(self._held_back))

    def set_ceiling(self, ceiling: int) -> None:
        """Set the maximum; a limit that was at the old maximum follows."""
        if self._value >= self.ceiling:
            self._value = float(ceiling)
        self.ceiling = ceiling

    def begin(self, successes: int) -> None:
        """Start to adapt the limit at the first refusal; *successes* answers before it were no refusals."""
        self.is_active = True
        self._recent.extend([0.0] * min(successes, _MAX_WINDOW))

    def is_resting(self, now: float) -> bool:
        """Return whether no handler may start at *now*."""
        return now < self.rest_end

    def record_success(self, began: float, now: float, running: int, *, is_repeated: bool) -> None:
        """Record an answer that was no refusal, of an attempt that began at *began*; *running* others still run.

        *is_repeated*: the item was put off before.
        """
        is_used = running + 1 >= self.limit
        self._recent.append(0.0)
        self._held_back = max(0.0, self._held_back - 1)
        if is_repeated:
            self._accepted_later += _REPEATED_WEIGHT * (1 - self._accepted_later)
        if began > self.decreased_at:
            self._rest = _FIRST_REST
            self._has_accepted = True
        if self._value >= self.ceiling and self.refused_at is not None and now - self.refused_at > _LATELY:
            self.is_active = False
        if began < self.rest_end or not is_used:
            return
        if self._slow_start < self._value:
            self._slow_start += 1
        elif self._value < self.ceiling:
            self._slow_start = math.inf
            self._value = min(self._value + 1, max(self._value, self._grown(now)), self.ceiling)

    def record_refusal(self, began: float, now: float, after: float | None, *, is_repeated: bool) -> None:
        """Record a refusal of an attempt that began at *began*.

        *after*: the seconds that the service asks for, or None. *is_repeated*: the item was put off before.
        """
        self.refused_at = now
        if is_repeated:
            self._accepted_later -= _REPEATED_WEIGHT * self._accepted_later
        weight = self._accepted_later if is_repeated else 1.0
        self._recent.append(weight)
        are_most = self._are_most()
        is_new = began > self.decreased_at
        was_resting = self.is_resting(now)
        if are_most:
            self._extend_rest(now, after, is_new=is_new)
        if is_new and (are_most or self._are_common()):
            self._decrease(now, _SHARP_DECREASE if are_most else _DECREASE)
        elif is_new:
            self._held_back += weight
        if are_most and not was_resting:
            self._slow_start = 1.0

    @property
    def _started(self) -> int:
        return max(1, round(min(self.ceiling, self._value, self._slow_start)))

    def _are_most(self) -> bool:
        """Return whether most of the newest answers, at most a round trip of them, are refusals."""
        count = max(_MIN_ANSWERS, min(self._started, _WINDOW))
        newest = list(self._recent)[-count:]
        return sum(newest) > max(len(newest), min(self.ceiling, _MIN_ANSWERS)) / 2

    def _are_common(self) -> bool:
        """Return whether refusals are more common than a few hosts that always refuse would cause."""
        count = min(max(_WINDOW, self._started), _MAX_WINDOW)
        certainty = max(0.0, 2 * self._accepted_later - 1)
        share = _COMMON + certainty * (_COMMON_IF_ACCEPTED_LATER - _COMMON)
        return sum(list(self._recent)[-count:]) >= share * count

    def _decrease(self, now: float, factor: float) -> None:
        self.decreased_at = now
        self._held_back = 0.0
        if not self._has_accepted:  # the service is still closed, which says nothing about the limit (RFC 5681, section 3.1)
            return
        value = min(self._value, self._slow_start)
        # Below the last maximum the capacity has shrunk, so the limit returns to less ("fast convergence", section 4.7).
        self._at_refusal = value * (1 + factor) / 2 if value < self._at_refusal else value
        self._value = self._after_decrease = max(1.0, value * factor)
        self._slow_start = math.inf
        self._has_accepted = False

    def _extend_rest(self, now: float, after: float | None, *, is_new: bool) -> None:
        end = now + (self._rest if after is None else after)
        if self.is_resting(now):
            self.rest_end = min(self.rest_end, end)
            return
        self.rest_end = end
        if after is None and is_new:
            self._rest = min(_MAX_REST, self._rest * 2)

    def _grown(self, now: float) -> float:
        """Return the limit of CUBIC at *now*: W(t) = C (t - K)^3 + W_max with K = cbrt((W_max - W_0) / C).

        C follows from the growth: K is ``_RECOVERY`` seconds, or less if W_max is less than one handler above W_0.
        """
        seconds = max(0.0, now - max(self.decreased_at, self.rest_end))
        to_refusal = max(0.0, self._at_refusal - self._after_decrease)
        scale = max(1.0, to_refusal)
        return float(scale * (seconds / _RECOVERY - (to_refusal / scale) ** (1 / 3)) ** 3 + self._at_refusal)
