"""One batch in a worker: what it may hold, what it holds, and what came of it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from asyncrunner.guard import FailureLimit, Guard
from asyncrunner.item import Outcome, Released
from asyncrunner.pace import Pace

if TYPE_CHECKING:
    from asyncrunner.attempt import AttemptRunner
    from asyncrunner.item import Claim
    from asyncrunner.rate import Rate
    from asyncrunner.store import BatchState

__all__ = ["Lane"]


class Lane:
    """One batch in this worker: its handler, its limit, and its claims on their way to a slot.

    ``on_turn`` is called after every turn that asked for items of the batch; ``state`` is then how the batch
    stands, or None if there was all that was wanted. ``stopped`` is why a guardrail stopped it, once that is in the store.
    """

    def __init__(
        self, batch_id: int, name: str, runner: AttemptRunner, *, limit: int, rate: Rate | None = None,
        max_failures: FailureLimit | None = None,
    ) -> None:  # fmt: skip
        self.batch_id = batch_id
        self.name = name
        self.runner = runner
        self.own_limit = limit  # as the program says
        self.limit = limit  # as a person says, see set_limit()
        self.rate = rate
        self.pace = Pace(limit)
        self.guard = Guard(max_failures)
        self.stopped: str | None = None
        self.ready: deque[Claim] = deque()
        self.started = 0
        self.running = 0
        self.tally: Counter[type[Outcome]] = Counter()  # of what is settled
        self.held = False  # its owner lets nothing more be claimed for now
        self.paused = False  # a person, or a guardrail in another process, lets nothing more start
        self.suspects = False  # it is the turn of an item that must run alone
        self.starving = False  # the store had less than was wanted: nothing to ask for until something changes
        self.changes = 0
        self.state: BatchState | None = None
        self.on_turn: Callable[[], object] | None = None
        self._seen = (0, 0.0)

    def set_limit(self, wanted: int | None) -> bool:
        """Run so many at once as a person asks; whether that is something new. What is no number of slots is not asked."""
        limit = self.own_limit if wanted is None or wanted < 1 else wanted
        if limit == self.limit:
            return False
        self.limit = limit
        self.pace.limit_is(limit)
        return True

    def got(self, claims: Sequence[Claim], now: float) -> None:
        """Take claims in, at *now* on the monotonic clock. However long the store took to give them, they have not waited yet."""
        if not self.ready:
            self._seen = (self.started, now)
        self.ready.extend(claims)
        if claims:
            self.pace.items_had(sum([len(claim.payload) for claim in claims]), len(claims))

    def has_stood_still(self, now: float, seconds: float) -> bool:
        """Whether claims are ready and none of them found a slot for that long."""
        if self._seen[0] != self.started or not self.ready:
            self._seen = (self.started, now)
            return False
        return now - self._seen[1] >= seconds

    @property
    def attempts(self) -> int:
        """How many are settled, released ones not counted."""
        return self.tally.total() - self.tally[Released]

    @property
    def in_hand(self) -> int:
        return self.running + len(self.ready)

    @property
    def ahead(self) -> int:
        """How many items to hold beyond the free slots: none of a batch whose starts are counted."""
        return 0 if self.rate is not None else self.pace.ahead()

    @property
    def has_work(self) -> bool:
        """Whether a free slot may take a claim of it."""
        return bool(self.ready) and self.running < self.limit and not self.paused

    @property
    def is_stopped(self) -> bool:
        return self.held or self.guard.reason is not None
