"""A corpus of errors of HTTP clients: which are permanent, throttled or transient, and when the service accepts a request.

The errors of httpx, aiohttp, requests and urllib are real. Those of botocore, openai and anthropic have the same shape.
"""

from __future__ import annotations

import email.message
import ssl
import urllib.error
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from aiohttp.client_reqrep import RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from asyncrunner.domain.http_errors import answer_of, is_throttled, requested_delay
from asyncrunner.domain.retry import RetryPolicy, Verdict, chains_of

NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
GET = httpx.Request("GET", "https://api.example.com/")

PERMANENT, THROTTLED, TRANSIENT = Verdict.PERMANENT, Verdict.LATER, Verdict.TRANSIENT


# --- clients ----------------------------------------------------------------------------------------------------------


def of_httpx(status: int, headers: dict[str, str]) -> BaseException:
    response = httpx.Response(status, headers=headers, request=GET)
    return httpx.HTTPStatusError(f"Client error '{status}'", request=GET, response=response)


def of_requests(status: int, headers: dict[str, str]) -> BaseException:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers)
    try:
        response.raise_for_status()
    except requests.HTTPError as error:
        return error
    raise AssertionError(status)


def of_aiohttp(status: int, headers: dict[str, str]) -> BaseException:
    url = URL("https://api.example.com/")
    request = RequestInfo(url, "GET", CIMultiDictProxy(CIMultiDict()), url)
    return aiohttp.ClientResponseError(request, (), status=status, message="no", headers=CIMultiDictProxy(CIMultiDict(headers)))


def of_urllib(status: int, headers: dict[str, str]) -> BaseException:
    message = email.message.Message()
    for name, value in headers.items():
        message[name] = value
    return urllib.error.HTTPError("https://api.example.com/", status, "no", message, None)


class APIStatusError(Exception):
    """An error of openai or anthropic: both have an httpx response, the status, and the body."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(f"Error code: {status}")
        self.response = httpx.Response(status, headers=headers, request=GET)
        self.request = GET
        self.status_code = status
        self.body = {"error": {"message": "no", "code": None}}


class APIConnectionError(Exception):
    """An error of openai or anthropic without a response."""

    def __init__(self) -> None:
        super().__init__("Connection error.")
        self.request = GET
        self.body = None
        self.code = None


class ClientError(Exception):
    """An error of botocore: its response is a dict, and its headers have names in lower case."""

    def __init__(self, status: int, headers: dict[str, str], code: str | None = None) -> None:
        super().__init__(f"An error occurred ({code}) when calling the PutItem operation")
        self.response = {
            "Error": {"Code": code or str(status), "Message": "no"},
            "ResponseMetadata": {
                "RequestId": "x",
                "HTTPStatusCode": status,
                "HTTPHeaders": {name.lower(): value for name, value in headers.items()},
                "RetryAttempts": 4,
            },
        }
        self.operation_name = "PutItem"


CLIENTS = [of_httpx, of_requests, of_aiohttp, of_urllib, APIStatusError, ClientError]


def verdict_on(error: BaseException, policy: RetryPolicy | None = None) -> Verdict:
    (chain,) = chains_of(error)
    return (policy or RetryPolicy()).verdict_on(chain)


# --- which answers are permanent, throttled or transient ---------------------------------------------------------------


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        *[(status, {}, PERMANENT) for status in (400, 401, 402, 403, 404, 405, 410, 413, 415, 418, 422, 451)],
        (404, {"Retry-After": "1"}, PERMANENT),
        *[(status, {}, TRANSIENT) for status in (408, 409, 425, 500, 502, 503, 504, 529)],
        (500, {"Retry-After": "1"}, TRANSIENT),
        (409, {"Retry-After": "1"}, TRANSIENT),
        (429, {}, THROTTLED),
        (429, {"Retry-After": "1"}, THROTTLED),
        (503, {"Retry-After": "1"}, THROTTLED),
        (503, {"retry-after-ms": "1"}, THROTTLED),
        (503, {"RETRY-AFTER": "Fri, 15 Jan 2027 08:00:30 GMT"}, THROTTLED),
        (529, {"retry-after": "1"}, THROTTLED),
    ],
)  # fmt: skip
def test_the_verdict_on_an_answer_is_the_same_for_every_client(
    client: Any, status: int, headers: dict[str, str], expected: Verdict
) -> None:
    error = client(status, headers)
    answer = answer_of(error)
    assert answer is not None
    assert answer.status == status
    assert verdict_on(error) is expected
    assert is_throttled(error) is (expected is THROTTLED)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("no", request=GET),
        httpx.ReadTimeout("no"),
        httpx.RemoteProtocolError("no"),
        requests.ConnectionError("no"),
        requests.Timeout("no"),
        requests.exceptions.ChunkedEncodingError("no"),
        requests.HTTPError("no response"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError("no"),
        aiohttp.ServerTimeoutError(),
        urllib.error.URLError("no"),
        ssl.SSLError("handshake"),
        APIConnectionError(),
        TimeoutError(),
        ConnectionResetError(),
        OSError(28, "no space left on device"),
        ValueError("the answer of a model is no JSON"),
        KeyError("price"),
        TypeError("the answer is None"),
        AttributeError("text"),
        AssertionError("no rows"),
        RuntimeError("no"),
    ],
    ids=repr,
)
def test_errors_without_an_answer_are_transient(error: BaseException) -> None:
    assert answer_of(error) is None
    assert verdict_on(error) is TRANSIENT
    assert requested_delay(error, NOW) is None


@pytest.mark.parametrize(
    "error",
    [NameError("x"), UnboundLocalError("x"), ImportError("x"), ModuleNotFoundError("x"), SyntaxError("x"), NotImplementedError()],
    ids=repr,
)
def test_defects_are_permanent(error: BaseException) -> None:
    assert verdict_on(error) is PERMANENT


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("ThrottlingException", 400, THROTTLED),
        ("ProvisionedThroughputExceededException", 400, THROTTLED),
        ("RequestLimitExceeded", 503, THROTTLED),
        ("SlowDown", 503, THROTTLED),
        ("TooManyRequestsException", 429, THROTTLED),
        ("RequestTimeout", 400, TRANSIENT),  # S3: the socket was not read from or written to in time
        ("RequestTimeoutException", 400, TRANSIENT),
        ("InternalError", 500, TRANSIENT),
        ("ServiceUnavailable", 503, TRANSIENT),
        ("ValidationException", 400, PERMANENT),
        ("ConditionalCheckFailedException", 400, PERMANENT),
        ("AccessDenied", 403, PERMANENT),
        ("NoSuchKey", 404, PERMANENT),
    ],
)
def test_the_codes_of_aws_decide_before_the_status(code: str, status: int, expected: Verdict) -> None:
    assert verdict_on(ClientError(status, {}, code)) is expected


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (403, {"Retry-After": "60"}, THROTTLED),  # a secondary limit of GitHub
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1700000060"}, THROTTLED),  # a primary one
        (403, {"X-RateLimit-Remaining": "12"}, PERMANENT),
        (403, {}, PERMANENT),
        (404, {"Retry-After": "60"}, PERMANENT),
    ],
)
def test_a_403_with_a_limit_is_a_refusal(status: int, headers: dict[str, str], expected: Verdict) -> None:
    error = APIStatusError(status, headers)
    assert verdict_on(error) is expected
    if expected is THROTTLED:
        assert requested_delay(error, 1_700_000_000) == 60
        assert RetryPolicy(throttled=None).verdict_on([error]) is TRANSIENT


@pytest.mark.parametrize(("code", "status"), [("ThrottlingException", 400), ("SlowDown", 503), ("TooManyRequestsException", 429)])
def test_a_refusal_that_the_policy_does_not_put_off_is_retried(code: str, status: int) -> None:
    policy = RetryPolicy(throttled=None)
    assert policy.verdict_on([ClientError(status, {}, code)]) is TRANSIENT


def test_an_exhausted_quota_is_permanent_if_the_policy_selects_it() -> None:
    error = APIStatusError(429, {"Retry-After": "1"})
    error.body = {"error": {"code": "insufficient_quota"}}

    def is_quota(error: BaseException) -> bool:
        return isinstance(error, APIStatusError) and error.body["error"]["code"] == "insufficient_quota"

    assert verdict_on(error, RetryPolicy(permanent=is_quota)) is PERMANENT
    assert verdict_on(APIStatusError(429, {}), RetryPolicy(permanent=is_quota)) is THROTTLED


# --- when the service accepts a request --------------------------------------------------------------------------------


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7),
        ({"retry-after": "0"}, 0),
        ({"Retry-After": "-3"}, 0),
        ({"Retry-After": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30),
        ({"Retry-After": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "inf"}, None),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "nan", "retry-after": "2"}, 2),
        ({"Retry-After": "2", "x-ratelimit-reset-requests": "6m0s"}, 2),
        # draft-ietf-httpapi-ratelimit-headers: seconds
        ({"RateLimit-Limit": "100", "RateLimit-Remaining": "0", "RateLimit-Reset": "30"}, 30),
        # GitHub: seconds since the epoch; OpenRouter: milliseconds
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1800000060"}, 60),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1800000060000"}, 60),
        ({"x-ratelimit-reset": "1799999000"}, 0),
        # openai: spans; only the exhausted limit counts
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "8.64s"}, 8.64),
        ({"x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s",
          "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360),
        ({"x-ratelimit-reset-requests": "120ms", "x-ratelimit-reset-tokens": "1h2m3s"}, 0.12),
        ({"x-ratelimit-reset-tokens": "1d"}, 86_400),
        ({"x-ratelimit-reset-tokens": "tomorrow"}, None),
        # anthropic: timestamps
        ({"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:45Z"}, 45),
        ({"anthropic-ratelimit-requests-remaining": "9", "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:01Z",
          "anthropic-ratelimit-input-tokens-remaining": "0", "anthropic-ratelimit-input-tokens-reset": "2027-01-15T08:01:00Z",
          "anthropic-ratelimit-output-tokens-remaining": "0", "anthropic-ratelimit-output-tokens-reset": "2027-01-15T08:02:00Z"},
         120),
    ],
    ids=repr,
)  # fmt: skip
def test_the_time_that_a_throttled_answer_requests(client: Any, headers: dict[str, str], seconds: float | None) -> None:
    assert requested_delay(client(429, headers), NOW) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("client", CLIENTS)
def test_the_times_of_limits_do_not_delay_an_answer_that_is_not_throttled(client: Any) -> None:
    assert requested_delay(client(500, {"x-ratelimit-reset-requests": "6m0s"}), NOW) is None
    assert requested_delay(client(500, {"Retry-After": "3"}), NOW) == 3


# --- errors that look like errors of a client ---------------------------------------------------------------------------


class _Raising:
    def __repr__(self) -> str:
        return "raising"  # without the address, which differs between the processes of a test run

    @property
    def headers(self) -> Any:
        raise RuntimeError("no")

    @property
    def status_code(self) -> Any:
        raise KeyError("no")


@pytest.mark.parametrize(
    "attributes",
    [
        {"response": None},
        {"response": _Raising()},
        {"response": {}},
        {"response": {"ResponseMetadata": None}},
        {"response": {"ResponseMetadata": {"HTTPStatusCode": "429"}}},
        {"status": "failed", "headers": {}},
        {"code": 429},
        {"code": 7, "headers": {}},
        {"headers": None},
        {"status_code": 429},
    ],
    ids=repr,
)
def test_an_error_without_a_readable_answer_has_none(attributes: dict[str, Any]) -> None:
    error = ValueError("no")
    vars(error).update(attributes)
    assert answer_of(error) is None
    assert not is_throttled(error)
    assert requested_delay(error, NOW) is None


def test_an_answer_without_readable_headers_has_its_status() -> None:
    for headers in (None, 7, [("Retry-After", "1")]):
        error = ValueError("no")
        vars(error).update(status=429, headers=headers)
        answer = answer_of(error)
        assert answer is not None
        assert answer.status == 429
        assert is_throttled(error)
        assert requested_delay(error, NOW) is None
