"""The steps of a change of many items: as many items as a transaction changes in about 50 ms."""

from __future__ import annotations

import pytest

from asyncrunner.store.batches import LargeChange


@pytest.mark.parametrize(
    ("step", "seconds", "following"),
    [(64, 0.001, 128), (1500, 0.001, 2000), (2000, 0.0, 2000), (64, 0.05, 64), (64, 0.4, 16), (3, 9.0, 1), (1, 9.0, 1)],
)
def test_a_step_grows_while_it_is_quick_and_shrinks_when_it_is_slow(step: int, seconds: float, following: int) -> None:
    times = iter([5.0, 5.0 + seconds])
    change = LargeChange(step, monotonic=lambda: next(times))
    with change.measured():
        pass
    assert change.step == following
