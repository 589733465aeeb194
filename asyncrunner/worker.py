"""The worker: one pump that owns the store, and what its slots do with a claim.

The pump's lap: take the outcomes that have piled up, ask the store for one turn that settles them and claims
the refill, hand the claims out. There is no timer: a group is what gathered while the last commit ran. A slot
never waits for its own commit, unless its result is so large that it has to come in by pieces.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from asyncrunner.attempt import Attempt, Interruption, current_attempt
from asyncrunner.bulletin import Bulletin
from asyncrunner.checkpoints import Checkpoints
from asyncrunner.drive import absorb_cancellation
from asyncrunner.errors import ConfigurationError
from asyncrunner.events import Events, Started, Stopped
from asyncrunner.events import Settled as SettledEvent
from asyncrunner.item import LARGE_RESULT, RESULT_PIECE, Cancelled, Completed, Failed, Released, Retrying, Settled
from asyncrunner.lane import Lane
from asyncrunner.logs import fields, item_log
from asyncrunner.shares import wants_of
from asyncrunner.slots import Slots

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from asyncrunner.clock import Clock, Timer
    from asyncrunner.item import Claim
    from asyncrunner.store import Store, Want
    from asyncrunner.transient import Persistence

__all__ = ["Worker"]

log = logging.getLogger("asyncrunner")

_UNSTARTED_SECONDS: Final = 1.0
"""A claim that found no slot for that long is given back: another process may have room."""


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
        self._own_concurrency = concurrency
        self._clock = clock
        self._events = events
        self._persist = persist
        self._grace = grace
        self._lanes: list[Lane] = []
        self._by_id: dict[int, Lane] = {}
        self._slots = Slots(clock, concurrency, self._run, on_failure=self._failed, on_disturbed=self._was_disturbed)
        self._finished: list[Settled] = []
        self._running: set[Attempt] = set()
        self._waiting: set[Attempt] = set()  # of those, the ones that wait for the result of another item
        self._news = asyncio.Event()
        self._checkpoints = Checkpoints(self._news.set)
        self._hungry = asyncio.Event()
        self._at_rest = asyncio.Event()
        self._draining = False
        self._failure: Exception | None = None  # of a slot
        self._pump_task: asyncio.Task[object] | None = None
        self._timer: Timer | None = None
        self._started_observers = events.observers_of(Started)
        self._settled_observers = events.observers_of(SettledEvent)
        self._bulletin = Bulletin(events, self._by_id)

    # --- what others ask of it -----------------------------------------------------------------------------------

    def add_lane(self, lane: Lane) -> None:
        """Take a batch on."""
        self._lanes.append(lane)
        self._by_id[lane.batch_id] = lane
        self._slots.add_lane(lane)
        self.wake(lane)

    def wake(self, lane: Lane | None = None) -> None:
        """There may be items to claim: something was added, released, became due or changed outside."""
        for each in self._lanes if lane is None else (lane,):
            each.changes += 1
            each.starving = False
        self._at_rest.clear()
        self._news.set()

    def drain(self) -> None:
        """Claim no more, give back what has not started, let the handlers end."""
        self._draining = True
        self._news.set()

    def interrupt(self, reason: Interruption) -> None:
        """Stop every handler; one that does not end within the grace is left behind."""
        if reason is Interruption.SHUTDOWN:
            self._slots.starts_no_more = True  # also what has been claimed, by slots that are free meanwhile
            self.drain()
        for attempt in self._running:
            attempt.interrupt(reason)
            self._clock.call_later(self._grace, attempt.abandon)

    @property
    def running_attempts(self) -> Collection[Attempt]:
        """Those that are being made now."""
        return self._running

    @property
    def slots(self) -> int:
        """How many handlers may run at once."""
        return min(self._slots.concurrency, sum(lane.limit for lane in self._lanes))

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

    async def wait_until_at_rest(self) -> None:
        """Return when nothing runs, nothing waits to be settled, and the store had nothing that may run now."""
        await self._at_rest.wait()

    def next_due(self) -> float | None:
        """Seconds until something may happen by itself, as far as the last turns told."""
        return self._next_due()

    @contextmanager
    def waiting(self, batch: str, key: str) -> Generator[None, None, None]:
        """Around the wait for an item's result. Raises ConfigurationError in a handler whose own slot the item would need."""
        try:
            attempt = current_attempt()
        except LookupError:
            attempt = None
        if attempt is None or attempt not in self._running:
            yield
            return
        self._waiting.add(attempt)
        try:
            self._check_slots(batch, key, is_own=(attempt.batch, attempt.key) == (batch, key))
            yield
        finally:
            self._waiting.discard(attempt)

    def _check_slots(self, batch: str, key: str, *, is_own: bool) -> None:
        lane = next((lane for lane in self._lanes if lane.name == batch), None)
        running = {attempt.key for attempt in self._running - self._waiting if attempt.batch == batch}
        if lane is None or key in running:
            return  # another runner's to do, or on its way
        of_lane = sum(attempt.batch == batch for attempt in self._waiting)
        if is_own or of_lane >= lane.limit or len(self._waiting) >= self._slots.concurrency:
            raise ConfigurationError(
                f"waiting here for item {key!r} of {batch!r} would never end: every slot that could run it is held by a handler "
                "that waits for a result. Raise concurrency=, or submit it and return"
            )

    async def look_for_revoked(self) -> None:
        """Cancel handlers whose claim is not current any more: the item was cancelled, or is somebody else's."""
        running = {(attempt.claim.seq, attempt.claim.number): attempt for attempt in self._running}
        claims = [attempt.claim for attempt in self._running]
        claims += [claim for lane in self._lanes for claim in lane.ready]
        if not claims:
            return
        for revoked in await self._persist(lambda: self._store.revoked(claims)):
            attempt = running.get((revoked.claim.seq, revoked.claim.number))
            if attempt is None:
                self._drop_unstarted(revoked.claim)
            elif attempt in self._running and attempt.interruption is None:
                reason = Interruption.CANCELLED if revoked.cancelled else Interruption.LOST
                log.warning("item %r: %s", attempt.key, reason.value, extra=fields(attempt.batch, attempt.claim))
                attempt.interrupt(reason)
                self._clock.call_later(self._grace, attempt.abandon)

    async def look_for_controls(self) -> None:
        """Do what a person asked meanwhile: a busy worker is told nothing by its turns as long as they bring all it wants."""
        asked = await self._store.controls([lane.batch_id for lane in self._lanes])
        for lane in self._lanes:
            controls = asked.get(lane.batch_id)
            if controls is None:
                continue
            self._hold(lane, controls.held)
            if not lane.set_limit(controls.concurrency):
                continue
            log.info("batch %r: concurrency is %d now", lane.name, lane.limit, extra={"batch": lane.name})
            self._slots.concurrency = max(self._own_concurrency, *(each.limit for each in self._lanes))
            self.wake(lane)

    def _hold(self, lane: Lane, held: bool) -> None:
        if held == lane.paused:
            return
        lane.paused = held
        if not held:
            log.info("batch %r goes on", lane.name, extra={"batch": lane.name})
        elif lane.stopped is None:  # else its reason was told
            log.warning(
                "batch %r is paused: nothing more of it starts until a person resumes it", lane.name, extra={"batch": lane.name}
            )
        self.wake(lane)

    def _drop_unstarted(self, claim: Claim) -> None:
        for lane in self._lanes:
            if claim in lane.ready:
                lane.ready.remove(claim)

    # --- the pump ------------------------------------------------------------------------------------------------

    async def pump(self, tasks: TaskGroup) -> None:
        """Turn after turn, until drained. Then every slot ends. Raises what the store raises for good."""
        self._pump_task = asyncio.current_task()
        try:
            while not (self._draining and self.in_hand == 0):
                if self._failure is not None:
                    raise self._failure
                self._news.clear()
                self._at_rest.clear()
                await self._stop_lanes()
                self._give_back_unstarted()
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
        self.interrupt(Interruption.SHUTDOWN)  # there is nothing to interrupt unless the store failed for good
        self._slots.end()

    async def _stop_lanes(self) -> None:
        for lane in self._lanes:
            reason = lane.guard.reason
            if reason is None:
                continue
            stop = partial(self._store.stop_batch, lane.batch_id, reason, now=self._clock.now())
            try:
                await self._persist(stop)
            except asyncio.CancelledError:
                self._torn_down()
                return
            lane.guard.reset()  # from now on the store holds the batch back, until somebody opens it again
            lane.stopped = reason
            log.error("batch %r is stopped: %s; the rest of it stays pending", lane.name, reason, extra={"batch": lane.name})
            self._events.publish(Stopped(lane.name, reason))
            lane.changes += 1
            if lane.on_turn is not None:
                lane.on_turn()

    async def _turn(self, settled: list[Settled], wants: list[Want]) -> None:
        changes = {lane.batch_id: lane.changes for lane in self._lanes}
        began = self._clock.monotonic()
        saves = self._checkpoints.take()
        try:
            with self._slots.letting_threads_in():
                turn = await self._persist(
                    lambda: self._store.turn(self.id, settled, wants, saved=saves.saved, now=self._clock.now())
                )
        except asyncio.CancelledError:
            # The turn goes on without us: what it settles is settled, what it claims is given back by leave().
            self._torn_down()
            return
        saves.answer(turn.lost)
        if turn.outcast:
            self.cast_out()
            return
        seconds = self._clock.monotonic() - began
        self._bulletin.publish(settled, turn.lost)
        asked = {want.batch_id: want.suspect for want in wants}
        by_batch = _by_batch(turn.claims, wants)
        for lane in tuple(self._lanes):
            if lane.batch_id in asked:
                lane.pace.turn_took(seconds)
                lane.got(by_batch.get(lane.batch_id, ()), began + seconds)
                lane.state = turn.batches.get(lane.batch_id)
                lane.stopped = None if lane.state is None else lane.state.stopped
                self._hold(lane, lane.state is not None and lane.state.resting_until == math.inf)
                lane.suspects = lane.state is not None and lane.state.suspects
                # Whoever asked for a suspect and got none knows nothing of the others yet.
                is_answered = not (lane.suspects or asked[lane.batch_id])
                lane.starving = lane.state is not None and is_answered and lane.changes == changes.get(lane.batch_id)
            if lane.on_turn is not None:
                lane.on_turn()
        self._set_timer(self._next_due())

    def _wants(self) -> list[Want]:
        if self._draining or not self.may_claim:
            return []
        return wants_of(self._lanes, self._slots.concurrency, len(self._waiting))

    def cast_out(self) -> None:
        """This worker was declared lost: everything it held was recovered, and it holds nothing any more."""
        log.warning("this worker was declared lost; what it was running is cancelled and runs again elsewhere")
        for lane in self._lanes:
            lane.ready.clear()
        self.interrupt(Interruption.LOST)
        self.may_claim = False  # until the next heartbeat has made it a worker again

    def _take_finished(self) -> list[Settled]:
        finished, self._finished = self._finished, []
        batch_ids = {settled.claim.batch_id for settled in finished}
        for batch_id in batch_ids:
            lane = self._by_id[batch_id]
            lane.starving = False  # there is room, and perhaps a retry: ask again, now or in the next lap
            run = [done for done in finished if done.claim.batch_id == batch_id and type(done.outcome) is not Released]
            if run:
                spent = sum([done.finished_at for done in run]) - sum([done.started_at for done in run])
                lane.pace.items_took(spent, len(run))
        return finished

    def _give_back_unstarted(self) -> None:
        for lane in self._lanes:
            late = lane.has_stood_still(self._clock.monotonic(), _UNSTARTED_SECONDS)
            if late:
                lane.pace.is_slow()
            if late or self._draining or lane.is_stopped or lane.paused:
                now = self._clock.now()
                self._finished += [Settled(claim, Released(), now, now) for claim in lane.ready]
                lane.ready.clear()

    # --- waiting -------------------------------------------------------------------------------------------------

    async def _wait_for_news(self) -> None:
        if any(lane.starving for lane in self._lanes):
            self._hungry.set()
        if self.in_hand == 0 and all(lane.starving or lane.is_stopped for lane in self._lanes):
            self._at_rest.set()
        try:
            await self._news.wait()
        except asyncio.CancelledError:
            self._torn_down()

    def _torn_down(self) -> None:
        # The loop is being closed without a stop(): asyncio.run() cancels every task, once. Give everything back.
        self.interrupt(Interruption.SHUTDOWN)

    def _is_torn_down(self) -> bool:
        return self._pump_task is not None and self._pump_task.cancelling() > 0

    def _is_closing(self) -> bool:
        return self._draining or self._is_torn_down()

    def _next_due(self) -> float | None:
        """Seconds until some lane has something to claim, or something to give back."""
        now = self._clock.now()
        waits: list[float] = []
        for lane in self._lanes:
            state = lane.state
            if state is not None and state.unfinished:
                # What is due while the batch rests has to wait for the end of that.
                at = state.next_due if state.resting_until is None else state.resting_until
                waits += [] if at is None else [at - now]
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

    # --- in the slots --------------------------------------------------------------------------------------------

    async def _run(self, lane: Lane, claim: Claim, task: asyncio.Task[Any], wake_next: Callable[[], object]) -> None:
        attempt = lane.runner.prepare(claim, self._checkpoints.save)
        self._running.add(attempt)
        lane.running += 1
        lane.started += 1
        if self._started_observers:
            self._events.publish(Started(lane.name, claim.id, claim.attempt))
        if self._bulletin.tells_attempts:
            item_log.debug("attempt %d begins", claim.attempt, extra=fields(lane.name, claim))
        settled = await lane.runner.run(claim, attempt, task, is_closing=self._is_closing, on_wait=wake_next)
        if settled is not None and isinstance(settled.outcome, Completed) and len(settled.outcome.result) > LARGE_RESULT:
            settled = await self._keep_large(settled, settled.outcome.result)
        lane.running -= 1
        self._running.discard(attempt)
        if attempt.interruption is Interruption.CANCELLED:
            self._was_cancelled(lane, settled)
        elif settled is not None:
            if lane.guard.is_watching:
                lane.guard.saw(settled.outcome)
            self._finished.append(settled)
        self._news.set()

    def _failed(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._news.set()

    async def _keep_large(self, settled: Settled, result: str) -> Settled:
        """Have the store keep a result in pieces, while its slot waits: so few are in memory at once.

        As it was if this is cancelled: then it is settled in one transaction, however long that holds the others up.
        """
        try:
            for piece, first in enumerate(range(0, len(result), RESULT_PIECE)):
                text = result[first : first + RESULT_PIECE]
                if not await self._persist(partial(self._store.keep, settled.claim, piece, text)):
                    return settled  # the claim was lost: the turn will say so
        except asyncio.CancelledError:
            await self._was_disturbed()
            return settled
        return settled._replace(outcome=Completed(result, kept=True))

    def _was_cancelled(self, lane: Lane, settled: Settled | None) -> None:
        # Whoever cancelled the item has settled it in the store.
        lane.tally[Cancelled] += 1
        if settled is not None and self._settled_observers:
            self._events.publish(SettledEvent.of(lane.name, settled._replace(outcome=Cancelled())))

    async def _was_disturbed(self) -> None:
        """A slot's own wait was cancelled."""
        if self._is_torn_down():
            self._torn_down()
        else:
            # A handler that has ended had asked for it, with a timer of its own on the task that it shares with us.
            await absorb_cancellation(cast("asyncio.Task[Any]", asyncio.current_task()))


def _by_batch(claims: Sequence[Claim], wants: Sequence[Want]) -> dict[int, Sequence[Claim]]:
    if len(wants) == 1:
        return {wants[0].batch_id: claims}
    return {want.batch_id: [claim for claim in claims if claim.batch_id == want.batch_id] for want in wants}
