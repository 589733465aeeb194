"""Property tests do not depend on the speed of the machine."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=1, database=None)
@given(st.just(0.3))
def test_an_example_of_a_property_test_may_take_longer_than_hypothesis_allows_by_default(seconds: float) -> None:
    time.sleep(seconds)  # a busy machine
