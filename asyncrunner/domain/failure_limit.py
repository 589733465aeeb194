"""The failure limit (circuit breaker) of a batch: count outcomes and decide when the batch must stop. No I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from asyncrunner.domain.outcome import Completed, Failed, Outcome, Retrying
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.validation import argument, checked_count, is_number


@dataclass(frozen=True, slots=True)
class FailureShare:
    """A failure limit: stop the batch when ``share * of`` of its newest ``of`` attempts failed.

    ``share`` is above 0 and at most 1. The batch stops as soon as that many attempts failed, even if fewer than ``of``
    have ended. An attempt that raised ``Retry`` and is retried counts as neither success nor failure.
    ``max_failures=0.5`` means ``FailureShare(0.5)``. Raises ConfigurationError at construction for a value out of
    range.
    """

    share: float
    of: int = 100

    def __post_init__(self) -> None:
        if not is_number(self.share) or not 0 < self.share <= 1:
            raise ConfigurationError(f"FailureShare({argument('share', self.share)}): give a number above 0 and at most 1")
        checked_count("of", self.of, at_most=1_000_000, owner="FailureShare")

    @property
    def enough(self) -> float:
        """The number of failed attempts, among the newest ``of`` attempts, that stops the batch."""
        return max(1.0, self.share * self.of)


FailureLimit = int | FailureShare
"""The number of failed items, or the share of the newest attempts, that stops a batch."""


class FailureCounter:
    """A failure counter for the outcomes of one batch in one worker.

    ``reason``: why the batch must stop, a text that is stored and shown; None while the batch may run. ``is_watching``:
    the batch has a failure limit.
    """

    def __init__(self, limit: FailureLimit | None) -> None:
        self._limit = limit
        self.is_watching = limit is not None
        self.reset()

    def reset(self) -> None:
        """Delete the counts and the reason."""
        self._failed_items = 0
        self._failed_attempts = 0
        self._newest: deque[bool] = deque()
        self.reason: str | None = None

    def trip(self, reason: str) -> None:
        """Set ``reason`` to a reason other than failures, such as a deadline; an earlier reason stays."""
        self.reason = self.reason or reason

    def count(self, outcome: Outcome) -> None:
        """Count *outcome*; set ``reason`` when the limit is reached."""
        limit = self._limit
        if limit is None:
            return
        if isinstance(limit, FailureShare):
            self._count_attempt(limit, outcome)
        elif isinstance(outcome, Failed):
            self._failed_items += 1
            if self._failed_items >= limit:
                self.reason = f"{self._failed_items:,} items failed: the limit max_failures={limit} is reached"

    def _count_attempt(self, limit: FailureShare, outcome: Outcome) -> None:
        match outcome:
            case Completed():
                failed = False
            case Failed():
                failed = True
            case Retrying(asked=False):
                failed = True
            case _:
                return
        self._newest.append(failed)
        self._failed_attempts += failed
        if len(self._newest) > limit.of:
            self._failed_attempts -= self._newest.popleft()
        if self._failed_attempts >= limit.enough:
            self.reason = (
                f"{self._failed_attempts:,} of the newest {len(self._newest):,} attempts failed: "
                f"the limit max_failures={limit.share:.0%} of {limit.of:,} is reached"
            )
