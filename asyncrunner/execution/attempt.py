"""What a handler may see and do of its own run: `Attempt` and `current_attempt()`. The engine's side is in execution.py."""

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
    """Return the attempt of the calling handler; this also works in threads and tasks that the handler starts.

    Raises LookupError outside of a handler.
    """
    try:
        return current_execution.get().attempt
    except LookupError:
        raise LookupError("current_attempt() works only inside a handler: no attempt is running here") from None


class Attempt:
    """One run of a handler for one item, as the handler may see it. Nothing that it offers ends the run or drops the item.

    ``number`` counts from 1. ``idempotency_key`` is the same in all attempts of the item and differs from every
    other item's, so a service that accepts such keys does the work once. ``deadline`` is a time on the clock of
    ``loop.time()``, or None without a timeout. ``checkpoint`` is the value saved last, by this attempt or an earlier one.
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
        return f"{self.batch}/{self.key}"

    @property
    def is_last(self) -> bool:
        """Whether the item fails if this attempt does."""
        return self.number >= self.max_attempts

    @property
    def checkpoint(self) -> Any:
        """The value saved last for the item, also by an attempt whose process died; None if there is none."""
        checkpoint = self._execution.checkpoint
        return None if checkpoint is None else msgspec.json.decode(checkpoint)

    async def save(self, value: Any) -> None:
        """Save a small JSON *value* for the item's next attempt; it is durable when this returns.

        The value is committed with the worker's next turn, so many handlers share a transaction. A newer value replaces the
        older one. The next attempt reads it in ``checkpoint``, however this one ended; ``on_change="rerun"`` deletes it. After
        a cancellation of this call the value may or may not be saved. Raises CheckpointNotStorable for a value without a JSON
        form or of more than 64 KiB, ClaimLost if the attempt has lost its claim, and LookupError where saving is impossible:
        after the attempt has ended, or in a child process (``run_in="process"``).
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
