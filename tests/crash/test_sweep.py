"""A spread of the kill sweep and of the storm, and rows 1 to 7 of the faults by name."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.crash.storm import Storm
from tests.crash.sweep import Point, points, strike

HAS_STRACE = shutil.which("strace") is not None


@pytest.mark.parametrize("point", points(40, with_strace=HAS_STRACE), ids=lambda point: f"{point.name} {point.number}")
def test_no_item_is_lost_at_any_point_of_a_kill(point: Point) -> None:
    assert strike(point).wrong == []


def struck(name: str, *numbers: int) -> None:
    """Check that one of the points is reached and no invariant is broken.

    The later points are tried when the other process did the work before.
    """
    for number in numbers:
        what = strike(Point(name, number))
        assert what.wrong == []
        if what.killed:
            return
    raise AssertionError("the point was not reached")


def test_row_01_killed_before_the_claim_commits() -> None:
    struck("before the transaction", 4)


def test_row_02_killed_after_the_claim_before_the_handler() -> None:
    struck("turn returned", 1)


@pytest.mark.skipif(not HAS_STRACE, reason="strace is not installed")
def test_row_03_killed_while_handlers_run() -> None:
    struck("fdatasync", 20, 14, 10)


def test_row_04_killed_after_the_handler_returned_before_the_commit() -> None:
    struck("handler returned", 2)


@pytest.mark.parametrize("number", [3, 6])
def test_row_05_killed_during_the_commit_of_a_group(number: int) -> None:
    struck("before the commit", number)


@pytest.mark.parametrize("number", [3, 6])
def test_row_06_killed_after_the_commit_before_the_caller_is_notified(number: int) -> None:
    struck("after the commit", number)


@pytest.mark.parametrize("name", ["before the checkpoint", "after the checkpoint"])
def test_row_07_killed_around_a_checkpoint(name: str) -> None:
    struck(name, 1)


def test_row_07_killed_in_a_migration() -> None:
    assert strike(Point("migrated, not committed", 1)).wrong == []


def test_a_minute_of_storm_loses_no_item_and_takes_none_from_a_live_worker(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    storm = Storm(tmp_path, seed, block_seconds=8.0)
    wrong = storm.run(60)
    assert wrong == [], f"seed {seed}, {dict(storm.counts)}"
    assert storm.counts["kill"] >= 5
    assert storm.counts["items"] > 100
