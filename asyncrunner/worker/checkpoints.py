"""Collect the checkpoints that handlers save, and commit them with the worker's next turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from asyncrunner.errors import ClaimLost
from asyncrunner.store.turn import Checkpoint

if TYPE_CHECKING:
    from asyncrunner.domain.item import Claim


class PendingCheckpoints:
    """The checkpoints that one turn commits."""

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
        """Resolve the futures after the turn: raise ClaimLost for the claims in *lost*, return None for the others."""
        lost_claims = {(claim.seq, claim.number) for claim in lost}
        for key, (saved, future) in self._waiting.items():
            if future.done():
                continue
            if key in lost_claims:
                future.set_exception(ClaimLost(f"item {saved.claim.id!r}: the attempt has lost its claim; nothing was saved"))
                future.exception()  # marks the exception as retrieved, because the handler may have ended
            else:
                future.set_result(None)


class Checkpoints:
    """A collector of checkpoints for the next turn. It calls *on_news* when a checkpoint waits."""

    def __init__(self, on_news: Callable[[], object]) -> None:
        self._on_news = on_news
        self.waiting = PendingCheckpoints()

    async def save(self, claim: Claim, checkpoint: str) -> None:
        """Save *checkpoint* (JSON) with the next turn; the checkpoint is durable when this returns. Raises ClaimLost.

        After a cancellation of this call the checkpoint may or may not be saved.
        """
        future = self.waiting.put(Checkpoint(claim, checkpoint))
        self._on_news()
        await asyncio.shield(future)

    def take(self) -> PendingCheckpoints:
        """Return the waiting checkpoints for the turn that begins; later checkpoints wait for the turn after it."""
        waiting, self.waiting = self.waiting, PendingCheckpoints()
        return waiting
