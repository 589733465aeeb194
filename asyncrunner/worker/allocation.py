"""How many items a worker requests in a turn for each of its batches: arithmetic without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from asyncrunner.store.turn import Want
from asyncrunner.worker.admission import Blocked

if TYPE_CHECKING:
    from asyncrunner.worker.batch_queue import BatchQueue


def allocate(queues: list[BatchQueue], concurrency: int, waiting: int) -> list[Want]:
    """Return the requests that keep *concurrency* slots busy and share them between the batches.

    *waiting*: how many handlers wait for the result of an item. *queues* is rotated, so that ties alternate between calls.
    """
    with_suspect = next((queue for queue in queues if queue.blocked is Blocked.SUSPECT_ALONE), None)
    if with_suspect is not None:
        return _suspect_alone(with_suspect, queues, waiting)
    wants: list[Want] = []
    room = concurrency - sum(queue.in_hand for queue in queues)
    claiming = [queue for queue in _fewest_claims_first(queues) if queue.blocked is Blocked.NONE]
    share = max(1, room // max(1, len(claiming)))  # all batches claim in one turn; those with more items get the rest in the next
    for queue in claiming:
        ahead = queue.ahead
        for_slots = min(queue.limit - queue.in_hand, max(min(room, share), _min_share(queue, queues, concurrency)))
        # Claim in two halves: one runs while the other is settled and refilled.
        count = min(for_slots + ahead, max(queue.limit, (queue.limit + ahead + 1) // 2))
        # A turn for a few items is not worth its cost: refill when half of the prefetched items are used up.
        if count > 0 and count >= ahead // 2:
            wants.append(Want(queue.batch_id, count, queue.executor.max_attempts, queue.rate))
            room -= max(0, for_slots)
    return wants


def _suspect_alone(queue: BatchQueue, queues: Sequence[BatchQueue], waiting: int) -> list[Want]:
    """Request one suspect, an item that may have killed its workers, if no other item runs that could die with it.

    Handlers that wait for the result of an item do not count, because it may be the suspect's result.
    """
    if sum(other.in_hand for other in queues) > waiting:
        return []
    return [Want(queue.batch_id, 1, queue.executor.max_attempts, queue.rate, suspect=True)]


def _fewest_claims_first(queues: list[BatchQueue]) -> Sequence[BatchQueue]:
    """Return the batches with the fewest claims first; ties round-robin."""
    if len(queues) < 2:
        return queues
    queues.append(queues.pop(0))
    return sorted(queues, key=lambda queue: queue.in_hand)


def _min_share(queue: BatchQueue, queues: Sequence[BatchQueue], concurrency: int) -> int:
    """Return how many items a batch may claim although the other batches fill every slot: slots alternate between them."""
    if not any(other.ready for other in queues if other is not queue):
        return 0
    return max(1, concurrency // len(queues)) - queue.in_hand
