"""The failure limit (circuit breaker) of a batch: count outcomes and decide when the batch must stop. No I/O."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from asyncrunner.domain.outcome import Completed, Failed, Outcome, Retrying
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.escaping import counted
from asyncrunner.text.validation import argument, checked_count, checked_seconds, is_number

_MAX_REST_SECONDS: Final = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class FailureShare:
    """A failure limit: stop the batch when ``share * of`` of its newest ``of`` attempts failed.

    ``share`` is above 0 and at most 1. The batch stops as soon as that many attempts failed, even if fewer than ``of``
    have ended. An attempt that raised ``Retry`` and is retried, or whose item was put off, counts as neither success nor
    failure. ``max_failures=0.5`` means ``FailureShare(0.5)``.

    With ``rest`` the batch rests instead of stopping: no item starts for ``rest`` seconds, in any process on the file.
    Then the worker that reached the limit runs one item as a test; other workers start their items as usual. If the
    item completes, the batch continues; if it fails, the batch rests again. Raises ConfigurationError at construction
    for a value out of range.
    """

    share: float
    of: int = 100
    rest: float | None = None

    def __post_init__(self) -> None:
        if not is_number(self.share) or not 0 < self.share <= 1:
            raise ConfigurationError(f"FailureShare({argument('share', self.share)}): give a number above 0 and at most 1")
        checked_count("of", self.of, at_most=1_000_000, owner="FailureShare")
        if self.rest is not None and checked_seconds("rest", self.rest, zero=False, owner="FailureShare") > _MAX_REST_SECONDS:
            raise ConfigurationError(f"FailureShare({argument('rest', self.rest)}): give at most a year, in seconds")

    @property
    def enough(self) -> float:
        """The number of failed attempts, among the newest ``of`` attempts, that stops the batch."""
        return max(1.0, self.share * self.of)


FailureLimit = int | FailureShare
"""The number of failed items, or the share of the newest attempts, that stops a batch."""


class FailureCounter:
    """A failure counter for the outcomes of one batch in one worker.

    ``reason``: why the batch must stop, a text that is stored and shown; None while the batch may run. ``is_watching``:
    the batch has a failure limit. ``rest_reason``: why the batch must rest; the caller must then let the batch rest and
    call ``record_rest()``. None while no rest is due. ``is_probing``: the batch has rested, so one item at a time runs as
    a test, until one completes.
    """

    def __init__(self, limit: FailureLimit | None) -> None:
        self._limit = limit
        self.is_watching = limit is not None
        self.reset()

    def reset(self) -> None:
        """Delete the counts and the reason."""
        self.reason: str | None = None
        self._restart()

    def _restart(self) -> None:
        """Delete the counts. A reason stays: a deadline may have passed while the store recorded a rest, or during a test."""
        self._failed_items = 0
        self._failed_attempts = 0
        self._newest: deque[bool] = deque()
        self._rested_at: float | None = None  # monotonic; None unless the batch has rested since its last success
        self.rest_reason: str | None = None

    def trip(self, reason: str) -> None:
        """Set ``reason`` to a reason other than failures, such as a deadline; an earlier reason stays."""
        self.reason = self.reason or reason

    @property
    def rest(self) -> float | None:
        """The seconds for which the batch rests when the limit is reached; None if it then stops."""
        return self._limit.rest if isinstance(self._limit, FailureShare) else None

    @property
    def is_probing(self) -> bool:
        return self._rested_at is not None

    def record_rest(self, now: float) -> None:
        """Record that a rest of the batch began *now* (monotonic)."""
        self._restart()
        self._rested_at = now

    def count(self, outcome: Outcome, began: float = math.inf) -> None:
        """Count *outcome* of an attempt that began at *began* (monotonic); set a reason when the limit is reached.

        Attempts that began before the newest rest do not count.
        """
        limit = self._limit
        if limit is None or self.rest_reason is not None:
            return
        if isinstance(limit, FailureShare):
            if self._rested_at is None:
                self._count_attempt(limit, outcome)
            elif began > self._rested_at:
                self._count_probe(outcome)
        elif isinstance(outcome, Failed):
            self._failed_items += 1
            if self._failed_items >= limit:
                self.reason = f"{counted(self._failed_items, 'item')} failed: the limit max_failures={limit} is reached"

    def _count_attempt(self, limit: FailureShare, outcome: Outcome) -> None:
        failed = _is_failure(outcome)
        if failed is None:
            return
        self._newest.append(failed)
        self._failed_attempts += failed
        if len(self._newest) > limit.of:
            self._failed_attempts -= self._newest.popleft()
        if self._failed_attempts >= limit.enough:
            reason = (
                f"{self._failed_attempts:,} of the newest {counted(len(self._newest), 'attempt')} failed: "
                f"the limit max_failures={limit.share:.0%} of {limit.of:,} is reached"
            )
            if limit.rest is None:
                self.reason = reason
            else:
                self.rest_reason = reason

    def _count_probe(self, outcome: Outcome) -> None:
        failed = _is_failure(outcome)
        if failed:
            self.rest_reason = "the item that ran as a test failed"
        elif failed is not None:
            self._restart()


def _is_failure(outcome: Outcome) -> bool | None:
    """Return whether an attempt failed; None if its outcome is neither success nor failure."""
    match outcome:
        case Completed():
            return False
        case Failed() | Retrying(asked=False):
            return True
        case _:
            return None
