"""The limit finds the capacity of simulated services with few refusals, and rises again."""

from __future__ import annotations

import pytest

from asyncrunner.domain.adaptive_limit import AdaptiveLimit
from tests.support.servers import FixedConcurrency, FixedRate, Service, SlidingWindow, SomeRefused, TokenBucket, simulate


@pytest.mark.parametrize("after", [1.0, None])
@pytest.mark.parametrize("seconds", [0.02, 0.03])
@pytest.mark.parametrize("concurrency", [10, 50, 200])
@pytest.mark.parametrize("kind", ["fixed window", "token bucket", "sliding window"])
def test_a_fixed_rate_is_found_with_few_refusals(kind: str, concurrency: int, seconds: float, after: float | None) -> None:
    for phase in (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875):
        for refusal_seconds in (0.0, seconds):
            services: dict[str, Service] = {
                "fixed window": FixedRate(100, seconds=seconds, refusal_seconds=refusal_seconds, phase=phase),
                "token bucket": TokenBucket(100, seconds=seconds, refusal_seconds=refusal_seconds, level=phase),
                "sliding window": SlidingWindow(100, seconds=seconds, refusal_seconds=refusal_seconds),
            }
            run = simulate(services[kind], 1000, concurrency, after=after, seed=int(phase * 8))
            assert run.completed == 1000
            assert run.refused <= 1.5 * concurrency + 50, phase
            assert run.seconds <= 15, (phase, "1.5 times the ideal")


@pytest.mark.parametrize("phase", [0, 0.25, 0.5, 0.75])
def test_a_rate_per_minute_is_found_without_a_request_in_vain_every_second(phase: float) -> None:
    run = simulate(FixedRate(600, period=60, phase=phase), 1800, 50)
    assert run.seconds + 60 * phase <= 162, "ideal: 120"
    assert run.refused <= 0.12 * 1800, "the service states no time, so the limit tries again and again"


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


@pytest.mark.parametrize("after", [30.0, None])
@pytest.mark.parametrize("per_mille", [10, 50, 100, 150])
def test_one_host_that_always_refuses_does_not_slow_the_others_down(per_mille: int, after: float | None) -> None:
    run = simulate(SomeRefused(per_mille), 20_000, 200, after=after, until=10 + 0.05 * per_mille)
    assert run.completed == 20_000 * (1000 - per_mille) // 1000, "all others"
    assert run.limits == [(0.0, 200)]


def refuse(limit: AdaptiveLimit, count: int, now: float, after: float | None = None, *, began: float | None = None) -> None:
    for _ in range(count):
        limit.record_refusal(now if began is None else began, now, after, is_repeated=False)


def accept(limit: AdaptiveLimit, count: int, now: float, *, running: int | None = None, is_repeated: bool = False) -> None:
    for _ in range(count):
        limit.record_success(now, now, limit.limit - 1 if running is None else running, is_repeated=is_repeated)


def test_a_limit_falls_once_per_round_trip_and_never_below_one() -> None:
    limit = AdaptiveLimit(100)
    limit.begin(0)
    refuse(limit, 40, 1.0, 1.0, began=0.0)
    assert limit.target == 50, "all these attempts began before the decrease"
    for now in range(2, 60):
        accept(limit, 1, now)
        refuse(limit, 100, now + 0.5, 1.0)
    assert (limit.target, limit.limit) == (1, 1)


def test_a_service_that_accepts_nothing_after_a_rest_does_not_decrease_the_limit_again() -> None:
    limit = AdaptiveLimit(100)
    limit.begin(0)
    for now in range(20):
        refuse(limit, 4, now * 60.0)
    assert (limit.target, limit.limit) == (50, 1)


def test_a_refused_request_leaves_its_slot_free_until_another_is_accepted() -> None:
    limit = AdaptiveLimit(100)
    limit.begin(100)
    refuse(limit, 10, 1.0)
    assert (limit.target, limit.limit) == (100, 90)
    accept(limit, 4, 1.0)
    assert limit.limit == 94
    accept(limit, 20, 1.0)
    assert limit.limit == 100


def test_after_a_rest_the_limit_doubles_from_one_to_the_target_in_each_round_trip() -> None:
    limit = AdaptiveLimit(100)
    limit.begin(0)
    refuse(limit, 4, 1.0, 1.0, began=0.5)
    accept(limit, 1, 1.5, running=0)
    assert limit.limit == 1, "that attempt began before the rest ended"
    limits: list[int] = []
    for step in range(7):
        limits.append(limit.limit)
        accept(limit, limit.limit, 2 + step * 1e-6)
    assert limits == [1, 2, 4, 8, 16, 32, 50]


def test_repeated_items_that_are_accepted_make_few_refusals_count() -> None:
    for share_accepted, target in ((0, 50), (1, 35)):
        limit = AdaptiveLimit(50)
        limit.begin(50)
        for number in range(100):
            limit.record_success(1.0, 1.0, 0, is_repeated=share_accepted == 1)
            if share_accepted == 0 and number % 5 == 0:
                limit.record_refusal(1.0, 1.0, None, is_repeated=True)
        for _ in range(8):
            accept(limit, 4, 1.0)
            refuse(limit, 1, 1.0)
        assert limit.target == target


def test_while_most_answers_are_refusals_nothing_starts_before_the_earliest_requested_time() -> None:
    limit = AdaptiveLimit(10)
    limit.begin(0)
    refuse(limit, 2, 1.0, 30.0, began=0.0)
    assert not limit.is_resting(1.0), "two answers are too few"
    refuse(limit, 1, 1.0, 30.0, began=0.0)
    refuse(limit, 1, 1.5, 5.0, began=0.0)
    assert limit.is_resting(6.4)
    assert not limit.is_resting(6.5)


def test_while_few_answers_are_refusals_the_others_start() -> None:
    limit = AdaptiveLimit(10)
    limit.begin(100)
    refuse(limit, 1, 1.0, 30.0, began=0.0)
    assert not limit.is_resting(1.0)
    assert (limit.target, limit.limit) == (10, 9)


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
    accept(limit, 1, now)
    for _ in range(4):
        limit.record_refusal(now, now, None, is_repeated=False)
    assert limit.rest_end - now == 1


def test_the_limit_rises_only_while_it_is_used() -> None:
    limit = AdaptiveLimit(10)
    limit.begin(0)
    refuse(limit, 3, 0.0, 0.0)
    accept(limit, 4, 0.01)
    assert limit.limit == 5
    accept(limit, 100, 100.0, running=0)
    assert limit.limit == 5
    accept(limit, 1, 100.0, running=4)
    assert limit.limit == 6, "by one per answer at most"


def test_a_limit_at_its_ceiling_is_left_alone_after_a_minute_without_refusals() -> None:
    limit = AdaptiveLimit(1)
    limit.begin(0)
    refuse(limit, 1, 0.0, 1.0)
    accept(limit, 1, 60.0)
    assert limit.is_active
    accept(limit, 1, 61.0)
    assert not limit.is_active


def test_another_ceiling_moves_a_limit_that_was_at_the_old_one() -> None:
    limit = AdaptiveLimit(10)
    limit.set_ceiling(50)
    assert limit.limit == 50
    limit.begin(0)
    refuse(limit, 3, 0.0, 1.0)
    limit.set_ceiling(100)
    assert limit.target == 25
    limit.set_ceiling(5)
    assert limit.target == 5
