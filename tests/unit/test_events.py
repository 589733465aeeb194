"""Subscriptions are independent of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncrunner.events import Accepted, Events, Started

if TYPE_CHECKING:
    import pytest


def test_unsubscribing_twice_does_not_end_another_subscription_of_the_same_observer() -> None:
    events = Events()
    seen: list[Accepted] = []
    stop = events.on(Accepted, seen.append)
    events.on(Accepted, seen.append)
    stop()
    stop()
    events.publish(Accepted("b", 2, 3))
    assert len(seen) == 1


def test_an_observer_that_raises_is_logged_and_the_others_still_get_the_event(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    seen: list[Accepted] = []
    stop = events.on(Accepted, lambda _: 1 / 0)
    events.on(Accepted, seen.append)
    events.publish(Accepted("b", 2, 3))
    assert seen == [Accepted("b", 2, 3)]
    assert "an observer of Accepted failed" in caplog.text
    stop()
    stop()
    events.publish(Accepted("b", 2, 3))
    assert caplog.text.count("failed") == 1
    assert (len(events.observers_of(Accepted)), len(events.observers_of(Started))) == (1, 0)
