"""The limit finds the capacity of simulated services with few refusals, and rises again."""

from __future__ import annotations

import pytest

from asyncrunner.domain.adaptive_limit import AdaptiveLimit
from tests.support.servers import FixedConcurrency, FixedRate, SomeRefused, simulate


@pytest.mark.parametrize("after", [1.0, None])
@pytest.mark.parametrize("refusal_seconds", [0.0, 0.001, 0.02])
@pytest.mark.parametrize("concurrency", [10, 50, 200])
def test_a_fixed_rate_is_found_with_few_refusals(concurrency: int, refusal_seconds: float, after: float | None) -> None:
    run = simulate(FixedRate(100, refusal_seconds=refusal_seconds), 1000, concurrency, after=after)
    assert run.completed == 1000
    assert run.refused <= 1.5 * concurrency + 50
    assert run.seconds <= 15, "1.5 times the ideal"


def test_a_rate_per_minute_is_found_without_a_request_in_vain_every_second() -> None:
    run = simulate(FixedRate(600, period=60), 1800, 50)
    assert run.seconds <= 150, "ideal: 120"
    assert run.refused <= 0.2 * 1800, "the service states no time, so the limit tries again and again"


@pytest.mark.parametrize("after", [1.0, None])
def test_a_fixed_concurrency_is_found(after: float | None) -> None:
    run = simulate(FixedConcurrency(lambda _: 40), 4000, 200, after=after)
    assert run.seconds <= 50 * 1.3, "ideal: 50"
    assert run.refused <= 0.11 * 4000
    late = [limit for at, limit in run.limits if at > 20]
    assert max(late) <= 2.1 * min(late), "the limit oscillates by a factor of about two at most"


@pytest.mark.parametrize("after", [1.0, None])
def test_a_capacity_that_halves_and_returns_is_followed(after: float | None) -> None:
    run = simulate(FixedConcurrency(lambda now: 20 if 20 <= now < 60 else 40), 6000, 200, after=after)
    assert run.seconds <= 95 * 1.3, "ideal: 95"
    assert run.refused <= 0.1 * 6000


@pytest.mark.parametrize("per_mille", [10, 50])
def test_one_host_that_always_refuses_does_not_slow_the_others_down(per_mille: int) -> None:
    run = simulate(SomeRefused(per_mille), 20_000, 200, until=13)
    assert run.completed == 20_000 * (1000 - per_mille) // 1000, "all others"
    assert run.limits == [(0.0, 200)]


def test_a_limit_falls_once_per_round_trip_and_never_below_one() -> None:
    limit = AdaptiveLimit(100)
    limit.begin(0)
    for _ in range(40):
        limit.record_refusal(0.0, 1.0, 1.0, is_repeated=False)
    assert limit.limit == 35, "all these attempts began before the decrease"
    for now in range(2, 60):
        limit.record_refusal(now - 0.5, now, 1.0, is_repeated=False)
    assert limit.limit == 1


def test_while_most_answers_are_refusals_nothing_starts_before_the_earliest_requested_time() -> None:
    limit = AdaptiveLimit(10)
    limit.begin(0)
    limit.record_refusal(0.0, 1.0, 30.0, is_repeated=False)
    limit.record_refusal(0.0, 1.5, 5.0, is_repeated=False)
    assert limit.is_resting(6.4)
    assert not limit.is_resting(6.5)


def test_while_few_answers_are_refusals_the_others_start() -> None:
    limit = AdaptiveLimit(10)
    limit.begin(100)
    limit.record_refusal(0.0, 1.0, 30.0, is_repeated=False)
    assert not limit.is_resting(1.0)
    assert limit.limit == 10


def test_rests_without_a_requested_time_double_until_a_request_is_accepted() -> None:
    limit = AdaptiveLimit(1)
    limit.begin(0)
    now = 0.0
    rests: list[float] = []
    for _ in range(9):
        limit.record_refusal(now, now, None, is_repeated=False)
        rests.append(limit.rest_end - now)
        now = limit.rest_end
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    limit.record_success(now, now, 0)
    for _ in range(4):
        limit.record_refusal(now, now, None, is_repeated=False)
    assert limit.rest_end - now == 1


def test_the_limit_rises_only_while_it_is_used() -> None:
    limit = AdaptiveLimit(10)
    limit.begin(0)
    limit.record_refusal(0.0, 0.0, 0.0, is_repeated=False)
    assert limit.limit == 3
    for _ in range(100):
        limit.record_success(1.0, 100.0, running=0)
    assert limit.limit == 3
    limit.record_success(1.0, 100.0, running=2)
    assert limit.limit == 4, "by one per answer at most"


def test_a_limit_at_its_ceiling_is_left_alone_after_a_minute_without_refusals() -> None:
    limit = AdaptiveLimit(1)
    limit.begin(0)
    limit.record_refusal(0.0, 0.0, 1.0, is_repeated=False)
    limit.record_success(2.0, 60.0, 0)
    assert limit.is_active
    limit.record_success(2.0, 61.0, 0)
    assert not limit.is_active


def test_another_ceiling_moves_a_limit_that_was_at_the_old_one() -> None:
    limit = AdaptiveLimit(10)
    limit.set_ceiling(50)
    assert limit.limit == 50
    limit.begin(0)
    limit.record_refusal(0.0, 0.0, 1.0, is_repeated=False)
    limit.set_ceiling(100)
    assert limit.limit == 17
    limit.set_ceiling(5)
    assert limit.limit == 5
