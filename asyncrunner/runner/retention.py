"""Retention: delete completed items that are older than the retention period.

Every process purges its own batches, without a leader: two processes that purge at the same time each find fewer items. The
store decides the order of a walk. After each step the walk rests many times as long as the step took, for the workers.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from asyncrunner.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncrunner.domain.clock import Clock
    from asyncrunner.store.items import Cursor, PurgeStep
    from asyncrunner.store.protocols import EngineStore


_MIN_REST_SECONDS: Final = 0.1  # between two steps; examining takes a hundredth of it

_MAX_REST_SECONDS: Final = 5.0  # a step only seems long if the process was stopped during it

_REST_FACTOR: Final = 20  # times the duration of a step that found no due item

_REST_FACTOR_REMOVING: Final = 4  # times the duration of a step that did

_SHARE_OF_PERIOD: Final = 0.02  # of the period, between two walks: how late an item may be deleted

_MAX_PAUSE_SECONDS: Final = 3600.0


class Retention:
    """Purges items of the batches *batch_ids* that were completed more than *seconds* ago. ``removed`` counts them."""

    def __init__(self, store: EngineStore, batch_ids: Callable[[], Sequence[int]], seconds: float, *, clock: Clock) -> None:
        self._store = store
        self._batch_ids = batch_ids
        self._seconds = seconds
        self._clock = clock
        self.removed = 0

    async def run(self) -> None:
        """Walk and rest until cancelled."""
        while True:
            with suppress(StoreUnavailable):  # the file is busy and the runner is stopping: no reason to fail
                await self.walk()
            await self._clock.sleep(min(max(self._seconds * _SHARE_OF_PERIOD, 1.0), _MAX_PAUSE_SECONDS))

    async def walk(self) -> None:
        """Examine every item of the store once, with a rest after each step."""
        cursor: Cursor | None = None
        while True:
            began = self._clock.monotonic()
            step = await self._step(cursor)
            factor = _REST_FACTOR_REMOVING if step.due else _REST_FACTOR
            rest = factor * (self._clock.monotonic() - began)
            await self._clock.sleep(min(max(rest, _MIN_REST_SECONDS), _MAX_REST_SECONDS))
            cursor = step.next
            if cursor is None:
                return

    async def purge_oldest(self, *, may_go_on: Callable[[], bool] = lambda: True) -> None:
        """Purge from the oldest item on, without rests, while items are due and *may_go_on* returns True."""
        step = await self._step(None)
        while step.due and step.next is not None and may_go_on():
            step = await self._step(step.next)

    async def _step(self, cursor: Cursor | None) -> PurgeStep:
        step = await self._store.purge_step(self._batch_ids(), older_than=self._seconds, cursor=cursor)
        self.removed += step.removed
        return step
