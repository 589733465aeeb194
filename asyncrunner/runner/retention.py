"""Retention: delete completed items that are older than the retention period.

Every process purges its own batches, without a leader: two processes that purge at the same time each find fewer items. A walk
begins with the oldest items, where most due items are. It then goes round the file from a random place, so that even short runs
on a large file reach every item in time. After each step it rests many times as long as the step took, for the workers.
"""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from asyncrunner.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncrunner.domain.clock import Clock
    from asyncrunner.store.items import Purged
    from asyncrunner.store.protocols import Store
    from asyncrunner.store.retrying import Persistence


_STEP_ITEMS: Final = 1000  # items a step: 1.3 ms to examine, 15 ms to delete

_MIN_REST_SECONDS: Final = 0.1  # between two steps; examining takes a hundredth of it

_MAX_REST_SECONDS: Final = 5.0  # a step only seems long if the process was stopped during it

_REST_FACTOR: Final = 20  # times the duration of a step that found no due item

_REST_FACTOR_REMOVING: Final = 4  # times the duration of a step that did

_SHARE_OF_PERIOD: Final = 0.02  # of the period, between two walks: how late an item may be deleted

_MAX_PAUSE_SECONDS: Final = 3600.0


class Retention:
    """Purges items of the batches *batch_ids* that were completed more than *seconds* ago. ``removed`` counts them."""

    def __init__(
        self, store: Store, batch_ids: Callable[[], Sequence[int]], seconds: float, *, clock: Clock, persist: Persistence,
        rng: random.Random | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self._batch_ids = batch_ids
        self._seconds = seconds
        self._clock = clock
        self._persist = persist
        self._rng = rng or random.Random()  # noqa: S311 - it only spreads the walks over the file
        self.removed = 0

    async def run(self) -> None:
        """Walk and rest until cancelled."""
        while True:
            with suppress(StoreUnavailable):  # the file is busy and the runner is stopping: no reason to fail
                await self.walk()
            await self._clock.sleep(min(max(self._seconds * _SHARE_OF_PERIOD, 1.0), _MAX_PAUSE_SECONDS))

    async def walk(self) -> None:
        """Examine every item of the file once, with rests between the steps."""
        step = await self.purge_oldest(rests=True)
        start = self._rng.randint(step.reached, step.newest)
        await self._walk(start, step.newest)
        await self._walk(step.reached, start)

    async def purge_oldest(self, *, rests: bool = False, may_go_on: Callable[[], bool] = lambda: True) -> Purged:
        """Purge from the oldest item on while items are due and *may_go_on* returns True; return the last step."""
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
        step = await self._persist(lambda: self._store.purge(self._batch_ids(), before=before, after=after, limit=_STEP_ITEMS))
        self.removed += step.removed
        if rests:
            factor = _REST_FACTOR_REMOVING if step.due else _REST_FACTOR
            rest = factor * (self._clock.monotonic() - began)
            await self._clock.sleep(min(max(rest, _MIN_REST_SECONDS), _MAX_REST_SECONDS))
        return step
