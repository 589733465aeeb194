"""The rate of a batch, from its recorded turns and the times in which workers served it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from asyncrunner.store.rules.columns import batch_names_in
from asyncrunner.store.snapshot import TurnRow

MAX_RATE_TURNS: Final = 200
"""The number of newest turns that a rate covers."""

_MAX_GAP_SECONDS: Final = 60.0  # between two turns; during a longer gap no worker was active
_BEAT_SECONDS: Final = 2.0  # a worker that died was alive for at most this long after its newest heartbeat


class WorkerSpan(NamedTuple):
    """When a worker ran, and the JSON list of the names of its batches. ``ended_at``: None while it has not ended.

    Times are seconds since the epoch; one that cannot be read is None.
    """

    batches: str
    started_at: float | None
    last_heartbeat: float | None
    ended_at: float | None
    lost: bool


def recent_rate(turns: Sequence[TurnRow], batch: str, spans_since: Callable[[float], Iterable[WorkerSpan]]) -> float | None:
    """Return how many items were completed or failed per second, or None if there are too few turns.

    The rate covers *turns*, the newest first, back to the first gap of more than a minute, without the time in which no
    worker served the batch: a pause between two runs is no part of their rate. *spans_since* returns the workers that have
    not ended before an instant.
    """
    stretch = list(turns[:1])
    for turn in turns[1:MAX_RATE_TURNS]:
        if stretch[-1].at - turn.at > _MAX_GAP_SECONDS:
            break
        stretch.append(turn)
    # The measured time begins at the oldest turn, and the items that this turn settled were processed before it.
    settled = sum(turn.completed + turn.failed for turn in stretch[:-1])
    if not settled:
        return None
    begin, end = stretch[-1].at, stretch[0].at
    seconds = _served_seconds(batch, begin, end, spans_since(begin))
    return settled / seconds if seconds > 0 else None


def _served_seconds(batch: str, begin: float, end: float, spans: Iterable[WorkerSpan]) -> float:
    """Return for how many of the seconds from *begin* to *end* a worker served the batch; all of them if no worker is known."""
    served_spans: list[tuple[float, float]] = []
    for batches, started_at, last_heartbeat, ended_at, lost in spans:
        if batch in batch_names_in(batches):
            died_at = (last_heartbeat or 0.0) + _BEAT_SECONDS
            last = died_at if ended_at is None else min(ended_at, died_at) if lost else ended_at
            served_spans.append((max(begin, started_at or 0.0), min(end, last)))
    served, reached = 0.0, begin
    for first, last in sorted(served_spans):
        served += max(0.0, last - max(first, reached))
        reached = max(reached, last)
    return served or end - begin
