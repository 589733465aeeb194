"""Forgetting completed items that are older than they need to be kept.

Every process does it for its own batches, without a leader: two that walk together only find less each. A walk begins with the
oldest items, where most of what is due lies, and then goes round the file from a place chosen by lot, so that short runs on a
large file come everywhere in time, too. It leaves the file to the work: it rests many times as long as each step took.
"""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from asyncrunner.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncrunner.clock import Clock
    from asyncrunner.store import Purged, Store
    from asyncrunner.transient import Persistence

__all__ = ["Retention"]

_WINDOW: Final = 1000  # items a step: 1.3 ms to look at, 15 ms to remove
_REST_SECONDS: Final = 0.1  # at least, between two steps: looking takes a hundredth of the time
_LONGEST_REST_SECONDS: Final = 5.0  # who was stopped in a step only seems to have taken long for it
_REST_TIMES: Final = 20  # as long as a step took that only looked
_REST_TIMES_REMOVING: Final = 4
_SHARE_OF_PERIOD: Final = 0.02  # how late, compared with the period, an item may go
_LONGEST_PAUSE: Final = 3600.0


class Retention:
    """Purges what *batch_ids* names once it was completed more than *seconds* ago. ``removed`` counts what has gone."""

    def __init__(
        self, store: Store, batch_ids: Callable[[], Sequence[int]], seconds: float, *, clock: Clock, persist: Persistence,
        rng: random.Random | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self._batch_ids = batch_ids
        self._seconds = seconds
        self._clock = clock
        self._persist = persist
        self._rng = rng or random.Random()  # noqa: S311 - it spreads the walks
        self.removed = 0

    async def run(self) -> None:
        """Walk and rest until cancelled."""
        while True:
            with suppress(StoreUnavailable):  # the file is busy and the runner on its way out: no reason to fail
                await self.walk()
            await self._clock.sleep(min(max(self._seconds * _SHARE_OF_PERIOD, 1.0), _LONGEST_PAUSE))

    async def walk(self) -> None:
        """Once over every item of the file, at rest most of the time."""
        step = await self.purge_oldest(rests=True)
        start = self._rng.randint(step.reached, step.newest)
        await self._walk(start, step.newest)
        await self._walk(step.reached, start)

    async def purge_oldest(self, *, rests: bool = False, may_go_on: Callable[[], bool] = lambda: True) -> Purged:
        """From the oldest item on, for as long as something is due; the last step."""
        step = await self._step(0, rests=rests)
        while step.due and step.reached < step.newest and may_go_on():
            step = await self._step(step.reached, rests=rests)
        return step

    async def _walk(self, after: int, end: int) -> None:
        while after < end:
            after = (await self._step(after, rests=True)).reached

    async def _step(self, after: int, *, rests: bool) -> Purged:
        began = self._clock.monotonic()
        before = self._clock.now() - self._seconds
        step = await self._persist(lambda: self._store.purge(self._batch_ids(), before=before, after=after, limit=_WINDOW))
        self.removed += step.removed
        if rests:
            times = _REST_TIMES_REMOVING if step.due else _REST_TIMES
            rest = times * (self._clock.monotonic() - began)
            await self._clock.sleep(min(max(rest, _REST_SECONDS), _LONGEST_REST_SECONDS))
        return step
