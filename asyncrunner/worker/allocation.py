"""How many items a worker requests in a turn for each of its batches: arithmetic without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from asyncrunner.store.turn import Want

if TYPE_CHECKING:
    from asyncrunner.worker.batch_queue import Lane


def wants_of(lanes: list[Lane], concurrency: int, waiting: int) -> list[Want]:
    """Return the requests that keep *concurrency* slots busy and share them between the batches.

    *waiting*: how many handlers wait for the result of an item. *lanes* is rotated, so that ties alternate between calls.
    """
    with_suspects = [lane for lane in lanes if lane.suspects and not lane.is_stopped]
    if with_suspects:
        return _suspect_alone(with_suspects[0], lanes, waiting)
    wants: list[Want] = []
    room = concurrency - sum(lane.in_hand for lane in lanes)
    claiming = [lane for lane in _fewest_claims_first(lanes) if not (lane.is_stopped or lane.starving)]
    share = max(1, room // max(1, len(claiming)))  # all batches claim in one turn; those with more items get the rest in the next
    for lane in claiming:
        ahead = lane.ahead
        for_slots = min(lane.limit - lane.in_hand, max(min(room, share), _min_share(lane, lanes, concurrency)))
        # Claim in two halves: one runs while the other is settled and refilled.
        count = min(for_slots + ahead, max(lane.limit, (lane.limit + ahead + 1) // 2))
        # A turn for a few items is not worth its cost: refill when half of the prefetched items are used up.
        if count > 0 and count >= ahead // 2:
            wants.append(Want(lane.batch_id, count, lane.runner.max_attempts, lane.rate))
            room -= max(0, for_slots)
    return wants


def _suspect_alone(lane: Lane, lanes: Sequence[Lane], waiting: int) -> list[Want]:
    """Request one suspect, an item that may have killed its workers, if no other item runs that could die with it.

    Handlers that wait for the result of an item do not count, because it may be the suspect's result.
    """
    if sum(other.in_hand for other in lanes) > waiting:
        return []
    return [Want(lane.batch_id, 1, lane.runner.max_attempts, lane.rate, suspect=True)]


def _fewest_claims_first(lanes: list[Lane]) -> Sequence[Lane]:
    """Return the batches with the fewest claims first; ties round-robin."""
    if len(lanes) < 2:
        return lanes
    lanes.append(lanes.pop(0))
    return sorted(lanes, key=lambda lane: lane.in_hand)


def _min_share(lane: Lane, lanes: Sequence[Lane], concurrency: int) -> int:
    """Return how many items a batch may claim although the other batches fill every slot: slots alternate between them."""
    if not any(other.ready for other in lanes if other is not lane):
        return 0
    return max(1, concurrency // len(lanes)) - lane.in_hand
