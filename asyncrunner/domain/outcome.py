"""The outcomes of an attempt as small frozen values, and the settlement of a claim. No I/O, no clock."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from asyncrunner.domain.item import Claim, Suspicion


class ErrorInfo(msgspec.Struct, frozen=True):
    """The stored form of an error: the name of its type, its message, its frames without locals, its fingerprint."""

    type: str
    message: str
    traceback: str = ""
    fingerprint: str = ""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


LARGE_RESULT: Final = 2_000_000
"""A result of more characters of JSON is checked and stored in steps, to block the event loop for less time."""

RESULT_PIECE: Final = 1_000_000
"""The number of characters in one piece of a large result."""


class Completed(msgspec.Struct, frozen=True):
    """The handler returned a result.

    ``result`` is the JSON text of the result. ``kept``: the store already has the result, in pieces.
    """

    result: str
    kept: bool = False


class Retrying(msgspec.Struct, frozen=True):
    """The attempt failed, and the item is retried: it is pending, and due ``delay`` seconds after the settlement."""

    error: ErrorInfo
    delay: float
    pause: float | None = None  # seconds for which the whole batch pauses
    crashed: bool = False  # the worker was lost
    suspicion: Suspicion = Suspicion.NONE  # how the next attempt runs
    refunded: bool = False  # the attempt does not count, because another item may have caused the crash
    asked: bool = False  # the handler raised Retry: the failure limit does not count it


class PutOff(msgspec.Struct, frozen=True):
    """A service or the handler put the item off: the item is pending, and due ``delay`` seconds after the settlement.

    The attempt is refunded, and no failure is recorded. ``is_refusal``: a service refused the request, because the service
    receives too many. ``after``: the seconds that the service or the handler requested, or None.
    """

    error: ErrorInfo
    delay: float
    after: float | None = None
    is_refusal: bool = False


class Failed(msgspec.Struct, frozen=True):
    """The item failed, because its error is permanent or no attempt is left: the item is a dead letter."""

    error: ErrorInfo
    permanent: bool
    crashed: bool = False


class Released(msgspec.Struct, frozen=True):
    """The item was released: it is pending again, and its attempt is refunded, because a release is no failure."""


class Cancelled(msgspec.Struct, frozen=True):
    """An operator or a submitting program cancelled the item while its handler ran."""


Outcome: TypeAlias = Completed | Retrying | PutOff | Failed | Released | Cancelled


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """A claim and its outcome, before or after the commit, with the wall times of the handler's start and end."""

    claim: Claim
    outcome: Outcome
    started_at: float
    finished_at: float
