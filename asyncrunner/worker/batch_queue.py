"""The batch queue: one batch in a worker, with its limits, its claims and the counts of its outcomes."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from asyncrunner.domain.failure_limit import FailureCounter, FailureLimit
from asyncrunner.domain.outcome import Outcome, Released, Retrying
from asyncrunner.store.batches import BatchState
from asyncrunner.worker.admission import Blocked, why_blocked
from asyncrunner.worker.prefetch import Prefetch

if TYPE_CHECKING:
    from asyncrunner.domain.item import Claim
    from asyncrunner.domain.outcome import Settlement
    from asyncrunner.domain.rate_limit import Rate
    from asyncrunner.execution.execution import Execution
    from asyncrunner.execution.executor import AttemptExecutor

_NEVER: Final = -1  # differs from every count of changes


class BatchQueue:
    """One batch in this worker: its handler, its limits, the claims that wait for a slot, and the claims that run.

    The pump adds claims to ``ready``, and slots move them to ``running``. ``state`` is the batch's state after the last
    turn that requested its items, or None if that turn returned all of them and found no suspect. Two events report the
    end of the batch: ``idle`` is set while no item is pending or processing, in any worker, and ``stopped`` is set
    while the store has the batch as stopped.
    """

    def __init__(
        self,
        batch_id: int,
        name: str,
        executor: AttemptExecutor,
        *,
        limit: int,
        rate: Rate | None = None,
        max_failures: FailureLimit | None = None,
    ) -> None:
        self.batch_id = batch_id
        self.name = name
        self.executor = executor
        self.limit = limit  # in effect; an operator may change it, see set_limit()
        self.rate = rate
        self.prefetch = Prefetch(limit)
        self.failures = FailureCounter(max_failures)
        self.ready: deque[Claim] = deque()
        self.running: set[Execution] = set()
        self.tally: Counter[type[Outcome]] = Counter()  # settled attempts by kind of outcome; the publisher counts them
        self.backpressure = False  # True while the consumer of the outcome stream is slow; the stream sets it
        self.paused = False  # True while no claim starts: the batch is paused, or stopped by a limit or deadline
        self.state: BatchState | None = None
        self.idle = asyncio.Event()
        self.stopped = asyncio.Event()
        self._turned = asyncio.Event()  # set only for a moment, see notify_turn()
        self._own_limit = limit  # from the program
        self._changes = 0  # how often mark_changed() was called
        self._requested_at = 0  # the value of _changes when the last turn began
        self._answered_at = _NEVER  # the value of _changes when the turn of `state` began, if `state` is conclusive
        self._head: tuple[Claim | None, float] = (None, 0.0)  # the first claim in `ready`, and since when (monotonic)

    # --- limits and counts ---------------------------------------------------------------------------------------

    def set_limit(self, requested: int | None) -> bool:
        """Set how many handlers may run at the same time; return whether that changed the limit.

        None, or a number below 1, restores the limit from the program.
        """
        limit = self._own_limit if requested is None or requested < 1 else requested
        if limit == self.limit:
            return False
        self.limit = limit
        self.prefetch.set_limit(limit)
        return True

    def set_paused(self, paused: bool) -> bool:
        """Set whether claims that have not started may start; return whether that changed ``paused``."""
        is_change = paused != self.paused
        self.paused = paused
        return is_change

    @property
    def attempts(self) -> int:
        """The number of settled attempts, without released ones."""
        return self.tally.total() - self.tally[Released]

    @property
    def done(self) -> int:
        """The number of settled attempts after which their item is not retried."""
        return self.attempts - self.tally[Retrying]

    @property
    def in_hand(self) -> int:
        """The number of claims that run or wait for a slot."""
        return len(self.running) + len(self.ready)

    @property
    def ahead(self) -> int:
        """The number of items to prefetch beyond the free slots; 0 with a rate limit, which counts claims as starts."""
        return 0 if self.rate is not None else self.prefetch.ahead()

    # --- claims --------------------------------------------------------------------------------------------------

    def take_in(self, claims: Sequence[Claim], now: float) -> None:
        """Add claims.

        They wait for a slot since *now* (monotonic, seconds); the duration of their turn does not count.
        """
        if claims:
            if not self.ready:
                self._head = (claims[0], now)
            self.ready.extend(claims)
            self.prefetch.record_sizes(sum([len(claim.payload) for claim in claims]), len(claims))

    @property
    def has_work(self) -> bool:
        """Whether a free slot may start one of the claims."""
        return bool(self.ready) and len(self.running) < self.limit and not self.paused and self.failures.reason is None

    def has_stood_still(self, now: float, seconds: float) -> bool:
        """Return whether claims are ready and none of them has started for *seconds*."""
        head = self.ready[0] if self.ready else None
        if head is not self._head[0]:
            self._head = (head, now)
        return head is not None and now - self._head[1] >= seconds

    def take_unstarted(self) -> list[Claim]:
        """Remove and return the claims that have not started."""
        claims = list(self.ready)
        self.ready.clear()
        return claims

    def record_finished(self, settlements: Sequence[Settlement]) -> None:
        """Record the durations of attempts that have ended."""
        self.mark_changed()  # a slot is free, and the store may have a retry: claim again
        ended = [settled for settled in settlements if type(settled.outcome) is not Released]
        if ended:
            seconds = sum([settled.finished_at for settled in ended]) - sum([settled.started_at for settled in ended])
            self.prefetch.record_items(seconds, len(ended))

    def count_outcome(self, outcome: Outcome) -> None:
        """Count *outcome* for the failure limit; once the limit is reached, no more claims start.

        Outcomes of handlers that end after the stop do not count: they would report a second stop.
        """
        if self.stop_reason is None:
            self.failures.count(outcome)

    # --- what the store has --------------------------------------------------------------------------------------

    @property
    def blocked(self) -> Blocked:
        """The reason why the worker requests no items of the batch."""
        return why_blocked(
            self.state, is_current=self.exhausted, stop_reason=self.failures.reason, backpressure=self.backpressure
        )

    @property
    def exhausted(self) -> bool:
        """Whether the store has no more items that the worker may claim until the batch changes."""
        return self._answered_at == self._changes

    @property
    def stop_reason(self) -> str | None:
        """The reason why the batch is stopped in the store; None if the batch is not stopped."""
        return None if self.state is None else self.state.stopped

    def mark_changed(self) -> None:
        """Record that items may have been added, released or changed: the last answer of the store is now outdated."""
        self._changes += 1
        self.idle.clear()

    def begin_turn(self) -> None:
        """Record that a turn begins. The answer of that turn does not include changes that happen later."""
        self._requested_at = self._changes

    def record_answer(self, state: BatchState | None, *, for_suspect: bool) -> None:
        """Record the answer of a turn that requested items; with *for_suspect*, of a turn that requested a suspect.

        The answer to a request for a suspect is not conclusive, because such a turn does not look for other items.
        """
        self.state = state
        is_conclusive = state is not None and not (state.suspects or for_suspect)
        self._answered_at = self._requested_at if is_conclusive else _NEVER
        self._update_events()

    def record_stop(self, reason: str) -> None:
        """Record that the batch is stopped in the store for *reason*; the store then returns no claims of the batch."""
        self.failures.reset()
        self.paused = True
        self.state = BatchState(True, None, math.inf, None, stopped=reason)
        self._answered_at = self._changes
        self._update_events()

    def _update_events(self) -> None:
        state = self.state
        _set(self.stopped, state is not None and state.stopped is not None)
        _set(self.idle, state is not None and state.stopped is None and not state.unfinished and self.exhausted)

    # --- turns ---------------------------------------------------------------------------------------------------

    def notify_turn(self) -> None:
        """Wake the tasks that wait in ``wait_for_turn()``."""
        self._turned.set()
        self._turned.clear()

    async def wait_for_turn(self) -> None:
        """Wait until the worker's next turn is committed and its outcomes are counted."""
        await self._turned.wait()


def _set(event: asyncio.Event, value: bool) -> None:
    if value:
        event.set()
    else:
        event.clear()
