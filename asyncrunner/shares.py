"""What a worker asks of a turn for each of its batches: pure arithmetic on what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from asyncrunner.store import Want

if TYPE_CHECKING:
    from asyncrunner.lane import Lane

__all__ = ["wants_of"]


def wants_of(lanes: list[Lane], concurrency: int, waiting: int) -> list[Want]:
    """What to ask for so that *concurrency* slots are busy and the batches share them; *lanes* are put into the next order.

    *waiting* handlers wait for the result of an item.
    """
    suspected = [lane for lane in lanes if lane.suspects and not lane.is_stopped]
    if suspected:
        return _alone(suspected[0], lanes, waiting)
    wants: list[Want] = []
    room = concurrency - sum(lane.in_hand for lane in lanes)
    asking = [lane for lane in _in_turn(lanes) if not (lane.is_stopped or lane.starving)]
    share = max(1, room // max(1, len(asking)))  # all are asked in one turn; who has more gets the rest in the next
    for lane in asking:
        ahead = lane.ahead
        own = min(lane.limit - lane.in_hand, max(min(room, share), _foothold(lane, lanes, concurrency)))
        # In two halves, so that there is one to run while the other is settled and the next one claimed.
        count = min(own + ahead, max(lane.limit, (lane.limit + ahead + 1) // 2))
        # A turn for a handful is not worth it while there is plenty: refill when half of it is gone.
        if count > 0 and count >= ahead // 2:
            wants.append(Want(lane.batch_id, count, lane.runner.max_attempts, lane.rate))
            room -= max(0, own)
    return wants


def _alone(lane: Lane, lanes: Sequence[Lane], waiting: int) -> list[Want]:
    """An item that may have killed its workers, with nothing beside it that could die with this one.

    Handlers that wait for the result of an item do not count: it could be this one's.
    """
    if sum(each.in_hand for each in lanes) > waiting:
        return []
    return [Want(lane.batch_id, 1, lane.runner.max_attempts, lane.rate, suspect=True)]


def _in_turn(lanes: list[Lane]) -> Sequence[Lane]:
    """Whoever holds least wants first; of those that hold as much, each in turn."""
    if len(lanes) < 2:
        return lanes
    lanes.append(lanes.pop(0))
    return sorted(lanes, key=lambda lane: lane.in_hand)


def _foothold(lane: Lane, lanes: Sequence[Lane], concurrency: int) -> int:
    """What a batch may hold though others have claimed more than there is room for: slots alternate between them."""
    if not any(other.ready for other in lanes if other is not lane):
        return 0
    return max(1, concurrency // len(lanes)) - lane.in_hand
