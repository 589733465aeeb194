"""The command line as a process: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import asyncrunner

HANDLERS = """
import asyncio
from dataclasses import dataclass
from pathlib import Path

async def upper(line: str) -> str:
    return line.upper()

async def number(n: int) -> int:
    print("number", n)
    return n

@dataclass
class Row:
    name: str
    n: int

async def row(item: Row) -> int:
    return item.n

async def plain(item) -> object:
    return item

async def path(p: Path) -> str:
    return p.name

async def fails(line: str) -> None:
    raise ValueError(f"cannot do {line} \\x1b[31mred")

class Group:
    async def method(line: str) -> str:
        return line

CONSTANT = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "h.py").write_text(HANDLERS)
    (tmp_path / "items.txt").write_text("one\ntwo\n\nthree\n")
    return tmp_path


def call(folder: Path, *arguments: str, given: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asyncrunner", *arguments],
        cwd=folder, input=given, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def results(folder: Path, db: str = "asyncrunner.db") -> list[tuple[str, str]]:
    connection = sqlite3.connect(folder / db)
    try:
        return connection.execute("SELECT id, result FROM items ORDER BY seq").fetchall()
    finally:
        connection.close()


# --- run ------------------------------------------------------------------------------------------------------------


def test_lines_of_a_text_file_are_items_and_the_summary_says_what_was_done(folder: Path) -> None:
    done = call(folder, "run", "h.py:upper", "items.txt")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[-1].startswith("h:upper: 3 completed in ")
    assert results(folder) == [("one", '"ONE"'), ("two", '"TWO"'), ("three", '"THREE"')]


def test_a_second_run_skips_what_is_done(folder: Path) -> None:
    call(folder, "run", "h.py:upper", "items.txt")
    done = call(folder, "run", "h:upper", "items.txt")
    assert "0 completed, 3 skipped (completed before)" in done.stderr


def test_a_script_and_the_command_line_share_a_batch(folder: Path) -> None:
    (folder / "script.py").write_text(
        HANDLERS + "\nfrom asyncrunner import run_batch\nif __name__ == '__main__':\n    asyncio.run(run_batch(['one'], upper))\n"
    )
    subprocess.run([sys.executable, "script.py"], cwd=folder, check=True, timeout=60)
    assert "2 completed, 1 skipped" in call(folder, "run", "script.py:upper", "items.txt").stderr


def test_numbers_in_a_text_file_fit_a_handler_of_numbers(folder: Path) -> None:
    done = call(folder, "run", "h.py:number", "-", "--quiet", given="3\n4\n")
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
    done = call(folder, "run", f"h.py:{handler}", name)
    assert done.returncode == 0, done.stderr
    assert [result for _, result in results(folder)] == expected


def test_format_says_what_stdin_holds(folder: Path) -> None:
    assert call(folder, "run", "h.py:row", "-", "--format", "csv", given="name,n\na,1\n").returncode == 0
    assert (
        call(folder, "run", "h.py:row", "-", "--format", "jsonl", "--key", "name", given='{"name":"b","n":2}\n').returncode == 0
    )
    assert [result for _, result in results(folder)] == ["1", "2"]


def test_failed_items_are_grouped_escaped_and_end_in_exit_code_1(folder: Path) -> None:
    done = call(folder, "run", "h.py:fails", "items.txt", "--max-attempts", "1", "--quiet")
    assert done.returncode == 1
    assert "3 failed" in done.stderr
    assert "x ValueError: cannot do" in done.stderr
    assert "--retry-failed" in done.stderr
    assert "\x1b" not in done.stderr
    assert "\\x1b[31mred" in done.stderr


def test_without_items_it_goes_on_with_what_the_file_holds(folder: Path) -> None:
    call(folder, "run", "h.py:fails", "items.txt", "--max-attempts", "1", "--batch", "b")
    done = call(folder, "run", "h.py:upper", "--batch", "b", "--retry-failed", "--json", "--quiet")
    document = json.loads(done.stdout)
    assert (done.returncode, document["completed"], document["failed"], document["total"]) == (0, 3, 0, 3)


def test_options_also_come_from_the_environment(folder: Path) -> None:
    done = call(
        folder, "run", "h.py:fails", "items.txt", ASYNCRUNNER_DB="other.db", ASYNCRUNNER_MAX_ATTEMPTS="1", ASYNCRUNNER_MAX_FAILURES="1",
        ASYNCRUNNER_CONCURRENCY="1", ASYNCRUNNER_JSON="1",
    )  # fmt: skip
    assert json.loads(done.stdout)["failed"] >= 1
    assert (folder / "other.db").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nothing"], "give package.module:handler"),
        (["run", "no.py:h", "items.txt"], "there is no file"),
        (["run", "no_such_module:h", "items.txt"], "there is no module 'no_such_module'"),
        (["run", "h.py:uper", "items.txt"], "did you mean 'upper'?"),
        (["run", "h.py:CONSTANT", "items.txt"], "int, not a function"),
        (["run", "broken.py:h", "items.txt"], "broken.py cannot be imported: ZeroDivisionError"),
        (["run", "h.py:upper", "no.txt"], "does not exist"),
        (["run", "h.py:upper", "."], "is a folder"),
        (["run", "h.py:upper", "h.py"], "add --format txt|jsonl|csv"),
        (["run", "h.py:upper", "items.txt", "--format", "xml"], "give one of txt, jsonl, csv"),
        (["run", "h.py:upper", "items.txt", "--concurrency", "0"], "concurrency=0: give a whole number of at least 1"),
        (["run", "h.py:upper", "items.txt", "--on-change", "maybe"], "on_change='maybe': give one of"),
        (["run", "h.py:upper", "items.txt", "--retry-factor", "0"], "RetryPolicy(factor=0.0)"),
        (["run", "h.py:upper", "items.txt", "--db", "no/where.db"], "there is no folder"),
        (["run", "h.py:upper", "items.txt", "--db", "items.txt"], "not an intact SQLite database"),
        (["run", "h.py:number", "items.txt"], "items.txt, line 1: it does not fit number, which takes int"),
        (["run", "h.py:row", "bad.csv"], "bad.csv, line 3: 3 fields, but the header has 2"),
        (["run", "h.py:row", "open.csv"], "open.csv, line 2: a quoted field is not closed"),
        (["run", "h.py:row", "twice.csv"], "empty or repeated name"),
        (["run", "h.py:upper", "latin.txt"], "latin.txt, line 2 is not UTF-8 text"),
        (["run", "h.py:plain", "bad.jsonl"], "bad.jsonl, line 2"),
        (["status", "--db", "no.db"], "there is no database at"),
        (["status", "--db", "items.txt"], "not an intact SQLite database"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_a_line_with_exit_code_2(folder: Path, arguments: list[str], said: str) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "bad.csv").write_text("name,n\na,1\nb,2,3\n")
    (folder / "open.csv").write_text('name,n\na,"1\n')
    (folder / "twice.csv").write_text("name,name\na,1\n")
    (folder / "latin.txt").write_bytes(b"good\n\xe4\n")
    (folder / "bad.jsonl").write_text('{"a": 1}\n{"a": \n')
    done = call(folder, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if arguments[0] == "status":
        assert not (folder / "no.db").exists()


def test_what_came_before_a_bad_line_is_kept(folder: Path) -> None:
    (folder / "bad.jsonl").write_text('"a"\n"b"\n{\n')
    assert call(folder, "run", "h.py:plain", "bad.jsonl").returncode == 2
    (folder / "good.jsonl").write_text('"a"\n"b"\n"c"\n')
    done = call(folder, "run", "h.py:plain", "good.jsonl", "--json", "--quiet")
    assert json.loads(done.stdout)["total"] == 3


def test_help_and_version(folder: Path) -> None:
    assert "asyncrunner " in call(folder, "--version").stdout
    for command in ([], ["run"], ["status"]):
        done = call(folder, *command, "--help")
        assert done.returncode == 0
        assert "Usage:" in done.stdout
    assert "Example: asyncrunner run prices.py:fetch" in call(folder, "run", "--help").stdout


def test_every_option_of_run_batch_is_an_option_of_run(folder: Path) -> None:
    shown = call(folder, "run", "--help", COLUMNS="200").stdout
    from asyncrunner.domain.options import Settings

    for name in Settings.__slots__:
        if name == "retry":
            assert "--retry-initial" in shown
        elif name != "progress":
            assert f"--{name.replace('_', '-')}" in shown
            assert f"ASYNCRUNNER_{name.upper()}" in shown


def test_a_bar_on_a_terminal_survives_what_handlers_print(folder: Path) -> None:
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


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_shows_counts_durations_and_that_nobody_works(folder: Path) -> None:
    call(folder, "run", "h.py:upper", "items.txt")
    call(folder, "run", "h.py:fails", "items.txt", "--max-attempts", "1")
    done = call(folder, "status")
    assert done.returncode == 0
    assert "h:upper: 3 items" in done.stdout
    assert "completed             3" in done.stdout
    assert "on average, p95" in done.stdout
    assert "no workers" in done.stdout
    document = json.loads(call(folder, "status", "--json", "--batch", "h:fails").stdout)
    (batch,) = document["batches"]
    assert (batch["total"], batch["counts"]["failed"], batch["counts"]["completed"]) == (3, 3, 0)
    assert set(batch["durations"]) == {"failed"}


def test_status_names_the_batch_that_was_meant(folder: Path) -> None:
    call(folder, "run", "h.py:upper", "items.txt")
    done = call(folder, "status", "--batch", "h:uper")
    assert (done.returncode, "did you mean 'h:upper'?" in done.stderr) == (2, True)


def test_status_of_a_file_that_may_only_be_read(folder: Path) -> None:
    call(folder, "run", "h.py:upper", "items.txt")
    for path in folder.glob("asyncrunner.db*"):
        path.chmod(0o400 if path.is_file() else 0o500)
    folder.chmod(0o500)
    try:
        assert "completed             3" in call(folder, "status").stdout
    finally:
        folder.chmod(0o700)


def test_status_shows_workers_stuck_items_pauses_and_never_an_escape(folder: Path) -> None:
    call(folder, "run", "h.py:upper", "items.txt", "--batch", "b\x1b[31m")
    connection = sqlite3.connect(folder / "asyncrunner.db")
    with connection:
        connection.execute("UPDATE batches SET paused = 1, cooldown_until = '2999-01-01 00:00:00.000'")
        connection.execute(
            "UPDATE items SET status = 'processing', id = 'x\x1b[2J', started_at = '2026-01-01 00:00:00.000' WHERE seq = 1"
        )
        connection.execute("UPDATE items SET status = 'pending', due_at = '2999-01-01 00:00:00.000' WHERE seq = 2")
        connection.execute("UPDATE workers SET ended_at = NULL, host = 'h\x1b[2J'")
    connection.close()
    done = call(folder, "status")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    for said in ("stuck: x\\x1b[2J", "paused", "cooling down until 2999-01-01", "(1 waiting for a retry", "worker ", "heartbeat"):
        assert said in done.stdout
    (batch,) = json.loads(call(folder, "status", "--json").stdout)["batches"]
    assert (batch["counts"]["waiting"], batch["counts"]["processing"], batch["stuck"][0]["id"]) == (1, 1, "x\x1b[2J")


def test_an_empty_store_has_no_batches_yet(folder: Path) -> None:
    import asyncio

    async def make() -> None:
        async with asyncrunner.Runner(folder / "empty.db"):
            pass

    asyncio.run(make())
    assert "no batches yet" in call(folder, "status", "--db", "empty.db").stdout


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    call(folder, "run", "h.py:upper", "items.txt")
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncrunner", "status"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(30)
