"""Run a thousand simulated hours, and check that their history depends on the seed alone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulation.scenario import Scenario, make_scenario
from tests.simulation.world import simulate

ROOT = Path(__file__).parents[2]
HOURS = 1000
EXAMPLES = 120
SEEDS = 24
"""Further seeds. The examples of hypothesis depend on the loaded modules, and so on earlier tests; these do not."""
PACES = (*((600.0, 150.0),) * 3, (60.0, 300.0), (1.0, 60.0))
"""The factor of the engine's periods (1: unchanged), and the seconds of a scenario before they are multiplied."""


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    stretch, seconds = draw(st.sampled_from(PACES))
    return make_scenario(draw(st.randoms(use_true_random=False)), stretch=stretch, seconds=seconds)


def replay(scenario: Scenario) -> str:
    """Return the command that runs the scenario again."""
    return f"python -m tests.simulation --replay '{msgspec.json.encode(scenario).decode()}'"


def test_a_thousand_hours_break_no_invariant() -> None:
    hours: list[float] = []
    paces: set[float] = set()
    counted: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,  # the same examples each time; new ones are for `python -m tests.simulation --hours`
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(scenarios())
    def simulate_one(scenario: Scenario) -> None:
        report = simulate(scenario)
        hours.append(report.hours)
        paces.add(scenario.stretch)
        counted.update(report.counted)
        if report.violations:
            raise AssertionError("\n".join([*report.violations, replay(scenario), "...", *report.history[-40:]]))

    simulate_one()
    for seed in range(SEEDS):
        stretch, seconds = PACES[seed % len(PACES)]
        report = simulate(make_scenario(random.Random(seed), stretch=stretch, seconds=seconds))
        assert report.violations == [], f"python -m tests.simulation --seed {seed} --stretch {stretch} --seconds {seconds}"
        hours.append(report.hours)
        counted.update(report.counted)
    print(f"{sum(hours):.0f} simulated hours in {len(hours)} scenarios: {dict(counted)}")
    assert sum(hours) >= HOURS
    assert paces == {stretch for stretch, _ in PACES}
    for what in ("completed", "failures", "deaths", "lost", "taken over from hung", "accepted", "acknowledged"):
        assert counted[what] > 0, what  # a fault that never occurs proves nothing


def test_the_history_depends_on_the_seed_alone() -> None:
    def printed(*arguments: str, hash_seed: int) -> str:
        """Return the output of a new interpreter; the hashes of strings differ between interpreters."""
        return subprocess.run(
            [sys.executable, "-m", "tests.simulation", *arguments],
            cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": str(hash_seed)}, stdout=subprocess.PIPE, check=True,
        ).stdout.decode()  # fmt: skip

    scenario = make_scenario(random.Random(304), stretch=60.0, seconds=200.0)
    first, second = simulate(scenario), simulate(scenario)
    assert len(first.history) > 100
    assert second.history == first.history
    assert printed("--seed", "304", hash_seed=1).startswith("\n".join(first.history))
    again = msgspec.json.encode(scenario).decode()
    assert printed("--replay", again, hash_seed=2) == printed("--seed", "304", hash_seed=3)
