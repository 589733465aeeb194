"""Compute how many items of each batch a worker requests in a turn. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from asyncrunner.store.turn import Want
from asyncrunner.worker.admission import Blocked

if TYPE_CHECKING:
    from asyncrunner.domain.item import Suspicion
    from asyncrunner.worker.batch_queue import BatchQueue
    from asyncrunner.worker.isolation import Isolation


def allocate(queues: list[BatchQueue], concurrency: int, waiting: int, isolation: Isolation, now: float) -> list[Want]:
    """Return the requests that keep *concurrency* slots busy and divide the slots between the batches.

    *waiting*: how many handlers wait for the result of an item. *isolation* decides when a suspect is requested, and
    whether other items are; *now* is monotonic. The call rotates *queues*, so that ties alternate between calls.
    """
    suspect = _next_suspect(queues, concurrency, waiting, isolation, now)
    wants: list[Want] = []
    if not isolation.holds_others_back(now):
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
    claiming = [queue for queue in _fewest_claims_first(queues) if queue.blocked is Blocked.NONE]
    # Every batch claims in this turn; the batches that have more items get the remaining slots in the next turn.
    share = max(1, room // max(1, len(claiming)))
    for queue in claiming:
        ahead = queue.ahead
        slots = queue.limit - queue.in_hand - (queue is with_suspect)
        for_slots = min(slots, max(min(room, share), _min_share(queue, queues, concurrency)))
        # Claim in two halves: one half runs while the other half is settled and refilled.
        count = min(for_slots + ahead, max(queue.limit, (queue.limit + ahead + 1) // 2))
        # A turn for a few items is not worth its cost: refill when half of the prefetched items are used up.
        if count > 0 and count >= ahead // 2:
            wants.append(_want(queue, count))
            room -= max(0, for_slots)
    return wants


def _next_suspect(
    queues: Sequence[BatchQueue], concurrency: int, waiting: int, isolation: Isolation, now: float
) -> tuple[BatchQueue, Suspicion] | None:
    """Return the batch queue from which to request a suspect now, and its suspicion; None without one.

    A suspect needs a slot in which it starts soon, because the others wait for it from its claim on. Handlers that wait
    for the result of an item do not delay an isolated suspect, because they may wait for it.
    """
    has_slot = sum(queue.in_hand for queue in queues) < concurrency
    found = [queue for queue in queues if queue.answer.suspicion and _may_start_suspect(queue, has_slot=has_slot)]
    if not found:
        isolation.waiting_since = None
        return None
    queue = min(found, key=lambda each: each.answer.suspicion)
    others = sum(each.in_hand for each in queues) - waiting
    suspicion = isolation.requested(queue.answer.suspicion, others, now)
    return (queue, suspicion) if suspicion else None


def _may_start_suspect(queue: BatchQueue, *, has_slot: bool) -> bool:
    if queue.paused or queue.blocked not in (Blocked.NONE, Blocked.EMPTY):
        return False
    # Prefetched items are quick, so a slot is free soon.
    return (has_slot and queue.in_hand < queue.limit) or queue.ahead > 0


def _want(queue: BatchQueue, limit: int) -> Want:
    return Want(queue.batch_id, limit, queue.executor.max_attempts, queue.rate)


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
