"""When a batch that fails everywhere is stopped: pure counting of outcomes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from asyncrunner.errors import ConfigurationError
from asyncrunner.item import Completed, Failed, Outcome, Retrying

__all__ = ["FailureLimit", "FailureShare", "Guard"]


@dataclass(frozen=True, slots=True)
class FailureShare:
    """Stop when at least ``share`` (0 to 1) of the newest ``of`` attempts failed.

    That is as soon as so many of them failed as that share of ``of`` is, so the window need not be full. An attempt that
    raised ``Retry`` asked for it and counts as neither. ``max_failures=0.5`` is ``FailureShare(0.5)``.
    """

    share: float
    of: int = 100

    def __post_init__(self) -> None:
        if not (isinstance(self.share, int | float) and not isinstance(self.share, bool) and 0 < self.share <= 1):
            raise ConfigurationError(f"FailureShare(share={self.share!r}): give a number above 0, and 1 at most")
        if not isinstance(self.of, int) or isinstance(self.of, bool) or not 1 <= self.of <= 1_000_000:
            raise ConfigurationError(f"FailureShare(of={self.of!r}): give how many attempts to look at, 1 to 1,000,000")

    @property
    def enough(self) -> float:
        """How many failed attempts among the newest ``of`` stop the batch."""
        return max(1.0, self.share * self.of)


FailureLimit = int | FailureShare
"""How many failed items stop a batch, or which share of the newest attempts."""


class Guard:
    """Counts one worker's outcomes of one batch. ``reason`` says why the batch shall stop, or None."""

    def __init__(self, limit: FailureLimit | None) -> None:
        self._limit = limit
        self.reset()

    @property
    def is_watching(self) -> bool:
        """Whether there is a limit that outcomes count for."""
        return self._limit is not None

    def reset(self) -> None:
        """Begin anew: what was seen is forgotten."""
        self._failed_items = 0
        self._failed_attempts = 0
        self._newest: deque[bool] = deque()
        self.reason: str | None = None

    def trip(self, reason: str) -> None:
        """Stop the batch for a reason of somebody else's."""
        self.reason = self.reason or reason

    def saw(self, outcome: Outcome) -> None:
        """Count one."""
        limit = self._limit
        if limit is None:
            return
        if isinstance(limit, FailureShare):
            self._count_attempt(limit, outcome)
        elif isinstance(outcome, Failed):
            self._failed_items += 1
            if self._failed_items >= limit:
                self.reason = f"{self._failed_items:,} items failed, as many as max_failures={limit} allows"

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
                f"{self._failed_attempts:,} of the newest {len(self._newest):,} attempts failed, and "
                f"max_failures allows {limit.share:.0%} of {limit.of:,}"
            )
