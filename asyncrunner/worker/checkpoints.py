"""Checkpoints that handlers save: they wait for the worker's next turn and are committed with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from asyncrunner.errors import ClaimLost
from asyncrunner.store.turn import Checkpoint

if TYPE_CHECKING:
    from asyncrunner.domain.item import Claim


class PendingCheckpoints:
    """The checkpoints that are committed with one turn."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], tuple[Checkpoint, asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def saved(self) -> Sequence[Checkpoint]:
        """The newest checkpoint of each claim."""
        return [saved for saved, _ in self._waiting.values()]

    def put(self, saved: Checkpoint) -> asyncio.Future[None]:
        """Add a checkpoint and return the future of its commit.

        A second checkpoint of the same claim replaces the first one, and both callers get the same future.
        """
        key = (saved.claim.seq, saved.claim.number)
        waiting = self._waiting.get(key)
        future = waiting[1] if waiting is not None else asyncio.get_running_loop().create_future()
        self._waiting[key] = (saved, future)
        return future

    def answer(self, lost: Sequence[Claim]) -> None:
        """Resolve the futures after the turn: with ClaimLost for *lost* claims, with None for the others."""
        lost_claims = {(claim.seq, claim.number) for claim in lost}
        for key, (saved, future) in self._waiting.items():
            if future.done():
                continue
            if key in lost_claims:
                future.set_exception(ClaimLost(f"item {saved.claim.id!r}: the attempt has lost its claim; nothing was saved"))
                future.exception()  # marked as retrieved: the handler may have ended
            else:
                future.set_result(None)


class Checkpoints:
    """Collects checkpoints for the next turn. *on_news* is called when a checkpoint waits."""

    def __init__(self, on_news: Callable[[], object]) -> None:
        self._on_news = on_news
        self.waiting = PendingCheckpoints()

    async def save(self, claim: Claim, checkpoint: str) -> None:
        """Save *checkpoint* (JSON) with the next turn; it is durable when this returns. Raises ClaimLost.

        After a cancellation the checkpoint may or may not be saved.
        """
        future = self.waiting.put(Checkpoint(claim, checkpoint))
        self._on_news()
        await asyncio.shield(future)

    def take(self) -> PendingCheckpoints:
        """Return the waiting checkpoints for the turn that begins, and start a new collection."""
        waiting, self.waiting = self.waiting, PendingCheckpoints()
        return waiting
