"""Delete the items that were completed longer ago than the retention period.

Every process purges its own batches, and no process leads: two processes that purge at the same time share the items.
The store decides the order in which a walk examines items. After each step the walk rests for a multiple of the step's
duration, so that the workers can use the store.
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

_MIN_REST_SECONDS: Final = 0.1  # between two steps; a step that deletes nothing takes a hundredth of this time
_MAX_REST_SECONDS: Final = 5.0  # a step that seems to need more was one during which the process was stopped
_REST_FACTOR: Final = 20  # the rest after a step without due items, as a multiple of the step's duration
_REST_FACTOR_REMOVING: Final = 4  # the same after a step with due items
_SHARE_OF_PERIOD: Final = 0.02  # of the retention period: the pause between two walks, which delays deletions
_MAX_PAUSE_SECONDS: Final = 3600.0


class Retention:
    """The retention of one runner: purges the items of *batch_ids* that were completed more than *seconds* ago.

    ``removed`` counts the purged items.
    """

    def __init__(self, store: EngineStore, batch_ids: Callable[[], Sequence[int]], seconds: float, *, clock: Clock) -> None:
        self._store = store
        self._batch_ids = batch_ids
        self._seconds = seconds
        self._clock = clock
        self.removed = 0

    async def run(self) -> None:
        """Examine all items in walk after walk, with a pause after each, until cancelled."""
        while True:
            with suppress(StoreUnavailable):  # the store is unavailable while the runner stops: this is no failure
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

    async def purge_oldest(self, *, may_continue: Callable[[], bool] = lambda: True) -> None:
        """Purge from the oldest item on, without rests, while items are due and *may_continue* returns True."""
        step = await self._step(None)
        while step.due and step.next is not None and may_continue():
            step = await self._step(step.next)

    async def _step(self, cursor: Cursor | None) -> PurgeStep:
        step = await self._store.purge_step(self._batch_ids(), older_than=self._seconds, cursor=cursor)
        self.removed += step.removed
        return step
