"""The worker: it claims items, runs them in slots, and settles their outcomes in one loop, the pump.

One round of the pump takes the outcomes that wait, makes one store turn that settles them and claims the next items,
and gives the claims to the slots. No timer forms the groups: a group is the outcomes that ended during the previous
commit. A slot does not wait for the commit of its outcome; only a large result is stored first, in pieces.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from asyncrunner.domain.item import Suspicion
from asyncrunner.domain.outcome import Failed, Released, Retrying, Settlement
from asyncrunner.events import Events
from asyncrunner.execution.execution import Execution, Interruption
from asyncrunner.store.turn import ClaimRequest
from asyncrunner.worker.admission import Blocked, allocate, want_new
from asyncrunner.worker.batch_queue import BatchQueue
from asyncrunner.worker.checkpoints import Checkpoints
from asyncrunner.worker.claim_runner import ClaimRunner
from asyncrunner.worker.controls import WorkerControls
from asyncrunner.worker.isolation import Isolation
from asyncrunner.worker.publisher import OutcomePublisher
from asyncrunner.worker.result_waits import ResultWaits
from asyncrunner.worker.slots import Slots

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from asyncrunner.domain.clock import Clock, Timer
    from asyncrunner.domain.item import Claim
    from asyncrunner.store.batches import Added
    from asyncrunner.store.protocols import EngineStore
    from asyncrunner.store.turn import Turn, Want
    from asyncrunner.store.workers import Throttle

log = logging.getLogger("asyncrunner")

_UNSTARTED_SECONDS: Final = 1.0
"""The time after which unstarted claims are released if none of them has started: another process may have a free slot."""


class Worker:
    """One worker: it owns each claim from the turn that claims the item to the turn that settles it.

    ``controls`` applies changes from outside. ``result_waits`` counts the handlers that wait for the result of an item.
    """

    def __init__(self, worker_id: str, store: EngineStore, *, concurrency: int, clock: Clock, events: Events) -> None:
        self.id = worker_id
        self.may_claim = True  # False while the store has no current heartbeat of this worker
        self._store = store
        self._clock = clock
        self._queues: list[BatchQueue] = []  # rotated by allocate()
        self._by_id: dict[int, BatchQueue] = {}
        self._news, self._hungry, self._at_rest = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._timer: Timer | None = None
        self._needs_slot = False  # True: an add has claimed items, and no idle slot could be woken
        self._isolation = Isolation()
        self._checkpoints = Checkpoints(self._news.set)
        self._publisher = OutcomePublisher(events, self._by_id)
        publisher, save, news = self._publisher, self._checkpoints.save, self._news.set
        self._claims = ClaimRunner(store, self._by_id, events=events, clock=clock, publisher=publisher, save=save, on_news=news)
        self._slots = Slots(clock, concurrency, self._claims, partial(store.slot_notes, worker_id), lambda: store.busy_until)
        self.controls = WorkerControls(store, self._by_id, self._slots, wake=self.wake)
        self.result_waits = ResultWaits(self._by_id, self._slots, on_wait=self._news.set)

    # --- called from outside -------------------------------------------------------------------------------------

    def add_queue(self, queue: BatchQueue) -> None:
        """Add a batch queue and look for items of its batch."""
        queue.throttle.set_ceiling(min(queue.limit, self._slots.concurrency))
        self._queues.append(queue)
        self._by_id[queue.batch_id] = queue
        self._slots.add_queue(queue)
        queue.let_threads_in = self._slots.let_threads_in
        self.wake(queue)

    def wake(self, queue: BatchQueue | None = None) -> None:
        """Look for items to claim, for *queue* or for every batch queue.

        Call it when items were added or released, became due, or were changed from outside.
        """
        for woken in self._queues if queue is None else (queue,):
            woken.answer.mark_changed()
        self._at_rest.clear()
        self._news.set()

    def begin_add(self, queue: BatchQueue) -> ClaimRequest | None:
        """Record that an add to the batch begins, and return the request to claim its new items with the add.

        None: a turn claims the items; it begins now, and may share the transaction of the add.
        """
        self._slots.begin_call()
        runs_items = self._slots.has_begun and not self._claims.is_draining and queue.batch_id in self._by_id
        want = None
        if runs_items and self._store.claims_with_add and self.may_claim:
            want = want_new(self._queues, queue, self._slots.concurrency, self._isolation, self._clock.monotonic())
        if want is None:
            self.wake(queue)
            return None
        self._at_rest.clear()
        queue.requested += want.limit
        return ClaimRequest(self.id, want)

    def end_add(self, queue: BatchQueue, request: ClaimRequest | None, added: Added | None) -> None:
        """Record that an add to the batch has ended, and start its claims. *added*: None if it failed or was cancelled."""
        self._slots.end_call()
        queue.requested -= 0 if request is None else request.want.limit
        queue.take_in(() if added is None else added.claims, self._clock.monotonic())
        if added is None or added.changed or added.new > len(added.claims):
            queue.is_fed, queue.has_backlog = False, True
            self.wake(queue)
        elif added.new:
            queue.answer.mark_changed()
        queue.notify_room()
        if added is not None and added.claims and not self._slots.wake_idle():
            self._needs_slot = True  # the pump creates it, because a slot inherits the context
        self._news.set()

    def drain(self) -> None:
        """Stop claiming, release the claims that have not started, and let the running handlers end."""
        self._claims.drain()

    def interrupt(self, reason: Interruption) -> None:
        """Interrupt every running handler, and abandon the handlers that have not ended after the grace period.

        A shutdown also drains the worker.
        """
        self._claims.interrupt(reason)

    def cast_out(self) -> None:
        """Drop every claim and interrupt every handler: this worker was declared lost, and its items are recovered."""
        log.warning("this worker was declared lost: its running handlers are cancelled, and their items run again")
        for queue in self._queues:
            queue.take_unstarted()
        self.interrupt(Interruption.LOST)
        self.may_claim = False  # until the next heartbeat registers the worker again

    @property
    def running(self) -> Collection[Execution]:
        """The executions of the handlers that run now; another thread may read this property."""
        return [execution for queue in tuple(self._queues) for execution in tuple(queue.running)]

    @property
    def slots(self) -> int:
        """The number of handlers that may run at the same time."""
        return min(self._slots.concurrency, sum(queue.limit for queue in self._queues if not queue.runs_in_children))

    @property
    def processed(self) -> int:
        """The number of attempts that this worker has settled, without those that were refunded or that child processes ran."""
        return sum(queue.attempts for queue in self._queues if not queue.runs_in_children)

    @property
    def failures(self) -> int:
        """The number of settled attempts that failed, retried or not, without those of child processes."""
        return sum(queue.tally[Failed] + queue.tally[Retrying] for queue in self._queues if not queue.runs_in_children)

    @property
    def throttles(self) -> Mapping[str, Throttle]:
        """The batches that a service slows down now, by name."""
        seconds_ahead = self._clock.now() - self._clock.monotonic()
        now = self._clock.monotonic()
        throttled = {queue.name: queue.current_throttle(now, seconds_ahead) for queue in self._queues}
        return {name: throttle for name, throttle in throttled.items() if throttle is not None}

    @property
    def in_hand(self) -> int:
        """The number of claims that run, wait for a slot, or have an outcome that waits for the next turn."""
        return sum(queue.in_hand for queue in self._queues) + len(self._claims.finished)

    async def wait_until_hungry(self) -> None:
        """Wait until the pump is idle and a batch has no more due items; then changes of the store must be watched."""
        await self._hungry.wait()

    async def wait_until_at_rest(self) -> None:
        """Wait until no handler runs, no outcome waits for a turn, and no batch has an item for this worker."""
        await self._at_rest.wait()

    def next_due(self) -> float | None:
        """Return the seconds until an item becomes due or unstarted claims are released; None if neither is expected.

        The seconds follow from the answers of the last turns. They are infinity if only paused batches have items, and
        zero or less if an item is due already.
        """
        return min(self._waits(self._queues), default=None)

    def _waits(self, queues: Collection[BatchQueue]) -> list[float]:
        """Return the seconds until each change that needs a round of the pump; due times count only for *queues*."""
        now = self._clock.now()
        waits: list[float] = []
        for queue in self._queues:
            state = queue.answer.state
            if queue.is_resting:
                waits.append(queue.throttle.rest_end - self._clock.monotonic())
            elif state is not None and state.unfinished and queue in queues:
                # Items that become due while the batch rests wait for the end of the rest.
                at = state.next_due if state.resting_until is None else state.resting_until
                waits += [] if at is None else [at - now]
            if queue.ready:
                waits.append(_UNSTARTED_SECONDS)
        change = self._isolation.next_change(self._clock.monotonic()) if self._isolation.is_active else None
        return waits if change is None else [*waits, change]

    # --- the pump ------------------------------------------------------------------------------------------------

    async def pump(self, tasks: TaskGroup) -> None:
        """Make turn after turn until the worker is drained, then end every slot.

        A cancellation interrupts the handlers and drains the worker; it is not raised. Raises the errors of the store
        that are not retried, and an error of the engine in a slot.
        """
        self._claims.begin()
        self._slots.begin(tasks)
        try:
            while self._begin_lap():
                settlements = await self._take_outcomes()
                wants = self._allocate()
                if settlements or wants or self._checkpoints.waiting:
                    await self._turn(settlements, wants)
                    self._slots.wake_soon()
                elif self._needs_slot:
                    self._slots.wake()
                else:
                    await self._wait_for_news()
                    continue
                self._needs_slot = False
        finally:
            self._set_timer(None)
            self.interrupt(Interruption.SHUTDOWN)  # handlers still run only if the pump failed
            self._slots.end()

    def _begin_lap(self) -> bool:
        """Clear the events that this lap handles, and return False once the worker is drained. Raises the error of a slot."""
        if self._claims.failure is not None:
            raise self._claims.failure
        self._news.clear()
        self._at_rest.clear()
        now = self._clock.monotonic()
        for queue in self._queues:
            if queue.throttle.is_active:
                queue.refresh_limit(now)
        return not (self._claims.is_draining and self.in_hand == 0)

    async def _take_outcomes(self) -> list[Settlement]:
        """Return the settlements for the next turn: the outcomes that wait, and releases of claims that cannot start.

        Also stop the batches whose failure limit is reached.
        """
        settlements = self._claims.take_finished()
        for batch_id in {settled.claim.batch_id for settled in settlements}:
            self._by_id[batch_id].record_finished([settled for settled in settlements if settled.claim.batch_id == batch_id])
        for queue in self._queues:
            if queue.failures.reason is not None:
                await self._stop_batch(queue, queue.failures.reason)
            elif queue.failures.rest_reason is not None:
                settlements += await self._rest_batch(queue, queue.failures.rest_reason)
        return settlements + self._release_unstarted()

    async def _stop_batch(self, queue: BatchQueue, reason: str) -> None:
        if queue.answer.stop_reason is not None:
            queue.failures.reset()  # the batch is already stopped; the first reason stays
            return
        try:
            await self._store.stop_batch(queue.batch_id, reason)
        except asyncio.CancelledError:
            self._begin_teardown()
            return
        queue.record_stop(reason)
        self._publisher.publish_stop(queue, reason)

    async def _rest_batch(self, queue: BatchQueue, reason: str) -> list[Settlement]:
        """Let the batch rest in every process on the store; return the releases of its claims that have not started."""
        seconds = queue.failures.rest or 0.0
        try:
            await self._store.rest_batch(queue.batch_id, seconds)
        except asyncio.CancelledError:
            self._begin_teardown()
            return []
        queue.record_rest(self._clock.monotonic())
        self._publisher.log_rest(queue, reason, seconds)
        return self._releases(queue.take_unstarted())

    def _release_unstarted(self) -> list[Settlement]:
        released: list[Claim] = []
        for queue in self._queues:
            is_stuck = queue.has_stood_still(self._clock.monotonic(), _UNSTARTED_SECONDS)
            if is_stuck:
                queue.prefetch.assume_slow()
            is_blocked = queue.paused or queue.blocked in (Blocked.STOPPED, Blocked.BACKPRESSURE, Blocked.THROTTLED)
            if is_stuck or is_blocked or self._claims.is_draining:
                released += queue.take_unstarted()
        return self._releases(released)

    def _releases(self, claims: Sequence[Claim]) -> list[Settlement]:
        now = self._clock.now()
        return [Settlement(claim, Released(), now, now) for claim in claims]

    def _allocate(self) -> list[Want]:
        if self._claims.is_draining or not self.may_claim:
            self._isolation.waiting_since = None  # otherwise the timer of the wait makes a round every millisecond
            return []
        now = self._clock.monotonic()
        was_waiting = self._isolation.waiting_since is not None
        for suspect in self._isolation.take_overdue(now):
            self._publisher.log_overdue(suspect.queue, suspect.claim)
        wants = allocate(self._queues, self._slots.concurrency, len(self.result_waits), self._isolation, now)
        if self._isolation.waiting_since is not None and not was_waiting and self.in_hand:
            self._publisher.log_isolation_wait(self.in_hand)
        return wants

    # --- a turn --------------------------------------------------------------------------------------------------

    async def _turn(self, settlements: list[Settlement], wants: list[Want]) -> None:
        self._hungry.clear()
        began = self._clock.monotonic()
        turn = await self._call_store(settlements, wants)
        if turn is None:
            return
        if turn.outcast:
            self.cast_out()
            return
        now = self._clock.monotonic()
        self._publisher.publish(settlements, turn.lost, turn.reruns)
        self._hand_out(turn, wants, began, now)
        self._set_timer(self.next_due())

    async def _call_store(self, settlements: list[Settlement], wants: list[Want]) -> Turn | None:
        """Commit the turn and return its result, or None if the wait for the commit was cancelled."""
        limits = {want.batch_id: want.limit for want in wants}
        for queue in self._queues:
            queue.begin_turn(limits.get(queue.batch_id, 0))
        checkpoints = self._checkpoints.take()
        self._slots.begin_call()
        try:
            turn = await self._store.turn(self.id, settlements, wants, checkpoints=checkpoints.saved)
        except asyncio.CancelledError:
            # The turn continues without this task: it settles its outcomes, and leave() releases its claims.
            self._begin_teardown()
            return None
        finally:
            self._slots.end_call()
            for queue in self._queues:
                queue.requested_by_turn = 0
        checkpoints.answer(turn.lost)
        return turn

    def _hand_out(self, turn: Turn, wants: list[Want], began: float, now: float) -> None:
        """Give each batch queue its claims and the state of its batch.

        The turn lasted from *began* to *now* (monotonic).
        """
        claims = turn.claims_by_batch(wants)
        for want in wants:
            queue = self._by_id[want.batch_id]
            queue.take_in(claims[want.batch_id], now)
            state = turn.batches.get(want.batch_id)
            is_complete = len(claims[want.batch_id]) == want.limit + (want.suspicion > Suspicion.NONE)
            queue.answer.record(state, is_complete=is_complete, only_suspect=want.limit == 0)
            queue.has_backlog = queue.has_backlog and not queue.answer.exhausted
            if want.suspicion:
                for claim in self._isolation.take_in(queue, claims[want.batch_id], now):
                    self._publisher.log_suspect(queue, claim, others=self.in_hand - 1)
            self.controls.set_paused(queue, state is not None and state.resting_until == math.inf)
        for queue in self._queues:
            queue.prefetch.record_turn(now - began, has_claimed=queue.batch_id in claims)
            queue.notify_turn()

    # --- waiting -------------------------------------------------------------------------------------------------

    async def _wait_for_news(self) -> None:
        if any(queue.answer.exhausted for queue in self._queues):
            self._hungry.set()
        if self._isolation.is_active or any(queue.is_resting for queue in self._queues):
            # The worker requests the items of the other batches as soon as it may, so their due times do not matter.
            self._set_timer(min(self._waits([queue for queue in self._queues if queue.answer.exhausted]), default=None))
        if self.in_hand == 0 and not any(queue.blocked is Blocked.NONE or queue.answer.suspicion for queue in self._queues):
            self._at_rest.set()
        try:
            await self._news.wait()
        except asyncio.CancelledError:
            self._begin_teardown()

    def _begin_teardown(self) -> None:
        # The event loop is being closed without stop(): asyncio.run() cancels every task once. Release every item.
        self.interrupt(Interruption.SHUTDOWN)

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and math.isfinite(seconds):
            # Stored times are truncated to milliseconds: a millisecond after its stored time an item is certainly due.
            self._timer = self._clock.call_later(max(0.0, seconds) + 0.001, self.wake)
