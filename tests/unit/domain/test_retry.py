"""The decision about a retry is a pure function."""

from __future__ import annotations

import asyncio
import email.utils
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from asyncrunner import ConfigurationError, Fail, Later, Retry, RetryPolicy
from asyncrunner.domain.http_errors import requested_delay
from asyncrunner.domain.item import Suspicion
from asyncrunner.domain.options import HandlerOptions
from asyncrunner.domain.outcome import ErrorInfo, Failed, PutOff, Retrying
from asyncrunner.domain.retry import MAX_DELAY_SECONDS, conclude, conclude_loss
from asyncrunner.errors import PayloadUnreadable, ResultNotStorable

INFO = ErrorInfo("E", "m")
NOW = 1_800_000_000.0

policies = st.builds(
    RetryPolicy,
    initial=st.floats(0, 1e6),
    factor=st.floats(1, 1e3),
    cap=st.floats(0, 1e6),
    jitter=st.sampled_from(["equal", "full", "none"]),
)


def concluded(
    error: BaseException,
    *,
    attempt: int = 1,
    max_attempts: int = 3,
    policy: RetryPolicy | None = None,
    seed: int = 0,
    put_off_at: float | None = None,
) -> Any:
    return conclude(
        error,
        INFO,
        attempt=attempt,
        max_attempts=max_attempts,
        put_off_at=put_off_at,
        policy=policy or RetryPolicy(),
        rng=random.Random(seed),
        now=NOW,
    )


@given(policies, st.integers(1, 10_000), st.integers())
def test_a_delay_stays_within_the_cap_and_the_backoff(policy: RetryPolicy, failures: int, seed: int) -> None:
    delay = policy.delay(failures, random.Random(seed))
    assert 0 <= delay <= policy.backoff(failures) <= policy.cap


@given(policies, st.integers(1, 200))
def test_the_backoff_never_shrinks(policy: RetryPolicy, failures: int) -> None:
    assert policy.backoff(failures) <= policy.backoff(failures + 1)


def test_the_backoff_doubles_up_to_its_cap() -> None:
    policy = RetryPolicy(initial=1, factor=2, cap=10, jitter="none")
    assert [policy.delay(failures, random.Random()) for failures in range(6)] == [0, 1, 2, 4, 8, 10]


def test_full_jitter_spreads_over_the_whole_range() -> None:
    policy = RetryPolicy(initial=100, cap=100, jitter="full")
    delays = [policy.delay(1, random.Random(seed)) for seed in range(300)]
    assert min(delays) < 5
    assert max(delays) > 95
    assert 40 < sum(delays) / 300 < 60


def test_equal_jitter_has_a_floor_so_that_the_default_attempts_span_two_minutes() -> None:
    policy = RetryPolicy()
    delays = [[policy.delay(failures, random.Random(seed)) for failures in range(1, 5)] for seed in range(300)]
    assert 129.5 <= min(map(sum, delays)) < 170
    assert 190 < max(map(sum, delays)) <= 259
    assert HandlerOptions().max_attempts == 5, "four delays"


def test_jitter_is_added_to_the_requested_delay() -> None:
    delays = {concluded(Retry(after=5), seed=seed).delay for seed in range(20)}
    assert len(delays) == 20
    assert min(delays) >= 5


@given(st.floats(0, 3000), st.integers())
def test_a_delay_requested_by_a_handler_or_a_server_is_a_minimum(seconds: float, seed: int) -> None:
    asked = concluded(Retry(after=seconds), seed=seed)
    assert seconds <= asked.delay <= seconds + 1
    told = concluded(http_error(500, {"Retry-After": str(int(seconds))}), seed=seed)
    assert isinstance(told, Retrying)
    assert int(seconds) <= told.delay <= int(seconds) + 1
    put_off = concluded(http_error(429, {"Retry-After": str(int(seconds))}), seed=seed)
    assert isinstance(put_off, PutOff)
    assert int(seconds) <= put_off.delay <= int(seconds) * 1.25


def http_error(status: int, headers: dict[str, str] | None = None) -> httpx.HTTPStatusError:
    response = httpx.Response(status, headers=headers, request=httpx.Request("GET", "http://x"))
    return httpx.HTTPStatusError(str(status), request=response.request, response=response)


def test_a_retry_after_of_a_server_is_obeyed_up_to_a_limit() -> None:
    error = ValueError()
    error.headers = {"Retry-After": "999999999"}  # type: ignore[attr-defined]
    assert 3600 <= concluded(error).delay <= 3601


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120", 120), ("0", 0), ("1.5", 1.5), ("-5", 0), ("soon", None), ("nan", None), ("inf", None), ("", None),
        (email.utils.formatdate(NOW + 90, usegmt=True), 90), (email.utils.formatdate(NOW - 90, usegmt=True), 0),
        ("Wed, 13 Jan 2027 08:01:30 -0000", None),
    ],
)  # fmt: skip
def test_both_forms_of_retry_after_are_read(value: str, expected: float | None) -> None:
    error = ValueError()
    error.headers = {"Retry-After": value}  # type: ignore[attr-defined]
    found = requested_delay(error, NOW)
    assert found is not None if value.endswith("-0000") else found == expected


def test_an_error_without_headers_requests_no_delay() -> None:
    assert requested_delay(ValueError(), NOW) is None
    error = ValueError()
    error.headers = {}  # type: ignore[attr-defined]
    assert requested_delay(error, NOW) is None


@pytest.mark.parametrize(
    ("policy", "error", "transient"),
    [
        (RetryPolicy(), ValueError(), True),
        (RetryPolicy(on=OSError), ValueError(), False),
        (RetryPolicy(on=OSError), ConnectionError(), True),
        (RetryPolicy(on=(OSError, KeyError)), KeyError(), True),
        (RetryPolicy(on=lambda error: "later" in str(error)), ValueError("later"), True),
        (RetryPolicy(on=lambda error: "later" in str(error)), ValueError("never"), False),
        (RetryPolicy(on=lambda error: bool(1 / 0)), ValueError(), True),
        (RetryPolicy(permanent=ValueError), ValueError(), False),
        (RetryPolicy(permanent=lambda error: bool(1 / 0)), ValueError(), True),
        (RetryPolicy(on=OSError), Retry(), True),
        (RetryPolicy(), NameError(), False),
        (RetryPolicy(), ModuleNotFoundError(), False),
        (RetryPolicy(), SyntaxError(), False),
        (RetryPolicy(), NotImplementedError(), False),
        (RetryPolicy(on=NameError), NameError(), True),
        (RetryPolicy(), TypeError(), True),
        (RetryPolicy(), KeyError(), True),
        (RetryPolicy(), AttributeError(), True),
        (RetryPolicy(), AssertionError(), True),
        (RetryPolicy(), Fail(), False),
        (RetryPolicy(), ResultNotStorable(), False),
        (RetryPolicy(), PayloadUnreadable(), False),
    ],
)
def test_errors_that_are_retried(policy: RetryPolicy, error: BaseException, transient: bool) -> None:
    outcome = concluded(error, policy=policy)
    assert isinstance(outcome, Retrying) if transient else outcome == Failed(INFO, permanent=True)


@given(st.integers(1, 20), st.integers(1, 20))
def test_the_last_attempt_fails_and_is_not_called_permanent(attempt: int, most: int) -> None:
    outcome = concluded(ValueError(), attempt=attempt, max_attempts=most)
    assert isinstance(outcome, Retrying) if attempt < most else outcome == Failed(INFO, permanent=False)


def test_a_pause_is_passed_on() -> None:
    assert concluded(Retry(after=5, pause=True)).pause == 5
    assert concluded(Retry(after=5)).pause is None


def test_the_first_crash_is_retried_immediately_and_later_ones_back_off() -> None:
    assert lost(1, 1) == Retrying(INFO, 0.0, crashed=True)
    assert lost(3, 3) == Retrying(INFO, 6.0, crashed=True, suspicion=Suspicion.SUSPECT)
    assert lost(5, 1) == Failed(INFO, permanent=False, crashed=True)


def lost(
    attempt: int,
    crashes: int,
    *,
    suspicion: Suspicion = Suspicion.NONE,
    only_suspect: bool = False,
    alone: bool = True,
    max_attempts: int = 5,
) -> Retrying | Failed:
    return conclude_loss(
        INFO, attempt=attempt, crashes=crashes, max_attempts=max_attempts, suspicion=suspicion, only_suspect=only_suspect,
        alone=alone, policy=RetryPolicy(jitter="none"), rng=random.Random(),
    )  # fmt: skip


def test_an_item_that_was_lost_with_others_does_not_fail() -> None:
    assert lost(5, 2, alone=False) == Retrying(INFO, 1.0, crashed=True, suspicion=Suspicion.SUSPECT, refunded=True)
    assert lost(1, 1, alone=False, max_attempts=1) == Retrying(INFO, 0.0, crashed=True, refunded=True)


@pytest.mark.parametrize("max_attempts", [1, 2, 3, 5])
def test_a_first_loss_raises_no_suspicion(max_attempts: int) -> None:
    outcome = lost(1, 1, alone=False, max_attempts=max_attempts)
    assert isinstance(outcome, Retrying)
    assert outcome.suspicion is Suspicion.NONE


@pytest.mark.parametrize(
    ("suspicion", "only_suspect", "expected"),
    [
        (Suspicion.NONE, False, Suspicion.SUSPECT),
        (Suspicion.SUSPECT, False, Suspicion.SUSPECT),
        (Suspicion.SUSPECT, True, Suspicion.ISOLATED),
        (Suspicion.ISOLATED, False, Suspicion.ISOLATED),
    ],
)
def test_the_only_suspect_at_a_further_loss_is_isolated(suspicion: Suspicion, only_suspect: bool, expected: Suspicion) -> None:
    outcome = lost(1, 3, suspicion=suspicion, only_suspect=only_suspect, alone=False)
    assert isinstance(outcome, Retrying)
    assert outcome.suspicion is expected


def test_no_attempt_is_refunded_without_end() -> None:
    crashes = 1
    while isinstance(lost(1, crashes, alone=False, max_attempts=1), Retrying):
        crashes += 1
    assert crashes == 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial": -1}, {"cap": math.inf}, {"cap": math.nan}, {"factor": 0.5}, {"initial": "1"}, {"jitter": "some"}, {"on": 3},
        {"permanent": int}, {"on": (ValueError, 3)}, {"retry_after_cap": -1}, {"initial": True},
        {"throttled": 3}, {"permanent": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_policy_that_cannot_work_is_refused_at_construction(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"RetryPolicy\\({next(iter(wrong))}="):
        RetryPolicy(**wrong)


@pytest.mark.parametrize("after", [-1, math.nan, math.inf])
def test_a_retry_after_no_time_is_refused(after: float) -> None:
    with pytest.raises(ConfigurationError, match="seconds to wait"):
        Retry(after=after)


def test_a_pause_needs_a_duration() -> None:
    with pytest.raises(ConfigurationError, match="needs after="):
        Retry(pause=True)


@pytest.mark.parametrize("after", [1e300, 10**400])
def test_no_delay_or_pause_is_longer_than_a_year(after: float) -> None:
    outcome = concluded(Retry(after=after, pause=True))
    assert (outcome.delay, outcome.pause) == (MAX_DELAY_SECONDS, MAX_DELAY_SECONDS)
    endless = RetryPolicy(initial=1e300, cap=1e300, jitter="none", retry_after_cap=1e300)
    assert concluded(ValueError(), policy=endless).delay == MAX_DELAY_SECONDS
    after_the_second_loss = conclude_loss(
        INFO, attempt=2, crashes=2, max_attempts=3, suspicion=Suspicion.NONE, only_suspect=False, alone=True, policy=endless,
        rng=random.Random(),
    )  # fmt: skip
    assert after_the_second_loss == Retrying(INFO, MAX_DELAY_SECONDS, crashed=True, suspicion=Suspicion.SUSPECT)


def test_a_number_of_any_size_is_checked_without_an_overflow() -> None:
    assert RetryPolicy(cap=10**400).backoff(1) == 1


def test_a_retry_after_a_text_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="seconds to wait"):
        Retry(after="5")  # type: ignore[arg-type]


class Guarded(Exception):
    @property
    def response(self) -> object:
        raise RuntimeError("no response has been set")


def test_an_error_whose_properties_raise_is_retried_like_any_other() -> None:
    assert isinstance(concluded(Guarded()), Retrying)


def test_a_header_in_small_letters_is_read_too() -> None:
    error = ValueError()
    error.headers = {"retry-after": "7"}  # type: ignore[attr-defined]
    assert requested_delay(error, NOW) == 7


# --- Retry-After of the clients that people use, from real answers of a real server ------------------------------------


@pytest.fixture
async def busy_server() -> AsyncIterator[str]:
    async def seconds(_: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "120"})

    async def date(_: web.Request) -> web.Response:
        return web.Response(status=503, headers={"retry-after": email.utils.formatdate(NOW + 240, usegmt=True)})

    app = web.Application()
    app.add_routes([web.get("/seconds", seconds), web.get("/date", date)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


async def with_httpx(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        (await client.get(url)).raise_for_status()


async def with_aiohttp(url: str) -> None:
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        await session.get(url)


async def with_requests(url: str) -> None:
    (await asyncio.to_thread(requests.get, url, timeout=10)).raise_for_status()


@pytest.mark.parametrize("fetch", [with_httpx, with_aiohttp, with_requests])
@pytest.mark.parametrize(("path", "expected"), [("seconds", 120.0), ("date", 240.0)])
async def test_the_errors_of_http_clients_have_the_delay_until_a_retry(
    fetch: Callable[[str], Awaitable[None]], path: str, expected: float, busy_server: str
) -> None:
    with pytest.raises(Exception) as caught:
        await fetch(f"{busy_server}/{path}")
    outcome = concluded(caught.value, seed=1)
    assert isinstance(outcome, PutOff)
    assert outcome.after == expected
    assert expected <= outcome.delay <= expected * 1.25


def test_a_retry_requested_by_the_handler_differs_from_an_error() -> None:
    assert concluded(Retry("later", after=5)).asked
    assert not concluded(ValueError()).asked


# --- put off ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", [1, 3])
def test_a_throttled_request_costs_no_attempt(attempt: int) -> None:
    outcome = concluded(http_error(429), attempt=attempt)
    assert isinstance(outcome, PutOff)
    assert (outcome.is_refusal, outcome.after) == (True, None)
    assert 0.5 <= outcome.delay <= 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (http_error(503), Retrying),
        (http_error(503, {"Retry-After": "1"}), PutOff),
        (http_error(529, {"retry-after-ms": "1"}), PutOff),
        (http_error(500, {"Retry-After": "1"}), Retrying),
        (http_error(404), Failed),
        (http_error(408), Retrying),
        (http_error(409), Retrying),
        (http_error(425), Retrying),
        (Later(), PutOff),
    ],
)
def test_which_answers_put_an_item_off(error: BaseException, kind: type) -> None:
    assert isinstance(concluded(error), kind)


def test_a_handler_that_puts_its_item_off_is_no_refusal_of_a_service() -> None:
    assert concluded(Later("still running", after=60)).is_refusal is False
    later = Later("busy")
    later.__cause__ = http_error(429, {"Retry-After": "5"})
    outcome = concluded(later)
    assert (outcome.is_refusal, outcome.after) == (True, 5)


def test_delays_without_a_request_grow_with_the_time_for_which_the_item_was_put_off() -> None:
    for put_off_for, least, most in ((0, 0.5, 1), (10, 5, 10), (1000, 150, 300)):
        delays = [concluded(Later(), put_off_at=NOW - put_off_for, seed=seed).delay for seed in range(50)]
        assert least <= min(delays) <= max(delays) <= most


def test_an_item_that_is_put_off_for_too_long_fails_with_the_last_answer() -> None:
    policy = RetryPolicy(throttled_for="1h")
    assert isinstance(concluded(Later(), policy=policy, put_off_at=NOW - 3599), PutOff)
    last = ErrorInfo("E", "m (it was put off for longer than throttled_for=1 h 00 min)")
    assert concluded(Later(), policy=policy, put_off_at=NOW - 3600) == Failed(last, permanent=False)
    assert isinstance(concluded(Later(), policy=policy, put_off_at=NOW + 60), PutOff), "the clock was set back"


def test_a_policy_selects_what_puts_items_off_and_permanent_errors_come_first() -> None:
    class Busy(Exception):
        pass

    assert concluded(Busy(), policy=RetryPolicy(throttled=Busy)).is_refusal
    assert isinstance(concluded(http_error(429), policy=RetryPolicy(throttled=Busy)), Retrying)
    assert isinstance(concluded(http_error(429), policy=RetryPolicy(throttled=None)), Retrying)
    exhausted = RetryPolicy(permanent=lambda error: "quota" in str(error))
    assert concluded(httpx_quota(), policy=exhausted) == Failed(INFO, permanent=True)


def httpx_quota() -> httpx.HTTPStatusError:
    response = httpx.Response(429, request=httpx.Request("GET", "http://x"))
    return httpx.HTTPStatusError("insufficient_quota", request=response.request, response=response)


@pytest.mark.parametrize("after", [-1, math.nan, "5"])
def test_later_after_no_time_is_refused(after: Any) -> None:
    with pytest.raises(ConfigurationError, match="seconds to wait"):
        Later(after=after)


# --- groups and causes ------------------------------------------------------------------------------------------------


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "policy", "kind"),
    [
        (ExceptionGroup("g", [ValueError(), Fail()]), RetryPolicy(), Failed),
        (ExceptionGroup("g", [ExceptionGroup("h", [Fail()])]), RetryPolicy(), Failed),
        (BaseExceptionGroup("g", [asyncio.CancelledError(), Fail()]), RetryPolicy(), Failed),
        (ExceptionGroup("g", [Retry(after=100), OSError()]), RetryPolicy(), Retrying),
        (ExceptionGroup("g", [Later(after=100)]), RetryPolicy(), PutOff),
        (ExceptionGroup("g", [Later(), ValueError()]), RetryPolicy(), Retrying),
        (ExceptionGroup("g", [http_error(429), http_error(429)]), RetryPolicy(), PutOff),
        (ExceptionGroup("g", [http_error(429), http_error(404)]), RetryPolicy(), Failed),
        (ExceptionGroup("g", [ConnectionError()]), RetryPolicy(on=OSError), Retrying),
        (ExceptionGroup("g", [ConnectionError(), ValueError()]), RetryPolicy(on=OSError), Failed),
        (ExceptionGroup("g", [ValueError()]), RetryPolicy(on=ExceptionGroup), Retrying),
        (ExceptionGroup("g", [ValueError()]), RetryPolicy(permanent=ValueError), Failed),
        (caused(RuntimeError(), Fail("no")), RetryPolicy(), Failed),
        (caused(RuntimeError(), http_error(429)), RetryPolicy(), PutOff),
        (caused(RuntimeError(), ExceptionGroup("g", [http_error(429)])), RetryPolicy(), PutOff),
        (caused(RuntimeError(), http_error(404)), RetryPolicy(), Failed),
        (caused(RuntimeError(), ConnectionError()), RetryPolicy(on=OSError), Retrying),
        (caused(Retry(), Fail()), RetryPolicy(), Retrying),
        (caused(ExceptionGroup("g", [ValueError()]), Fail()), RetryPolicy(), Failed),
        (caused(RuntimeError(), ExceptionGroup("g", [Retry(), Later(), Fail()])), RetryPolicy(), Retrying),
        (caused(RuntimeError(), ExceptionGroup("g", [Fail(), Retry()])), RetryPolicy(), Failed),
        (caused(RuntimeError(), caused(Retry(), Fail())), RetryPolicy(), Retrying),
    ],
)
def test_errors_in_groups_and_causes_decide_as_they_do_alone(error: BaseException, policy: RetryPolicy, kind: type) -> None:
    assert isinstance(concluded(error, policy=policy), kind)


def test_the_longest_delay_of_a_group_counts() -> None:
    assert 100 <= concluded(ExceptionGroup("g", [Retry(after=100), Retry(after=5, pause=True)])).delay <= 101
    assert concluded(ExceptionGroup("g", [Retry(after=100), Retry(after=5, pause=True)])).pause == 5
    assert concluded(ExceptionGroup("g", [http_error(429, {"Retry-After": "9"}), Later(after=3)])).after == 9


def raised_while_handling(error: BaseException, *, new: BaseException, suppress: bool = False) -> BaseException:
    try:
        try:
            raise error
        except type(error):
            if suppress:
                raise new from None
            raise new  # noqa: B904 - without `from`
    except type(new) as raised:
        return raised


def test_an_error_raised_while_a_refusal_is_handled_counts_as_the_refusal() -> None:
    refusal = http_error(429, {"Retry-After": "9"})
    outcome = concluded(raised_while_handling(refusal, new=RuntimeError("wrapped")))
    assert (type(outcome), outcome.after, outcome.is_refusal) == (PutOff, 9, True)
    twice = raised_while_handling(raised_while_handling(refusal, new=KeyError()), new=RuntimeError())
    assert isinstance(concluded(twice), PutOff)
    assert isinstance(concluded(raised_while_handling(refusal, new=RuntimeError(), suppress=True)), Retrying)
    assert isinstance(concluded(raised_while_handling(refusal, new=Fail())), Failed)
    assert isinstance(concluded(raised_while_handling(refusal, new=Retry())), Retrying)
    assert isinstance(concluded(raised_while_handling(http_error(404), new=RuntimeError())), Retrying)
    assert isinstance(concluded(raised_while_handling(Fail(), new=RuntimeError())), Retrying)


def test_a_cause_of_itself_ends() -> None:
    error = ValueError()
    error.__cause__ = error
    assert isinstance(concluded(error), Retrying)
