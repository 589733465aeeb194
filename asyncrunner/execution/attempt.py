"""A handler's view of its own run: ``Attempt`` and ``current_attempt()``. The engine's side is in ``execution.py``."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import msgspec

from asyncrunner.errors import CheckpointNotStorable, ItemNotStorable
from asyncrunner.serialization.codec import Codec

if TYPE_CHECKING:
    from asyncrunner.execution.execution import Execution

MAX_CHECKPOINT_BYTES: Final = 64 * 1024
current_execution: ContextVar[Execution] = ContextVar("asyncrunner_execution")


def current_attempt() -> Attempt:
    """Return the attempt of the calling handler, also in threads and tasks that the handler starts.

    Raises LookupError outside of a handler.
    """
    try:
        return current_execution.get().attempt
    except LookupError:
        raise LookupError("current_attempt() works only inside a handler: no attempt is running here") from None


class Attempt:
    """A handler's view of its run for one item. It offers no method that ends the run or drops the item.

    ``number`` counts from 1. ``idempotency_key`` is the batch name and the item key, joined by a slash; in the batch
    name, a slash is written as ``%2F`` and a percent sign as ``%25``. It is the same in all attempts of the item and
    differs from the key of every other item in the file, so a service that accepts such keys does the work once.
    ``deadline`` is a time on the clock of ``loop.time()``, or None without a timeout. ``checkpoint`` is the value that
    this attempt or an earlier one saved last.
    """

    __slots__ = ("_execution", "batch", "deadline", "key", "max_attempts", "number")

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self.batch = execution.batch
        self.key = execution.claim.id
        self.number = execution.claim.attempt
        self.max_attempts = execution.max_attempts
        self.deadline = execution.deadline

    @property
    def idempotency_key(self) -> str:
        # Escaping the batch name is enough: its end is the first slash, and most keys with slashes are URLs.
        return f"{self.batch.replace('%', '%25').replace('/', '%2F')}/{self.key}"

    @property
    def is_last(self) -> bool:
        """Whether the item fails if this attempt fails."""
        return self.number >= self.max_attempts

    @property
    def checkpoint(self) -> Any:
        """The value that was saved last for the item, also by an attempt whose process died; None if there is none."""
        checkpoint = self._execution.checkpoint
        return None if checkpoint is None else msgspec.json.decode(checkpoint)

    async def save(self, value: Any) -> None:
        """Save a small JSON *value* for the item's next attempt; the value is durable when this returns.

        The worker's next turn commits the value, so that many handlers share a transaction. A newer value replaces the
        older one. The next attempt reads the value in ``checkpoint``, no matter how this attempt ends;
        a rerun of the item deletes it. After a cancellation of this call the value may or may not be saved.

        Raises CheckpointNotStorable for a value without a JSON form or of more than 64 KiB, ClaimLost if the attempt
        has lost its claim, and LookupError after the attempt has ended or in a child process (``run_in="process"``).
        """
        await self._execution.save(_checkpoint_text(value))

    def __repr__(self) -> str:
        return f"<Attempt {self.number} of {self.max_attempts} at {self.key!r} in {self.batch!r}>"


def _checkpoint_text(value: Any) -> str:
    try:
        text = Codec().encode_item(value)
    except ItemNotStorable as error:
        raise CheckpointNotStorable(f"a checkpoint must be plain JSON: {error.args[0]}") from error
    if len(text) > MAX_CHECKPOINT_BYTES or len(text.encode()) > MAX_CHECKPOINT_BYTES:
        raise CheckpointNotStorable(
            f"the checkpoint has {len(text):,} characters; keep it within {MAX_CHECKPOINT_BYTES:,} bytes; store more in a file"
        )
    return text
