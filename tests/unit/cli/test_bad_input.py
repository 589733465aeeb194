"""`run --on-bad-input`: the summary, the exit code, and what is in the file; input from pipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import results, run_command
from tests.unit.cli.conftest import Call

LINES = '{"name": "a", "n": 1}\n{"name": "b", "n": "x"}\n{"name": "c", "n": 3}\n{"name"\n'


@pytest.fixture
def rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / "rows.jsonl").write_text(LINES)
    monkeypatch.chdir(folder)
    return folder


def test_skip_runs_the_other_lines_and_reports_the_skipped_ones(rows: Path, call: Call) -> None:
    answer = call("run", "h.py:row", "rows.jsonl", "--on-bad-input", "skip", "--json")
    assert (answer.code, answer.document["completed"], answer.document["bad_lines"]) == (0, 2, 2)
    lines = answer.err.splitlines()
    assert lines[-3] == "2 bad lines of rows.jsonl skipped:"
    assert lines[-2].startswith("  line 2: the item does not fit row, which takes Row: ")
    assert lines[-1].startswith("  line 4: not JSON")
    assert [result for _, result in results(rows, "jobs.db")] == ["1", "3"]


def test_columns_that_the_handler_does_not_take_are_refused_and_can_be_left_out(rows: Path, call: Call) -> None:
    (rows / "rows.csv").write_text("name,n,color\na,1,red\na,1,blue\n")
    answer = call("run", "h.py:row", "rows.csv", "--on-bad-input", "skip")
    assert answer.code == 2
    assert (
        "line 2: 'color' would be lost: row takes Row, which has no such field. Add the field, let the handler take a dict"
        in (answer.err)
    )
    assert "--fields name,n" in answer.err
    answer = call("run", "h.py:row", "rows.csv", "--fields", "name, n", "--json")
    assert (answer.code, answer.document["completed"], answer.document["duplicates"]) == (0, 1, 1)
    answer = call("run", "h.py:row", "rows.csv", "--fields", "name,m")
    assert answer.code == 2
    assert "there is no 'm', which --fields names; known: 'name', 'n', 'color'" in answer.err


def test_names_of_an_object_that_the_handler_does_not_take_make_a_bad_line(rows: Path, call: Call) -> None:
    (rows / "rows.ndjson").write_text('{"name": "a", "n": 1}\n{"name": "a", "n": 1, "color": "red"}\n')
    answer = call("run", "h.py:row", "rows.ndjson", "--on-bad-input", "skip", "--json")
    assert (answer.code, answer.document["completed"], answer.document["bad_lines"]) == (0, 1, 1)
    assert "line 2: 'color' would be lost" in answer.err
    answer = call("run", "h.py:row", "rows.ndjson", "--fields", "n,name", "--json", "--format", "JSONL")
    assert (answer.code, answer.document["skipped"], answer.document["duplicates"]) == (0, 1, 1)


def test_a_record_of_three_lines_counts_three_lines_and_is_named_once(rows: Path, call: Call) -> None:
    (rows / "rows.csv").write_text('name,n\na,1\n"b\nb\nb",x\nc,3\n')
    answer = call("run", "h.py:row", "rows.csv", "--on-bad-input", "skip", "--quiet")
    assert answer.code == 0
    header, named = answer.err.splitlines()
    assert header == "3 bad lines of rows.csv skipped:"
    assert named.startswith("  lines 3 to 5: ")


def test_skipped_lines_are_reported_also_with_quiet_in_the_log_and_in_a_plan(rows: Path, call: Call) -> None:
    options = ["run", "h.py:row", "rows.jsonl", "--on-bad-input", "skip", "--quiet"]
    assert "2 bad lines of rows.jsonl skipped:" in call(*options, "--log-file", "run.log").err
    assert "2 bad lines of rows.jsonl skipped:" in (rows / "run.log").read_text()
    assert "2 bad lines of rows.jsonl skipped:" in call(*options, "--dry-run").err


def test_stop_names_the_file_the_line_and_the_next_step_and_saves_the_items_before(rows: Path, call: Call) -> None:
    answer = call("run", "h.py:row", "rows.jsonl")
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith("Error: rows.jsonl, line 2: the item does not fit row, which takes Row: ")
    assert answer.err.endswith("Fix the line and run again: the items before it are saved; or add --on-bad-input skip\n")
    (rows / "rows.jsonl").write_text(LINES.splitlines()[0])
    assert json.loads(call("run", "h.py:row", "rows.jsonl", "--json").out)["total"] == 1


def test_fail_names_every_bad_line_and_makes_no_file(rows: Path, call: Call) -> None:
    answer = call("run", "h.py:row", "rows.jsonl", "--on-bad-input", "fail")
    assert answer.code == 2
    first, second, third, last = answer.err.splitlines()
    assert first == "Error: rows.jsonl: 2 bad lines, so no item of the input was accepted (--on-bad-input fail):"
    assert second.startswith("  line 2: ")
    assert third.startswith("  line 4: ")
    assert last == "Fix the lines and run again, or add --on-bad-input skip"
    assert not (rows / "jobs.db").exists()


def test_fail_also_checks_the_key_of_each_line(rows: Path, call: Call) -> None:
    (rows / "rows.jsonl").write_text('{"id": 1}\n{"no": 1}\n')
    answer = call("run", "h.py:plain", "rows.jsonl", "--on-bad-input", "fail", "--key", "id")
    assert answer.code == 2
    assert "  line 2: item {'no': 1} has no field 'id'" in answer.err


def test_an_unknown_rule_is_refused(rows: Path, call: Call) -> None:
    answer = call("run", "h.py:row", "rows.jsonl", "--on-bad-input", "ignore")
    assert (answer.code, answer.err) == (2, "Error: --on-bad-input 'ignore': give one of stop, skip, fail\n")


@pytest.mark.parametrize("source", ["-", "/dev/stdin", "/proc/self/fd/0", "/dev/fd/0"])
def test_a_detached_run_refuses_every_name_of_stdin(source: str, rows: Path, call: Call) -> None:
    answer = call("run", "h.py:row", source, "--detach")
    assert answer.code == 2
    assert "a detached run cannot read stdin" in answer.err


@pytest.mark.parametrize(
    "line",
    [
        "{run} /dev/stdin < items.txt",
        "cat items.txt | {run} /dev/stdin",
        "cat items.txt | {run} - --on-bad-input fail",
        "{run} <(cat items.txt)",
        "{run} <(gzip -c items.txt)",
        "mkfifo p.txt; cat items.txt > p.txt & {run} p.txt",
    ],
)
def test_a_shell_gives_items_in_every_way(line: str, folder: Path) -> None:
    command = line.format(run=f"{sys.executable} -m asyncrunner run h.py:upper --quiet")
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert results(folder) == [("one", '"ONE"'), ("two", '"TWO"'), ("three", '"THREE"')]


@pytest.mark.parametrize("name", ["items.txt", "-"])
def test_a_first_line_that_is_bad_has_nothing_before_it(folder: Path, name: str) -> None:
    (folder / "items.txt").write_text("x\n2\n")
    answer = run_command(folder, "run", "h.py:number", name, given="x\n2\n")
    assert (answer.returncode, len(answer.stderr.splitlines())) == (2, 1)
    assert answer.stderr.endswith(". Fix the line and run again, or add --on-bad-input skip\n")
