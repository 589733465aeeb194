"""How many handlers of a batch may start in a time: pure arithmetic on one stored number.

The generic cell rate algorithm (ITU-T I.371, 1993, annex A): each start moves a mark by ``1 / rate`` seconds, and a
start is allowed while the mark is at most ``burst / rate`` ahead of the clock. One number says all, so every process on
the file shares one limit, and a restart does not begin it anew.
"""

from __future__ import annotations

import math
import re
from typing import Final, NamedTuple

from asyncrunner.errors import ConfigurationError

__all__ = ["Rate"]

_SECONDS: Final = {
    **dict.fromkeys(("s", "sec", "second"), 1.0),
    **dict.fromkeys(("m", "min", "minute"), 60.0),
    **dict.fromkeys(("h", "hour"), 3600.0),
    **dict.fromkeys(("d", "day"), 86400.0),
}
_FORM: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)?\s*([a-z]+)\s*", re.IGNORECASE)
_BURST_SECONDS: Final = 0.02  # what is granted at once, so that 5,000/s needs 50 turns a second and not 5,000


class Rate(NamedTuple):
    """``per_second`` starts, of which ``burst`` may be at once."""

    per_second: float
    burst: int

    @classmethod
    def parse(cls, text: str) -> Rate:
        """From ``"50/s"``, ``"100/min"``, ``"5000/h"`` or ``"10/2s"``. Raises ConfigurationError."""
        found = _FORM.fullmatch(text) if isinstance(text, str) else None
        unit = _SECONDS.get(found[3].lower()) if found else None
        if found is None or unit is None:
            raise ConfigurationError(f'rate_limit={text!r}: give starts per time, as in "50/s", "100/min", "5000/h" or "10/2s"')
        count, seconds = float(found[1]), float(found[2] or 1) * unit
        if not (count > 0 and 0 < seconds < math.inf and 1e-6 <= count / seconds <= 1e6):
            raise ConfigurationError(f"rate_limit={text!r}: give between one start in eleven days and a million a second")
        rate = count / seconds
        return cls(rate, max(1, int(rate * _BURST_SECONDS)))

    def allowed(self, spent: float | None, now: float) -> int:
        """How many may start at *now*, when the mark stands at *spent*."""
        return int((now + self.burst / self.per_second - self._mark(spent, now)) * self.per_second + 1e-6)

    def spend(self, spent: float | None, now: float, starts: int) -> float:
        """The mark after that many starts."""
        return self._mark(spent, now) + starts / self.per_second

    def next_at(self, spent: float | None, now: float) -> float:
        """When half a burst may start again."""
        return self._mark(spent, now) - (self.burst - max(1, self.burst // 2)) / self.per_second

    def _mark(self, spent: float | None, now: float) -> float:
        # No mark is ever set further ahead than a burst: one that is was set by a clock that was put back since.
        if spent is None or spent > now + (self.burst + 1) / self.per_second:
            return now
        return max(spent, now)
