"""Run the handler for one claim and turn its end (result, error, timeout, cancellation) into an outcome. No store.

A handler is driven step by step in its own context. That gives three things a bare ``await`` does not: context
variables that the handler sets do not leak; every way it can end is distinguished; and a handler that swallows its
cancellation can be abandoned, so that it does not keep the program from ending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from asyncrunner.errors import CheckpointNotStorable, ItemNotStorable
from asyncrunner.serialization.codec import Codec

if TYPE_CHECKING:
    from asyncrunner.domain.item import Claim


MAX_CHECKPOINT_BYTES: Final = 64 * 1024

Save: TypeAlias = "Callable[[Claim, str], Awaitable[None]]"

Around: TypeAlias = "Callable[[Attempt], AbstractContextManager[object]]"
"""Returns a context manager that is entered before a handler and left after it, in the handler's own context."""


class Interruption(Enum):
    """Why the engine interrupts a handler; the value is the message of the handler's CancelledError."""

    TIMEOUT = "the attempt ran longer than its timeout"
    SHUTDOWN = "the runner stops; the item is released and its attempt refunded"
    LOST = "the attempt lost its claim: the item may run again elsewhere, and the result of this attempt is dropped"
    CANCELLED = "the item was cancelled"


attempt_variable: ContextVar[Attempt] = ContextVar("asyncrunner_attempt")


def current_attempt() -> Attempt:
    """Return the attempt of the calling handler; this also works in threads and tasks that the handler starts.

    Raises LookupError outside of a handler.
    """
    try:
        return attempt_variable.get()
    except LookupError:
        raise LookupError("current_attempt() works only inside a handler: no attempt is running here") from None


@contextmanager
def running(attempt: Attempt) -> Generator[None, None, None]:
    """Make *attempt* the current attempt inside the ``with`` block."""
    token = attempt_variable.set(attempt)
    try:
        yield
    finally:
        attempt_variable.reset(token)


class Attempt:
    """One run of a handler for one item, as the handler may see it.

    ``number`` counts from 1. ``idempotency_key`` is the same in all attempts of the item and differs from every
    other item's, so a service that accepts such keys does the work once. ``deadline`` is a time on the clock of
    ``loop.time()``, or None without a timeout. ``checkpoint`` is the value saved last, by this attempt or an earlier one.
    """

    __slots__ = (
        "_abandoned", "_interruption", "_save", "_saved", "_task", "batch", "claim", "deadline", "key", "max_attempts", "number",
    )  # fmt: skip

    def __init__(self, batch: str, claim: Claim, max_attempts: int, deadline: float | None, save: Save | None = None) -> None:
        self.batch = batch
        self.claim = claim
        self.key = claim.id
        self.number = claim.attempt
        self.max_attempts = max_attempts
        self.deadline = deadline
        self._interruption: Interruption | None = None
        self._abandoned = False
        self._task: asyncio.Task[Any] | None = None
        self._save = save
        self._saved = claim.checkpoint

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
        return None if self._saved is None else msgspec.json.decode(self._saved)

    async def save(self, value: Any) -> None:
        """Save a small JSON *value* for the item's next attempt; it is durable when this returns.

        The value is committed with the worker's next turn, so many handlers share a transaction. A newer value replaces the
        older one. The next attempt reads it in ``checkpoint``, however this one ended; ``on_change="rerun"`` deletes it. After
        a cancellation of this call the value may or may not be saved. Raises CheckpointNotStorable for a value without a JSON
        form or of more than 64 KiB, ClaimLost if the attempt has lost its claim, and LookupError where saving is impossible:
        after the attempt has ended, or in a child process (``run_in="process"``).
        """
        text = _checkpoint_text(value)
        if self._save is None:
            raise LookupError("a checkpoint can be saved only in the process of the runner, while the attempt runs")
        await self._save(self.claim, text)
        self._saved = text

    def __repr__(self) -> str:
        return f"<Attempt {self.number} of {self.max_attempts} at {self.key!r} in {self.batch!r}>"

    def interrupt(self, reason: Interruption) -> None:
        """Interrupt the handler: its next await raises CancelledError. Only the first interruption counts."""
        if self._interruption is not None:
            return
        if self._task is None:
            # The handler has ended, and its result is about to be settled: record that the claim is no longer current.
            if reason in (Interruption.CANCELLED, Interruption.LOST):
                self._interruption = reason
            return
        self._interruption = reason
        self._task.cancel(reason.value)

    def abandon(self) -> None:
        """Stop waiting for the handler: its coroutine is closed at its current await."""
        if self._task is not None:
            self._abandoned = True
            self._task.cancel()

    def is_made_by(self, task: object) -> bool:
        """Return whether the handler runs in *task*."""
        return task is not None and task is self._task

    @property
    def interruption(self) -> Interruption | None:
        """Why the engine interrupted the handler; None if it did not."""
        return self._interruption

    @property
    def abandoned(self) -> bool:
        return self._abandoned


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
