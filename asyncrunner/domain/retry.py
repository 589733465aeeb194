"""Decide whether a failed attempt is retried, and when. No I/O.

The backoff before attempt *n + 1* is ``min(cap, initial * factor ** (n - 1))``. The delay is random: at least half of
the backoff ("equal jitter", Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). The random
half spreads simultaneous retries. The fixed half guarantees how long the attempts of an item span, and thereby how long
an outage the item survives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast, get_args

from msgspec.structs import replace

from asyncrunner.domain.http_errors import has_permanent_status, is_throttled, requested_delay
from asyncrunner.domain.item import Suspicion
from asyncrunner.domain.outcome import Failed, PutOff, Retrying
from asyncrunner.errors import Fail, Later, PayloadUnreadable, ResultNotStorable, Retry
from asyncrunner.text.durations import Duration, duration_text, seconds_of
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

_PERMANENT: Final = (Fail, PayloadUnreadable, ResultNotStorable)
_DEFECTS: Final = (NameError, ImportError, SyntaxError, NotImplementedError)
_MIN_PUT_OFF_SECONDS: Final = 1.0
_MAX_CAUSES: Final = 20  # a chain of causes may be endless: ``error.__cause__ = error``


def is_permanent(error: BaseException) -> bool:
    """Return whether no repetition changes *error*: a defect of the program, or an HTTP request that is wrong.

    Defects are NameError, ImportError, SyntaxError and NotImplementedError. Wrong requests are the HTTP statuses from
    400 to 499 without 408, 409, 425 and 429. TypeError, KeyError, AttributeError and AssertionError are not permanent,
    because a surprising answer of a service causes them too.
    """
    return isinstance(error, _DEFECTS) or has_permanent_status(error)


Jitter: TypeAlias = Literal["equal", "full", "none"]
"""How random a delay is: between half of the backoff and all of it, between 0 and all of it, or exactly the backoff."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """A retry policy: it selects the transient errors and sets the delay before the next attempt.

    ``initial``, ``cap`` and ``retry_after_cap`` are seconds. With ``jitter="equal"`` the delay is random, between half
    of the backoff and all of it; with ``"full"`` between 0 and all of it; with ``"none"`` it is the backoff. ``on``
    selects the transient errors (default: all for which ``is_permanent`` is false); ``permanent`` takes precedence. A
    server's ``Retry-After``, up to ``retry_after_cap``, is the minimum delay; the backoff is added to it.

    ``throttled`` selects the errors by which a service puts an item off (default: HTTP 429; 403, 503 and 529 with
    ``Retry-After``; 403 with ``x-ratelimit-remaining: 0``; the throttling codes of AWS; None: no errors). These errors cost
    no attempt, also if the handler raises another error while it handles one of them. An item that is put
    off for longer than ``throttled_for`` (seconds, a timedelta, or a text such as "6h") fails with the last answer.
    ``permanent`` takes precedence here too.

    Each of the three sets of errors is compared with the error, with the errors in an exception group, and with the
    causes that ``raise ... from`` sets. Raises ConfigurationError at construction for a value out of range.
    """

    initial: float = 1.0
    factor: float = 6.0
    cap: float = 300.0
    jitter: Jitter = "equal"
    on: ErrorMatch | None = None
    permanent: ErrorMatch = ()
    retry_after_cap: float = 3600.0
    throttled: ErrorMatch | None = is_throttled
    throttled_for: Duration = "6h"

    def __post_init__(self) -> None:
        for name in ("initial", "cap", "retry_after_cap"):
            checked_seconds(name, getattr(self, name), owner="RetryPolicy")
        checked_number("factor", self.factor, at_least=1, owner="RetryPolicy")
        checked_choice("jitter", self.jitter, get_args(Jitter), owner="RetryPolicy")
        for name in ("on", "permanent", "throttled"):
            if getattr(self, name) is not None or name == "permanent":
                checked_error_match(name, getattr(self, name), owner="RetryPolicy")
        _ = self.throttled_seconds

    @property
    def throttled_seconds(self) -> float:
        """``throttled_for`` in seconds. Raises ConfigurationError."""
        return seconds_of("throttled_for", self.throttled_for)

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
        match self.jitter:
            case "equal":
                return rng.uniform(bound / 2, bound)
            case "full":
                return rng.uniform(0.0, bound)
            case "none":
                return bound

    def verdict_on(self, errors: Sequence[BaseException]) -> Verdict:
        """Return the verdict on *errors*, the chain of one error. A predicate that raises does not prevent a retry.

        The first of ``Fail``, ``Retry`` and ``Later`` in the chain decides, because the handler raised it.
        """
        for error in errors:
            if isinstance(error, _PERMANENT):
                return Verdict.PERMANENT
            if isinstance(error, Retry | Later):
                return Verdict.REQUESTED if isinstance(error, Retry) else Verdict.LATER
        if _matches(self.permanent, errors, default=False):
            return Verdict.PERMANENT
        if self.is_refusal(errors):
            return Verdict.LATER
        if self.on is None:
            return Verdict.PERMANENT if any(map(is_permanent, errors)) else Verdict.TRANSIENT
        return Verdict.TRANSIENT if _matches(self.on, errors, default=True) else Verdict.PERMANENT

    def is_refusal(self, errors: Sequence[BaseException]) -> bool:
        """Return whether a service put the item off; False if only the handler did, with ``Later``.

        An error that the handler raised while it handled a refusal counts as that refusal, also without ``from``.
        """
        return self.throttled is not None and _matches(self.throttled, [*errors, *_contexts(errors)], default=False)


class Verdict(Enum):
    """The verdict of a policy on one error."""

    TRANSIENT = "the item is retried"
    REQUESTED = "the handler requested the retry"
    LATER = "the item is put off, without the loss of an attempt"
    PERMANENT = "the item fails"


def chains_of(error: BaseException) -> list[list[BaseException]]:
    """Return a chain of errors for each leaf of *error*: the groups around the leaf, the leaf, and the causes of them all.

    An error that is no group has one chain. Only causes that ``raise ... from`` sets are included; an error that
    happened while another one was handled is a separate error, except for refusals (see ``RetryPolicy.is_refusal``).
    """
    return list(_chains(error, []))


def conclude(
    error: BaseException,
    info: ErrorInfo,
    *,
    attempt: int,
    max_attempts: int,
    put_off_at: float | None = None,
    policy: RetryPolicy,
    rng: random.Random,
    now: float,
) -> Retrying | PutOff | Failed:
    """Return the outcome of an attempt that raised *error*; *info* is the stored form of the error.

    *put_off_at*: the time of the first put-off since the item's last failure, or None. Of several errors in a group, a
    permanent one decides; the item is put off only if the verdict on each of them is ``LATER``.
    """
    chains = chains_of(error)
    verdicts = [policy.verdict_on(chain) for chain in chains]
    if Verdict.PERMANENT in verdicts:
        return Failed(info, permanent=True)
    errors = [each for chain in chains for each in chain]
    minimum = _minimum_delay(errors, policy, now)
    if all(verdict is Verdict.LATER for verdict in verdicts):
        minimum = _minimum_delay([*errors, *_contexts(errors)], policy, now)
        put_off_for = 0.0 if put_off_at is None else max(0.0, now - put_off_at)
        if put_off_at is not None and put_off_for >= policy.throttled_seconds:
            limit = f"it was put off for longer than throttled_for={duration_text(policy.throttled_seconds)}"
            return Failed(replace(info, message=f"{info.message} ({limit})".strip()), permanent=False)
        delay = min(_put_off_delay(minimum, put_off_for, policy, rng), MAX_DELAY_SECONDS)
        return PutOff(info, delay, after=minimum, is_refusal=any(map(policy.is_refusal, chains)))
    if attempt >= max_attempts:
        return Failed(info, permanent=False)
    delay = policy.delay(attempt, rng) + (minimum or 0.0)
    pauses = [each.after for each in errors if isinstance(each, Retry) and each.pause and each.after is not None]
    return Retrying(
        info,
        min(delay, MAX_DELAY_SECONDS),
        pause=min(max(pauses), MAX_DELAY_SECONDS) if pauses else None,
        asked=Verdict.TRANSIENT not in verdicts,
    )


def conclude_loss(
    info: ErrorInfo,
    *,
    attempt: int,
    crashes: int,
    max_attempts: int,
    suspicion: Suspicion,
    only_suspect: bool,
    alone: bool,
    policy: RetryPolicy,
    rng: random.Random,
) -> Retrying | Failed:
    """Return the outcome of an attempt that had started when its worker was lost; *crashes* includes this loss.

    Only one of the items that ran in the worker can have killed it. A loss therefore fails an item only if the item ran
    *alone*; otherwise a last attempt is refunded, until the item has crashed ``MAX_CRASHES`` times. An item that ran at
    two losses is a suspect; *suspicion* is how the item ran in this attempt, and *only_suspect* whether no other suspect
    ran beside it. A suspect that was the only one at a loss is isolated, see ``Suspicion``.

    After the first loss the item is due immediately, because most losses are a deployment or a kill. Later losses have
    the delays of *policy*.
    """
    is_last = attempt >= max_attempts
    if is_last and (alone or crashes >= max(MAX_CRASHES, 2 * max_attempts)):
        return Failed(info, permanent=False, crashed=True)
    delay = min(policy.delay(crashes - 1, rng), MAX_DELAY_SECONDS)
    return Retrying(info, delay, crashed=True, suspicion=_next_suspicion(suspicion, crashes, only_suspect), refunded=is_last)


def _next_suspicion(suspicion: Suspicion, crashes: int, only_suspect: bool) -> Suspicion:
    if crashes < 2:
        return Suspicion.NONE
    if suspicion is Suspicion.ISOLATED or (suspicion is Suspicion.SUSPECT and only_suspect):
        return Suspicion.ISOLATED
    return Suspicion.SUSPECT


def _chains(error: BaseException, groups: list[BaseException]) -> Iterator[list[BaseException]]:
    members = _members(error)
    if members and len(groups) < _MAX_CAUSES:
        for member in members:
            yield from _chains(member, [*groups, error])
        return
    chain: list[BaseException] = [*groups, error]
    causes = [each.__cause__ for each in chain]
    while causes and len(chain) < _MAX_CAUSES:
        cause = causes.pop(0)  # nearer causes come first
        if cause is not None and not any(cause is each for each in chain):
            chain.append(cause)
            causes += [cause.__cause__, *_members(cause)]
    yield chain


def _contexts(errors: Sequence[BaseException]) -> list[BaseException]:
    """Return the errors that were being handled when one of *errors* was raised without ``from``."""
    contexts: list[BaseException] = []
    for error in errors:
        link: BaseException | None = error
        while link is not None and link.__cause__ is None and not link.__suppress_context__ and len(contexts) < _MAX_CAUSES:
            link = link.__context__
            if link is not None:
                contexts.append(link)
    return contexts


def _members(error: BaseException) -> Sequence[BaseException]:
    return cast("BaseExceptionGroup[BaseException]", error).exceptions if isinstance(error, BaseExceptionGroup) else ()


def _minimum_delay(errors: Sequence[BaseException], policy: RetryPolicy, now: float) -> float | None:
    """Return the longest delay that the handler or a server requests, in seconds; None if none is requested."""
    delays: list[float] = []
    for error in errors:
        after = error.after if isinstance(error, Retry | Later) else requested_delay(error, now)
        if after is not None:
            delays.append(min(after, MAX_DELAY_SECONDS if isinstance(error, Retry | Later) else policy.retry_after_cap))
    return max(delays, default=None)


def _put_off_delay(minimum: float | None, put_off_for: float, policy: RetryPolicy, rng: random.Random) -> float:
    """Return the delay of an item that has been put off for *put_off_for* seconds already.

    Without a request, the delay is random, between half of *put_off_for* and all of it (with a minimum of a second and the
    maximum ``cap`` for *put_off_for*), so that the delays grow. With a request, up to a quarter of the requested delay is
    added, so that not all items return at the same time.
    """
    if minimum is not None:
        return minimum + rng.uniform(0.0, minimum / 4)
    backoff = min(policy.cap, max(_MIN_PUT_OFF_SECONDS, put_off_for))
    return rng.uniform(backoff / 2, backoff)


def _matches(match: ErrorMatch, errors: Sequence[BaseException], *, default: bool) -> bool:
    return any(_matches_one(match, error, default=default) for error in errors)


def _matches_one(match: ErrorMatch, error: BaseException, *, default: bool) -> bool:
    if isinstance(match, type | tuple):
        return isinstance(error, match)
    try:
        return bool(match(error))
    except Exception:  # noqa: BLE001 - a broken predicate must not fail the item
        return default
