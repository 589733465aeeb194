"""Checkpoints on their way: what handlers save waits for the worker's next turn, and rides along."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from asyncrunner.errors import ClaimLost
from asyncrunner.store import Saved

if TYPE_CHECKING:
    from asyncrunner.item import Claim

__all__ = ["Checkpoints", "Saves"]


class Saves:
    """What goes along with one turn."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], tuple[Saved, asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def saved(self) -> Sequence[Saved]:
        """The newest checkpoint of each claim."""
        return [saved for saved, _ in self._waiting.values()]

    def put(self, saved: Saved) -> asyncio.Future[None]:
        """A second value of one claim takes the first one's place, and its company."""
        key = (saved.claim.seq, saved.claim.number)
        waiting = self._waiting.get(key)
        future = waiting[1] if waiting is not None else asyncio.get_running_loop().create_future()
        self._waiting[key] = (saved, future)
        return future

    def answer(self, lost: Sequence[Claim]) -> None:
        """The turn is done: tell whoever saved."""
        gone = {(claim.seq, claim.number) for claim in lost}
        for key, (saved, future) in self._waiting.items():
            if future.done():
                continue
            if key in gone:
                future.set_exception(ClaimLost(f"item {saved.claim.id!r} is somebody else's by now; nothing was saved"))
                future.exception()  # whoever saved may be gone: nobody has to look at it
            else:
                future.set_result(None)


class Checkpoints:
    """*on_news* is called when something waits to be saved."""

    def __init__(self, on_news: Callable[[], object]) -> None:
        self._on_news = on_news
        self.waiting = Saves()

    async def save(self, claim: Claim, checkpoint: str) -> None:
        """Keep *checkpoint* with the next turn; durable when this returns. Raises ClaimLost."""
        future = self.waiting.put(Saved(claim, checkpoint))
        self._on_news()
        await asyncio.shield(future)

    def take(self) -> Saves:
        """What waits, for the turn that begins."""
        taken, self.waiting = self.waiting, Saves()
        return taken
