"""Decide why a worker requests no items of a batch now: one enum and one pure function.

``BatchQueue.has_work`` decides whether a claim that waits for a slot may start.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncrunner.store.batches import BatchState


class Blocked(Enum):
    """The reason why a worker requests no items of a batch."""

    NONE = "items are requested"
    STOPPED = "a failure limit or a deadline stopped the batch"
    BACKPRESSURE = "the consumer of the outcome stream is slow"
    SUSPECT_ALONE = "the next item may have killed its workers: the worker requests it alone, when no other item runs"
    PAUSED = "an operator, or Retry(pause=True) without a time, paused the batch"
    RESTING = "a rate limit or Retry(pause=True) holds the batch for a while"
    EMPTY = "the store has no due item"


def why_blocked(answer: BatchState | None, *, is_current: bool, stop_reason: str | None, backpressure: bool) -> Blocked:
    """Return the reason why a worker requests no items of a batch.

    Of several reasons, it is the first one in the order of ``Blocked``.

    *answer*: the batch's state after the last turn that requested its items, None if that turn returned all of them.
    *is_current*: the batch has not changed since that answer, so another request would return no items. *stop_reason*:
    why this worker must stop the batch; None after the store has recorded the stop. *backpressure*: the consumer of the
    outcome stream is slow.
    """
    if stop_reason is not None:
        return Blocked.STOPPED
    if backpressure:
        return Blocked.BACKPRESSURE
    if answer is not None and answer.suspects:
        return Blocked.SUSPECT_ALONE
    if answer is None or not is_current:
        return Blocked.NONE
    if answer.stopped is not None:
        return Blocked.STOPPED
    if answer.resting_until is None:
        return Blocked.EMPTY
    return Blocked.PAUSED if answer.resting_until == math.inf else Blocked.RESTING
