"""The rows of a copied batch, as they are in every kind of store. Times are in UTC; a time that is not a time is None."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from asyncrunner.domain.item import Status
from asyncrunner.text.timestamps import to_text

PAGE_ITEMS: Final = 1000
"""The maximum number of items, or of failures, in a page."""

PAGE_CHARACTERS: Final = 8_000_000
"""A page ends with the row that makes its texts longer than this."""

PAGE_PIECES: Final = 4
"""The maximum number of pieces of large results in a page; a piece has up to a million characters."""


class CopiedBatch(NamedTuple):
    """A batch without its items: handler, options, version and controls. ``put_offs``: how often its items were put off."""

    batch_id: int
    name: str
    handler: str
    options: str
    created_at: datetime | None
    paused: bool
    cooldown_until: datetime | None
    concurrency: int | None
    stopped: str | None
    rate_spent: float | None
    put_offs: int
    version: str | None
    version_number: int
    version_applied: int

    @property
    def identity(self) -> str:
        """The number of the batch and the time when it was created, which no other batch of its store has."""
        return f"{self.batch_id} {'' if self.created_at is None else to_text(self.created_at.timestamp())}"


class CopiedItem(NamedTuple):
    """An item without its number. The ``result`` of an item whose result is in pieces is the empty text."""

    id: str
    status: str
    attempts: int
    crashes: int
    claim: int
    worker_id: str | None
    priority: int
    permanent: bool
    suspect: int
    due_at: datetime | None
    created_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    payload: str
    result: str | None
    error: str | None
    checkpoint: str | None
    fingerprint: str | None
    put_offs: int
    put_off_at: float | None
    rerun_payload: str | None
    version: int
    result_claim: int | None
    traceparent: str | None

    def released(self) -> CopiedItem:
        """Return the item as it is after its worker has left: pending, with the attempt refunded, or with the requested rerun."""
        if self.status != Status.PROCESSING:
            return self
        if self.rerun_payload is None:
            return self._replace(status=Status.PENDING.value, worker_id=None, started_at=None, attempts=max(self.attempts - 1, 0))
        return self._replace(
            payload=self.rerun_payload,
            rerun_payload=None,
            status=Status.PENDING.value,
            attempts=0,
            crashes=0,
            permanent=False,
            suspect=0,
            worker_id=None,
            started_at=None,
            completed_at=None,
            result=self.result if self.rerun_payload == self.payload else None,
            error=None,
            checkpoint=None,
            put_off_at=None,
        )

    @property
    def size(self) -> int:
        """The number of characters of its long texts."""
        texts = (self.payload, self.result, self.error, self.checkpoint, self.rerun_payload)
        return sum(len(text) for text in texts if text is not None)


class CopiedFailure(NamedTuple):
    """The record of a failed attempt."""

    id: str
    attempt: int
    claim: int
    failed_at: datetime | None
    error_type: str
    message: str
    traceback: str
    fingerprint: str
    started_at: datetime | None
    duration: float | None

    @property
    def size(self) -> int:
        """The number of characters of its long texts."""
        return len(self.message) + len(self.traceback)


class CopiedPiece(NamedTuple):
    """A piece of a large result, with the key of its item."""

    id: str
    piece: int
    text: str


class CopyPage(NamedTuple):
    """Rows that a target stores in one transaction, in input order. ``reached``: the position of the copy after them."""

    reached: str
    items: Sequence[CopiedItem] = ()
    failures: Sequence[CopiedFailure] = ()
    pieces: Sequence[CopiedPiece] = ()


class Totals(NamedTuple):
    """How many rows a batch has. Items in processing count as pending, with the attempt refunded.

    ``attempts``: the sum of the attempts of all items. ``failures``: records of failed attempts. ``pieces``: pieces of large
    results.
    """

    pending: int
    completed: int
    failed: int
    cancelled: int
    attempts: float
    failures: int
    pieces: int
