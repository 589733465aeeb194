"""Read HTTP answers from the errors of HTTP clients: the status, and when the service accepts another request. No I/O.

The errors of httpx, requests, aiohttp, urllib, botocore, openai and anthropic are read by their attributes, so none of
these packages is imported. An error whose attributes raise has no answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

_TOO_MANY_REQUESTS: Final = 429
_FORBIDDEN: Final = 403
_UNAVAILABLE: Final = (503, 529)  # 529: the service is overloaded (Anthropic and others)
_TRANSIENT_CLIENT_ERRORS: Final = (408, 409, 425, 429)

_THROTTLING_CODES: Final = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionInProgressException",
    }
)
"""The error codes of AWS that mean throttling ("Retry behavior", AWS SDKs and Tools Reference Guide).

Many of them come with the HTTP status 400.
"""

_TRANSIENT_CODES: Final = ("RequestTimeout", "RequestTimeoutException")
"""The error codes of AWS that are transient, although they come with the HTTP status 400 (the same guide)."""

_LIMITS: Final = ("", "-requests", "-tokens", "-input-tokens", "-output-tokens")
_SPAN: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_MIN_EPOCH: Final = 1e9  # a larger number of seconds is a time since the epoch
_MIN_EPOCH_MILLISECONDS: Final = 1e12  # a larger number is in milliseconds


class Answer(NamedTuple):
    """The HTTP answer that an error holds: its status, a function that reads a header, and the error code of AWS."""

    status: int
    header: Callable[[str], str | None]
    code: str = ""


def answer_of(error: BaseException) -> Answer | None:
    """Return the answer that *error* holds, or None. The function never raises an Exception."""
    with suppress(Exception):
        response: Any = getattr(error, "response", None)
        if isinstance(response, Mapping):
            return _answer_of_botocore(cast("Mapping[str, Any]", response))
        sources: tuple[Any, ...] = (response, error)
        for source in sources:
            if hasattr(source, "headers"):
                for name in ("status_code", "status", "code"):
                    status = getattr(source, name, None)
                    if isinstance(status, int) and 100 <= status <= 599:
                        return Answer(int(status), _reader(source.headers))
    return None


def is_throttled(error: BaseException) -> bool:
    """Return whether *error* is a refusal by a service that receives too many requests.

    Refusals are the HTTP status 429, 403, 503 and 529 with ``Retry-After`` or ``retry-after-ms``, 403 with
    ``x-ratelimit-remaining: 0`` (the limits of GitHub), and the throttling codes of AWS.
    """
    answer = answer_of(error)
    if answer is None:
        return False
    if answer.status == _TOO_MANY_REQUESTS or answer.code in _THROTTLING_CODES:
        return True
    if answer.status == _FORBIDDEN and answer.header("x-ratelimit-remaining") == "0":
        return True
    return answer.status in (_FORBIDDEN, *_UNAVAILABLE) and any(map(answer.header, ("retry-after", "retry-after-ms")))


def has_permanent_status(error: BaseException) -> bool:
    """Return whether *error* has an HTTP status from 400 to 499 that no repetition changes: all but 408, 409, 425, 429.

    A refusal is not permanent, nor is an error with a transient code of AWS, whatever the status.
    """
    answer = answer_of(error)
    if answer is None or answer.code in _TRANSIENT_CODES or is_throttled(error):
        return False
    return 400 <= answer.status <= 499 and answer.status not in _TRANSIENT_CLIENT_ERRORS


def requested_delay(error: BaseException, now: float) -> float | None:
    """Return the seconds from *now* after which the service of *error* accepts another request, or None.

    The function reads ``retry-after-ms``, ``Retry-After`` in both forms of RFC 9110, section 10.2.3 (seconds and an
    HTTP date), and, for a throttled request, the times at which the limits are reset: ``RateLimit-Reset``
    (draft-ietf-httpapi-ratelimit-headers), ``x-ratelimit-reset-*`` and ``anthropic-ratelimit-*-reset``. The function
    never raises an Exception.
    """
    with suppress(Exception):
        answer = answer_of(error)
        header = _headers_without_status(error) if answer is None else answer.header
        if header is None:
            return None
        milliseconds = header("retry-after-ms")
        delay = None if milliseconds is None else _finite(float(milliseconds) / 1000)
        if delay is None:
            delay = _parse_retry_after(header("retry-after"), now)
        if delay is None and answer is not None and is_throttled(error):
            delay = _until_reset(header, now)
        return delay
    return None


# --- headers ------------------------------------------------------------------------------------------------------


def _answer_of_botocore(response: Mapping[str, Any]) -> Answer | None:
    metadata = response.get("ResponseMetadata", {})
    status = metadata.get("HTTPStatusCode")
    code = str(response.get("Error", {}).get("Code", ""))
    return Answer(status, _reader(metadata.get("HTTPHeaders", {})), code) if isinstance(status, int) else None


def _headers_without_status(error: BaseException) -> Callable[[str], str | None] | None:
    sources: tuple[Any, ...] = (getattr(error, "response", None), error)
    return next((_reader(source.headers) for source in sources if hasattr(source, "headers")), None)


def _reader(headers: Any) -> Callable[[str], str | None]:
    """Return a function that reads a field of *headers*, a mapping or a Message, by its name in lower case."""
    fields: dict[str, str] = {}
    with suppress(Exception):
        pairs = cast("Iterable[tuple[object, object]]", headers.items())
        for name, value in pairs:
            fields.setdefault(str(name).lower(), str(value))
    return fields.get


def _parse_retry_after(value: str | None, now: float) -> float | None:
    if value is None:
        return None
    try:
        return _finite(float(value))
    except ValueError:
        try:
            from email.utils import parsedate_to_datetime  # a slow import for an answer that is rare

            moment = parsedate_to_datetime(value)
        except (ValueError, TypeError):
            return None
    return max(0.0, _epoch_of(moment) - now)


def _until_reset(header: Callable[[str], str | None], now: float) -> float | None:
    """Return the seconds until all exhausted limits are reset, or until the first reset if no limit is marked as exhausted."""
    resets: list[float] = []
    exhausted: list[float] = []
    for limit in _LIMITS:
        prefixes = [(f"x-ratelimit-reset{limit}", f"x-ratelimit-remaining{limit}")]
        if limit:
            prefixes.append((f"anthropic-ratelimit{limit}-reset", f"anthropic-ratelimit{limit}-remaining"))
        else:
            prefixes.append(("ratelimit-reset", "ratelimit-remaining"))
        for name, remaining_name in prefixes:
            reset = _parse_reset(header(name), now)
            if reset is not None:
                resets.append(reset)
                if header(remaining_name) in ("0", "0.0"):
                    exhausted.append(reset)
    return max(exhausted) if exhausted else min(resets, default=None)


def _parse_reset(value: str | None, now: float) -> float | None:
    """Return the seconds until a limit is reset; *value* is seconds, an epoch time, a span (``6m0s``) or a timestamp."""
    if not value:
        return None
    try:
        seconds = _finite(float(value))
    except ValueError:
        span = _SPAN.fullmatch(value)
        if span is not None:
            days, hours, minutes, seconds_, milliseconds = (float(part or 0) for part in span.groups())
            return ((days * 24 + hours) * 60 + minutes) * 60 + seconds_ + milliseconds / 1000
        try:
            return max(0.0, _epoch_of(datetime.fromisoformat(value)) - now)
        except ValueError:
            return None
    if seconds is not None and seconds >= _MIN_EPOCH_MILLISECONDS:
        seconds /= 1000
    return max(0.0, seconds - now) if seconds is not None and seconds >= _MIN_EPOCH else seconds


def _epoch_of(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _finite(seconds: float) -> float | None:
    return max(0.0, seconds) if math.isfinite(seconds) else None
