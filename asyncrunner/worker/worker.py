"""The worker: claims items, runs them in slots, and settles their outcomes in one loop, the pump.

One lap of the pump takes the outcomes that have gathered, makes one store turn that settles them and claims the
next items, and hands the claims to the slots. There is no timer: a group is the outcomes that gathered during the
previous commit. A slot does not wait for the commit of its outcome; only a large result is stored first, in pieces.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from asyncrunner.domain.outcome import LARGE_RESULT, RESULT_PIECE, Cancelled, Completed, Failed, Released, Retrying, Settlement
from asyncrunner.errors import ConfigurationError
from asyncrunner.events import Events, Settled, Started, Stopped
from asyncrunner.execution.attempt import current_execution
from asyncrunner.execution.coroutine_driver import absorb_cancellation
from asyncrunner.execution.execution import Execution, Interruption
from asyncrunner.execution.item_log import fields, item_log
from asyncrunner.worker.allocation import allocate
from asyncrunner.worker.batch_queue import BatchQueue
from asyncrunner.worker.checkpoints import Checkpoints
from asyncrunner.worker.publisher import OutcomePublisher
from asyncrunner.worker.slots import Slots

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from asyncrunner.domain.clock import Clock, Timer
    from asyncrunner.domain.item import Claim
    from asyncrunner.store.protocols import EngineStore
    from asyncrunner.store.turn import Want


log = logging.getLogger("asyncrunner")

_UNSTARTED_SECONDS: Final = 1.0
"""Claims are released when none of them has found a slot for this long: another process may have a free one."""


class Worker:
    """One worker: its claims, from the turn that claims them to the turn that settles them.

    ``grace``: seconds that an interrupted handler has to end before it is abandoned.
    """

    def __init__(
        self, worker_id: str, store: EngineStore, *, concurrency: int, clock: Clock, events: Events, grace: float
    ) -> None:
        self.id = worker_id
        self.may_claim = True  # False while no heartbeat of this worker can be written
        self._store = store
        self._own_concurrency = concurrency
        self._clock = clock
        self._events = events
        self._grace = grace
        self._queues: list[BatchQueue] = []
        self._by_id: dict[int, BatchQueue] = {}
        self._slots = Slots(clock, concurrency, self._run, on_failure=self._on_slot_failure, on_disturbed=self._on_wait_cancelled)
        self._finished: list[Settlement] = []
        self._running: set[Execution] = set()
        self._waiting: set[Execution] = set()  # those of _running that wait for the result of another item
        self._news = asyncio.Event()
        self._checkpoints = Checkpoints(self._news.set)
        self._hungry = asyncio.Event()
        self._at_rest = asyncio.Event()
        self._draining = False
        self._failure: Exception | None = None  # raised in a slot; the pump raises it again
        self._pump_task: asyncio.Task[object] | None = None
        self._timer: Timer | None = None
        self._started_observers = events.observers_of(Started)
        self._settled_observers = events.observers_of(Settled)
        self._bulletin = OutcomePublisher(events, self._by_id)

    # --- called from outside -------------------------------------------------------------------------------------

    def add_queue(self, queue: BatchQueue) -> None:
        """Add a batch queue and look for items of its batch."""
        self._queues.append(queue)
        self._by_id[queue.batch_id] = queue
        self._slots.add_queue(queue)
        self.wake(queue)

    def wake(self, queue: BatchQueue | None = None) -> None:
        """Look for items to claim, for *queue* or for every batch queue.

        Call it when items were added, released, became due, or were changed from outside.
        """
        for woken in self._queues if queue is None else (queue,):
            woken.changes += 1
            woken.starving = False
        self._at_rest.clear()
        self._news.set()

    def drain(self) -> None:
        """Stop claiming, release the claims that have not started, and let the running handlers end."""
        self._draining = True
        self._news.set()

    def interrupt(self, reason: Interruption) -> None:
        """Interrupt every running handler; abandon those that have not ended after the grace."""
        if reason is Interruption.SHUTDOWN:
            self._slots.starts_no_more = True  # free slots do not start the remaining claims either
            self.drain()
        for execution in self._running:
            execution.interrupt(reason)
            self._clock.call_later(self._grace, execution.abandon)

    @property
    def running(self) -> Collection[Execution]:
        """The executions of the handlers that run now."""
        return self._running

    @property
    def slots(self) -> int:
        """How many handlers may run at the same time."""
        return min(self._slots.concurrency, sum(queue.limit for queue in self._queues))

    @property
    def processed(self) -> int:
        """How many attempts were settled since the worker joined, without released ones."""
        return sum(queue.attempts for queue in self._queues)

    @property
    def failures(self) -> int:
        """How many of those attempts failed, whether they are retried or not."""
        return sum(queue.tally[Failed] + queue.tally[Retrying] for queue in self._queues)

    @property
    def in_hand(self) -> int:
        """How many claims run, wait for a slot, or have an outcome that waits for the next turn."""
        return sum(queue.in_hand for queue in self._queues) + len(self._finished)

    async def wait_until_hungry(self) -> None:
        """Wait until the pump is idle and a batch has no more due items: the time to watch the store for changes."""
        await self._hungry.wait()

    async def wait_until_at_rest(self) -> None:
        """Wait until nothing runs, nothing waits to be settled, and every batch is stopped or has no due item."""
        await self._at_rest.wait()

    def next_due(self) -> float | None:
        """Return the seconds until an item becomes due or unstarted claims are released; None if neither is expected.

        It uses what the last turns returned. Infinity: only paused batches have items. Zero or less: it is due already.
        """
        return self._next_due()

    @contextmanager
    def waiting(self, batch: str, key: str) -> Generator[None, None, None]:
        """Surround the wait for the result of item *key* of *batch*.

        Raises ConfigurationError in a handler if handlers that wait for results hold every slot that could run the item.
        """
        execution = current_execution.get(None)
        if execution is None or execution not in self._running:
            yield
            return
        self._waiting.add(execution)
        try:
            self._check_slots(batch, key, is_own=(execution.batch, execution.key) == (batch, key))
            yield
        finally:
            self._waiting.discard(execution)

    def _check_slots(self, batch: str, key: str, *, is_own: bool) -> None:
        queue = next((queue for queue in self._queues if queue.name == batch), None)
        running = {execution.key for execution in self._running - self._waiting if execution.batch == batch}
        if queue is None or key in running:
            return  # another runner runs the item, or it is running here
        waiting_in_batch = sum(execution.batch == batch for execution in self._waiting)
        if is_own or waiting_in_batch >= queue.limit or len(self._waiting) >= self._slots.concurrency:
            raise ConfigurationError(
                f"waiting here for item {key!r} of {batch!r} would never end: every slot that could run it is held by a handler "
                "that waits for a result. Raise concurrency=, or submit the item and return without waiting"
            )

    async def look_for_revoked(self) -> None:
        """Interrupt the handlers, and drop the unstarted claims, of claims that are lost or whose item was cancelled."""
        running = {(execution.claim.seq, execution.claim.number): execution for execution in self._running}
        claims = [execution.claim for execution in self._running]
        claims += [claim for queue in self._queues for claim in queue.ready]
        if not claims:
            return
        for lost in await self._store.lost_claims(claims):
            execution = running.get((lost.claim.seq, lost.claim.number))
            if execution is None:
                self._drop_unstarted(lost.claim)
            elif execution in self._running and execution.interruption is None:
                reason = Interruption.CANCELLED if lost.cancelled else Interruption.LOST
                log.warning("item %r: %s", execution.key, reason.value, extra=fields(execution.batch, execution.claim))
                execution.interrupt(reason)
                self._clock.call_later(self._grace, execution.abandon)

    async def look_for_controls(self) -> None:
        """Apply the pauses, resumptions and concurrency changes that an operator requested.

        A busy worker does not learn of them from its turns, which report a batch only when they bring too few items.
        """
        requested = await self._store.controls([queue.batch_id for queue in self._queues])
        for queue in self._queues:
            controls = requested.get(queue.batch_id)
            if controls is None:
                continue
            self._set_paused(queue, controls.held)
            if not queue.set_limit(controls.concurrency):
                continue
            log.info("batch %r: concurrency is now %d", queue.name, queue.limit, extra={"batch": queue.name})
            self._slots.concurrency = max(self._own_concurrency, *(other.limit for other in self._queues))
            self.wake(queue)

    def _set_paused(self, queue: BatchQueue, held: bool) -> None:
        if held == queue.paused:
            return
        queue.paused = held
        if not held:
            log.info("batch %r is resumed", queue.name, extra={"batch": queue.name})
        elif queue.stopped is None:  # a stopped batch was logged with its reason
            log.warning(
                "batch %r is paused: no more of its items start until it is resumed", queue.name, extra={"batch": queue.name}
            )
        self.wake(queue)

    def _drop_unstarted(self, claim: Claim) -> None:
        for queue in self._queues:
            if claim in queue.ready:
                queue.ready.remove(claim)

    # --- the pump ------------------------------------------------------------------------------------------------

    async def pump(self, tasks: TaskGroup) -> None:
        """Make turn after turn until the worker is drained, then end every slot.

        A cancellation is not raised: it interrupts the handlers and drains the worker. Raises the errors of the store that
        are not retried, and an error of the engine in a slot.
        """
        self._pump_task = asyncio.current_task()
        try:
            while not (self._draining and self.in_hand == 0):
                if self._failure is not None:
                    raise self._failure
                self._news.clear()
                self._at_rest.clear()
                await self._stop_queues()
                self._release_unstarted()
                settled = self._take_finished()
                wants = self._wants()
                if settled or wants or self._checkpoints.waiting:
                    self._hungry.clear()
                    await self._turn(settled, wants)
                    self._slots.wake(tasks)
                else:
                    await self._wait_for_news()
        finally:
            self._end()

    def _end(self) -> None:
        self._set_timer(None)
        self.interrupt(Interruption.SHUTDOWN)  # handlers still run only if the pump failed
        self._slots.end()

    async def _stop_queues(self) -> None:
        for queue in self._queues:
            reason = queue.guard.reason
            if reason is None:
                continue
            try:
                await self._store.stop_batch(queue.batch_id, reason)
            except asyncio.CancelledError:
                self._begin_teardown()
                return
            queue.guard.reset()  # from now on the store holds the batch back, until it is opened again
            queue.stopped = reason
            log.error(
                "batch %r is stopped: %s; its remaining items stay pending", queue.name, reason, extra={"batch": queue.name}
            )
            self._events.publish(Stopped(queue.name, reason))
            queue.changes += 1
            if queue.on_turn is not None:
                queue.on_turn()

    async def _turn(self, settled: list[Settlement], wants: list[Want]) -> None:
        changes = {queue.batch_id: queue.changes for queue in self._queues}
        began = self._clock.monotonic()
        saves = self._checkpoints.take()
        try:
            with self._slots.letting_threads_in():
                turn = await self._store.turn(self.id, settled, wants, checkpoints=saves.saved)
        except asyncio.CancelledError:
            # The turn continues without this task: its outcomes are settled, and leave() releases the items it claims.
            self._begin_teardown()
            return
        saves.answer(turn.lost)
        if turn.outcast:
            self.cast_out()
            return
        seconds = self._clock.monotonic() - began
        self._bulletin.publish(settled, turn.lost)
        suspect_only = {want.batch_id: want.suspect for want in wants}
        by_batch = _by_batch(turn.claims, wants)
        for queue in tuple(self._queues):
            if queue.batch_id in suspect_only:
                queue.pace.turn_took(seconds)
                queue.got(by_batch.get(queue.batch_id, ()), began + seconds)
                queue.state = turn.batches.get(queue.batch_id)
                queue.stopped = None if queue.state is None else queue.state.stopped
                self._set_paused(queue, queue.state is not None and queue.state.resting_until == math.inf)
                queue.suspects = queue.state is not None and queue.state.suspects
                # A turn that requested a suspect and got none shows nothing about the other items yet.
                is_answered = not (queue.suspects or suspect_only[queue.batch_id])
                queue.starving = queue.state is not None and is_answered and queue.changes == changes.get(queue.batch_id)
            if queue.on_turn is not None:
                queue.on_turn()
        self._set_timer(self._next_due())

    def _wants(self) -> list[Want]:
        if self._draining or not self.may_claim:
            return []
        return allocate(self._queues, self._slots.concurrency, len(self._waiting))

    def cast_out(self) -> None:
        """Drop every claim and interrupt every handler: this worker was declared lost, and its items were recovered."""
        log.warning("this worker was declared lost: its running handlers are cancelled, and their items run again")
        for queue in self._queues:
            queue.ready.clear()
        self.interrupt(Interruption.LOST)
        self.may_claim = False  # until the next heartbeat registers the worker again

    def _take_finished(self) -> list[Settlement]:
        finished, self._finished = self._finished, []
        batch_ids = {settled.claim.batch_id for settled in finished}
        for batch_id in batch_ids:
            queue = self._by_id[batch_id]
            queue.starving = False  # a slot is free, and there may be a retry: claim again, in this lap or the next
            ended = [done for done in finished if done.claim.batch_id == batch_id and type(done.outcome) is not Released]
            if ended:
                seconds = sum([settled.finished_at for settled in ended]) - sum([settled.started_at for settled in ended])
                queue.pace.items_took(seconds, len(ended))
        return finished

    def _release_unstarted(self) -> None:
        for queue in self._queues:
            is_stuck = queue.has_stood_still(self._clock.monotonic(), _UNSTARTED_SECONDS)
            if is_stuck:
                queue.pace.is_slow()
            if is_stuck or self._draining or queue.is_stopped or queue.paused:
                now = self._clock.now()
                self._finished += [Settlement(claim, Released(), now, now) for claim in queue.ready]
                queue.ready.clear()

    # --- waiting -------------------------------------------------------------------------------------------------

    async def _wait_for_news(self) -> None:
        if any(queue.starving for queue in self._queues):
            self._hungry.set()
        if self.in_hand == 0 and all(queue.starving or queue.is_stopped for queue in self._queues):
            self._at_rest.set()
        try:
            await self._news.wait()
        except asyncio.CancelledError:
            self._begin_teardown()

    def _begin_teardown(self) -> None:
        # The loop is being closed without stop(): asyncio.run() cancels every task once. Release every item.
        self.interrupt(Interruption.SHUTDOWN)

    def _is_torn_down(self) -> bool:
        return self._pump_task is not None and self._pump_task.cancelling() > 0

    def _is_closing(self) -> bool:
        return self._draining or self._is_torn_down()

    def _next_due(self) -> float | None:
        """Return the seconds until some batch has an item to claim, or some batch queue has claims to release."""
        now = self._clock.now()
        waits: list[float] = []
        for queue in self._queues:
            state = queue.state
            if state is not None and state.unfinished:
                # Items that become due while the batch rests wait for the end of the rest.
                at = state.next_due if state.resting_until is None else state.resting_until
                waits += [] if at is None else [at - now]
            if queue.ready:
                waits.append(_UNSTARTED_SECONDS)
        return min(waits, default=None)

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and math.isfinite(seconds):
            # Stored times have milliseconds: one millisecond later the item is certainly due.
            self._timer = self._clock.call_later(max(0.0, seconds) + 0.001, self.wake)

    # --- in the slots --------------------------------------------------------------------------------------------

    async def _run(self, queue: BatchQueue, claim: Claim, task: asyncio.Task[Any], wake_next: Callable[[], object]) -> None:
        execution = queue.runner.start(claim, task, self._checkpoints.save)
        self._running.add(execution)
        queue.running += 1
        queue.started += 1
        if self._started_observers:
            self._events.publish(Started(queue.name, claim.id, claim.attempt))
        if self._bulletin.tells_attempts:
            item_log.debug("attempt %d begins", claim.attempt, extra=fields(queue.name, claim))
        settled = await queue.runner.run(execution, is_closing=self._is_closing, on_wait=wake_next)
        if settled is not None and isinstance(settled.outcome, Completed) and len(settled.outcome.result) > LARGE_RESULT:
            settled = await self._store_large_result(settled, settled.outcome.result)
        queue.running -= 1
        self._running.discard(execution)
        if execution.interruption is Interruption.CANCELLED:
            self._record_cancelled(queue, settled)
        elif settled is not None:
            if queue.guard.is_watching:
                queue.guard.saw(settled.outcome)
            self._finished.append(settled)
        self._news.set()

    def _on_slot_failure(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._news.set()

    async def _store_large_result(self, settled: Settlement, result: str) -> Settlement:
        """Store a large result in pieces while its slot waits, so that few large results are in memory at the same time.

        Return *settled* unchanged if the claim was lost or the wait was cancelled. After a cancellation the turn stores
        the result in its own transaction, however long that delays the other items.
        """
        try:
            for piece, first in enumerate(range(0, len(result), RESULT_PIECE)):
                text = result[first : first + RESULT_PIECE]
                if not await self._store.stage_result(settled.claim, piece, text):
                    return settled  # the claim was lost: the turn will report it
        except asyncio.CancelledError:
            await self._on_wait_cancelled()
            return settled
        return settled._replace(outcome=Completed(result, kept=True))

    def _record_cancelled(self, queue: BatchQueue, settled: Settlement | None) -> None:
        # The cancellation has already settled the item in the store.
        queue.tally[Cancelled] += 1
        if settled is not None and self._settled_observers:
            self._events.publish(Settled.of(queue.name, settled._replace(outcome=Cancelled())))

    async def _on_wait_cancelled(self) -> None:
        """Handle a cancellation of a slot's own wait."""
        if self._is_torn_down():
            self._begin_teardown()
        else:
            # A handler that has ended requested it, with its own timer on the task that it shares with the slot.
            await absorb_cancellation(cast("asyncio.Task[Any]", asyncio.current_task()))


def _by_batch(claims: Sequence[Claim], wants: Sequence[Want]) -> dict[int, Sequence[Claim]]:
    if len(wants) == 1:
        return {wants[0].batch_id: claims}
    return {want.batch_id: [claim for claim in claims if claim.batch_id == want.batch_id] for want in wants}
