"""Calls of the store that are worth repeating: while it is locked, full or unreadable, with exponential backoff."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random
from tenacity.stop import stop_base

from asyncrunner.errors import StoreUnavailable

if TYPE_CHECKING:
    from asyncrunner.clock import Clock

__all__ = ["Persistence"]

log = logging.getLogger("asyncrunner")

T = TypeVar("T")

_LONGEST_WAIT: Final = 5.0
_LOUD_AFTER: Final = 5  # attempts; a lock that passes at once is no news


class Persistence:
    """``await persist(call)``: the call's value, however often the store is unavailable meanwhile.

    After ``give_up_at`` (monotonic) StoreUnavailable is raised instead: nobody waits for ever for a program to end.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.give_up_at = math.inf

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except StoreUnavailable as error:
            if self._clock.monotonic() >= self.give_up_at:
                raise
            log.debug("the store is unavailable for now: %s", error)
        # Built only now: it costs more than a turn that succeeds.
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_exponential(multiplier=0.02, max=_LONGEST_WAIT) + wait_random(0, 0.05),
            stop=_StopAt(self),
            sleep=self._clock.sleep,
            before_sleep=_tell,
            reraise=True,
        )

        async def once_more() -> T:  # tenacity awaits only what is declared `async def`
            return await call()

        return await retrying(once_more)

    @property
    def is_given_up(self) -> bool:
        return self._clock.monotonic() >= self.give_up_at


class _StopAt(stop_base):
    def __init__(self, persistence: Persistence) -> None:
        self._persistence = persistence

    def __call__(self, retry_state: RetryCallState) -> bool:
        del retry_state
        return self._persistence.is_given_up


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    level = logging.WARNING if state.attempt_number >= _LOUD_AFTER else logging.DEBUG
    log.log(level, "the store is unavailable (attempt %d), nothing is lost: %s", state.attempt_number, error)
