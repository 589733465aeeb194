"""Permit the worker of a run with ``leftovers="leave"`` to claim the items that the run was given, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncrunner.store.items import Numbers

if TYPE_CHECKING:
    from asyncrunner.batch.processes.children import BatchChildren
    from asyncrunner.batch.source.given import GivenItems
    from asyncrunner.store.batches import Added
    from asyncrunner.store.protocols import Store


class GivenClaims:
    """The given items that the worker may claim. Each turn of the worker removes those that have ended.

    *reopen_below*: failed items with fewer attempts are retried; None: every failed item is. *children*: child processes whose
    workers may claim the items too.
    """

    def __init__(
        self, store: Store, batch_id: int, given: GivenItems, reopen_below: int | None, children: BatchChildren | None = None
    ) -> None:
        self._store = store
        self._batch_id = batch_id
        self._given = given
        self._reopen_below = reopen_below
        self._children = children

    async def permit(self, added: Added) -> tuple[Numbers, int]:
        """Permit the items of a chunk, and reopen those of them that failed before this run.

        Returns the items that the run was not given before, and how many were reopened.
        """
        fresh = Numbers.of(added.seqs) - self._given.numbers
        reopened = await self._store.give(self._batch_id, list(fresh), max_attempts=self._reopen_below)
        if added.changed:  # items that were given before, and have ended, may be pending again
            await self._store.give(self._batch_id, list(dict.fromkeys(added.seqs)), max_attempts=0)
        if self._children is not None:
            self._children.give(Numbers.of(added.seqs) if added.changed else fresh)
        return fresh, reopened

    async def permit_reopened(self) -> bool:
        """Permit the given items that another process or a person made pending after their end; return whether there are any."""
        if not (await self._store.counts(self._batch_id)).unfinished:
            return False
        reopened = self._given.numbers & (await self._store.open_items(self._batch_id)).unfinished
        if reopened:
            await self._store.give(self._batch_id, list(reopened), max_attempts=0)
            if self._children is not None:
                self._children.give(reopened)
        return bool(reopened)
