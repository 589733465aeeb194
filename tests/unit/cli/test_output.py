"""Output that cannot be written, a closed pipe, and characters that the terminal does not have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import run_command
from tests.support.processes import Jobs
from tests.support.state import changing, counts


@pytest.mark.parametrize("arguments", [["list"], ["--version"], ["--help"], ["failures", "--json"], ["check"], ["doctor"], ["stop"],
                                       ["retry", "--failed"], ["pause"], ["export", "items.csv", "--json"]])  # fmt: skip
def test_output_that_cannot_be_written_is_reported_in_one_line(file: Path, arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "asyncrunner", *arguments], env={**os.environ, "ASYNCRUNNER_DB": "jobs.db"},
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "stdout cannot be written (No space left on device)" in line]
    assert ("completed, only its output is lost" in said) is (arguments[0] in {"retry", "pause", "export", "stop"})
    if arguments[0] == "retry":
        assert counts(file)["failed"] == 0


def test_a_restore_whose_output_cannot_be_written_has_completed(file: Path) -> None:
    assert run_command(file.parent, "backup", "copy.db", "--db", "jobs.db").returncode == 0
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "asyncrunner", "restore", "copy.db", "--db", "jobs.db"], cwd=file.parent,
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert "`restore` completed, only its output is lost" in done.stderr
    assert len(list(file.parent.glob("jobs.db.replaced-*[0-9]"))) == 1


@pytest.mark.parametrize(("arguments", "code"), [(["list"], 0), (["--help"], 0), (["export"], 0), (["check"], 141)])
def test_a_reader_that_has_gone_is_no_error(file: Path, arguments: list[str], code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "asyncrunner", *arguments], env={**os.environ, "ASYNCRUNNER_DB": "jobs.db"},
        stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, "Traceback" in done.stderr, "Exception" in done.stderr) == (code, False, False)


def test_a_log_that_cannot_be_written_costs_no_item(jobs: Jobs) -> None:
    code, said = jobs.run("run", "h.py:work", jobs.items(3), "--log-file", "/dev/full")
    assert code == 2
    assert said.splitlines()[-1] == (
        "Error: the log /dev/full could not be written (No space left on device); the run has ended, and its outcomes are saved"
    )
    assert "Traceback" not in said
    assert jobs.query("SELECT count(*) FROM items WHERE status = 'completed'") == [(3,)]


def test_characters_that_the_terminal_cannot_print_are_escaped(file: Path) -> None:
    with changing(file) as connection:
        connection.execute("UPDATE items SET id = 'caf\u00e9' WHERE id = 'fine-1'")
    done = subprocess.run(
        [sys.executable, "-m", "asyncrunner", "list", "--db", "jobs.db"], capture_output=True, timeout=60, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf\\xe9" in done.stdout


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    run_command(folder, "run", "h.py:upper", "items.txt")
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncrunner", "status"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(30)
