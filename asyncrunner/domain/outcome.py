"""The outcomes of an attempt as small frozen values, and the settlement that makes one durable. No I/O, no clock."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

import msgspec

from asyncrunner.domain.item import Claim


class ErrorInfo(msgspec.Struct, frozen=True):
    """The stored form of an error: the name of its type, its message, its frames without locals, and its fingerprint."""

    type: str
    message: str
    traceback: str = ""
    fingerprint: str = ""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


LARGE_RESULT: Final = 2_000_000
"""Characters of JSON. A longer result is encoded and stored in steps, so that it blocks the event loop for less time."""

RESULT_PIECE: Final = 1_000_000
"""Characters in one piece of a large result."""


class Completed(msgspec.Struct, frozen=True):
    """The handler returned; ``result`` is its JSON text. ``kept``: the store already has the result, in pieces."""

    result: str
    kept: bool = False


class Retrying(msgspec.Struct, frozen=True):
    """A transient error with attempts left: the item is pending and due ``delay`` seconds after it is settled."""

    error: ErrorInfo
    delay: float
    pause: float | None = None  # seconds for which the whole batch pauses
    crashed: bool = False
    suspect: bool = False  # suspected of killing its worker: the next attempt runs alone
    refunded: bool = False  # the attempt does not count, because another item may have caused the crash
    asked: bool = False  # the handler raised Retry: the failure limit does not count it


class Failed(msgspec.Struct, frozen=True):
    """A permanent error, or no attempt left: the item is a dead letter."""

    error: ErrorInfo
    permanent: bool
    crashed: bool = False


class Released(msgspec.Struct, frozen=True):
    """The item was released unfinished and its attempt is refunded, because a shutdown is not a failure."""


class Cancelled(msgspec.Struct, frozen=True):
    """An operator cancelled the item while it ran."""


Outcome: TypeAlias = Completed | Retrying | Failed | Released | Cancelled


class Settlement(NamedTuple):
    """A claim and its outcome, before or after the commit, with the wall times of the handler's start and end."""

    claim: Claim
    outcome: Outcome
    started_at: float
    finished_at: float
