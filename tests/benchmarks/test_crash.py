"""The arithmetic and the command line of the benchmark of crashes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.measuring import ROOT
from benchmarks.questions.crash import Line, Program, rate_of


def test_a_rate_counts_the_items_that_end_while_others_still_start() -> None:
    assert rate_of([10.0, 10.0, 11.0, 12.0], [11.0, 11.0, 12.0, 13.0]) == pytest.approx(3 / 2)


def test_the_log_has_one_line_per_start_and_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("start mail-0 17 1.5\nend mail-0 17 2.5\nstart 3 18 2.0\n")
    program = Program(tmp_path, 0.2)
    assert [(line.item, line.pid, line.at) for line in program.log("start")] == [("mail-0", 17, 1.5), ("3", 18, 2.0)]
    assert [line.at for line in program.log("end", 17)] == [2.5]
    assert Line("end 4 5 6.0").what == "end"


@pytest.mark.parametrize(("option", "code"), [(("--help",), 0), (("--items", "x"), 2), (("--unknown", "3"), 2)])
def test_the_sizes_are_options_of_the_command(option: tuple[str, ...], code: int) -> None:
    command = [sys.executable, "-m", "benchmarks", "crash", *option]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, "--report-seconds" in done.stdout + done.stderr) == (code, True)
