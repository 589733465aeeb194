"""Decide why a worker requests no items of a batch now: the last answer of the store, one enum and one pure function.

``BatchQueue.has_work`` decides whether a claim that waits for a slot may start.
"""

from __future__ import annotations

import asyncio
import math
from enum import Enum
from typing import Final

from asyncrunner.domain.item import Suspicion
from asyncrunner.store.batches import BatchState

_NEVER: Final = -1  # differs from every count of changes


class Blocked(Enum):
    """The reason why a worker requests no items of a batch."""

    NONE = "items are requested"
    STOPPED = "a failure limit or a deadline stopped the batch"
    BACKPRESSURE = "the consumer of the outcome stream is slow"
    THROTTLED = "most answers of the service put items off: no handler starts before the time that it requests"
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
        says nothing about other items.
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
