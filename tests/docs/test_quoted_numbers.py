"""The numbers that the texts quote are those of the committed results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness.results import COMMITTED, load

ROOT = Path(__file__).parents[2]
BY_HAND = "dicts, digest keys: of a program by hand"


@pytest.mark.parametrize("text", ["README.md", "docs/concepts/performance.md"])
def test_the_ratio_of_a_program_by_hand_is_the_measured_one(text: str) -> None:
    (ratio,) = [figure for figure in load(COMMITTED)["by_hand"].result.figures if figure.name == BY_HAND]
    assert ratio.value is not None
    assert f"**{ratio.value:.2f}** of the speed of a program" in (ROOT / text).read_text()
