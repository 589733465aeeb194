"""The model of many workers runs, and its parts grow as the code makes them grow."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.harness.measuring import ROOT
from benchmarks.postgres.model import MEASURED, Load, estimate, most_workers


def test_it_prints_a_row_for_each_load() -> None:
    command = [sys.executable, "-m", "benchmarks.postgres.model", "--workers", "10", "1000", "--seconds", "10", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[2:]] == ["| 10", "| 1,000", "| 10", "| 1,000"]
    assert {len(row) for row in rows[:1] + rows[2:]} == {16}


def test_every_worker_has_three_sessions_and_its_items() -> None:
    one = estimate(Load(100, 100, 10.0))
    assert (one.connections, one.items, one.turns) == (300, 1000.0, 1000.0)
    assert estimate(Load(1, 100, 0.001)).turns == 1 / MEASURED.turn_seconds


@pytest.mark.parametrize(("workers", "looks"), [(10, 25), (51, 127.5), (1000, 125.1)])
def test_looks_do_not_grow_with_many_workers(workers: int, looks: float) -> None:
    assert estimate(Load(workers, 100, 10.0)).looks == pytest.approx(looks, abs=0.1)


def test_deliveries_stay_bounded_up_to_a_hundred_workers() -> None:
    assert estimate(Load(100, 100, 0.1)).deliveries == pytest.approx(10_200, abs=100)
    assert estimate(Load(1000, 100, 0.1)).deliveries == 1_000_000


def test_more_cores_serve_more_workers() -> None:
    few, many = most_workers(2, 100, 60.0), most_workers(8, 100, 60.0)
    assert 0 < few < many
    assert estimate(Load(many, 100, 60.0)).all_cores <= 8 < estimate(Load(many + 1, 100, 60.0)).all_cores
