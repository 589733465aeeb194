"""The contract of the two stores of a copy.

A copy walks over the rows of a batch in pages: its items in input order, the records of its failures, and the pieces of large
results. The target stores a page and the position behind it in one transaction. So after a kill, a repeated copy continues with
the first page that is missing, and a page whose answer was lost is not stored twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from asyncrunner.errors import ConfigurationError, StoreError
from asyncrunner.store.admin_protocol import InspectionStore
from asyncrunner.store.copying.incomplete import CopyCommand
from asyncrunner.store.copying.rows import CopiedBatch, CopiedFailure, CopiedItem, CopiedPiece, CopyPage, Totals
from asyncrunner.text.escaping import safe_text

RESTART: Final = "restart"
"""The position of a copy whose rows are deleted, so that it begins again."""


class CopyState(NamedTuple):
    """A batch of the target that a copy began. ``batch_id``: its number in the target. ``items``: how many it has.

    ``reached``: the position of the copy; the empty text at its beginning, RESTART while its rows are deleted.
    ``finished_at``: when the copy was complete, as text; None if it is not. ``copied``: how many items the copy has stored.
    """

    batch_id: int
    source: str | None
    identity: str | None
    reached: str
    finished_at: str | None
    items: int
    copied: int

    @property
    def added(self) -> int:
        """How many items other programs have added."""
        return max(self.items - self.copied, 0)

    @property
    def is_incomplete(self) -> bool:
        return self.source is not None and self.finished_at is None


class TakenKey(StoreError):
    """Another program has added an item with a key of the source to the target."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class CopySource(InspectionStore, Protocol):
    """The store from which a batch is copied. It is only read.

    The walks return the rows behind a position, at most a page of them, and none at the end. The position is that of the last
    row before: the seq of an item, the number of a failure, the seq and the number of a piece; None before the first row.
    """

    async def copied_batch(self, batch_id: int) -> CopiedBatch | None:
        """Return the batch, or None if it does not exist."""
        ...

    async def copied_items(self, batch_id: int, after: int | None) -> Sequence[tuple[int, CopiedItem]]:
        """Return the next items in input order, each with its seq, as they are after their workers have left."""
        ...

    async def copied_failures(self, batch_id: int, after: int | None) -> Sequence[tuple[int, CopiedFailure]]:
        """Return the next records of failures, each with its number."""
        ...

    async def copied_pieces(self, batch_id: int, after: tuple[int, int] | None) -> Sequence[tuple[int, CopiedPiece]]:
        """Return the next pieces of large results, each with the seq of its item."""
        ...

    async def copy_totals(self, batch_id: int) -> Totals:
        """Count the rows of the batch. The call reads all of them."""
        ...


class CopyTarget(Protocol):
    """The store to which a batch is copied. Workers start no item of the batch before ``finish``."""

    @property
    def location(self) -> str:
        """The location of the store, for messages."""
        ...

    async def open(self) -> None:
        """Open the store; create or migrate it if necessary. Raises StoreError."""
        ...

    async def close(self) -> None:
        """Close the store. A second call does nothing."""
        ...

    async def find_copy(self, name: str) -> CopyState | None:
        """Return the state of the batch of that name; None if the store has no such batch.

        ``CopyState.source`` is None if no copy began the batch.
        """
        ...

    async def begin_copy(self, batch: CopiedBatch, command: CopyCommand) -> CopyState:
        """Create the batch, paused and stopped with the *command* to repeat, if it does not exist; return its state."""
        ...

    async def store_page(self, batch_id: int, reached: str, page: CopyPage) -> None:
        """Store the rows of a page in one transaction, if the position of the copy is *reached*.

        If it is already the position behind the page, the call changes nothing. Raises StoreError if it is another one,
        because another command copies the batch, and TakenKey if another program added an item with a key of the page.
        """
        ...

    async def copy_totals(self, batch_id: int) -> Totals:
        """Count the rows of the batch. The call reads all of them."""
        ...

    async def finish_copy(self, batch_id: int, batch: CopiedBatch) -> None:
        """Record that the copy is complete, and give the batch its controls, in one transaction."""
        ...

    async def begin_restart(self, batch_id: int) -> None:
        """Move the position of a copy that is not complete to RESTART, so that no command continues it.

        Raises StoreError if the copy is complete.
        """
        ...

    async def discard_items(self, batch_id: int, limit: int) -> int:
        """Delete up to *limit* items of the batch with their failures, in one transaction; return how many.

        Raises StoreError if the position of the copy is not RESTART.
        """
        ...

    async def discard_batch(self, batch_id: int) -> None:
        """Delete the batch, which has no items any more, with the rest of its rows; if it is deleted already, do nothing."""
        ...


def check_begun_by(state: CopyState, batch: CopiedBatch, command: CopyCommand, *, restart: bool) -> None:
    """Raise ConfigurationError unless a copy of *batch* from the same source began the batch of the target.

    With *restart*, an incomplete copy of another batch is accepted too, because it is deleted.
    """
    name = f"{command.target} has a batch {safe_text(batch.name)!r}"
    if state.source is None:
        raise ConfigurationError(f"{name} that no copy began, so it is not changed; copy to another file or schema")
    if (state.identity, state.source) == (batch.identity, command.source) or (restart and state.is_incomplete):
        return
    if not state.is_incomplete:
        raise ConfigurationError(
            f"{name} that was copied from another batch, of {safe_text(state.source)}; copy to another file or schema"
        )
    other = CopyCommand(state.source, command.target, [batch.name])
    raise ConfigurationError(
        f"{name} whose copy from another batch, of {safe_text(state.source)}, is not complete; complete it with "
        f"`{other.text()}`, or delete what it has copied, and copy this batch, with `{command.text(restart=True)}`"
    )


def other_copy(target: str) -> StoreError:
    """Return the error of a copy whose position has changed meanwhile."""
    return StoreError(f"{target}: another command copies this batch, or has deleted it; wait for it, then repeat this command")
