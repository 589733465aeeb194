"""``run --limit``, ``run --set`` and ``run --on-end``."""

from __future__ import annotations

import ast
import json
import os
import shlex
import sys

import pytest

from tests.support.processes import Jobs

SCORE = """
from pathlib import Path
async def score(item: int, *, model: str = "large", factor: float = 1.0, tags: list[str] | None = None, loud=False) -> list:
    return [item, model, factor, tags, loud]

async def fails(item: int) -> None:
    raise ValueError("no")

async def fails_with(item: int, note: str) -> None:
    raise ValueError(note)

async def with_setup(item: int, client: str, *, model: str = "large") -> str:
    return f"{item} {client} {model}"

async def client():
    yield "open"

class Scorer:
    async def __call__(self, item: int, n: int, path: Path = Path("."), other: "Unknown" = None) -> list:
        return [n, str(path / "a")]

scorer = Scorer()
"""


@pytest.fixture
def scores(jobs: Jobs) -> Jobs:
    (jobs.folder / "score.py").write_text(SCORE)
    (jobs.folder / "items.txt").write_text("".join(f"{number}\n" for number in range(10)))
    return jobs


@pytest.mark.parametrize("bad_input", ["stop", "fail"])
def test_limit_reads_only_the_first_items(bad_input: str, scores: Jobs) -> None:
    code, output = scores.run("run", "score.py:score", "items.txt", "--limit", "3", "--on-bad-input", bad_input)
    assert (code, scores.query("SELECT id FROM items ORDER BY seq")) == (0, [("0",), ("1",), ("2",)])
    assert "3 completed" in output
    code, output = scores.run("run", "score.py:score", "items.txt")
    assert "7 completed, 3 skipped" in output


def test_limit_counts_items_and_not_the_lines_that_are_skipped(scores: Jobs) -> None:
    (scores.folder / "items.txt").write_text("x\n0\ny\n1\n2\n")
    code, _ = scores.run("run", "score.py:score", "items.txt", "--limit", "2", "--on-bad-input", "skip")
    assert (code, scores.query("SELECT id FROM items ORDER BY seq")) == (0, [("0",), ("1",)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score.py:score", "items.txt", "--limit", "0"], "--limit"),
        (["score.py:score", "--limit", "3"], "--limit reads only the first items of ITEMS"),
        (["score.py:score", "items.txt", "--set", "model=small"], "name it with --batch"),
        (["score.py:score", "items.txt", "--batch", "b", "--set", "model"], "give NAME=VALUE"),
        (["score.py:score", "items.txt", "--batch", "b", "--set", "modle=small"], "did you mean 'model'"),
        (["score.py:score", "items.txt", "--batch", "b", "--set", "item=3"], "no other parameter 'item'"),
        (["score.py:score", "items.txt", "--batch", "b", "--set", "factor=much"], "takes float"),
        (["score.py:score", "items.txt", "--batch", "b", "--set", os.fsdecode(b"model=\xff")], "not valid UTF-8"),
        (["score.py:scorer", "items.txt", "--batch", "b", "--set", "other=1"], "'Unknown' of this parameter"),
        (["score.py:score", "items.txt", "--batch", "b", "--set", "model=a", "--run-in", "process"], "cannot be combined"),
    ],
)
def test_a_mistake_is_reported_and_makes_no_file(arguments: list[str], message: str, scores: Jobs) -> None:
    code, output = scores.run("run", *arguments)
    assert code == 2
    assert message in output
    assert not (scores.folder / "asyncrunner.db").exists()


def test_set_passes_values_of_the_types_of_the_parameters(scores: Jobs) -> None:
    values = ["--set", "model=small=1", "--set", "factor=2", "--set", 'tags=["a"]', "--set", "loud=true"]
    code, output = scores.run("run", "score.py:score", "items.txt", "--limit", "1", "--batch", "small", *values)
    assert code == 0, output
    assert json.loads(scores.query("SELECT result FROM items")[0][0]) == [0, "small=1", 2.0, ["a"], True]


def test_set_converts_also_for_an_object_with_an_annotation_that_has_no_value(scores: Jobs) -> None:
    values = ["--set", "n=5", "--set", "path=/tmp"]
    code, output = scores.run("run", "score.py:scorer", "items.txt", "--limit", "1", "--batch", "b", *values)
    assert code == 0, output
    assert scores.query("SELECT result FROM items") == [('[5,"/tmp/a"]',)]


def test_the_command_to_continue_has_the_arguments_of_set(scores: Jobs) -> None:
    options = ["--limit", "1", "--batch", "b", "--max-attempts", "1", "--batch-version", "3", "--set", "note=a b"]
    code, output = scores.run("run", "score.py:fails_with", "items.txt", *options)
    assert code == 1
    assert "--batch b --set 'note=a b' --batch-version 3 --retry-failed" in output


def test_set_and_setup_go_together(scores: Jobs) -> None:
    arguments = ["--limit", "1", "--batch", "b", "--set", "model=small", "--setup", "score.py:client"]
    code, output = scores.run("run", "score.py:with_setup", "items.txt", *arguments)
    assert code == 0, output
    assert scores.query("SELECT result FROM items") == [('"0 open small"',)]


REPORT = """
import json, os
print("at the end:", {name: os.environ.get("ASYNCRUNNER_" + name) for name in ("EXIT_CODE", "DB", "BATCH", "COUNT_COMPLETED", "COUNT_FAILED", "ON_END")})
print("causes:", [cause["error"] for cause in json.loads(os.environ.get("ASYNCRUNNER_SUMMARY") or '{"failures": []}')["failures"]])
"""


@pytest.mark.parametrize(("handler", "code", "counts"), [("score", 0, ("3", "0")), ("fails", 1, ("0", "3"))])
def test_on_end_has_the_summary_in_its_environment(handler: str, code: int, counts: tuple[str, str], scores: Jobs) -> None:
    (scores.folder / "report.py").write_text(REPORT)
    command = f"{shlex.quote(sys.executable)} report.py"
    options = ["--limit", "3", "--max-attempts", "1", "--batch", "b", "--on-end", command]
    ended, output = scores.run("run", f"score.py:{handler}", "items.txt", *options)
    assert ended == code
    expected = {"EXIT_CODE": str(code), "BATCH": "b", "COUNT_COMPLETED": counts[0], "COUNT_FAILED": counts[1], "ON_END": None}
    line = next(line for line in output.splitlines() if line.startswith("at the end:"))
    assert {name: value for name, value in ast.literal_eval(line.partition(": ")[2]).items() if name != "DB"} == expected
    assert f"causes: {['ValueError: no'] if handler == 'fails' else []}" in output


def test_on_end_runs_after_a_run_that_ended_with_an_error_and_its_own_failure_is_reported(scores: Jobs) -> None:
    (scores.folder / "items.txt").write_text("0\nx\n")
    code, output = scores.run("run", "score.py:score", "items.txt", "--on-end", "echo ended with $ASYNCRUNNER_EXIT_CODE; exit 3")
    assert code == 2
    assert "ended with 2" in output
    assert "the command of --on-end ended with exit code 3" in output


def test_the_output_of_on_end_does_not_mix_with_json(scores: Jobs) -> None:
    done = scores.start("run", "score.py:score", "items.txt", "--json", "--quiet", "--on-end", "echo told")
    out, err = done.communicate(timeout=60)
    assert json.loads(out)["completed"] == 10
    assert "told" in err
