"""Progress: an observer that counts, and the ways to show what it has counted.

It counts this process's items as they are settled and looks at the file's counts now and then, for what other
processes did.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from asyncrunner.errors import ConfigurationError
from asyncrunner.events import Accepted, Events, Settled
from asyncrunner.item import Completed, Failed, Retrying
from asyncrunner.text import duration_text, safe_text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from asyncrunner.item import Counts

__all__ = ["Progress", "ProgressUpdate", "as_progress"]

log = logging.getLogger("asyncrunner")

_WINDOW_SECONDS: Final = 20.0  # what the rate is averaged over


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressUpdate:
    """How a run stands. ``rate`` is items done a second over the last 20 s, ``eta`` the seconds left at that rate.

    ``total`` grows while the source is read, unless its length is known; ``eta`` is None until there is a total and a rate.
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

    @property
    def done(self) -> int:
        return self.completed + self.failed + self.cancelled

    def __str__(self) -> str:
        total = f"{self.total:,}" if self.total_is_known else f"{self.total:,} so far"
        parts = [f"{self.done:,} of {total} done"]
        parts += [f"{self.failed:,} failed"] if self.failed else []
        parts += [f"{self.retried:,} retried"] if self.retried else []
        parts.append(rate_text(self.rate))
        parts += [f"{duration_text(self.eta)} left"] if self.eta is not None and self.done < self.total else []
        return ", ".join(parts)


def rate_text(rate: float) -> str:
    """``1,204/s``, ``2.5/s`` or ``3.0/min``."""
    if rate >= 10:
        return f"{rate:,.0f}/s"
    return f"{rate:.1f}/s" if rate >= 0.5 or rate == 0 else f"{rate * 60:.1f}/min"


class View(Protocol):
    """A way to show updates, every ``interval`` seconds."""

    interval: float

    def show(self, update: ProgressUpdate) -> None: ...

    def end(self, update: ProgressUpdate) -> None: ...


class Progress:
    """Counts what the events tell and shows it to a view, on a timer of the running loop."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._batch = ""
        self._base: dict[str, int] = {}
        self._expected: int | None = None
        self._all_read = False
        self._accepted = self._completed = self._failed = self._retried = self._retried_in_all = 0
        self._seen: deque[tuple[float, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._unsubscribe: list[Callable[[], None]] = []

    def begin(self, batch: str, before: Counts, reopened: int, expected: int | None, events: Events) -> None:
        """Start showing; *before* are the counts before *reopened* failed items became pending again."""
        self._batch = batch
        self._expected = expected
        self._all_read = expected == 0
        self._base = {
            "total": before.total,
            "completed": before.completed,
            "failed": before.failed - reopened,
            "cancelled": before.cancelled,
        }
        self._unsubscribe = [events.on(Settled, self._on_settled), events.on(Accepted, self._on_accepted)]
        self._tick()

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
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._show(self._view.end)

    def update(self) -> ProgressUpdate:
        """How it stands now."""
        total = self._base["total"] + self._accepted
        known = self._all_read or self._expected is not None
        if self._expected is not None and not self._all_read:
            total = max(total, self._expected)
        completed = self._base["completed"] + self._completed
        failed = self._base["failed"] + self._failed
        done = completed + failed + self._base["cancelled"]
        rate = self._rate(done)
        eta = (total - done) / rate if known and rate > 0 else None
        return ProgressUpdate(
            batch=self._batch,
            total=total,
            total_is_known=known,
            completed=completed,
            failed=failed,
            cancelled=self._base["cancelled"],
            retried=self._retried_in_all,
            rate=rate,
            eta=eta,
        )

    def _rate(self, done: int) -> float:
        now = time.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        return max(0, done - before) / (now - since) if now > since else 0.0

    def _show(self, show: Callable[[ProgressUpdate], None]) -> None:
        try:
            show(self.update())
        except Exception:
            log.exception("the progress cannot be shown")

    def _tick(self) -> None:
        self._show(self._view.show)
        self._timer = asyncio.get_running_loop().call_later(self._view.interval, self._tick)

    def _on_settled(self, done: Settled) -> None:
        kind = type(done.outcome)
        if kind is Completed:
            self._completed += 1
        elif kind is Failed:
            self._failed += 1
        elif kind is Retrying:
            self._retried_in_all += 1

    def _on_accepted(self, accepted: Accepted) -> None:
        self._accepted += accepted.added


def as_progress(wanted: bool | Callable[[ProgressUpdate], Any] | None, stream: TextIO | None = None) -> Progress | None:
    """What the option ``progress`` asks for: nothing, a bar (lines where there is no terminal), or calls of a function."""
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        shown_on = sys.stderr if stream is None else stream
        return Progress(_Bar(shown_on) if shown_on.isatty() else _Lines(shown_on))
    if not callable(wanted):
        raise ConfigurationError(f"progress={wanted!r}: give True, False or a function that takes a ProgressUpdate")
    return Progress(_Calls(wanted))


class _Calls:
    """Each update to a function."""

    interval = 0.5

    def __init__(self, function: Callable[[ProgressUpdate], Any]) -> None:
        self._function = function

    def show(self, update: ProgressUpdate) -> None:
        self._function(update)

    def end(self, update: ProgressUpdate) -> None:
        self._function(update)


class _Lines:
    """A line every few seconds, for logs."""

    interval = 5.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._began = False

    def show(self, update: ProgressUpdate) -> None:
        if self._began:
            self.end(update)
        self._began = True

    def end(self, update: ProgressUpdate) -> None:
        try:
            print(f"{safe_text(update.batch)}: {update}", file=self._stream, flush=True)
        except (OSError, ValueError):
            pass  # nobody reads the log any more: no reason to stop working


class _Bar:
    """A bar that stays in place; what handlers print scrolls by above it."""

    interval = 0.1

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: RichProgress | None = None
        self._task: Any = None

    def show(self, update: ProgressUpdate) -> None:
        if self._bar is None:
            self._bar = self._made()
            self._task = self._bar.add_task(safe_text(update.batch, limit=40), total=None, state="")
            self._bar.start()
        known = update.total if update.total_is_known else None
        self._bar.update(self._task, completed=update.done, total=known, state=str(update))

    def end(self, update: ProgressUpdate) -> None:
        if self._bar is not None:
            self.show(update)
            self._bar.stop()

    def _made(self) -> RichProgress:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        return RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None, table_column=Column(min_width=10, ratio=1)),
            TextColumn("{task.fields[state]}", markup=False),
            console=Console(file=self._stream, markup=False, highlight=False),
            # Only what would land on the same terminal is led past the bar; a pipe gets what was printed.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=self._stream is sys.stderr,
            refresh_per_second=10,
            expand=True,
        )
