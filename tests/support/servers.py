"""Simulated services that refuse requests, and a simulated worker that calls them with an adaptive limit. No real time."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from asyncrunner.domain.adaptive_limit import AdaptiveLimit


class Reply(NamedTuple):
    """A reply of a service: whether it accepts the request, and the seconds until the reply."""

    accepted: bool
    seconds: float


class Service(Protocol):
    def reply(self, now: float, item: int) -> Reply: ...


class FixedRate:
    """A service that accepts *count* requests in each period of *period* seconds.

    *phase*: the share of the first period that is over at the time 0.
    """

    def __init__(
        self, count: int, *, period: float = 1.0, seconds: float = 0.02, refusal_seconds: float = 0.0, phase: float = 0.0
    ) -> None:
        self._count = count
        self._phase = phase
        self._period = period
        self._replies = Reply(True, seconds), Reply(False, refusal_seconds)
        self._accepted: Counter[int] = Counter()

    def reply(self, now: float, item: int) -> Reply:
        del item
        period = int(now / self._period + self._phase)
        if self._accepted[period] >= self._count:
            return self._replies[1]
        self._accepted[period] += 1
        return self._replies[0]


class TokenBucket:
    """A service that accepts *count* requests a second, and up to *count* at the same time after a pause.

    *level*: how full the bucket is at the time 0, from 0 to 1.
    """

    def __init__(self, count: int, *, level: float, seconds: float = 0.02, refusal_seconds: float = 0.0) -> None:
        self._count = count
        self._tokens = count * level
        self._at = 0.0
        self._replies = Reply(True, seconds), Reply(False, refusal_seconds)

    def reply(self, now: float, item: int) -> Reply:
        del item
        self._tokens = min(self._count, self._tokens + self._count * (now - self._at))
        self._at = now
        if self._tokens < 1:
            return self._replies[1]
        self._tokens -= 1
        return self._replies[0]


class SlidingWindow:
    """A service that accepts a request if it accepted fewer than *count* in the second before it."""

    def __init__(self, count: int, *, seconds: float = 0.02, refusal_seconds: float = 0.0) -> None:
        self._accepted: deque[float] = deque([-math.inf] * count, maxlen=count)
        self._replies = Reply(True, seconds), Reply(False, refusal_seconds)

    def reply(self, now: float, item: int) -> Reply:
        del item
        if now - self._accepted[0] < 1:
            return self._replies[1]
        self._accepted.append(now)
        return self._replies[0]


class FixedConcurrency:
    """A service that works on *capacity* requests at the same time; a function gives the capacity at a time."""

    def __init__(self, capacity: Callable[[float], int], *, seconds: float = 0.5, refusal_seconds: float = 0.02) -> None:
        self._capacity = capacity
        self._seconds = seconds
        self._refusal_seconds = refusal_seconds
        self._ends: list[float] = []

    def reply(self, now: float, item: int) -> Reply:
        del item
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        if len(self._ends) >= self._capacity(now):
            return Reply(False, self._refusal_seconds)
        heapq.heappush(self._ends, now + self._seconds)
        return Reply(True, self._seconds)


class SomeRefused:
    """A service of many hosts: it always refuses the items whose number, modulo 1000, is below *per_mille*."""

    def __init__(self, per_mille: int, *, seconds: float = 0.1) -> None:
        self._per_mille = per_mille
        self._seconds = seconds

    def reply(self, now: float, item: int) -> Reply:
        del now
        return Reply(item % 1000 >= self._per_mille, self._seconds)


class Run(NamedTuple):
    """The end of a simulated run: its counts, its duration, and the target after each change as (time, target)."""

    completed: int
    refused: int
    seconds: float
    limits: list[tuple[float, int]]


def simulate(
    service: Service, items: int, concurrency: int, *, after: float | None = None, seed: int = 0, until: float = 10_000.0
) -> Run:
    """Run *items* items against *service* with an AdaptiveLimit, and return the counts; end at the time *until*.

    A refused item comes back *after* seconds plus up to a quarter, or, without *after*, about as long as it has been put
    off already.
    """
    rng = random.Random(seed)
    limit = AdaptiveLimit(concurrency)
    fresh = list(range(items))
    rng.shuffle(fresh)
    waiting: list[tuple[float, int]] = []
    running: list[tuple[float, int, float, int, bool]] = []
    first_refusals: dict[int, float] = {}
    order = itertools.count()
    limits = [(0.0, concurrency)]
    now, completed, refused = 0.0, 0, 0
    while completed < items and now < until:
        while len(running) < limit.limit and not limit.is_resting(now) and (fresh or (waiting and waiting[0][0] <= now)):
            item = heapq.heappop(waiting)[1] if waiting and waiting[0][0] <= now else fresh.pop()
            accepted, seconds = service.reply(now, item)
            heapq.heappush(running, (now + seconds, next(order), now, item, accepted))
        moments = [running[0][0]] if running else []
        if len(running) < limit.limit:
            moments += [max(waiting[0][0], limit.rest_end)] if waiting else []
            moments += [limit.rest_end] if fresh else []
        now = max(now, min(moments))
        while running and running[0][0] <= now:
            _, _, began, item, accepted = heapq.heappop(running)
            if accepted:
                completed += 1
                if limit.is_active:
                    limit.record_success(began, now, len(running), is_repeated=item in first_refusals)
            else:
                refused += 1
                if not limit.is_active:
                    limit.begin(completed)
                limit.record_refusal(began, now, after, is_repeated=item in first_refusals)
                put_off_for = now - first_refusals.setdefault(item, now)
                backoff = min(300.0, max(1.0, put_off_for))
                delay = rng.uniform(backoff / 2, backoff) if after is None else after * rng.uniform(1, 1.25)
                heapq.heappush(waiting, (now + delay, item))
            if limits[-1][1] != limit.target:
                limits.append((now, limit.target))
    return Run(completed, refused, now, limits)
