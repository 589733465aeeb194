"""Batches as the store gives them: options, state and live controls."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from asyncrunner.domain.retry import RetryPolicy


class BatchOptions(msgspec.Struct, frozen=True):
    """The options that a worker needs to recover items of a batch, even without its handler. Times are seconds."""

    max_attempts: int = 3
    initial: float = 1.0
    factor: float = 2.0
    cap: float = 300.0
    jitter: str = "full"

    @classmethod
    def of(cls, max_attempts: int, policy: RetryPolicy) -> BatchOptions:
        return cls(max_attempts, policy.initial, policy.factor, policy.cap, policy.jitter)

    def policy(self) -> RetryPolicy:
        """Return the backoff of the batch; only the program with the handler knows which errors are transient."""
        return RetryPolicy(
            initial=self.initial,
            factor=self.factor,
            cap=self.cap,
            jitter="none" if self.jitter == "none" else "full",
        )


class Batch(NamedTuple):
    """A named set of items with one handler."""

    batch_id: int
    name: str


class Added(NamedTuple):
    """Counts for an added chunk: new items, keys that existed, and existing keys with another payload.

    ``undone``: how many of the changed items were completed and are pending again.
    """

    new: int
    existing: int
    changed: int
    undone: int


class BatchState(NamedTuple):
    """The state of a batch after a turn that brought a worker fewer items than it requested.

    ``unfinished``: some item is pending or processing, in any worker. ``next_due``: the earliest time at which
    a waiting item may run. ``resting_until``: an operator, ``Retry(pause=True)`` or the rate limit holds the batch until
    then (infinity: until resumed). ``concurrency``: how many items a worker may run at the same time, set by an operator.
    ``stopped``: why a guardrail stopped the batch. ``suspects``: the next item to claim must run alone.
    """

    unfinished: bool
    next_due: float | None
    resting_until: float | None
    concurrency: int | None
    stopped: str | None = None
    suspects: bool = False


class Controls(NamedTuple):
    """An operator's settings for a batch. ``held``: start no more items (paused, or stopped by a guardrail).

    ``concurrency``: how many handlers may run at the same time in a worker; None: the program's own number.
    """

    held: bool
    concurrency: int | None
