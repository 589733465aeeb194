"""Decide whether a failed attempt is retried, and when. No I/O.

The delay before attempt *n + 1* is a random number in ``[0, min(cap, initial * factor ** (n - 1))]``. This is "full
jitter" (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). Among the usual forms of jitter,
full jitter spreads simultaneous retries best and needs the fewest calls.
"""

from __future__ import annotations

import email.utils
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

from asyncrunner.domain.outcome import Failed, Retrying
from asyncrunner.errors import Fail, PayloadUnreadable, ResultNotStorable, Retry
from asyncrunner.text.validation import checked_choice, checked_error_match, checked_number, checked_seconds

if TYPE_CHECKING:
    import random

    from asyncrunner.domain.outcome import ErrorInfo

ErrorMatch: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]"
"""A set of errors: an exception type, a tuple of types, or a predicate."""

MAX_DELAY_SECONDS: Final = 366 * 86_400.0
"""The maximum delay in seconds that a handler, a server or a policy can set."""

MAX_CRASHES: Final = 10
"""The number of crashes (or twice ``max_attempts``, if that is more) from which a last attempt is not refunded."""

_PERMANENT = (Fail, PayloadUnreadable, ResultNotStorable)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """A retry policy: it selects the transient errors and sets the delay before the next attempt.

    ``initial``, ``cap`` and ``retry_after_cap`` are seconds. With ``jitter="none"`` the delay is always the full
    backoff. ``on`` selects the transient errors (default: all); ``permanent`` takes precedence. A server's
    ``Retry-After``, up to ``retry_after_cap``, is the minimum delay; the backoff is added to it. Raises
    ConfigurationError at construction for a value out of range.
    """

    initial: float = 1.0
    factor: float = 2.0
    cap: float = 300.0
    jitter: Literal["full", "none"] = "full"
    on: ErrorMatch = BaseException
    permanent: ErrorMatch = ()
    retry_after_cap: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("initial", "cap", "retry_after_cap"):
            checked_seconds(name, getattr(self, name), owner="RetryPolicy")
        checked_number("factor", self.factor, at_least=1, owner="RetryPolicy")
        checked_choice("jitter", self.jitter, ("full", "none"), owner="RetryPolicy")
        for name in ("on", "permanent"):
            checked_error_match(name, getattr(self, name), owner="RetryPolicy")

    def is_transient(self, error: BaseException) -> bool:
        """Return whether *error* is transient. A predicate that raises does not prevent a retry."""
        return not _matches(self.permanent, error, default=False) and _matches(self.on, error, default=True)

    def backoff(self, failures: int) -> float:
        """Return the maximum delay, in seconds, after *failures* consecutive failures (from 1)."""
        if failures < 1:
            return 0.0
        try:
            return float(min(self.cap, self.initial * self.factor ** (failures - 1)))
        except OverflowError:
            return float(self.cap)

    def delay(self, failures: int, rng: random.Random) -> float:
        """Return the delay in seconds, within ``[0, cap]``, after *failures* consecutive failures."""
        bound = self.backoff(failures)
        return rng.uniform(0.0, bound) if self.jitter == "full" else bound


def conclude(
    error: BaseException,
    info: ErrorInfo,
    *,
    attempt: int,
    max_attempts: int,
    policy: RetryPolicy,
    rng: random.Random,
    now: float,
) -> Retrying | Failed:
    """Return the outcome of an attempt that raised *error*; *info* is the stored form of the error."""
    is_requested = isinstance(error, Retry)
    if isinstance(error, _PERMANENT) or not (is_requested or policy.is_transient(error)):
        return Failed(info, permanent=True)
    if attempt >= max_attempts:
        return Failed(info, permanent=False)
    delay = policy.delay(attempt, rng)
    minimum = error.after if isinstance(error, Retry) else _capped(retry_after(error, now), policy)
    if minimum is not None:
        delay += min(minimum, MAX_DELAY_SECONDS)
    pause = min(error.after, MAX_DELAY_SECONDS) if isinstance(error, Retry) and error.pause and error.after is not None else None
    return Retrying(info, min(delay, MAX_DELAY_SECONDS), pause=pause, asked=is_requested)


def conclude_loss(
    info: ErrorInfo, *, attempt: int, crashes: int, max_attempts: int, alone: bool, policy: RetryPolicy, rng: random.Random
) -> Retrying | Failed:
    """Return the outcome of an attempt whose worker was lost; *crashes* includes this loss.

    Only one of the items that a worker held can have killed the worker. A loss therefore fails an item only if the
    worker held the item *alone*; otherwise a last attempt is refunded, until the item has crashed ``MAX_CRASHES``
    times. From its second crash, and before its last attempt, an item is a suspect: it is claimed alone. If its worker
    is then lost, the suspect is the cause, and the other items complete.

    After the first loss the item is due immediately, because most losses are a deployment or a kill. Later losses have
    the delays of *policy*.
    """
    is_last = attempt >= max_attempts
    if is_last and (alone or crashes >= max(MAX_CRASHES, 2 * max_attempts)):
        return Failed(info, permanent=False, crashed=True)
    delay = min(policy.delay(crashes - 1, rng), MAX_DELAY_SECONDS)
    suspect = crashes > 1 or attempt + 1 >= max_attempts
    return Retrying(info, delay, crashed=True, suspect=suspect, refunded=is_last)


def retry_after(error: BaseException, now: float) -> float | None:
    """Return the ``Retry-After`` of an httpx, requests or aiohttp error, in seconds from *now*; None for other errors.

    The function reads both forms of RFC 9110, section 10.2.3: delay-seconds and an HTTP date. It never raises an
    Exception.
    """
    with suppress(Exception):  # an error whose properties raise has no Retry-After
        for source in (getattr(error, "response", None), error):
            headers = getattr(source, "headers", None)
            if isinstance(headers, Mapping):
                fields = cast("Mapping[str, Any]", headers)
                value = fields.get("Retry-After", fields.get("retry-after"))
                if value is not None:
                    return _parse_retry_after(str(value), now)
    return None


def _parse_retry_after(value: str, now: float) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except (ValueError, TypeError):
            return None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _capped(seconds: float | None, policy: RetryPolicy) -> float | None:
    return None if seconds is None else min(seconds, policy.retry_after_cap)


def _matches(match: ErrorMatch, error: BaseException, *, default: bool) -> bool:
    if isinstance(match, type | tuple):
        return isinstance(error, match)
    try:
        return bool(match(error))
    except Exception:  # noqa: BLE001 - a broken predicate must not fail the item
        return default
