"""Retry store calls with exponential backoff while the file is locked, full or unreadable."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random
from tenacity.stop import stop_base

from asyncrunner.errors import StoreUnavailable

if TYPE_CHECKING:
    from asyncrunner.domain.clock import Clock


log = logging.getLogger("asyncrunner")

T = TypeVar("T")

_MAX_WAIT_SECONDS: Final = 5.0

_WARN_AFTER_ATTEMPTS: Final = 5  # attempts; a lock that is released soon deserves no warning


class Persistence:
    """Retries store calls: ``await persist(call)`` repeats *call* while it raises StoreUnavailable and returns its value.

    The delay grows from 0.02 s to 5 s, plus up to 0.05 s of jitter. From ``give_up_at`` (monotonic seconds, default: never)
    StoreUnavailable is raised instead, so that a program that stops does not wait forever. Other errors are not retried.
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
            log.debug("the store is temporarily unavailable and the call is retried: %s", error)
        # Created only after a failure: it costs more than a successful turn.
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_exponential(multiplier=0.02, max=_MAX_WAIT_SECONDS) + wait_random(0, 0.05),
            stop=_StopAt(self),
            sleep=self._clock.sleep,
            before_sleep=_log_retry,
            reraise=True,
        )

        async def retry_call() -> T:  # tenacity awaits only what is declared `async def`
            return await call()

        return await retrying(retry_call)

    @property
    def is_given_up(self) -> bool:
        return self._clock.monotonic() >= self.give_up_at


class _StopAt(stop_base):
    def __init__(self, persistence: Persistence) -> None:
        self._persistence = persistence

    def __call__(self, retry_state: RetryCallState) -> bool:
        del retry_state
        return self._persistence.is_given_up


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    level = logging.WARNING if state.attempt_number >= _WARN_AFTER_ATTEMPTS else logging.DEBUG
    log.log(level, "the store is unavailable (attempt %d); the call is retried, nothing is lost: %s", state.attempt_number, error)
