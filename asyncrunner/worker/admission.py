"""Decide whether a worker requests items of a batch now, and how many. No I/O.

``BatchQueue.has_work`` decides whether a claim that waits for a slot may start.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final

from asyncrunner.domain.item import Suspicion
from asyncrunner.store.batches import BatchState
from asyncrunner.store.turn import Want

if TYPE_CHECKING:
    from asyncrunner.worker.batch_queue import BatchQueue
    from asyncrunner.worker.isolation import Isolation

_NEVER: Final = -1  # differs from every count of changes


class Blocked(Enum):
    """The reason why a worker requests no items of a batch."""

    NONE = "items are requested"
    CHILDREN = "child processes request the items"
    STOPPED = "a failure limit or a deadline stopped the batch"
    BACKPRESSURE = "the consumer of the outcome stream is slow"
    THROTTLED = "most answers of the service are refusals: no handler starts before the time that the service requests"
    PAUSED = "an operator, or Retry(pause=True) without a time, paused the batch"
    RESTING = "a rate limit or Retry(pause=True) holds the batch for a while"
    EMPTY = "the store has no due item"


def why_blocked(
    answer: BatchState | None, *, is_current: bool, stop_reason: str | None, backpressure: bool, throttled: bool
) -> Blocked:
    """Return the reason why a worker requests no items of a batch.

    Of several reasons, it is the first one in the order of ``Blocked``.

    *answer*: the batch's state after the last turn that requested its items, None if that turn returned all of them.
    *is_current*: the batch has not changed since that answer, so another request would return no items. *stop_reason*:
    why this worker must stop the batch; None after the store has recorded the stop. *backpressure*: the consumer of the
    outcome stream is slow. *throttled*: the batch rests, because a service puts its items off.
    """
    if stop_reason is not None:
        return Blocked.STOPPED
    if backpressure:
        return Blocked.BACKPRESSURE
    if throttled:
        return Blocked.THROTTLED
    if answer is None or not is_current:
        return Blocked.NONE
    if answer.stopped is not None:
        return Blocked.STOPPED
    if answer.resting_until is None:
        return Blocked.EMPTY
    return Blocked.PAUSED if answer.resting_until == math.inf else Blocked.RESTING


class ConsumerWindow:
    """The window of an outcome stream: how many items may be claimed, or done and not taken yet by the consumer of the stream.

    The window begins with two items per slot, which keeps slow handlers busy. It doubles each time that the consumer has
    taken a whole window, up to 5,000 items, so that turns for quick handlers become large. A consumer that holds outcomes for
    half a second reduces the window to the outcomes that it took in this time, but never below two per slot. So a consumer that
    leaves the stream early has let few items run.
    """

    MAX_ITEMS: Final = 5_000
    _SECONDS: Final = 0.5

    def __init__(self, limit: int) -> None:
        self.set_limit(limit)
        self.size = self._min_items
        self.settling = 0  # outcomes that are in the current turn
        self.waiting = 0  # outcomes that are committed and not taken
        self._taken = 0  # outcomes that were taken since the size was set
        self._held_seconds = 0.0  # for which the consumer held them

    def set_limit(self, limit: int) -> None:
        """Set the number of slots."""
        self._min_items = 2 * limit

    @property
    def is_full(self) -> bool:
        """Whether no outcome may be added."""
        return self.waiting >= self.size

    def room(self, in_hand: int) -> int:
        """Return how many items may be claimed while *in_hand* items are claimed."""
        return self.size - self.waiting - self.settling - in_hand

    def record_taken(self) -> bool:
        """Record that the consumer takes an outcome; return whether the window now has room for many more items."""
        half = self.size // 2
        self.waiting -= 1
        return self.waiting == half

    def record_held(self, seconds: float) -> bool:
        """Record that the consumer held an outcome for *seconds*; return whether that has enlarged the window."""
        self._taken += 1
        self._held_seconds += seconds
        before = self.size
        if self._held_seconds >= self._SECONDS:
            self._set_size(self._taken)
        elif self._taken >= self.size:
            self._set_size(min(2 * self.size, self.MAX_ITEMS))
        return self.size > before

    def _set_size(self, size: int) -> None:
        self.size = max(size, self._min_items)
        self._taken = 0
        self._held_seconds = 0.0


class StoreAnswer:
    """The store's last answer about the items of one batch, and whether that answer is still current.

    ``state`` is the batch's state after the last turn that requested its items, or None if that turn returned all of
    them and found no suspect. Two events report the end of the batch: ``idle`` is set while no item is pending or
    processing, in any worker, and ``stopped`` is set while the store has the batch as stopped.
    """

    def __init__(self) -> None:
        self.state: BatchState | None = None
        self.idle = asyncio.Event()
        self.stopped = asyncio.Event()
        self._changes = 0  # how often mark_changed() was called
        self._requested_at = 0  # the value of _changes when the last turn began
        self._answered_at = _NEVER  # the value of _changes when the turn of `state` began, if `state` is conclusive

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

    @property
    def suspicion(self) -> Suspicion:
        """The suspicion of the next suspect that may be claimed now; NONE without one."""
        return Suspicion.NONE if self.state is None else self.state.suspicion

    def record(self, state: BatchState | None, *, is_complete: bool, only_suspect: bool) -> None:
        """Record the answer of a turn that requested items.

        *is_complete*: the turn returned all of them. *only_suspect*: the turn requested only a suspect, so the answer
        does not cover other items.
        """
        self.state = state
        is_conclusive = state is not None and not is_complete and not only_suspect
        self._answered_at = self._requested_at if is_conclusive else _NEVER
        self._update_events()

    def record_stop(self, reason: str) -> None:
        """Record that the batch is stopped in the store for *reason*; the store then returns no claims of the batch."""
        self.state = BatchState(True, None, math.inf, None, stopped=reason)
        self._answered_at = self._changes
        self._update_events()

    def _update_events(self) -> None:
        state = self.state
        _set(self.stopped, state is not None and state.stopped is not None)
        _set(self.idle, state is not None and state.stopped is None and not state.unfinished and self.exhausted)


def _set(event: asyncio.Event, value: bool) -> None:
    if value:
        event.set()
    else:
        event.clear()


def allocate(queues: list[BatchQueue], concurrency: int, waiting: int, isolation: Isolation, now: float) -> list[Want]:
    """Return the requests that keep *concurrency* slots busy and divide the slots between the batches.

    *waiting*: how many handlers wait for the result of an item. *isolation* decides when a suspect is requested, and
    whether other items are requested; *now* is monotonic. The call rotates *queues*, so that ties alternate between calls.
    """
    suspect = _next_suspect(queues, concurrency, waiting, isolation, now)
    wants: list[Want] = []
    is_isolated = suspect is not None and suspect[1] is Suspicion.ISOLATED  # it starts beside what still runs, and no more
    if not is_isolated and not isolation.blocks_others(now):
        wants = _divide(queues, concurrency, None if suspect is None else suspect[0])
    if suspect is not None:
        queue, suspicion = suspect
        others = [want for want in wants if want.batch_id != queue.batch_id]
        own = next((want for want in wants if want.batch_id == queue.batch_id), _want(queue, 0))
        wants = [*others, own._replace(suspicion=suspicion)]
    return wants


def _divide(queues: list[BatchQueue], concurrency: int, with_suspect: BatchQueue | None) -> list[Want]:
    """Return the requests for items that are no suspects; a suspect of *with_suspect* takes one of the slots."""
    wants: list[Want] = []
    room = concurrency - sum(queue.in_hand for queue in queues) - (with_suspect is not None)
    claiming = [queue for queue in _fewest_claims_first(queues) if queue.blocked is Blocked.NONE and not queue.has_enough]
    # Every batch claims in this turn; the batches that have more items get the remaining slots in the next turn.
    share = max(1, room // max(1, len(claiming)))
    for queue in claiming:
        ahead = _ahead(queue, queues)
        slots = queue.limit - queue.in_hand - (queue is with_suspect)
        for_slots = min(slots, max(min(room, share), _min_share(queue, queues, concurrency)))
        # Claim in two halves: one half runs while the other half is settled and refilled.
        count = min(_within_window(queue, for_slots + ahead), max(queue.limit, (queue.limit + ahead + 1) // 2))
        # A turn for a few items is not worth its cost: refill when half of the prefetched items are used up.
        if count > 0 and count >= ahead // 2:
            wants.append(_want(queue, count))
            room -= max(0, for_slots)
    return wants


def want_new(queues: Sequence[BatchQueue], queue: BatchQueue, concurrency: int, isolation: Isolation, now: float) -> Want | None:
    """Return the request to claim new items of *queue* with the add that stores them; None to claim them in a turn.

    The number is that of a turn: the free slots of the batch, and what the slots can finish during one turn.
    """
    is_plain = queue.rate is None and not queue.only_given and not queue.throttle.is_active and not queue.failures.is_probing
    if not is_plain or queue.paused or queue.blocked not in (Blocked.NONE, Blocked.EMPTY):
        return None
    if queue.answer.suspicion or isolation.blocks_others(now):
        return None
    others = [each for each in queues if each is not queue and each.blocked is Blocked.NONE]
    room = concurrency - sum(each.in_hand for each in queues)
    share = max(1, room // (1 + len(others))) if room > 0 else 0
    count = _within_window(
        queue, min(queue.limit - queue.in_hand, max(share, _min_share(queue, queues, concurrency))) + _ahead(queue, queues)
    )
    return _want(queue, count) if count > 0 else None


def _ahead(queue: BatchQueue, queues: Sequence[BatchQueue]) -> int:
    """Return how many items of *queue* to prefetch; none for slow handlers beside other batches.

    Of these, the batch with the fewest claims gets the next free slot, and a prefetched item would take it.
    """
    return queue.ahead if len(queues) == 1 or queue.prefetch.is_quick else 0


def _within_window(queue: BatchQueue, count: int) -> int:
    return count if queue.window is None else min(count, queue.window.room(queue.in_hand))


def _next_suspect(
    queues: Sequence[BatchQueue], concurrency: int, waiting: int, isolation: Isolation, now: float
) -> tuple[BatchQueue, Suspicion] | None:
    """Return the batch queue from which to request a suspect now, and its suspicion; None without one.

    A suspect needs a slot in which it starts soon, because the others wait for it from its claim on. Handlers that wait
    for the result of an item do not delay an isolated suspect, because they may wait for it.
    """
    has_slot = sum(queue.in_hand for queue in queues) < concurrency
    candidates = [queue for queue in queues if queue.answer.suspicion and _may_start_suspect(queue, has_slot=has_slot)]
    if not candidates:
        isolation.waiting_since = None
        return None
    queue = min(candidates, key=lambda each: each.answer.suspicion)
    others = sum(each.in_hand for each in queues) - waiting
    suspicion = isolation.requested(queue.answer.suspicion, others, now)
    return (queue, suspicion) if suspicion else None


def _may_start_suspect(queue: BatchQueue, *, has_slot: bool) -> bool:
    if queue.paused or queue.blocked not in (Blocked.NONE, Blocked.EMPTY):
        return False
    # With quick handlers, a slot is free soon.
    return (has_slot and queue.in_hand < queue.limit) or (queue.prefetch.is_quick and queue.ahead > 0)


def _want(queue: BatchQueue, limit: int) -> Want:
    max_attempts = queue.executor.max_attempts
    return Want(queue.batch_id, limit, max_attempts, queue.rate, version=queue.version, only_given=queue.only_given)


def _fewest_claims_first(queues: list[BatchQueue]) -> Sequence[BatchQueue]:
    """Return the batch queues with the fewest claims first; rotate *queues* so that ties are round-robin."""
    if len(queues) < 2:
        return queues
    queues.append(queues.pop(0))
    return sorted(queues, key=lambda queue: queue.in_hand)


def _min_share(queue: BatchQueue, queues: Sequence[BatchQueue], concurrency: int) -> int:
    """Return how many items a batch may claim while the other batches fill every slot.

    The batches take slots in rotation. The number is 0 unless another batch has claims that wait for a slot.
    """
    if not any(other.ready for other in queues if other is not queue):
        return 0
    return max(1, concurrency // len(queues)) - queue.in_hand
