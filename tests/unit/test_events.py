"""Subscriptions are independent of each other."""

from __future__ import annotations

from asyncrunner.events import Accepted, Events


def test_unsubscribing_twice_does_not_end_another_subscription_of_the_same_observer() -> None:
    events = Events()
    seen: list[Accepted] = []
    stop = events.on(Accepted, seen.append)
    events.on(Accepted, seen.append)
    stop()
    stop()
    events.publish(Accepted("b", 2, 3))
    assert len(seen) == 1
