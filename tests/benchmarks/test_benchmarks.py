"""The benchmarks run and report figures. No test checks the figures: ``python -m benchmarks --check`` does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from benchmarks.harness.figures import RATIO, Figure, Result, Section, figure, not_measured
from benchmarks.harness.measuring import ROOT, call_in_child, interleaved, percentile
from benchmarks.harness.registry import NAMES
from benchmarks.harness.results import changes, load, loss_table, markdown, save
from benchmarks.questions.profile import _NAMES


def section_of(*figures: Figure) -> Section:
    return Section("How fast?", "python -m benchmarks x", "a machine", False, {"items": 1000}, 1.0, Result(list(figures)))


def ratio(value: float | None, better: Literal["higher", "lower"] = "higher") -> Figure:
    return Figure(name="of plain sqlite3", unit=RATIO, value=value, better=better, target=0.85)


@pytest.mark.timeout(900)  # two dozen benchmarks, some with a server of their own
def test_every_benchmark_runs_and_its_figures_are_written(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    sections = load(tmp_path)
    assert list(sections) == list(NAMES)
    for name, section in sections.items():
        assert section.quick
        assert section.command == f"python -m benchmarks {name}"
        assert section.result.figures, name
        assert all(one.value is not None or "not installed" in one.note for one in section.result.figures), name
        assert not section.result.broken
    page = (tmp_path / "README.md").read_text()
    assert all(f"## {name}:" in page for name in NAMES)


def test_a_figure_is_the_median_with_a_verdict_on_its_target() -> None:
    got = figure("rate", "items/s", [10.0, 30.0, 20.0], at_least=15)
    assert (got.value, got.low, got.high, got.rounds, got.verdict) == (20.0, 10.0, 30.0, 3, "met")
    assert figure("rate", "items/s", [10.0], at_least=15).verdict == "missed"
    assert figure("wait", "ms", [10.0], at_most=9).verdict == "missed"
    assert figure("wait", "ms", [8.0], at_most=9).verdict == "met"
    assert figure("wait", "ms", [8.0]).verdict == ""
    assert not_measured("rate", RATIO, "it is not installed", at_least=10).verdict == "not measured"


@pytest.mark.parametrize(
    ("better", "then", "now", "lost"),
    [
        ("higher", 1.0, 0.81, False),
        ("higher", 1.0, 0.79, True),
        ("higher", 1.0, 2.0, False),
        ("lower", 1.0, 1.2, False),
        ("lower", 1.0, 1.3, True),
        ("lower", 1.0, 0.5, False),
        ("higher", 1.0, None, False),
    ],
)
def test_a_ratio_that_lost_a_fifth_is_named(
    better: Literal["higher", "lower"], then: float, now: float | None, lost: bool
) -> None:
    found = changes({"x": section_of(ratio(then, better))}, {"x": section_of(ratio(now, better))})
    assert [one.is_lost for one in found] == [lost]
    assert ("of plain sqlite3" in loss_table(found)) == (lost or now is None)


def test_only_ratios_of_measured_figures_are_compared() -> None:
    rate = figure("asyncrunner", "items/s", [1000.0])
    then = {"x": section_of(rate, ratio(1.0)), "y": section_of(ratio(1.0))}
    assert [(one.benchmark, one.figure) for one in changes(then, {"x": section_of(rate, ratio(1.0))})] == [
        ("x", "of plain sqlite3")
    ]


def test_results_come_back_as_they_were_saved_and_the_others_stay(tmp_path: Path) -> None:
    first = {"scale": section_of(ratio(0.9))}
    save(tmp_path, first)
    assert load(tmp_path) == first
    both = load(tmp_path) | {"throughput": section_of(ratio(0.8), not_measured("times huey", RATIO, "it is not installed"))}
    save(tmp_path, both)
    assert list(load(tmp_path)) == ["throughput", "scale"]
    page = markdown(load(tmp_path), [])
    assert "**missed**" in page
    assert "it is not installed" in page


def test_the_ways_take_turns_in_an_empty_folder_each() -> None:
    called: list[str] = []

    def way(name: str, folder: Path) -> float:
        assert not list(folder.iterdir())
        (folder / "left").touch()
        called.append(name)
        return float(len(called))

    found = interleaved(2, {"a": lambda folder: way("a", folder), "b": lambda folder: way("b", folder)})
    assert called == ["a", "b", "b", "a"]
    assert found == {"a": [1.0, 4.0], "b": [2.0, 3.0]}


def test_the_error_of_a_failed_child_names_its_exception() -> None:
    assert call_in_child(percentile, 0.5, [1, 2, 3]) == 2
    with pytest.raises(RuntimeError, match="TypeError"):
        call_in_child(percentile, 0.5, 3)


def test_the_profile_names_statements() -> None:
    assert {"CLAIM", "SETTLE_COMPLETED", "INSERT_ITEMS"} <= set(_NAMES.values())


@pytest.mark.parametrize("arguments", [("--quick", "--check"), ("--set", "nothing.items=3"), ("--only", "nothing")])
def test_a_wrong_option_is_refused(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""


def test_the_help_has_the_command_to_run_them() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "exit 1 on a loss of 20%" in " ".join(done.stdout.split())
