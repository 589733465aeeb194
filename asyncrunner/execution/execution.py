"""The engine's control of one running handler: interrupt or abandon the handler, and record the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from asyncrunner.execution.attempt import Attempt, current_execution

if TYPE_CHECKING:
    from asyncrunner.domain.item import Claim

Save: TypeAlias = "Callable[[Claim, str], Awaitable[None]]"

Around: TypeAlias = "Callable[[Execution], AbstractContextManager[object]]"
"""A function that returns a context manager, which surrounds the call of a handler in the handler's own context."""


class Interruption(Enum):
    """The reason why the engine interrupts a handler; its value is the message of the handler's CancelledError."""

    TIMEOUT = "the attempt ran longer than its timeout"
    SHUTDOWN = "the runner stops; the item is released and its attempt refunded"
    LOST = "the attempt lost its claim: the item may run again elsewhere, and the result of this attempt is dropped"
    CANCELLED = "the item was cancelled"


@contextmanager
def running(execution: Execution) -> Generator[None, None, None]:
    """Make the attempt of *execution* the current attempt inside the ``with`` block."""
    token = current_execution.set(execution)
    try:
        yield
    finally:
        current_execution.reset(token)


class Execution:
    """The execution of one claim: the handler that runs for it in *task*, from the start of the attempt to ``end()``.

    ``interruption``: why the engine interrupted the handler, or None. ``abandoned``: the engine closes the handler's
    coroutine, because the handler did not end. ``checkpoint``: the JSON that was saved last for the item, or None. Only
    the methods change these attributes. ``attempt`` is created when it is first read, because most handlers never read
    it.
    """

    __slots__ = (
        "_attempt",
        "_save",
        "abandoned",
        "batch",
        "checkpoint",
        "claim",
        "deadline",
        "has_ended",
        "interruption",
        "max_attempts",
        "task",
    )

    def __init__(
        self,
        batch: str,
        claim: Claim,
        max_attempts: int,
        deadline: float | None = None,
        task: asyncio.Task[Any] | None = None,
        save: Save | None = None,
    ) -> None:
        self.batch = batch
        self.claim = claim
        self.max_attempts = max_attempts
        self.deadline = deadline
        self.checkpoint = claim.checkpoint
        self.interruption: Interruption | None = None
        self.abandoned = False
        self.has_ended = False
        self.task = task
        self._save = save
        self._attempt: Attempt | None = None

    @property
    def key(self) -> str:
        return self.claim.id

    @property
    def attempt(self) -> Attempt:
        """The handler's view of this execution."""
        if self._attempt is None:
            self._attempt = Attempt(self)
        return self._attempt

    def is_made_by(self, task: object) -> bool:
        """Return whether the handler runs in *task* and has not ended."""
        return task is not None and task is self.task and not self.has_ended

    async def save(self, checkpoint: str) -> None:
        """Save *checkpoint*, which is JSON, and return when the checkpoint is durable.

        Raises ClaimLost; raises LookupError after the handler has ended and in a child process.
        """
        if self._save is None:
            raise LookupError("a checkpoint can be saved only in the process of the runner, while the attempt runs")
        await self._save(self.claim, checkpoint)
        self.checkpoint = checkpoint

    def interrupt(self, reason: Interruption) -> None:
        """Interrupt the handler: its next await raises CancelledError. Only the first interruption counts."""
        if self.interruption is not None:
            return
        if self.task is None or self.has_ended:
            # The handler has ended, and its result is about to be settled: record that the claim is no longer current.
            if reason in (Interruption.CANCELLED, Interruption.LOST):
                self.interruption = reason
            return
        self.interruption = reason
        self.task.cancel(reason.value)

    def abandon(self) -> None:
        """Stop waiting for the handler: cancel its task, which closes the handler's coroutine at its current await."""
        if self.task is not None and not self.has_ended:
            self.abandoned = True
            self.task.cancel()

    def end(self, interruption: Interruption | None = None) -> None:
        """Record that the handler has ended; *interruption* counts unless the handler was interrupted earlier."""
        self.has_ended = True
        self.task = (
            None  # a timer or a task that the handler leaves behind may refer to this execution, but not to the slot's task
        )
        self._save = None
        self.interruption = self.interruption or interruption
