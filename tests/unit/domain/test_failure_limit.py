"""max_failures: a count of failed items, or a share of the newest attempts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrunner import ConfigurationError, FailureShare
from asyncrunner.domain.failure_limit import FailureCounter
from asyncrunner.domain.options import HandlerOptions
from asyncrunner.domain.outcome import Completed, ErrorInfo, Failed, Outcome, PutOff, Released, Retrying

BOOM = ErrorInfo("ValueError", "boom")


def after(limit: Any, *outcomes: Outcome) -> str | None:
    guard = FailureCounter(limit)
    for outcome in outcomes:
        guard.count(outcome)
    return guard.reason


def test_a_count_counts_failed_items() -> None:
    failed, retried, done = Failed(BOOM, permanent=False), Retrying(BOOM, 1.0), Completed("1")
    assert after(2, failed, retried, retried, done) is None
    assert after(2, failed, done, failed) == "2 items failed: the limit max_failures=2 is reached"
    assert after(None, *[failed] * 1000) is None


def test_a_share_counts_failed_attempts_among_the_newest() -> None:
    failed: Outcome = Failed(BOOM, permanent=False)
    done: Outcome = Completed("1")
    retried: Outcome = Retrying(BOOM, 1.0)
    asked: Outcome = Retrying(BOOM, 1.0, asked=True)
    share = FailureShare(0.5, of=10)
    assert after(share, *[retried] * 4) is None
    reason = "5 of the newest 5 attempts failed: the limit max_failures=50% of 10 is reached"
    assert after(share, *[retried] * 4, failed) == reason
    put_off: Outcome = PutOff(BOOM, 1.0)
    assert after(share, *[asked] * 50, *[Released()] * 50, *[put_off] * 50, *[retried] * 4) is None
    assert after(share, *[retried] * 4, *[done] * 6, failed) is None  # the first one is out of the window
    assert after(share, *[done, retried] * 4, done, done) is None


@given(st.lists(st.booleans()), st.integers(1, 20), st.floats(0.01, 1))
def test_a_window_trips_exactly_when_a_recount_exceeds_the_limit(history: list[bool], of: int, share: float) -> None:
    guard = FailureCounter(FailureShare(share, of))
    tripped = False
    for index, failed in enumerate(history):
        guard.count(Retrying(BOOM, 0.0) if failed else Completed("1"))
        tripped = tripped or sum(history[max(0, index + 1 - of) : index + 1]) >= max(1.0, share * of)
    assert (guard.reason is not None) == tripped


@pytest.mark.parametrize("value", [0, -1, 1.5, 1.0, 0.0, True, "x", FailureShare])
def test_meaningless_limits_are_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"max_failures"):
        HandlerOptions(max_failures=value)


@pytest.mark.parametrize(
    "options", [{"share": 0}, {"share": 1.1}, {"share": "x"}, {"share": 0.5, "of": 0}, {"share": 0.5, "of": 1.5}]
)
def test_meaningless_shares_are_refused(options: Any) -> None:
    with pytest.raises(ConfigurationError, match="FailureShare"):
        FailureShare(**options)


# --- a rest instead of a stop ---------------------------------------------------------------------------------------

FAILED: Outcome = Failed(BOOM, permanent=False)
RETRIED: Outcome = Retrying(BOOM, 1.0)


def resting(at: float = 100.0) -> FailureCounter:
    counter = FailureCounter(FailureShare(0.5, of=4, rest=60))
    for outcome in (RETRIED, FAILED):
        counter.count(outcome, 50.0)
    assert (counter.reason, counter.is_probing) == (None, False)
    assert counter.rest_reason == "2 of the newest 2 attempts failed: the limit max_failures=50% of 4 is reached"
    counter.record_rest(at)
    return counter


@pytest.mark.parametrize("failure", [FAILED, RETRIED])
def test_a_batch_rests_again_if_the_item_that_tries_fails(failure: Outcome) -> None:
    counter = resting()
    counter.count(failure, 160.0)
    assert (counter.rest_reason, counter.is_probing) == ("the item that ran as a test failed", True)
    counter.record_rest(161.0)
    counter.count(failure, 160.5)
    assert counter.rest_reason is None, "this attempt began before the second rest"


def test_a_batch_continues_with_new_counts_if_the_item_that_tries_completes() -> None:
    counter = resting()
    counter.count(Completed("1"), 160.0)
    assert (counter.rest_reason, counter.is_probing) == (None, False)
    counter.count(FAILED, 161.0)
    assert counter.rest_reason is None, "the failures before the rest are forgotten"
    counter.count(FAILED, 161.0)
    assert counter.rest_reason is not None


def test_after_a_rest_no_further_rest_is_due() -> None:
    counter = resting()
    assert (counter.rest_reason, counter.is_probing, counter.rest) == (None, True, 60)


def test_a_deadline_that_passes_while_a_rest_begins_or_an_item_runs_as_a_test_stops_the_batch() -> None:
    counter = resting()
    counter.trip("its deadline passed")
    counter.record_rest(150.0)
    assert counter.reason == "its deadline passed"
    counter.count(Completed("1"), 160.0)
    assert (counter.reason, counter.is_probing) == ("its deadline passed", False)
    counter.reset()
    assert counter.reason is None, "the stop is recorded"


@pytest.mark.parametrize("outcome", [Completed("1"), FAILED, RETRIED])
def test_handlers_that_ran_during_the_rest_decide_nothing(outcome: Outcome) -> None:
    counter = resting()
    counter.count(outcome, 99.9)
    assert (counter.rest_reason, counter.is_probing) == (None, True)


@pytest.mark.parametrize("outcome", [Released(), PutOff(BOOM, 1.0), Retrying(BOOM, 1.0, asked=True)])
def test_an_outcome_that_is_neither_success_nor_failure_lets_another_item_try(outcome: Outcome) -> None:
    counter = resting()
    counter.count(outcome, 160.0)
    assert (counter.rest_reason, counter.is_probing) == (None, True)


@pytest.mark.parametrize("rest", [0, -1, True, "60", float("nan"), 1e9])
def test_a_rest_is_a_time_in_seconds(rest: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"FailureShare\(rest="):
        FailureShare(0.5, rest=rest)
