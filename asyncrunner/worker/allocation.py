"""Compute how many items of each batch a worker requests in a turn. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from asyncrunner.store.turn import Want
from asyncrunner.worker.admission import Blocked

if TYPE_CHECKING:
    from asyncrunner.worker.batch_queue import BatchQueue


def allocate(queues: list[BatchQueue], concurrency: int, waiting: int) -> list[Want]:
    """Return the requests that keep *concurrency* slots busy and divide the slots between the batches.

    *waiting*: how many handlers wait for the result of an item. The call rotates *queues*, so that ties alternate
    between calls.
    """
    with_suspect = next((queue for queue in queues if queue.blocked is Blocked.SUSPECT_ALONE), None)
    if with_suspect is not None:
        return _suspect_alone(with_suspect, queues, waiting)
    wants: list[Want] = []
    room = concurrency - sum(queue.in_hand for queue in queues)
    claiming = [queue for queue in _fewest_claims_first(queues) if queue.blocked is Blocked.NONE]
    # Every batch claims in this turn; the batches that have more items get the remaining slots in the next turn.
    share = max(1, room // max(1, len(claiming)))
    for queue in claiming:
        ahead = queue.ahead
        for_slots = min(queue.limit - queue.in_hand, max(min(room, share), _min_share(queue, queues, concurrency)))
        # Claim in two halves: one half runs while the other half is settled and refilled.
        count = min(for_slots + ahead, max(queue.limit, (queue.limit + ahead + 1) // 2))
        # A turn for a few items is not worth its cost: refill when half of the prefetched items are used up.
        if count > 0 and count >= ahead // 2:
            wants.append(Want(queue.batch_id, count, queue.executor.max_attempts, queue.rate))
            room -= max(0, for_slots)
    return wants


def _suspect_alone(queue: BatchQueue, queues: Sequence[BatchQueue], waiting: int) -> list[Want]:
    """Return a request for one suspect, an item that may have killed its workers; no request while another item runs.

    The suspect could kill the worker of the other item. Handlers that wait for the result of an item do not count,
    because they may wait for the suspect.
    """
    if sum(other.in_hand for other in queues) > waiting:
        return []
    return [Want(queue.batch_id, 1, queue.executor.max_attempts, queue.rate, suspect=True)]


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
