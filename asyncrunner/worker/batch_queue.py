"""The batch queue: one batch in a worker, with its limits, its claims and the counts of its outcomes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from asyncrunner.domain.failure_limit import FailureCounter, FailureLimit
from asyncrunner.domain.outcome import Outcome, Released
from asyncrunner.worker.prefetch import Prefetch

if TYPE_CHECKING:
    from asyncrunner.domain.item import Claim
    from asyncrunner.domain.rate_limit import Rate
    from asyncrunner.execution.executor import AttemptExecutor
    from asyncrunner.store.batches import BatchState


class BatchQueue:
    """The batch queue of one batch in this worker: its handler, its limits, and its claims that wait for a slot.

    ``on_turn`` is called after every turn of the worker, and when the batch is stopped. ``state`` is the batch's state
    after the last turn that requested its items, or None if that turn brought all of them. ``stopped`` is the reason
    why the batch was stopped, once the store has it.
    """

    def __init__(
        self, batch_id: int, name: str, runner: AttemptExecutor, *, limit: int, rate: Rate | None = None,
        max_failures: FailureLimit | None = None,
    ) -> None:  # fmt: skip
        self.batch_id = batch_id
        self.name = name
        self.runner = runner
        self.own_limit = limit  # from the program
        self.limit = limit  # in effect; an operator may change it, see set_limit()
        self.rate = rate
        self.pace = Prefetch(limit)
        self.guard = FailureCounter(max_failures)
        self.stopped: str | None = None
        self.ready: deque[Claim] = deque()
        self.started = 0
        self.running = 0
        self.tally: Counter[type[Outcome]] = Counter()  # settled attempts by kind of outcome
        self.held = False  # backpressure: the consumer of the outcome stream is slow
        self.paused = False  # paused by an operator, or stopped by a guardrail
        self.suspects = False  # the next item to claim must run alone
        self.starving = False  # the store has no more due items: nothing to claim until something changes
        self.changes = 0
        self.state: BatchState | None = None
        self.on_turn: Callable[[], object] | None = None
        self._last_start = (0, 0.0)  # the value of `started`, and since when (monotonic) it is unchanged

    def set_limit(self, requested: int | None) -> bool:
        """Set how many handlers may run at the same time; return whether that changed the limit.

        None, or a number below 1, restores the limit from the program.
        """
        limit = self.own_limit if requested is None or requested < 1 else requested
        if limit == self.limit:
            return False
        self.limit = limit
        self.pace.limit_is(limit)
        return True

    def got(self, claims: Sequence[Claim], now: float) -> None:
        """Add claims at *now* (monotonic, seconds). They wait for a slot from then on; the time of the turn does not count."""
        if not self.ready:
            self._last_start = (self.started, now)
        self.ready.extend(claims)
        if claims:
            self.pace.items_had(sum([len(claim.payload) for claim in claims]), len(claims))

    def has_stood_still(self, now: float, seconds: float) -> bool:
        """Return whether claims are ready and none of them has started for *seconds*."""
        if self._last_start[0] != self.started or not self.ready:
            self._last_start = (self.started, now)
            return False
        return now - self._last_start[1] >= seconds

    @property
    def attempts(self) -> int:
        """How many attempts are settled, without released ones."""
        return self.tally.total() - self.tally[Released]

    @property
    def in_hand(self) -> int:
        return self.running + len(self.ready)

    @property
    def ahead(self) -> int:
        """How many items to prefetch beyond the free slots: none for a batch with a rate limit, which counts its starts."""
        return 0 if self.rate is not None else self.pace.ahead()

    @property
    def has_work(self) -> bool:
        """Whether a free slot may start one of the claims."""
        return bool(self.ready) and self.running < self.limit and not self.paused

    @property
    def is_stopped(self) -> bool:
        return self.held or self.guard.reason is not None
