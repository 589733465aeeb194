"""The worker: one pump that owns the store, and slots that run handlers.

The pump's lap: take the outcomes that have piled up, ask the store for one turn that settles them and claims
the refill, hand the claims out. There is no timer: a group is what gathered while the last commit ran. A slot
never waits for its own commit.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import anyio

from asyncrunner.attempt import Attempt, AttemptRunner, Interruption
from asyncrunner.events import Events, Settled, Started
from asyncrunner.item import Failed, Outcome, Released, Retrying
from asyncrunner.pace import Pace
from asyncrunner.store import Want

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from asyncrunner.clock import Clock, Timer
    from asyncrunner.item import Claim
    from asyncrunner.store import BatchState, Store, Turn
    from asyncrunner.transient import Persistence

__all__ = ["Lane", "Worker"]

log = logging.getLogger("asyncrunner")

_HOG_SECONDS: Final = 0.005
"""How long a slot may run handlers that never wait before it lets the others in."""
_UNSTARTED_SECONDS: Final = 1.0
"""A claim that found no slot for that long is given back: another process may have room."""


class Lane:
    """One batch in this worker: its handler, its limit, and its claims on their way to a slot.

    ``on_turn`` is called after every turn that asked for items of the batch; ``state`` is then how the batch
    stands, or None if there was all that was wanted.
    """

    def __init__(self, batch_id: int, runner: AttemptRunner, *, limit: int, max_failures: int | None = None) -> None:
        self.batch_id = batch_id
        self.runner = runner
        self.limit = limit
        self.pace = Pace(limit)
        self.ready: deque[Claim] = deque()
        self.started = 0
        self.running = 0
        self.failed = 0
        self.tally: Counter[type[Outcome]] = Counter()  # of what is settled
        self.max_failures = max_failures
        self.held = False  # its owner lets nothing more be claimed for now
        self.starving = False  # the store had less than was wanted: nothing to ask for until something changes
        self.changes = 0
        self.state: BatchState | None = None
        self.on_turn: Callable[[], object] | None = None
        self._seen = (0, 0.0)

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
    def has_failed_enough(self) -> bool:
        """Whether ``max_failures`` items failed in this worker, which stops the batch here."""
        return self.max_failures is not None and self.failed >= self.max_failures

    @property
    def is_stopped(self) -> bool:
        return self.held or self.has_failed_enough


class Worker:
    """A worker's claims, from the turn that takes them to the turn that settles them.

    ``grace``: seconds that a handler has to end once it was interrupted.
    """

    def __init__(
        self, worker_id: str, store: Store, *, concurrency: int, clock: Clock, events: Events, persist: Persistence,
        grace: float,
    ) -> None:  # fmt: skip
        self.id = worker_id
        self.may_claim = True  # cleared while its own heartbeat cannot be written
        self._store = store
        self._concurrency = concurrency
        self._clock = clock
        self._events = events
        self._persist = persist
        self._grace = grace
        self._lanes: deque[Lane] = deque()
        self._finished: list[Settled] = []
        self._running: set[Attempt] = set()
        self._idle_slots: deque[asyncio.Future[None]] = deque()
        self._slots = 0
        self._news = asyncio.Event()
        self._hungry = asyncio.Event()
        self._draining = False
        self._ended = False
        self._pump_task: asyncio.Task[object] | None = None
        self._timer: Timer | None = None

    # --- what others ask of it -----------------------------------------------------------------------------------

    def add_lane(self, lane: Lane) -> None:
        """Take a batch on."""
        self._lanes.append(lane)
        self.wake(lane)

    def wake(self, lane: Lane | None = None) -> None:
        """There may be items to claim: something was added, released, became due or changed outside."""
        for each in self._lanes if lane is None else (lane,):
            each.changes += 1
            each.starving = False
        self._news.set()

    def drain(self) -> None:
        """Claim no more, give back what has not started, let the handlers end."""
        self._draining = True
        self._news.set()

    def interrupt(self, reason: Interruption) -> None:
        """Stop every handler; one that does not end within the grace is left behind."""
        if reason is Interruption.SHUTDOWN:
            self.drain()
        for attempt in self._running:
            attempt.interrupt(reason)
            self._clock.call_later(self._grace, attempt.abandon)

    @property
    def processed(self) -> int:
        """Attempts settled since it joined, released ones not counted."""
        return sum(lane.attempts for lane in self._lanes)

    @property
    def failures(self) -> int:
        """Of those, the ones that failed."""
        return sum(lane.tally[Failed] + lane.tally[Retrying] for lane in self._lanes)

    @property
    def in_hand(self) -> int:
        """Claims that are not settled yet."""
        return sum(lane.in_hand for lane in self._lanes) + len(self._finished)

    async def wait_until_hungry(self) -> None:
        """Return when there is room and the store had nothing: the time to listen for changes."""
        await self._hungry.wait()

    # --- the pump ------------------------------------------------------------------------------------------------

    async def pump(self, slots: TaskGroup) -> None:
        """Turn after turn, until drained. Then every slot ends. Raises what the store raises for good."""
        self._pump_task = asyncio.current_task()
        try:
            while not (self._draining and self.in_hand == 0):
                self._news.clear()
                self._give_back_unstarted()
                settled = self._take_finished()
                wants = self._wants(settled)
                if settled or wants:
                    self._hungry.clear()
                    await self._turn(settled, wants)
                    self._wake_slot(slots)
                else:
                    await self._wait_for_news()
        finally:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._set_timer(None)
        self.interrupt(Interruption.SHUTDOWN)  # there is nothing to interrupt unless the store failed for good
        while self._idle_slots:
            _resolve(self._idle_slots.popleft())

    async def _turn(self, settled: list[Settled], wants: list[Want]) -> None:
        changes = {lane.batch_id: lane.changes for lane in self._lanes}
        began = self._clock.monotonic()
        try:
            turn = await self._persist(lambda: self._store.turn(self.id, settled, wants, now=self._clock.now()))
        except asyncio.CancelledError:
            # The turn goes on without us: what it settles is settled, what it claims is given back by leave().
            self._torn_down()
            return
        if turn.outcast:
            self.cast_out()
            return
        seconds = self._clock.monotonic() - began
        self._report(settled, turn)
        asked = {want.batch_id for want in wants}
        by_batch: dict[int, list[Claim]] = {}
        for claim in turn.claims:
            by_batch.setdefault(claim.batch_id, []).append(claim)
        for lane in tuple(self._lanes):
            if lane.batch_id in asked:
                lane.pace.turn_took(seconds)
                lane.ready.extend(by_batch.get(lane.batch_id, ()))
                lane.state = turn.batches.get(lane.batch_id)
                lane.starving = lane.state is not None and lane.changes == changes.get(lane.batch_id)
            if lane.on_turn is not None:
                lane.on_turn()
        self._set_timer(self._next_due())

    def _wants(self, settled: list[Settled]) -> list[Want]:
        if self._draining or not self.may_claim:
            return []
        wants: list[Want] = []
        self._lanes.rotate(1)
        room = self._concurrency - sum(lane.in_hand for lane in self._lanes)
        for lane in self._lanes:
            if lane.is_stopped or (lane.starving and not settled):
                continue
            ahead = lane.pace.ahead()
            free = max(0, min(lane.limit - lane.in_hand, room))
            count = min(lane.limit - lane.in_hand, room) + ahead
            # A turn for a handful is not worth it while there is plenty: refill when half of it is gone.
            if count > 0 and count >= ahead // 2:
                wants.append(Want(lane.batch_id, count, lane.runner.max_attempts))
                room -= free
        return wants

    def _report(self, settled: list[Settled], turn: Turn) -> None:
        lost = {(claim.seq, claim.number) for claim in turn.lost}
        lanes = {lane.batch_id: lane for lane in self._lanes}
        announce = self._events.wanted(Settled)
        for done in settled:
            if lost and (done.claim.seq, done.claim.number) in lost:
                log.warning("item %r: its claim was lost, its outcome is dropped", done.claim.id)
                continue
            lanes[done.claim.batch_id].tally[type(done.outcome)] += 1
            if announce:
                self._events.publish(done)

    def cast_out(self) -> None:
        """This worker was declared lost: everything it held was recovered, and it holds nothing any more."""
        log.warning("this worker was declared lost; what it was running is cancelled and runs again elsewhere")
        for lane in self._lanes:
            lane.ready.clear()
        self.interrupt(Interruption.LOST)
        self.may_claim = False  # until the next heartbeat has made it a worker again

    def _take_finished(self) -> list[Settled]:
        finished, self._finished = self._finished, []
        return finished

    def _give_back_unstarted(self) -> None:
        for lane in self._lanes:
            late = lane.has_stood_still(self._clock.monotonic(), _UNSTARTED_SECONDS)
            if late:
                lane.pace.is_slow()
            if late or self._draining or lane.is_stopped:
                now = self._clock.now()
                self._finished += [Settled(claim, Released(), now, now) for claim in lane.ready]
                lane.ready.clear()

    # --- waiting -------------------------------------------------------------------------------------------------

    async def _wait_for_news(self) -> None:
        if any(lane.starving for lane in self._lanes):
            self._hungry.set()
        try:
            await self._news.wait()
        except asyncio.CancelledError:
            self._torn_down()

    def _torn_down(self) -> None:
        # The loop is being closed without a stop(): asyncio.run() cancels every task, once. Give everything back.
        self.interrupt(Interruption.SHUTDOWN)

    def _is_closing(self) -> bool:
        return self._draining or (self._pump_task is not None and self._pump_task.cancelling() > 0)

    def _next_due(self) -> float | None:
        """Seconds until some lane has something to claim, or something to give back."""
        now = self._clock.now()
        waits: list[float] = []
        for lane in self._lanes:
            if lane.state is not None:
                waits += [at - now for at in (lane.state.next_due, lane.state.resting_until) if at is not None]
            if lane.ready:
                waits.append(_UNSTARTED_SECONDS)
        return min(waits, default=None)

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and math.isfinite(seconds):
            # A row's time has milliseconds: a hair later it is due for certain.
            self._timer = self._clock.call_later(max(0.0, seconds) + 0.001, self.wake)

    # --- the slots -----------------------------------------------------------------------------------------------

    def _wake_slot(self, slots: TaskGroup) -> None:
        """One is enough: as soon as its handler waits for something, it wakes the next one."""
        if self._next_lane() is None:
            return
        while self._idle_slots:
            if _resolve(self._idle_slots.popleft()):
                return
        if self._slots < self._concurrency:
            self._slots += 1
            slots.start_soon(self._slot, slots, name=f"asyncrunner slot {self._slots}")

    async def _slot(self, slots: TaskGroup) -> None:
        with anyio.CancelScope(shield=True):  # interrupt() ends handlers, once each; a scope would repeat itself
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            wake_next = partial(self._wake_slot, slots)
            let_others_in_at = self._clock.monotonic() + _HOG_SECONDS
            while not self._ended:
                lane = self._next_lane()
                if lane is None:
                    await self._rest()
                    let_others_in_at = self._clock.monotonic() + _HOG_SECONDS
                    continue
                await self._run(lane, lane.ready.popleft(), task, wake_next)
                if self._clock.monotonic() >= let_others_in_at:
                    await _let_others_in()
                    let_others_in_at = self._clock.monotonic() + _HOG_SECONDS

    async def _run(self, lane: Lane, claim: Claim, task: asyncio.Task[Any], wake_next: Callable[[], object]) -> None:
        attempt = lane.runner.prepare(claim)
        self._running.add(attempt)
        lane.running += 1
        lane.started += 1
        if self._events.wanted(Started):
            self._events.publish(Started(lane.batch_id, claim.id, claim.attempt))
        settled = await lane.runner.run(claim, attempt, task, is_closing=self._is_closing, on_wait=wake_next)
        lane.running -= 1
        self._running.discard(attempt)
        if settled is not None:
            lane.pace.item_took(settled.seconds)
            lane.failed += isinstance(settled.outcome, Failed)
            self._finished.append(settled)
        self._news.set()

    def _next_lane(self) -> Lane | None:
        for _ in range(len(self._lanes)):
            lane = self._lanes[0]
            if lane.ready and lane.running < lane.limit:
                return lane
            self._lanes.rotate(-1)
        return None

    async def _rest(self) -> None:
        wake_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle_slots.append(wake_up)
        try:
            await wake_up
        except asyncio.CancelledError:
            self._torn_down()


def _resolve(future: asyncio.Future[None]) -> bool:
    if future.done():
        return False  # cancelled from outside
    future.set_result(None)
    return True


async def _let_others_in() -> None:
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        pass  # the loop is being closed; the pump hears of it too
