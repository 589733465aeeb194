"""A purge reads the items by number, from the oldest on and then around the file."""

from __future__ import annotations

import random

import pytest

from asyncrunner.sqlite.purge import STEP_ITEMS, Walk, Window
from asyncrunner.store.items import Cursor


class Numbers:
    """Items with the numbers 1 to *newest*, of which those in *due* have expired; ``looked``: where each step began."""

    def __init__(self, newest: int, due: set[int]) -> None:
        self.newest = newest
        self.due = due
        self.looked: list[int] = []

    def window(self, after: int) -> Window:
        self.looked.append(after)
        reached = min(after + STEP_ITEMS, self.newest)
        gone = {number for number in self.due if after < number <= reached}
        self.due -= gone
        return Window(len(gone), "", reached if reached > after else None, self.newest)

    def step(self, cursor: Cursor | None) -> Cursor | None:
        walk = Walk.at(cursor)
        return walk.next(self.window(walk.after))


@pytest.mark.parametrize("seed", range(20))
def test_a_purge_reads_all_items_and_begins_with_the_oldest(seed: int) -> None:
    random.seed(seed)
    numbers = Numbers(20_000, {1, 1500, 7000, 13_500, 20_000})
    cursor = numbers.step(None)
    while cursor is not None:
        cursor = numbers.step(cursor)
    assert numbers.due == set()
    assert numbers.looked[:3] == [0, 1000, 2000]
    assert len(numbers.looked) <= 23


@pytest.mark.parametrize("newest", [0, 1, 999, 1000, 1001])
def test_a_small_file_is_walked_in_a_step_or_two(newest: int) -> None:
    numbers = Numbers(newest, set())
    cursor, steps = numbers.step(None), 1
    while cursor is not None:
        cursor, steps = numbers.step(cursor), steps + 1
    assert steps <= 3


@pytest.mark.parametrize("seed", range(20))
def test_a_walk_ends_although_the_newest_items_are_deleted_meanwhile(seed: int) -> None:
    random.seed(seed)
    numbers = Numbers(20_000, {1})
    cursor = numbers.step(numbers.step(None))
    numbers.newest = 500
    steps = 0
    while cursor is not None:
        cursor, steps = numbers.step(cursor), steps + 1
        assert steps < 30
