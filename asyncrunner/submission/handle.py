"""Inspect, await or cancel a submitted item by its handle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from asyncrunner.domain.item import Status
from asyncrunner.errors import ItemCancelled, ItemFailed
from asyncrunner.submission.submitter import ItemSubmitter
from asyncrunner.text.validation import checked_seconds

if TYPE_CHECKING:
    from asyncrunner.serialization.codec import Codec
    from asyncrunner.store.items import ItemRow

R = TypeVar("R")


class Handle(Generic[R]):
    """A reference to a submitted item, to await, inspect or cancel it.

    Handles with the same batch and key are equal. ``handler.handle(key)`` returns one for an item submitted earlier.
    ``created``: whether the call that returned the handle stored a new item; False if the key existed, and for a handle of
    ``handler.handle(key)``.
    """

    __slots__ = ("_batch_id", "_results", "_submitter", "batch", "created", "key")

    def __init__(
        self, submitter: ItemSubmitter, batch: str, batch_id: int, key: str, results: Codec[R], *, created: bool = False
    ) -> None:
        self.batch = batch
        self.key = key
        self.created = created
        self._submitter = submitter
        self._batch_id = batch_id
        self._results = results

    def __repr__(self) -> str:
        return f"<Handle of {self.key!r} in {self.batch!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and (self.batch, self.key) == (other.batch, other.key)

    def __hash__(self) -> int:
        return hash((self.batch, self.key))

    async def status(self) -> Status:
        """Return the item's current status. Raises ItemNotFound if the item was deleted, StoreClosed."""
        return (await self._submitter.results.row(self.batch, self._batch_id, self.key)).status

    async def result(self, timeout: float | None = None) -> R:  # noqa: ASYNC109 - like Future.result()
        """Wait until the item is done, in this or another process, and return its handler's result.

        ``timeout``: seconds to wait, after which TimeoutError is raised; None waits without limit, 0 only returns the
        result of an item that is already done. The first read of the file may take up to 1 second also if the timeout
        is shorter. Neither a timeout nor cancelling the caller affects the item. If the process that runs the item
        crashes, the wait continues until another worker has settled the item.

        Raises ItemFailed with the stored error; ItemCancelled; ItemNotFound if the item does not exist or is deleted
        during the wait; StoreClosed if the runner or client is stopped during the wait; ConfigurationError in a handler
        when the item could never start because waiting handlers hold every slot that could run it.
        """
        if timeout is not None:
            checked_seconds("timeout", timeout, instead=", or None to wait without limit")
        try:
            row = await self._submitter.results.done(self.batch, self._batch_id, self.key, timeout)
        except TimeoutError:
            message = f"item {self.key!r} of {self.batch!r} is not done after {timeout:g} s; it is not cancelled"
            raise TimeoutError(message) from None
        if row.status is Status.FAILED:
            raise item_failed(self.batch, row)
        if row.status is Status.CANCELLED:
            raise ItemCancelled(f"item {self.key!r} of {self.batch!r} was cancelled", batch=self.batch, key=self.key)
        return self._results.decode_result("null" if row.result is None else row.result)

    async def cancel(self) -> bool:
        """Cancel the item, pending or running, and return True; return False if it is already done or does not exist.

        A running handler is cancelled within a second, in any process, and its outcome is discarded. The cancellation
        is stored when this returns.
        """
        return await self._submitter.cancel(self.batch, self._batch_id, [self.key]) > 0


def item_failed(batch: str, row: ItemRow) -> ItemFailed:
    """Return the exception for a failed item, with its stored error."""
    error = row.error or "(no error is stored)"
    return ItemFailed(
        f"item {row.id!r} of {batch!r} failed in attempt {row.attempts}: {error}",
        batch=batch,
        key=row.id,
        error=error,
        attempts=row.attempts,
    )
