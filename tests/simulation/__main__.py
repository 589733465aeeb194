"""``python -m tests.simulation``: run more hours, or run one scenario again and print its history."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

import msgspec

from tests.simulation.scenario import Scenario, make_scenario
from tests.simulation.world import Report, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="the scenario of that number, with its history; with --hours, the first of many")
    parser.add_argument("--replay", metavar="JSON", help="that very scenario, as a failing test printed it")
    parser.add_argument("--hours", type=float, help="simulate as many hours, one scenario after the other")
    parser.add_argument("--stretch", type=float, default=60.0, help="by how much the engine's periods are longer (60)")
    parser.add_argument("--seconds", type=float, default=200.0, help="of a scenario, before they are stretched (200)")
    options = parser.parse_args()
    if options.replay is not None:
        return _show(simulate(msgspec.json.decode(options.replay, type=Scenario)))
    first = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    if options.seed is not None and options.hours is None:
        return _show(simulate(_scenario(first, options)))
    return _many(first, options)


def _scenario(seed: int, options: argparse.Namespace) -> Scenario:
    return make_scenario(random.Random(seed), stretch=options.stretch, seconds=options.seconds)


def _show(report: Report) -> int:
    print("\n".join(report.history))
    print(f"{report.hours:.2f} hours, {report.callbacks} callbacks, {report.counted}, {report.digest[:16]}")
    print("\n".join(report.violations) or "no violation")
    return bool(report.violations)


def _many(first: int, options: argparse.Namespace) -> int:
    began, hours, seed = time.monotonic(), 0.0, first
    counted: Counter[str] = Counter()
    while hours < (options.hours or 1000.0):
        report = simulate(_scenario(seed, options))
        hours += report.hours
        counted.update(report.counted)
        if report.violations:
            print("\n".join(report.violations))
            print(f"python -m tests.simulation --seed {seed} --stretch {options.stretch} --seconds {options.seconds}")
            print(f"after {time.monotonic() - began:.1f} s, {hours:.0f} hours, {seed - first + 1} scenarios")
            return 1
        seed += 1
    print(f"{hours:.0f} hours in {time.monotonic() - began:.1f} s, {seed - first} scenarios from seed {first}: {dict(counted)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
