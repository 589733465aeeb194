"""Measure the progress of a run: count its items, and pass the counts to views (progress_display.py).

``Progress`` counts the items that this process settles. ``resync()`` replaces its counts with the file's counts, which
include the work of other processes.
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

from asyncrunner.domain.outcome import Completed, Failed, PutOff, Retrying
from asyncrunner.events import Accepted, Events, Settled
from asyncrunner.text.durations import duration_text, rate_text
from asyncrunner.text.escaping import counted
from asyncrunner.text.plain_form import PlainForm

if TYPE_CHECKING:
    from asyncrunner.domain.item import Counts

log = logging.getLogger("asyncrunner")
_WINDOW_SECONDS: Final = 20.0  # the rate is an average over this time, the window
_MIN_ITEMS: Final = 20  # while fewer items are done in the window, it grows up to the maximum
_MAX_WINDOW_SECONDS: Final = 600.0
_SAMPLE_SECONDS: Final = 0.5
_PRIOR_SECONDS: Final = 5.0  # the prior rate weighs as much as this many observed seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressUpdate(PlainForm):
    """The progress of a run: of every item of the batch, or with ``leftovers="leave"`` of the items that it was given.

    ``rate``: items done per second, by all processes, averaged over the last 20 s (up to 600 s if fewer than 20 items
    were done in that time). Just after a start, the average also includes the rate at which the batch was last
    processed; a run that found nothing to do has the rate 0. ``eta``: seconds left at that rate, None until the total and
    a rate are known, and while most items that are left wait for a later time. ``total`` grows while the source is read,
    unless the source has a length. ``elapsed``: seconds since this run began. ``retried``: attempts after which an item
    is retried. ``put_offs``: how often a service or the handler put an item off. ``waiting``: items that were not due
    yet when the file was last read, every 2 s. ``note``: that the run resumes items of earlier runs, how many, and how to
    prevent that; None if there are none, and until the number is known.
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
    put_offs: int = 0
    note: str | None = None
    waiting: int = 0

    @property
    def done(self) -> int:
        return self.completed + self.failed + self.cancelled

    @property
    def share(self) -> float | None:
        """The share of items that are done, from 0 to 1; None until the total is known."""
        if not self.total_is_known:
            return None
        return min(1.0, self.done / self.total) if self.total else 1.0

    @property
    def counts_text(self) -> str:
        """The counts as text: ``1,204 of 10,000 done (12 %), 3 failed, 17 retries``."""
        percent = "" if self.share is None else f" ({percent_text(self.share)})"
        total = f"{self.total:,}" if self.total_is_known else f"{self.total:,} so far"
        return ", ".join([f"{self.done:,} of {total} done{percent}", *self.troubles])

    @property
    def troubles(self) -> list[str]:
        """The counts of failures, cancellations, retries and put-offs as texts, without those that are 0."""
        items = [f"{count:,} {name}" for count, name in ((self.failed, "failed"), (self.cancelled, "cancelled")) if count]
        retries = [counted(self.retried, "retry")] if self.retried else []
        return items + retries + ([put_off_text(self.put_offs)] if self.put_offs else [])

    @property
    def pace_text(self) -> str:
        """The rate and the time left as text: ``120/s, 1 min 13 s left``; or that items wait, or that none is left."""
        if self.total_is_known and self.done >= self.total:
            return rate_text(self.rate) if self.rate > 0 else "nothing left to do"
        if most_wait(self.waiting, self.total - self.done):
            return f"{rate_text(self.rate)}, {self.waiting:,} wait for a later time"
        left = [f"{duration_text(self.eta)} left"] if self.eta is not None else []
        return ", ".join([rate_text(self.rate), *left])

    def __str__(self) -> str:
        return f"{self.counts_text}, {self.pace_text}"


def most_wait(waiting: int, left: int) -> bool:
    """Return whether more than half of the items that are left wait for a later time, so that no rate gives the time left."""
    return 2 * waiting > left > 0


def percent_text(share: float) -> str:
    """Format a share as whole percents, rounded down so that 100 % appears only at the end."""
    return f"{int(share * 100)} %"


def put_off_text(put_offs: int) -> str:
    """Format the number of put-offs as ``once put off`` or ``1,204 times put off``."""
    return "once put off" if put_offs == 1 else f"{put_offs:,} times put off"


class View(Protocol):
    """A display of progress updates."""

    @property
    def interval(self) -> float:
        """Seconds from one update to the next."""
        ...

    def show(self, update: ProgressUpdate) -> None: ...

    def show_note(self, update: ProgressUpdate) -> None: ...

    def end(self, update: ProgressUpdate) -> None: ...


class MovingRate:
    """The moving average of items per second; *prior*, the rate before this run, counts until a window is full."""

    def __init__(self, prior: float | None = None) -> None:
        self._prior = prior
        self._samples: deque[tuple[float, int]] = deque()

    def record(self, now: float, done: int) -> float:
        """Record the total of *done* items at *now* (monotonic seconds), and return the items done per second."""
        samples = self._samples
        if samples and done < samples[-1][1]:  # items were made pending again or purged: restart the average
            samples.clear()
        if not samples or now - samples[-1][0] >= _SAMPLE_SECONDS:
            samples.append((now, done))
        while len(samples) > 1 and self._fills_window(now - samples[1][0], done - samples[1][1]):
            samples.popleft()
            self._prior = None
        (since, before), prior_seconds = samples[0], 0.0 if self._prior is None else _PRIOR_SECONDS
        seconds = now - since + prior_seconds
        return (done - before + (self._prior or 0.0) * prior_seconds) / seconds if seconds > 0 else 0.0

    def _fills_window(self, seconds: float, items: int) -> bool:
        return seconds >= _WINDOW_SECONDS and (items >= _MIN_ITEMS or seconds >= _MAX_WINDOW_SECONDS)


class Progress:
    """The progress of a run: counts items by its events, and updates each view on a timer of the event loop."""

    def __init__(self, *views: View) -> None:
        self._views = views
        self._batch = ""
        self._note: str | None = None
        self._base: dict[str, int] = {}
        self._expected: int | None = None
        self._source_ended = False
        self._accepted = self._completed = self._failed = self._retried = self._put_offs = 0
        self._done_before = self._waiting = 0
        self._began = 0.0
        self._rate = MovingRate()
        self._timers: dict[View, asyncio.TimerHandle] = {}
        self._unsubscribe: list[Callable[[], None]] = []

    def begin(
        self,
        batch: str,
        before: Counts,
        reopened: int,
        expected: int | None,
        events: Events,
        *,
        rate: float | None = None,
        only_given: bool = False,
    ) -> None:
        """Subscribe to the events and start the views.

        *before*: the counts before *reopened* failed items became pending again. *expected*: the length of the source,
        if known. *rate*: items per second when the batch was last processed, if known.
        With *only_given*, the counts are of the items that ``add_given()`` counts.
        """
        self._batch = batch
        self._expected = expected
        self._source_ended = expected == 0
        self._began = time.monotonic()
        self._rate = MovingRate(rate)
        self._base = {
            "total": before.total,
            "completed": before.completed,
            "failed": before.failed - reopened,
            "cancelled": before.cancelled,
        }
        self._done_before = before.completed + before.failed - reopened + before.cancelled
        self._waiting = before.waiting
        self._unsubscribe = [events.on(Settled, self._on_settled)]
        if not only_given:
            self._unsubscribe.append(events.on(Accepted, self._on_accepted))
        for view in self._views:
            self._tick(view)

    def show_note(self, note: str) -> None:
        """Show *note*, which the later updates have, too; see ``ProgressUpdate``."""
        self._note = note
        for view in self._views:
            self._show(view.show_note)

    def source_ended(self) -> None:
        """Record that the source has ended, so that the total is final."""
        self._source_ended = True

    def add_given(self, counts: Counts, reopened: int) -> None:
        """Add items that the run was given: *counts* before *reopened* failed ones became pending again."""
        self._base["total"] += counts.total
        self._base["completed"] += counts.completed
        self._base["failed"] += counts.failed - reopened
        self._base["cancelled"] += counts.cancelled
        self._done_before += counts.completed + counts.failed - reopened + counts.cancelled

    def add_attempts(self, retried: int, put_offs: int) -> None:
        """Count attempts of child processes after which an item is retried, or was put off."""
        self._retried += retried
        self._put_offs += put_offs

    def resync(self, counts: Counts) -> None:
        """Replace the counts with the file's counts."""
        self._base = {
            "total": counts.total,
            "completed": counts.completed,
            "failed": counts.failed,
            "cancelled": counts.cancelled,
        }
        self._accepted = self._completed = self._failed = 0
        self._waiting = counts.waiting

    def end(self) -> None:
        """Show the last update, then unsubscribe and stop the views."""
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
        """Return the current progress."""
        total = self._base["total"] + self._accepted
        total_is_known = self._source_ended or self._expected is not None
        if self._expected is not None and not self._source_ended:
            total = max(total, self._expected)
        completed = self._base["completed"] + self._completed
        failed = self._base["failed"] + self._failed
        done = completed + failed + self._base["cancelled"]
        now = time.monotonic()
        rate = self._rate.record(now, done)
        if total_is_known and done == self._done_before >= total:
            rate = 0.0  # there was nothing to do: the rate is that of an earlier run
        has_eta = total_is_known and rate > 0 and not most_wait(self._waiting, total - done)
        return ProgressUpdate(
            batch=self._batch,
            total=total,
            total_is_known=total_is_known,
            completed=completed,
            failed=failed,
            cancelled=self._base["cancelled"],
            retried=self._retried,
            rate=rate,
            eta=max(0, total - done) / rate if has_eta else None,
            elapsed=now - self._began,
            put_offs=self._put_offs,
            note=self._note,
            waiting=self._waiting,
        )

    def _show(self, show: Callable[[ProgressUpdate], None]) -> None:
        try:
            show(self.update())
        except Exception:
            log.exception("failed to show the progress")

    def _tick(self, view: View) -> None:
        self._show(view.show)
        self._timers[view] = asyncio.get_running_loop().call_later(view.interval, partial(self._tick, view))

    def _on_settled(self, settled: Settled) -> None:
        kind = type(settled.outcome)
        if kind is Completed:
            self._completed += 1
        elif kind is Failed:
            self._failed += 1
        elif kind is Retrying:
            self._retried += 1
        elif kind is PutOff:
            self._put_offs += 1

    def _on_accepted(self, accepted: Accepted) -> None:
        self._accepted += accepted.added
