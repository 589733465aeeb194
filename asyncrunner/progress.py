"""Progress: an observer that counts, and hands what it has counted to the ways of showing it (display.py).

It counts this process's items as they are settled and looks at the file's counts now and then, for what other
processes did.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from asyncrunner.events import Accepted, Events, Settled
from asyncrunner.item import Completed, Failed, Retrying
from asyncrunner.text import duration_text

if TYPE_CHECKING:
    from asyncrunner.item import Counts

__all__ = ["MovingRate", "Progress", "ProgressUpdate", "View", "rate_text"]

log = logging.getLogger("asyncrunner")

_WINDOW_SECONDS: Final = 20.0  # what the rate is averaged over
_LEAST_ITEMS: Final = 20  # unless fewer items than that were done: then over a longer time
_LONGEST_WINDOW: Final = 600.0
_SAMPLE_SECONDS: Final = 0.5
_PRIOR_SECONDS: Final = 5.0  # how long the rate of before counts as if it had been seen


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressUpdate:
    """How a run stands.

    ``rate`` is items done a second, by all processes, over the last 20 s (longer where items take long); just after a start it
    leans on the rate at which the batch was worked on before. ``eta``: the seconds left at that rate, None until there is a total
    and a rate. ``total`` grows while the source is read, unless its length is known. ``elapsed``: seconds since this run began.
    """

    batch: str
    total: int
    total_is_known: bool
    completed: int
    failed: int
    cancelled: int
    retried: int
    rate: float
    eta: float | None
    elapsed: float = 0.0

    @property
    def done(self) -> int:
        return self.completed + self.failed + self.cancelled

    @property
    def share(self) -> float | None:
        """From 0 to 1; None until the total is known."""
        if not self.total_is_known:
            return None
        return min(1.0, self.done / self.total) if self.total else 1.0

    @property
    def counts_text(self) -> str:
        """``1,204 of 10,000 done (12 %), 3 failed, 17 retried``."""
        percent = "" if self.share is None else f" ({percent_text(self.share)})"
        total = f"{self.total:,}" if self.total_is_known else f"{self.total:,} so far"
        return ", ".join([f"{self.done:,} of {total} done{percent}", *self.troubles])

    @property
    def troubles(self) -> list[str]:
        """What there is of failures, cancellations and retries."""
        counted = ((self.failed, "failed"), (self.cancelled, "cancelled"), (self.retried, "retried"))
        return [f"{count:,} {what}" for count, what in counted if count]

    @property
    def pace_text(self) -> str:
        """``120/s, 1 min 13 s left``."""
        left = [f"{duration_text(self.eta)} left"] if self.eta is not None and self.done < self.total else []
        return ", ".join([rate_text(self.rate), *left])

    def __str__(self) -> str:
        return f"{self.counts_text}, {self.pace_text}"


def percent_text(share: float) -> str:
    """Whole percents, never 100 before the end."""
    return f"{int(share * 100)} %"


def rate_text(rate: float) -> str:
    """``1,204/s``, ``2.5/s`` or ``3.0/min``."""
    if rate >= 10:
        return f"{rate:,.0f}/s"
    return f"{rate:.1f}/s" if rate >= 0.5 or rate == 0 else f"{rate * 60:.1f}/min"


class View(Protocol):
    """A way to show updates."""

    @property
    def interval(self) -> float:
        """Seconds until the next one is wanted."""
        ...

    def show(self, update: ProgressUpdate) -> None: ...

    def end(self, update: ProgressUpdate) -> None: ...


class MovingRate:
    """Items a second over the newest part of the run. *prior*: the rate of before, for as long as little has been seen."""

    def __init__(self, prior: float | None = None) -> None:
        self._prior = prior
        self._seen: deque[tuple[float, int]] = deque()

    def saw(self, now: float, done: int) -> float:
        """The rate at *now*, when *done* items are done in all."""
        seen = self._seen
        if seen and done < seen[-1][1]:  # somebody made items pending again, or purged some: count from here
            seen.clear()
        if not seen or now - seen[-1][0] >= _SAMPLE_SECONDS:
            seen.append((now, done))
        while len(seen) > 1 and self._is_enough(now - seen[1][0], done - seen[1][1]):
            seen.popleft()
            self._prior = None
        (since, before), known = seen[0], 0.0 if self._prior is None else _PRIOR_SECONDS
        seconds = now - since + known
        return (done - before + (self._prior or 0.0) * known) / seconds if seconds > 0 else 0.0

    def _is_enough(self, seconds: float, items: int) -> bool:
        return seconds >= _WINDOW_SECONDS and (items >= _LEAST_ITEMS or seconds >= _LONGEST_WINDOW)


class Progress:
    """Counts what the events tell and shows it to views, on timers of the running loop."""

    def __init__(self, *views: View) -> None:
        self._views = views
        self._batch = ""
        self._base: dict[str, int] = {}
        self._expected: int | None = None
        self._all_read = False
        self._accepted = self._completed = self._failed = self._retried = 0
        self._began = 0.0
        self._rate = MovingRate()
        self._timers: dict[View, asyncio.TimerHandle] = {}
        self._unsubscribe: list[Callable[[], None]] = []

    def begin(
        self, batch: str, before: Counts, reopened: int, expected: int | None, events: Events, *, rate: float | None = None
    ) -> None:
        """Start showing. *before* are the counts before *reopened* failed items became pending again; *rate*: that of before."""
        self._batch = batch
        self._expected = expected
        self._all_read = expected == 0
        self._began = time.monotonic()
        self._rate = MovingRate(rate)
        self._base = {
            "total": before.total,
            "completed": before.completed,
            "failed": before.failed - reopened,
            "cancelled": before.cancelled,
        }
        self._unsubscribe = [events.on(Settled, self._on_settled), events.on(Accepted, self._on_accepted)]
        for view in self._views:
            self._tick(view)

    def source_ended(self) -> None:
        """Nothing more comes in: the total is what it is."""
        self._all_read = True

    def resync(self, counts: Counts) -> None:
        """Take the file's counts over."""
        self._base = {
            "total": counts.total,
            "completed": counts.completed,
            "failed": counts.failed,
            "cancelled": counts.cancelled,
        }
        self._accepted = self._completed = self._failed = 0

    def end(self) -> None:
        """Show the last state, and no more."""
        if not self._timers:
            return
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        for view in self._views:
            self._show(view.end)

    def update(self) -> ProgressUpdate:
        """How it stands now."""
        total = self._base["total"] + self._accepted
        known = self._all_read or self._expected is not None
        if self._expected is not None and not self._all_read:
            total = max(total, self._expected)
        completed = self._base["completed"] + self._completed
        failed = self._base["failed"] + self._failed
        done = completed + failed + self._base["cancelled"]
        now = time.monotonic()
        rate = self._rate.saw(now, done)
        return ProgressUpdate(
            batch=self._batch,
            total=total,
            total_is_known=known,
            completed=completed,
            failed=failed,
            cancelled=self._base["cancelled"],
            retried=self._retried,
            rate=rate,
            eta=max(0, total - done) / rate if known and rate > 0 else None,
            elapsed=now - self._began,
        )

    def _show(self, show: Callable[[ProgressUpdate], None]) -> None:
        try:
            show(self.update())
        except Exception:
            log.exception("the progress cannot be shown")

    def _tick(self, view: View) -> None:
        self._show(view.show)
        self._timers[view] = asyncio.get_running_loop().call_later(view.interval, partial(self._tick, view))

    def _on_settled(self, done: Settled) -> None:
        kind = type(done.outcome)
        if kind is Completed:
            self._completed += 1
        elif kind is Failed:
            self._failed += 1
        elif kind is Retrying:
            self._retried += 1

    def _on_accepted(self, accepted: Accepted) -> None:
        self._accepted += accepted.added
