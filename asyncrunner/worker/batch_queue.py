"""The batch queue: one batch in a worker, with its limits, its claims, its prefetch and the counts of its outcomes."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from asyncrunner.domain.adaptive_limit import AdaptiveLimit
from asyncrunner.domain.failure_limit import FailureCounter, FailureLimit
from asyncrunner.domain.outcome import Cancelled, Outcome, PutOff, Released, Retrying
from asyncrunner.store.workers import Throttle
from asyncrunner.worker.admission import Blocked, ConsumerWindow, StoreAnswer, why_blocked

if TYPE_CHECKING:
    from asyncrunner.domain.item import Claim
    from asyncrunner.domain.outcome import Settlement
    from asyncrunner.domain.rate_limit import Rate
    from asyncrunner.execution.execution import Execution
    from asyncrunner.execution.executor import AttemptExecutor

_MIN_ITEM_SECONDS: Final = 5e-6  # the time that the event loop needs for an item whose handler does nothing
_WEIGHT: Final = 0.2  # the weight of the newest measurement in a moving average
_LONGEST_DECAY: Final = 0.995  # by which the longest of the recent turns is multiplied with each turn
_MAX_PREFETCH_CHARACTERS: Final = 16 * 1024 * 1024  # of payload, in all prefetched items together


class Prefetch:
    """The prefetch for *limit* slots: the number of items that the slots can finish during one turn.

    If a handler takes at least as long as a turn, the number is that of two turns as long as the longest of the recent ones,
    because a worker requests items when half of them are used up: hardly a slot waits for a turn, and all other items stay in
    the store for other workers. It is then at most one item per slot, and 0 for slow handlers in few slots. It is 0
    before the first handler has ended.

    It is at most ``MAX_ITEMS``: a large turn costs less for an item, because it writes fewer pages, but it holds the write lock
    for some hundredths of a second. With other workers on the store it is at most ten items per slot, but that maximum is never
    below 1,000 and never above 2,000. The payloads of the prefetched items have at most 16 Mi characters together.
    """

    MAX_ITEMS: Final = 8000
    _MAX_SHARED: Final = (1000, 2000)

    def __init__(self, limit: int) -> None:
        self.set_limit(limit)
        self._item_seconds = math.inf
        self._turn_seconds = 0.0
        self._longest_turn_seconds = 0.0
        self._item_size = 0.0

    def set_limit(self, limit: int) -> None:
        """Set the number of slots."""
        self._limit = limit

    def record_turn(self, seconds: float, *, has_claimed: bool = True) -> None:
        """Record the duration of a turn. *has_claimed*: the turn requested items of this batch."""
        if has_claimed:
            self._turn_seconds += _WEIGHT * (seconds - self._turn_seconds)
        self._longest_turn_seconds = max(seconds, _LONGEST_DECAY * self._longest_turn_seconds)

    def record_items(self, seconds: float, count: int) -> None:
        """Record that *count* handlers ran; *seconds* is the sum of their durations."""
        mean = seconds / count
        if self._item_seconds == math.inf:
            self._item_seconds = mean
        else:
            self._item_seconds += (1.0 - (1.0 - _WEIGHT) ** count) * (mean - self._item_seconds)

    def record_sizes(self, size: int, count: int) -> None:
        """Record that *count* items were claimed, with *size* characters of payload in total."""
        self._item_size = max(size / count, self._item_size * (1.0 - _WEIGHT))

    def assume_slow(self) -> None:
        """Assume that a handler takes at least a second, because claims have waited too long for a slot."""
        self._item_seconds = max(self._item_seconds, 1.0)

    @property
    def is_quick(self) -> bool:
        """Whether an average handler takes less time than an average turn."""
        return self._item_seconds < self._turn_seconds

    def ahead(self, *, is_shared: bool = False) -> int:
        """Return how many items to claim beyond the free slots. *is_shared*: there are other workers on the store."""
        least, most = self._MAX_SHARED
        max_items = min(max(10 * self._limit, least), most) if is_shared else self.MAX_ITEMS
        max_items = min(max_items, int(_MAX_PREFETCH_CHARACTERS / max(self._item_size, 1.0)))
        seconds = max(self._item_seconds, _MIN_ITEM_SECONDS)
        if self.is_quick:
            return min(max_items, int(self._limit * self._turn_seconds / seconds))
        return min(max_items, self._limit, int(2 * self._limit * self._longest_turn_seconds / seconds))


class BatchQueue:
    """One batch in this worker: its handler, its limits, the claims that wait for a slot, and the claims that run.

    The pump adds claims to ``ready``, and slots move them to ``running``. ``answer`` has what the store last returned
    about the batch.
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
        self.limit = limit  # in effect; changed by an operator, and by a service that puts items off
        self.rate = rate
        self.version: int | None = None  # the number of the version of the handler, if the program gave one
        self.only_given = False  # True: the worker requests only the items that EngineStore.give has named
        self.has_to_itself: Callable[[], bool] = lambda: False  # whether no other worker may want items
        self.let_threads_in: Callable[[], object] = bool  # code that keeps the interpreter for long calls this regularly
        self.is_fed = False  # True: the adds of a source claim its items, so that turns need not look for them
        self.has_backlog = False  # True: the store has items that an add left for a turn to claim
        self.requested = 0  # items that adds in progress may claim
        self.requested_by_turn = 0  # items that the turn in progress may claim
        self.runs_in_children = False  # True: child processes claim the items, and this worker claims none
        self.throttle = AdaptiveLimit(limit)
        self.prefetch = Prefetch(limit)
        self.failures = FailureCounter(max_failures)
        self.ready: deque[Claim] = deque()
        self.running: set[Execution] = set()
        self.tally: Counter[type[Outcome]] = Counter()  # settled attempts by kind of outcome; the publisher counts them
        self.window: ConsumerWindow | None = None  # of the outcome stream, which sets it
        self.is_resting = False  # True while no claim starts, because a service puts items off; see refresh_limit()
        self.paused = False  # True while no claim starts: the batch is paused, or stopped by a limit or deadline
        self.answer = StoreAnswer()
        self._turned = asyncio.Event()  # set only for a moment, see notify_turn()
        self._own_limit = limit  # from the program
        self.base_limit: int = limit  # from the operator if set, otherwise from the program
        self._is_from_operator = False
        self._head: tuple[Claim | None, float] = (None, 0.0)  # the first claim in `ready`, and since when (monotonic)

    # --- limits and counts ---------------------------------------------------------------------------------------

    def set_limit(self, requested: int | None) -> bool:
        """Set how many handlers may run at the same time; return whether that changed the limit.

        None, or a number below 1, restores the limit from the program.
        """
        is_from_operator = requested is not None and requested >= 1
        limit = requested if requested is not None and requested >= 1 else self._own_limit
        if (limit, is_from_operator) == (self.base_limit, self._is_from_operator):
            return False
        self.base_limit = limit
        self._is_from_operator = is_from_operator
        self.limit = self._without_throttle()
        self.prefetch.set_limit(limit)
        if self.window is not None:
            self.window.set_limit(limit)
        return True

    @property
    def adapts(self) -> bool:
        """Whether a service that puts items off slows the batch down; a rate limit and an operator's limit prevent that."""
        return self.rate is None and not self._is_from_operator

    def adapt_limit(self, settled: Settlement, now: float) -> bool:
        """Adapt the limit to an attempt that ended *now* (monotonic); return whether the batch rests from now on."""
        outcome = settled.outcome
        if not self.adapts or type(outcome) in (Released, Cancelled):
            return False
        throttle = self.throttle
        was_resting = throttle.is_resting(now)
        began = now - (settled.finished_at - settled.started_at)
        is_repeated = settled.claim.put_off_at is not None
        if isinstance(outcome, PutOff) and outcome.is_refusal:
            if not throttle.is_active:
                throttle.begin(self.attempts)
            throttle.record_refusal(began, now, outcome.after, is_repeated=is_repeated)
        elif throttle.is_active and not isinstance(outcome, PutOff):
            throttle.record_success(began, now, len(self.running), is_repeated=is_repeated)
        self.refresh_limit(now)
        return throttle.is_resting(now) and not was_resting

    def refresh_limit(self, now: float) -> None:
        """Set the limit that is in effect *now* (monotonic): 0 while the batch rests because a service puts items off."""
        self.is_resting = self.adapts and self.throttle.is_resting(now)
        if self.adapts:
            self.limit = 0 if self.is_resting else min(self._without_throttle(), self.throttle.limit)
        else:
            self.limit = self._without_throttle()

    def _without_throttle(self) -> int:
        return 1 if self.failures.is_probing else self.base_limit

    def current_throttle(self, now: float, seconds_ahead: float) -> Throttle | None:
        """Return how a service slows the batch down *now* (monotonic); None if it does not.

        *seconds_ahead*: the wall clock's time minus the monotonic time.
        """
        throttle = self.throttle
        self.refresh_limit(now)
        is_slowed = self.is_resting or throttle.target < throttle.ceiling
        if throttle.refused_at is None or not self.adapts or not is_slowed:
            return None
        limit = 0 if self.is_resting else throttle.target
        return Throttle(limit, throttle.ceiling, throttle.refused_at + seconds_ahead)

    def set_paused(self, paused: bool) -> bool:
        """Set whether claims that have not started may start; return whether that changed ``paused``."""
        is_change = paused != self.paused
        self.paused = paused
        return is_change

    @property
    def attempts(self) -> int:
        """The number of settled attempts, without those that were refunded."""
        return self.tally.total() - self.tally[Released] - self.tally[PutOff]

    @property
    def done(self) -> int:
        """The number of settled attempts after which their item is not retried."""
        return self.attempts - self.tally[Retrying]

    @property
    def in_hand(self) -> int:
        """The number of claims that run or wait for a slot, and of those that the turn and the adds in progress may return."""
        return len(self.running) + len(self.ready) + self.requested + self.requested_by_turn

    @property
    def ahead(self) -> int:
        """The number of items to prefetch beyond the free slots; 0 with a rate limit and while a service slows the batch."""
        if self.rate is not None or self.throttle.is_active or self.failures.is_probing:
            return 0
        ahead = self.prefetch.ahead(is_shared=not self.has_to_itself())
        return ahead if self.window is None else min(ahead, max(0, self.window.size - self.limit))

    @property
    def room_for_source(self) -> int | None:
        """How many items a source should add now, so that the add claims them, which saves a later claim; 0: none yet.

        None: all that the source has, because the handlers are slower than the store, or other workers may claim the items.
        """
        if not self.prefetch.is_quick or not self.has_to_itself():
            return None
        most = self.limit + self.ahead
        if most == self.limit:
            return None
        if self.has_backlog:
            return 0
        room = most - self.in_hand
        return room if room >= most // 2 else 0

    @property
    def has_enough(self) -> bool:
        """Whether a turn need not look for items, because the source adds the next ones while others are in hand."""
        return self.is_fed and self.in_hand > 0

    # --- claims --------------------------------------------------------------------------------------------------

    def take_in(self, claims: Sequence[Claim], now: float) -> None:
        """Add claims.

        They wait for a slot since *now* (monotonic, seconds); the duration of their turn does not count.
        """
        if claims:
            if not self.ready:
                self._head = (claims[0], now)
            first = claims[0]
            if first.suspicion:  # the store returns a suspect first; others wait for it, so it gets the next slot
                self.ready.appendleft(first)
                self.ready.extend(claims[1:])
            else:
                self.ready.extend(claims)
            self.prefetch.record_sizes(sum([len(claim.payload) for claim in claims]), len(claims))

    @property
    def has_work(self) -> bool:
        """Whether a free slot may start one of the claims."""
        failures = self.failures
        has_slot = bool(self.ready) and len(self.running) < self.limit and not self.paused
        return has_slot and failures.reason is None and failures.rest_reason is None

    def holds(self, claim: Claim) -> bool:
        """Return whether *claim* runs or waits for a slot. The call searches all claims of the queue; use it for few claims."""
        return any(execution.claim is claim for execution in self.running) or any(each is claim for each in self.ready)

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
        self.answer.mark_changed()  # a slot is free, and the store may have a retry: claim again
        if self.window is not None:
            self.window.settling = len(settlements)
        ended = [settled for settled in settlements if type(settled.outcome) is not Released]
        if ended:
            seconds = sum([settled.finished_at for settled in ended]) - sum([settled.started_at for settled in ended])
            self.prefetch.record_items(seconds, len(ended))

    def count_outcome(self, settled: Settlement, now: float) -> bool:
        """Count an outcome for the failure limit *now* (monotonic); once the limit is reached, no more claims start.

        Outcomes of handlers that end after the stop do not count: they would report a second stop. Return whether the
        batch continues, because the item that ran as a test after a rest completed.
        """
        if self.answer.stop_reason is not None:
            return False
        was_probing = self.failures.is_probing
        self.failures.count(settled.outcome, now - (settled.finished_at - settled.started_at))
        if self.failures.is_probing == was_probing:
            return False
        self.refresh_limit(now)
        return True

    # --- requests ------------------------------------------------------------------------------------------------

    @property
    def blocked(self) -> Blocked:
        """The reason why the worker requests no items of the batch."""
        if self.runs_in_children:
            return Blocked.CHILDREN
        answer = self.answer
        return why_blocked(
            answer.state,
            is_current=answer.exhausted,
            stop_reason=self.failures.reason,
            backpressure=self.window is not None and self.window.is_full,
            throttled=self.is_resting,
        )

    def record_stop(self, reason: str) -> None:
        """Record that the batch is stopped in the store for *reason*: no claim starts, and the failures count anew."""
        self.failures.reset()
        self.paused = True
        self.answer.record_stop(reason)

    def record_rest(self, now: float) -> None:
        """Record that the batch rests in the store since *now* (monotonic): after the rest one item at a time may start."""
        self.failures.record_rest(now)
        self.refresh_limit(now)
        self.answer.mark_changed()

    # --- turns ---------------------------------------------------------------------------------------------------

    def begin_turn(self, requested: int) -> None:
        """Record that a turn begins that requests so many items of the batch."""
        self.answer.begin_turn()
        self.requested_by_turn = requested

    def notify_turn(self) -> None:
        """Record the end of a turn: wake the tasks that wait in ``wait_for_turn()``."""
        if self.window is not None:
            self.window.settling = 0
        self.notify_room()

    def notify_room(self) -> None:
        """Wake the tasks that wait in ``wait_for_turn()``, because there may be room for more items."""
        self._turned.set()
        self._turned.clear()

    async def wait_for_turn(self) -> None:
        """Wait until the worker's next turn is committed and its outcomes are counted, or until an add has ended."""
        await self._turned.wait()
