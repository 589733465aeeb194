"""The rate limit of a batch: how many handlers may start per second. Arithmetic on one stored number, no I/O.

The limit uses the generic cell rate algorithm (ITU-T I.371, 1993, annex A): each start moves a mark by ``1 / rate``
seconds, and a start is allowed if the mark is then at most ``burst / rate`` seconds ahead of the clock. The mark is the
whole state and is stored in the file, so that all processes on the file share one limit, and a restart does not reset
the limit.
"""

from __future__ import annotations

import math
import re
from typing import Final, NamedTuple

from asyncrunner.errors import ConfigurationError
from asyncrunner.text.durations import parse_period
from asyncrunner.text.validation import argument

_FORM: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/([^/]+)")
_BURST_SECONDS: Final = 0.02  # a burst has the starts of this time: 5,000/s needs 50 turns a second and not 5,000


class Rate(NamedTuple):
    """A limit of ``per_second`` starts, of which ``burst`` may happen at the same time."""

    per_second: float
    burst: int

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Parse ``"50/s"``, ``"100/min"``, ``"5000/h"`` or ``"10/2s"``.

        Raises ConfigurationError for any other form.
        """
        match = _FORM.fullmatch(text) if isinstance(text, str) else None
        seconds = parse_period(match[2]) if match else None
        if match is None or seconds is None:
            raise ConfigurationError(
                f'{argument("rate_limit", text)}: give starts per time, as in "50/s", "100/min", "5000/h" or "10/2s"'
            )
        count = float(match[1])
        if not (count > 0 and 0 < seconds < math.inf and 1e-6 <= count / seconds <= 1e6):
            raise ConfigurationError(
                f"{argument('rate_limit', text)}: give a rate between one start in eleven days and a million a second"
            )
        rate = count / seconds
        return cls(rate, max(1, int(rate * _BURST_SECONDS)))

    def allowed(self, spent: float | None, now: float) -> int:
        """Return how many handlers may start at *now* (seconds since the epoch); *spent* is the stored mark or None."""
        return int((now + self.burst / self.per_second - self._mark(spent, now)) * self.per_second + 1e-6)

    def spend(self, spent: float | None, now: float, starts: int) -> float:
        """Return the new mark after *starts* starts at *now*."""
        return self._mark(spent, now) + starts / self.per_second

    def next_at(self, spent: float | None, now: float) -> float:
        """Return the instant (seconds since the epoch) at which half a burst may start."""
        return self._mark(spent, now) - (self.burst - max(1, self.burst // 2)) / self.per_second

    def _mark(self, spent: float | None, now: float) -> float:
        # spend() never sets the mark more than a burst ahead. A mark further ahead means that the clock was set back.
        if spent is None or spent > now + (self.burst + 1) / self.per_second:
            return now
        return max(spent, now)
