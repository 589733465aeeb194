"""Batches as a store returns them: options, version, state and live controls."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, cast, get_args

import msgspec

from asyncrunner.domain.item import Claim, Suspicion

if TYPE_CHECKING:
    from asyncrunner.domain.retry import Jitter, RetryPolicy

OTHER_VERSION: Final = "the batch was started with another version while this worker was declared lost"
"""Why a batch is stopped for a worker whose version is no longer the batch's."""

_MIN_STEP_SECONDS: Final = 0.025
_MAX_STEP_SECONDS: Final = 0.1


class BatchOptions(msgspec.Struct, frozen=True):
    """The options of a batch that other programs need, even without its handler: to recover items, and to show them.

    Times are seconds.
    """

    max_attempts: int = 5
    initial: float = 1.0
    factor: float = 6.0
    cap: float = 300.0
    jitter: str = "equal"
    throttled_for: float = 21_600.0

    @classmethod
    def of(cls, max_attempts: int, policy: RetryPolicy) -> BatchOptions:
        return cls(max_attempts, policy.initial, policy.factor, policy.cap, policy.jitter, policy.throttled_seconds)

    def policy(self) -> RetryPolicy:
        """Return the backoff of the batch. Only the program that has the handler knows which errors are transient."""
        from asyncrunner.domain.retry import Jitter, RetryPolicy  # a command that only reads starts faster without it

        return RetryPolicy(
            initial=self.initial,
            factor=self.factor,
            cap=self.cap,
            jitter=cast("Jitter", self.jitter if self.jitter in get_args(Jitter) else "equal"),
        )


class Batch(NamedTuple):
    """A named set of items with one handler."""

    batch_id: int
    name: str


class Rival(NamedTuple):
    """A worker that runs another version of a batch's handler, and is not known to be dead."""

    worker_id: str
    host: str
    pid: int
    role: str
    version: str


class BatchVersion(NamedTuple):
    """The version of a batch's handler that a worker runs, as a number that grows with each change of the version.

    ``is_applied``: every item that another version completed is pending. ``rivals``: the workers because of which the
    version was refused; then nothing has changed.
    """

    number: int
    is_applied: bool
    rivals: Sequence[Rival] = ()


class LargeChange:
    """A change of many items in short transactions; ``step`` is the number of items of the next one.

    The step adapts, so that a transaction takes about 50 ms whatever the size of the results is: it holds the write lock,
    and rewrites a row with its result.
    """

    MAX_STEP: Final = 2000

    def __init__(self, step: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.step = step
        self._monotonic = monotonic

    @contextmanager
    def measured(self) -> Generator[None, None, None]:
        """Measure the transaction of one step, and adapt the next step."""
        began = self._monotonic()
        yield
        seconds = self._monotonic() - began
        if seconds < _MIN_STEP_SECONDS:
            self.step = min(2 * self.step, self.MAX_STEP)
        elif seconds > _MAX_STEP_SECONDS:
            self.step = max(self.step // 4, 1)


class Added(NamedTuple):
    """The counts of an added chunk: new items, existing keys, and those existing keys that have another payload.

    ``undone``: the numbers of the changed items that were completed and are pending again. ``seqs``: for each entry of the chunk,
    in its order, the number of the item that has its key; entries with one key have one number. ``known``: the keys that
    existed before the chunk. ``claims``: the new items that were claimed with the add, in the order of the chunk.
    """

    new: int
    existing: int
    changed: int
    undone: Sequence[int]
    seqs: Sequence[int] = ()
    known: frozenset[str] = frozenset()
    claims: Sequence[Claim] = ()


class BatchState(NamedTuple):
    """The state of a batch after a turn that returned fewer items than a worker requested, or that found a suspect.

    ``unfinished``: an item is pending or processing, in any worker. ``next_due``: the earliest time at which a waiting
    item may run. ``resting_until``: the time until which an operator, ``Retry(pause=True)`` or the rate limit prevents
    claims (infinity: until the batch is resumed). ``concurrency``: the maximum number of items that a worker runs at
    the same time, if an operator has set it. ``stopped``: why a guardrail stopped the batch. ``suspicion``: the
    suspicion of the next suspect to claim; only a request for a suspect claims it.
    """

    unfinished: bool
    next_due: float | None
    resting_until: float | None
    concurrency: int | None
    stopped: str | None = None
    suspicion: Suspicion = Suspicion.NONE


class Controls(NamedTuple):
    """The live controls of a batch. ``blocked``: no more items start, because the batch is paused or stopped.

    ``concurrency``: the maximum number of handlers that run at the same time in a worker; None: the program's number.
    """

    blocked: bool
    concurrency: int | None
