"""`run`: its input, its summary and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import HANDLERS, results, run_command
from tests.unit.cli.conftest import Call


def test_lines_of_a_text_file_are_items_and_the_summary_counts_the_outcomes(folder: Path) -> None:
    done = run_command(folder, "run", "h.py:upper", "items.txt")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[-1].startswith("h:upper: 3 completed in ")
    assert results(folder) == [("one", '"ONE"'), ("two", '"TWO"'), ("three", '"THREE"')]


def test_a_second_run_skips_completed_items(folder: Path) -> None:
    run_command(folder, "run", "h.py:upper", "items.txt")
    done = run_command(folder, "run", "h:upper", "items.txt")
    assert "0 completed, 3 skipped (completed before)" in done.stderr


def test_a_script_and_the_command_line_share_a_batch(folder: Path) -> None:
    (folder / "script.py").write_text(
        HANDLERS + "\nfrom asyncrunner import run_batch\nif __name__ == '__main__':\n    asyncio.run(run_batch(['one'], upper))\n"
    )
    subprocess.run([sys.executable, "script.py"], cwd=folder, check=True, timeout=60)
    assert "2 completed, 1 skipped" in run_command(folder, "run", "script.py:upper", "items.txt").stderr


def test_numbers_in_a_text_file_fit_a_handler_of_numbers(folder: Path) -> None:
    done = run_command(folder, "run", "h.py:number", "-", "--quiet", given="3\n4\n")
    assert (done.returncode, sorted(done.stdout.splitlines()), done.stderr) == (0, ["number 3", "number 4"], "")
    assert results(folder) == [("3", "3"), ("4", "4")]


@pytest.mark.parametrize(
    ("handler", "name", "text", "expected"),
    [
        ("plain", "a.jsonl", '{"a": 1}\n\n[1, 2]\n"x"\n', ['{"a":1}', "[1,2]", '"x"']),
        ("row", "a.jsonl", '{"name": "x", "n": 5}\n', ["5"]),
        ("row", "a.csv", '\ufeffname,n\nx,5\n"y\n, z",6\n', ["5", "6"]),
        ("plain", "a.csv", "name,n\nx,5\n", ['{"name":"x","n":"5"}']),
        ("path", "a.txt", "/some/where/file.py\n", ['"file.py"']),
        ("upper", "a.TXT", "a\r\nb", ['"A"', '"B"']),
    ],
)
def test_every_form_of_input(folder: Path, handler: str, name: str, text: str, expected: list[str]) -> None:
    (folder / name).write_bytes(text.encode())
    done = run_command(folder, "run", f"h.py:{handler}", name)
    assert done.returncode == 0, done.stderr
    assert [result for _, result in results(folder)] == expected


def test_format_sets_the_format_of_stdin(folder: Path) -> None:
    assert run_command(folder, "run", "h.py:row", "-", "--format", "csv", given="name,n\na,1\n").returncode == 0
    assert (
        run_command(folder, "run", "h.py:row", "-", "--format", "jsonl", "--key", "name", given='{"name":"b","n":2}\n').returncode
        == 0
    )
    assert [result for _, result in results(folder)] == ["1", "2"]


def test_failed_items_are_grouped_escaped_and_end_in_exit_code_1(folder: Path) -> None:
    done = run_command(folder, "run", "h.py:fails", "items.txt", "--max-attempts", "1", "--quiet")
    assert done.returncode == 1
    assert "3 failed" in done.stderr
    assert "x ValueError: cannot do" in done.stderr
    assert "--retry-failed" in done.stderr
    assert "\x1b" not in done.stderr
    assert "\\x1b[31mred" in done.stderr


def test_errors_with_given_names_are_not_retried(folder: Path) -> None:
    for names in (["KeyError,ValueError"], ["KeyError", "ValueError"]):
        options = [option for name in names for option in ("--permanent", name)]
        done = run_command(folder, "run", "h.py:fails", "items.txt", "--batch", names[0], *options, "--json", "--quiet")
        document = json.loads(done.stdout)
        assert (document["failed"], document["attempts"], document["retried"]) == (3, 3, 0)


def test_without_items_it_continues_with_the_items_in_the_file(folder: Path) -> None:
    run_command(folder, "run", "h.py:fails", "items.txt", "--max-attempts", "1", "--batch", "b")
    done = run_command(folder, "run", "h.py:upper", "--batch", "b", "--retry-failed", "--json", "--quiet")
    document = json.loads(done.stdout)
    assert (done.returncode, document["completed"], document["failed"], document["total"]) == (0, 3, 0, 3)


def test_names_of_errors_from_the_environment_may_have_spaces_between_them(folder: Path) -> None:
    done = run_command(
        folder, "run", "h.py:fails", "items.txt", "--json", ASYNCRUNNER_PERMANENT="KeyError, builtins.ValueError", ASYNCRUNNER_RETRY_INITIAL="9"
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert (document["failed"], document["attempts"]) == (3, 3), done.stderr


def test_options_also_come_from_the_environment(folder: Path) -> None:
    done = run_command(
        folder, "run", "h.py:fails", "items.txt", ASYNCRUNNER_DB="other.db", ASYNCRUNNER_MAX_ATTEMPTS="1", ASYNCRUNNER_MAX_FAILURES="1",
        ASYNCRUNNER_CONCURRENCY="1", ASYNCRUNNER_JSON="1",
    )  # fmt: skip
    assert json.loads(done.stdout)["failed"] >= 1
    assert (folder / "other.db").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nothing"], "give package.module:handler"),
        (["run", "h.py:fails", "--permanent", "Value Error"], "--permanent 'Value Error': give the name of an exception type"),
        (["run", "h.py:fails", "--throttled-for", "soon"], "--throttled-for 'soon': give an age"),
        (["run", "no.py:h", "items.txt"], "there is no file"),
        (["run", "no_such_module:h", "items.txt"], "there is no module 'no_such_module'"),
        (["run", "h.py:uper", "items.txt"], "did you mean 'upper'?"),
        (["run", "h.py:CONSTANT", "items.txt"], "int, not a function"),
        (["run", "broken.py:h", "items.txt"], "broken.py cannot be imported: ZeroDivisionError"),
        (["run", "h.py:upper", "no.txt"], "does not exist"),
        (["run", "h.py:upper", "."], "is a folder"),
        (["run", "h.py:upper", "h.py"], "add --format txt|jsonl|json|csv|tsv"),
        (["run", "h.py:upper", "items.txt", "--format", "xml"], "give one of txt, jsonl, json, csv, tsv"),
        (["run", "h.py:upper", "items.txt", "--concurrency", "0"], "concurrency=0: give a whole number of at least 1"),
        (["run", "h.py:upper", "items.txt", "--on-change", "maybe"], "on_change='maybe': give one of"),
        (["run", "h.py:upper", "items.txt", "--retry-factor", "0"], "RetryPolicy(factor=0.0)"),
        (["run", "h.py:upper", "items.txt", "--db", "no/where.db"], "there is no folder"),
        (["run", "h.py:upper", "items.txt", "--db", "items.txt"], "not an intact SQLite database"),
        (["run", "h.py:number", "items.txt"], "items.txt, line 1: the item does not fit number, which takes int"),
        (["run", "h.py:row", "bad.csv"], "bad.csv, line 3: 3 fields, but the header has 2"),
        (["run", "h.py:row", "open.csv"], "open.csv, line 2: a quoted field is not closed"),
        (["run", "h.py:row", "twice.csv"], "empty or repeated name"),
        (["run", "h.py:upper", "latin.txt"], "latin.txt, line 2: not UTF-8 text"),
        (["run", "h.py:plain", "bad.jsonl"], "bad.jsonl, line 2"),
        (["status", "--db", "no.db"], "there is no database at"),
        (["status", "--db", "items.txt"], "not an intact SQLite database"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_reported_in_one_line_with_exit_code_2(folder: Path, arguments: list[str], said: str) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "bad.csv").write_text("name,n\na,1\nb,2,3\n")
    (folder / "open.csv").write_text('name,n\na,"1\n')
    (folder / "twice.csv").write_text("name,name\na,1\n")
    (folder / "latin.txt").write_bytes(b"good\n\xe4\n")
    (folder / "bad.jsonl").write_text('{"a": 1}\n{"a": \n')
    done = run_command(folder, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if arguments[0] == "status":
        assert not (folder / "no.db").exists()


def test_items_before_a_bad_line_are_kept(folder: Path) -> None:
    (folder / "bad.jsonl").write_text('"a"\n"b"\n{\n')
    assert run_command(folder, "run", "h.py:plain", "bad.jsonl").returncode == 2
    (folder / "good.jsonl").write_text('"a"\n"b"\n"c"\n')
    done = run_command(folder, "run", "h.py:plain", "good.jsonl", "--json", "--quiet")
    assert json.loads(done.stdout)["total"] == 3


def test_every_option_of_run_batch_is_an_option_of_run(folder: Path) -> None:
    shown = run_command(folder, "run", "--help", COLUMNS="200").stdout
    from asyncrunner.domain.options import RunKeywords

    for keyword in RunKeywords.__annotations__:
        name = "batch_version" if keyword == "version" else keyword  # `asyncrunner --version` prints its own version
        if name == "retry":
            assert "--retry-initial" in shown
        elif name != "progress":
            assert f"--{name.replace('_', '-')}" in shown
            assert f"ASYNCRUNNER_{name.upper()}" in shown


def test_a_bar_on_a_terminal_survives_the_prints_of_handlers(folder: Path) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncrunner", "run", "h.py:number", "-"],
        cwd=folder, stdin=subprocess.PIPE, stdout=follower, stderr=follower, env={**os.environ, "COLUMNS": "80", "TERM": "xterm"},
    )  # fmt: skip
    os.close(follower)
    assert process.stdin is not None
    process.stdin.write(b"".join(b"%d\n" % n for n in range(40)))
    process.stdin.close()
    shown = b""
    while True:
        try:
            block = os.read(leader, 65536)
        except OSError:
            break
        if not block:
            break
        shown += block
    os.close(leader)
    assert process.wait(30) == 0
    text = shown.decode()
    assert all(f"number {n}\r\n" in text for n in range(40))
    assert "100 %  40/40" in text
    assert "h:number: 40 completed" in text
    assert text.count("\x1b[?25h") >= 1, "the cursor is shown again"


def test_the_lines_of_a_dry_run_fit_the_terminal(folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run_command(folder, "run", "h.py:number", "-", "--quiet", "--db", "jobs.db", given="1\n2\n")
    monkeypatch.setattr("asyncrunner.cli.commands.run.terminal_width", lambda: 60)
    (folder / "more.txt").write_text("1\n2\n3\n")
    lines = call("run", "h.py:number", "more.txt", "--dry-run", "--db", "jobs.db").out.splitlines()
    assert "to run, about" in " ".join(lines)
    assert max(map(len, lines)) <= 60
