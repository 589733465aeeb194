"""The operator's commands: what they print, where, and their exit codes. What they do is tested with Control."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from asyncrunner.admin.control import Control
from asyncrunner.cli import main
from asyncrunner.cli.render.status import display_lines
from asyncrunner.cli.render.tables import Column, table
from asyncrunner.cli.session import with_control
from asyncrunner.domain.item import Counts
from asyncrunner.errors import ConfigurationError
from asyncrunner.store.read_models import BatchStatus, FailedAttempt, FileStatus, WorkerStatus
from asyncrunner.text import atomic_file
from docs.generate_cli import commands, reference
from tests.conftest import rows_of
from tests.support.files import BATCH, changing, make_file, snapshot
from tests.support.processes import Jobs

ROOT = Path(__file__).parents[3]


class Said(NamedTuple):
    code: object
    out: str
    err: str

    @property
    def document(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.out)
        return found


Call = Callable[..., Said]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_file(tmp_path_factory.mktemp("made") / "jobs.db").read_bytes()


@pytest.fixture
def file(tmp_path: Path, made: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "jobs.db").write_bytes(made)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "jobs.db"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Call:
    """``asyncrunner`` with those arguments, in this process; a ``--db`` of its own unless there is one."""

    def called(*arguments: str, given: str = "", **environment: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["asyncrunner", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        for name, value in {"ASYNCRUNNER_DB": "jobs.db", **environment}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
        sys.stdout.flush()
        for name in environment:
            monkeypatch.delenv(name)
        out, err = capfdbinary.readouterr()
        return Said(ended.value.code, out.decode(), err.decode())

    return called


# --- looking ---------------------------------------------------------------------------------------------------------


def test_list_is_a_table_whose_next_page_is_said_on_stderr(file: Path, call: Call) -> None:
    said = call("list", "--status", "failed", "--limit", "2")
    assert (said.code, said.err) == (0, "more items: add --after wrong-1\n")
    lines = said.out.splitlines()
    assert lines[0].split() == ["ID", "STATUS", "ATTEMPTS", "SINCE", "ERROR"]
    assert [line.split()[0] for line in lines[1:]] == ["refused-1", "wrong-1"]
    rest = call("list", "--status", "failed", "--after", "wrong-1", "--json").document
    assert [item["id"] for item in rest["items"]] == ["refused-2", "refused-3", "wrong-2"]  # type: ignore[attr-defined]
    assert rest["after"] is None
    assert call("list", "--status", "failed", "--older-than", "30d") == (0, "", "no matching items\n")


def test_failures_are_a_line_a_cause(file: Path, call: Call) -> None:
    said = call("failures")
    lines = said.out.splitlines()
    assert (said.code, len(lines)) == (0, 3)
    assert re.match(r" +3 +6 .* [0-9a-f]{16} +refused-1 +ConnectionError: cannot reach 10.0.0.1$", lines[1])
    (first, second) = call("failures", "--json").document["causes"]  # type: ignore[misc]
    assert (first["items"], second["items"]) == (3, 2)  # type: ignore[has-type]
    with changing(file) as connection:
        connection.execute("DELETE FROM failures")
        connection.execute("UPDATE items SET status = 'completed'")
    assert call("failures").out == "no failures\n"


def test_show_has_the_tracebacks_and_the_times(file: Path, call: Call) -> None:
    said = call("show", "refused-2")
    assert said.out.startswith("refused-2 of shop: failed\n  2 attempts\n")
    assert said.out.count("Traceback (most recent call last):") == 2
    assert '  payload     "refused-2"' in said.out
    assert "attempt 2 failed: ConnectionError: cannot reach 10.0.0.2" in said.out
    assert call("show", "fine-1", "--json").document["result"] == {"booked": "fine-1"}
    assert '  result      {"booked": "fine-1"}' in call("show", "fine-1").out


def test_stuck_and_workers_for_a_person_and_as_json(file: Path, call: Call) -> None:
    assert "held-1" in call("stuck").out
    assert call("stuck", "--older-than", "4000d").out == "no item has been processing for 4000d\n"
    assert call("stuck", "--json").document["stuck"][0]["worker_alive"] is False  # type: ignore[index]
    assert call("workers").out == "no workers: nothing is running on this file\n"
    with changing(file) as connection:
        connection.execute("UPDATE workers SET ended_at = NULL, host = 'h\x1b[2J', slots = 4, slots_in_use = 3")
    said = call("workers")
    assert "3/4" in said.out
    assert "h\\x1b[2J" in said.out
    assert call("workers", "--json").document["workers"][0]["slots"] == 4  # type: ignore[index]
    assert call("workers", "--batch", BATCH).out == "no worker holds items of the batch\n"


def test_nothing_that_comes_from_a_file_reaches_the_terminal_as_it_is(file: Path, call: Call) -> None:
    evil = "x\x1b[2J\u202e\x9b"
    with changing(file) as connection:
        connection.execute("UPDATE batches SET name = ?, stopped = ?", (evil, evil))
        connection.execute(
            "UPDATE items SET id = ? || id, error = ?, worker_id = ?, payload = ?", (evil, evil, evil, json.dumps(evil))
        )
        connection.execute(
            "UPDATE failures SET id = ? || id, error_type = ?, message = ?, traceback = ?, fingerprint = ?", (evil,) * 5
        )
    commands_that_show = [
        ["list"], ["failures"], ["show", f"{evil}refused-1"], ["show", f"{evil}held-1"], ["stuck"], ["workers"], ["status"], ["check"],
        ["retry", f"{evil}wrong-1"], ["cancel", f"{evil}open-1"], ["purge", "--before", "0s"], ["show", evil],
    ]  # fmt: skip
    for arguments in commands_that_show:
        for form in ([], ["--json"]):
            said = call(*arguments, *form)
            assert said.out + said.err != ""
            assert not set("\x1b\u202e\x9b") & set(said.out + said.err), arguments


# --- changing --------------------------------------------------------------------------------------------------------


def test_retry_and_cancel_count_what_they_changed_and_say_that_nobody_works(file: Path, call: Call) -> None:
    said = call("retry", "--error", "cannot reach")
    assert (said.code, said.out) == (0, "shop: 3 items pending again\n")
    assert said.err == "no worker is alive: start `asyncrunner run` or `asyncrunner work` to process the items\n"
    said = call("cancel", "-", given="refused-1\n\nfine-1\n")
    assert (said.code, said.out) == (0, "shop: 1 item cancelled, 1 already finished\n")
    assert call("retry", "--all", "--json").document == {"batch": BATCH, "changed": 4, "unchanged": 0}
    assert call("cancel", "--pending", "--json").document == {"batch": BATCH, "changed": 8, "unchanged": 0}


def test_pause_resume_concurrency_and_recover_say_what_they_did(file: Path, call: Call) -> None:
    assert call("pause").out == "paused; continue with `asyncrunner resume`\n"
    assert call("pause").out == "batch was already paused\n"
    assert "  paused; continue with `asyncrunner resume`" in call("status").out
    assert call("resume").out == "resumed\n"
    assert call("resume", "--json").document == {"paused": False, "changed": False}
    assert call("set", "concurrency", "7").out == "concurrency is set to 7 in each worker\n"
    assert "  concurrency is set to 7 in each worker" in call("status").out
    assert call("set", "concurrency", "default", "--json").document == {"concurrency": None}
    assert call("recover").out == "recovered 1 item of unknown workers\n"
    assert call("recover").out == "nothing to recover: no worker is dead, and no item is orphaned\n"


def test_check_is_for_monitoring(file: Path, call: Call) -> None:
    said = call("check", "--max-failed", "4")
    assert said.code == 1
    assert said.out.splitlines() == [
        "workers: shop: 3 unfinished items and no live worker",
        "failed: shop: 5 failed items, more than 4",
    ]
    assert call("check", "--json").document["ok"] is False
    with changing(file) as connection:
        connection.execute("UPDATE items SET status = 'completed'")
    assert call("check") == (0, "no batch needs attention\n", "")


# --- export ----------------------------------------------------------------------------------------------------------


def test_an_export_to_stdout_is_json_lines_with_the_count_on_stderr(file: Path, call: Call) -> None:
    said = call("export", "--status", "completed")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert (said.code, said.err) == (0, "4 items exported\n")
    assert (rows[0]["id"], rows[0]["payload"], rows[0]["result"]) == ("fine-1", "fine-1", {"booked": "fine-1"})
    assert call("export", "--status", "failed", "--status", "cancelled", "--json").err == '{"items":6}\n'


def test_a_csv_holds_no_formula_and_every_other_cell_as_it_is(file: Path, call: Call) -> None:
    cells = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "plain", 'a "quoted", one\nwith lines']
    with changing(file) as connection:
        for number, cell in enumerate(cells):
            connection.execute("UPDATE items SET error = ? WHERE seq = ?", (cell, number + 1))
    said = call("export", "items.csv")
    assert (said.code, said.out) == (0, "")
    with Path("items.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["error"] for row in rows[: len(cells)]] == [f"'{cell}" for cell in cells[:6]] + cells[6:]
    assert rows[0]["payload"] == '"fine-1"'
    assert Path("items.csv").stat().st_mode & 0o777 == 0o600


def test_negative_numbers_of_json_are_numbers_in_a_csv(file: Path, call: Call) -> None:
    values: dict[str, list[str | None]] = {"payload": ["-5", "-1.5e+3", "-1+1", "-05"], "result": ["-5", None, None, "=1"]}
    with changing(file) as connection:
        for name, column in values.items():
            for number, value in enumerate(column):
                connection.execute(f"UPDATE items SET {name} = ?, error = '-5' WHERE seq = ?", (value, number + 1))
    rows = list(csv.DictReader(io.StringIO(call("export", "--format", "csv").out, newline="")))[:4]
    assert [row["payload"] for row in rows] == ["-5", "-1.5e+3", "'-1+1", "'-05"]
    assert [row["result"] for row in rows] == ["-5", "", "", "'=1"]
    assert [row["error"] for row in rows] == ["'-5"] * 4


def test_a_parquet_file_has_a_column_a_field(file: Path, call: Call) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert call("export", "items.parquet", "--json").document == {"file": "items.parquet", "items": 13}
    rows = parquet.read_table("items.parquet").to_pylist()
    assert (rows[0]["id"], rows[0]["attempts"], rows[0]["result"]) == ("fine-1", 1, '{"booked":"fine-1"}')
    assert call("export", "none.parquet", "--status", "processing", "--status", "cancelled").code == 0
    assert parquet.read_table("none.parquet").num_rows == 2


def test_parquet_without_pyarrow_says_what_to_install(file: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = call("export", "items.parquet")
    assert said.code == 2
    assert "pip install 'asyncrunner[parquet]'" in said.err
    assert not list(file.parent.glob("*parquet*"))
    assert not list(file.parent.glob(".*parquet*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk to write to is Linux's")
def test_a_full_disk_is_said_in_a_line(file: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "asyncrunner", "export", "--db", "jobs.db"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2,
        "Error: the export could not be written (No space left on device); the items are unchanged\n",
    )


@pytest.mark.parametrize("arguments", [["list"], ["--version"], ["--help"], ["failures", "--json"], ["check"], ["doctor"], ["stop"],
                                       ["retry", "--failed"], ["pause"], ["export", "items.csv", "--json"]])  # fmt: skip
def test_output_that_cannot_be_written_is_said_in_a_line(file: Path, arguments: list[str]) -> None:
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
        assert rows_of(file, "SELECT count(*) FROM items WHERE status = 'failed'") == [(0,)]


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


def test_where_there_are_no_links_a_file_still_gets_its_name_and_replaces_none(
    file: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert call("export", "items.jsonl").code == 0
    assert Path("items.jsonl").read_text().count("\n") == 13
    assert Path("items.jsonl").stat().st_mode & 0o777 == 0o600
    (draft := Path("draft")).write_text("new")
    with pytest.raises(ConfigurationError, match="created by another program meanwhile"):
        atomic_file.publish(draft, Path("items.jsonl"))
    assert not draft.exists()


def test_what_the_terminal_cannot_say_is_escaped(file: Path) -> None:
    with changing(file) as connection:
        connection.execute("UPDATE items SET id = 'caf\u00e9' WHERE id = 'fine-1'")
    done = subprocess.run(
        [sys.executable, "-m", "asyncrunner", "list", "--db", "jobs.db"], capture_output=True, timeout=60, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf\\xe9" in done.stdout


def test_rows_that_somebody_edited_are_still_lines_of_json(file: Path, call: Call) -> None:
    with changing(file) as connection:
        connection.execute("UPDATE items SET payload = '{\"a\":\n 1}' WHERE id = 'fine-1'")
        connection.execute("UPDATE items SET payload = '{broken' WHERE id = 'refused-1'")
    rows = [json.loads(line) for line in call("export").out.splitlines()]
    assert [row["payload"] for row in rows[:2]] == [{"a": 1}, "{broken"]


def test_an_export_takes_no_more_memory_for_more_items(tmp_path: Path) -> None:
    """The command's peak, for a file ten times as large."""
    peaks: list[int] = []
    for items in (3_000, 30_000):
        db = tmp_path / f"{items}.db"
        make_file(db)
        with changing(db) as connection:
            connection.execute(
                "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?) "
                "INSERT INTO items (batch_id, id, claim, status, payload, result) "
                "SELECT 1, 'i' || n, 0, 'completed', '1', json_quote(hex(zeroblob(1000))) FROM n",
                (items,),
            )
        script = (
            "import resource, sys\nfrom asyncrunner.cli import main\n"
            f"sys.argv = ['asyncrunner', 'export', '{tmp_path}/{items}.jsonl', '--db', '{db}']\n"
            "try:\n    main()\nexcept SystemExit:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
        peaks.append(int(done.stdout) * (1 if sys.platform == "darwin" else 1024))
    assert (tmp_path / "30000.jsonl").stat().st_size > 60_000_000
    assert peaks[1] - peaks[0] < 10_000_000


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "--batch", "shpo"], "has no batch 'shpo'; did you mean 'shop'?"),
        (["status", "--interval", "0"], "--interval 0: give seconds"),
        (["list", "--status", "faild"], "did you mean 'failed'?"),
        (["list", "--error", "nothing like it"], "no failed item of 'shop' has 'nothing like it' in its error"),
        (["list", "--error", "*"], "would match everything"),
        (["list", "--older-than", "yesterday"], "--older-than 'yesterday': give an age, as in 90s, 15m, 12h, 30d or 2w"),
        (["list", "--after", "refusd-1"], "did you mean 'refused-1'"),
        (["list", "--limit", "9999999999"], "limit=9999999999: give at most 2,000,000,000"),
        (["list", "--limit", "0"], "limit=0: give a whole number of at least 1"),
        (["show", "fin-1"], "there is no item 'fin-1' in 'shop'; did you mean 'fine-1'"),
        (["retry"], "give exactly one of ids, --failed, --error PATTERN, --all"),
        (["retry", "wrong-1", "--failed"], "give exactly one of ids"),
        (["retry", "fine-1", "wrong-1"], "of 2 items 1 completed cannot be retried"),
        (["retry", "nobody"], "there is no item 'nobody' in 'shop'"),
        (["retry", "--error", "nothing like it"], "no failed item of 'shop'"),
        (["retry", "-"], "stdin contains no ids"),
        (["cancel"], "give either ids, or --pending"),
        (["pause", "--batch", "sho"], "did you mean 'shop'?"),
        (["set", "concurrency", "0"], "concurrency '0': give a whole number of at least 1, or default"),
        (["set", "concurrency", "many"], "concurrency 'many'"),
        (["recover", "nobody"], "there is no worker 'nobody'"),
        (["export", "jobs.db"], "jobs.db already exists; give another path"),
        (["export", "items.xml"], "format 'xml': give one of jsonl, csv, parquet"),
        (["export", "no/items.csv"], "cannot be written"),
        (["export", "--status", "done"], "status 'done': give one of"),
        (["export", "items.csv", "--batch", "sho"], "did you mean 'shop'?"),
        (["purge"], "--before is missing; for example, --before 30d"),
        (["purge", "--before", "soon"], "--before 'soon': give an age, as in 30d or 12h, or a date"),
        (["purge", "--before", "2999-01-01"], "is in the future"),
        (["purge", "--before", f"{'9' * 400}d"], "is too long ago"),
        (["status", "--stuck-after", "nan"], "stuck_after=nan: give seconds"),
        (["status", "--stuck-after", "-1"], "stuck_after=-1.0: give seconds"),
        (["purge", "--before", "30d", "--status", "pending"], "purge deletes only finished items, not pending ones"),
        (["backup", "jobs.db"], "jobs.db already exists"),
        (["check", "--max-failed", "-1"], "max_failed=-1"),
        (["check", "--max-pending-age", "long"], "--max-pending-age 'long'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_with_exit_code_2_and_nothing_is_changed(
    file: Path, call: Call, arguments: list[str], said: str
) -> None:
    before, names = snapshot(file), sorted(path.name for path in file.parent.iterdir())
    answer = call(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert snapshot(file) == before
    left = {path.name for path in file.parent.iterdir()} - set(names)
    assert left <= {"jobs.db-wal", "jobs.db-shm", "jobs.db-locks"}


@pytest.mark.parametrize("before", ["99999d", "0001-01-01T00:00:00+05:00"])
def test_what_ended_before_there_were_times_is_nothing(before: str, file: Path, call: Call) -> None:
    said = call("purge", "--before", before)
    assert (said.code, said.out) == (0, "shop: deleted items that ended before 1970-01-01 00:00:00 UTC: none\n")


VERBS: dict[str, list[str]] = {
    "status": [], "list": [], "show": ["fine-1"], "failures": [], "stuck": [], "workers": [], "retry": ["--failed"],
    "cancel": ["--pending"], "pause": [], "resume": [], "set concurrency": ["5"], "recover": [], "export": [],
    "purge": ["--before", "1d"], "backup": ["copy.db"], "check": [], "doctor": [], "stop": [],
}  # fmt: skip


def test_every_verb_is_in_the_lists_of_these_tests() -> None:
    assert set(VERBS) == {name for name, _ in commands()} - {"run", "work"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_file_a_batch_and_json_and_refuses_a_batch_that_is_not_there(verb: str, file: Path, call: Call) -> None:
    before = snapshot(file)
    answer = call(*verb.split(), *VERBS[verb], "--json", "--db", str(file), "--batch", "shpo")
    assert (answer.code, answer.out) == (2, "")
    assert "has no batch 'shpo'; did you mean 'shop'?" in answer.err
    assert snapshot(file) == before
    assert not Path("copy.db").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_that_is_no_store_is_refused_by_every_verb_and_left_as_it_was(verb: str, file: Path, call: Call) -> None:
    Path("text.db").write_text("no database at all, " * 100)
    with changing(Path("foreign.db")) as connection:
        connection.execute("CREATE TABLE mine (x)")
    with changing(Path("newer.db")) as connection:
        connection.execute("PRAGMA application_id = 1095979598")
        for name in ("batches", "items", "workers", "failures", "turns"):
            connection.execute(f"CREATE TABLE {name} (x)")
        connection.execute("PRAGMA user_version = 99")
    expected = {
        "no.db": "there is no database at", "text.db": "not an intact SQLite database", "foreign.db": "a database of another program",
        "newer.db": "upgrade asyncrunner",
    }  # fmt: skip
    before = {path.name: path.read_bytes() for path in file.parent.iterdir() if path.is_file()}
    for name, said in expected.items():
        answer = call(*verb.split(), *VERBS[verb], "--db", name)
        assert (answer.code, answer.out) == (2, ""), name
        assert said in answer.err
    assert {path.name: path.read_bytes() for path in file.parent.iterdir() if path.is_file()} == before


# --- help, environment, reference ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_command_has_help_with_an_example_that_names_it(name: str, call: Call) -> None:
    said = call(*name.split(), "--help", COLUMNS="100")
    assert said.code == 0
    assert f"Usage: asyncrunner {name}" in said.out
    assert f"Example: asyncrunner {name}" in said.out
    assert "-h, --help" in said.out


# What is set for `list` must not change what is deleted, nor the form of an export how items are read.
OWN_VARIABLES = {
    ("purge", "--status"): "ASYNCRUNNER_PURGE_STATUS",
    ("export", "--format"): "ASYNCRUNNER_EXPORT_FORMAT",
    ("backup", "--batch"): "ASYNCRUNNER_BACKUP_BATCH",
}


def test_every_option_may_be_set_by_its_environment_variable() -> None:
    for name, command in commands():
        for option in command.params:
            if option.param_type_name == "option" and option.name != "help":
                long = max(option.opts, key=len)
                variable = OWN_VARIABLES.get((name, long), f"ASYNCRUNNER_{long[2:].replace('-', '_').upper()}")
                assert option.envvar == variable, (name, long)
                assert option.help, (name, long)


def test_environment_variables_are_obeyed(file: Path, call: Call) -> None:
    said = call("list", ASYNCRUNNER_STATUS="failed", ASYNCRUNNER_LIMIT="1", ASYNCRUNNER_JSON="1", ASYNCRUNNER_BATCH=BATCH)
    assert [item["id"] for item in said.document["items"]] == ["refused-1"]  # type: ignore[attr-defined]


def test_the_reference_in_the_documentation_is_what_the_commands_say() -> None:
    page = ROOT / "docs" / "reference" / "cli.md"
    assert page.read_text() == reference(), "run python docs/generate_cli.py > docs/reference/cli.md"


def test_the_examples_of_the_help_are_commands_with_options_that_exist() -> None:
    known = dict(commands())
    for name, command in known.items():
        for example in re.findall(r"Example: asyncrunner (.*)", command.epilog):
            words = example.split(" | ")[0]
            assert words.startswith(name), example
            options = {option for each in command.params for option in each.opts}
            assert set(re.findall(r"(?<=\s)--[a-z-]+", words)) <= options, example


def test_shells_are_taught_to_complete_commands_and_options() -> None:
    for words, expected in (("asyncrunner re", {"resume", "retry", "recover"}), ("asyncrunner retry --fa", {"--failed"})):
        done = subprocess.run(
            [sys.executable, "-m", "asyncrunner"], capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "_ASYNCRUNNER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))},
        )  # fmt: skip
        assert set(done.stdout.split()) == expected, done.stderr


# --- status --watch --------------------------------------------------------------------------------------------------


def test_watch_is_a_document_a_line_until_ctrl_c(jobs: Jobs) -> None:
    make_file(jobs.db)
    process = jobs.start("status", "--watch", "--interval", "0.1", "--json")
    assert process.stdout is not None
    documents = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert documents[0]["at"] < documents[1]["at"]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "")


def a_status(batches: int = 1, *, evil: str = "") -> FileStatus:
    counts = Counts(pending=1000, waiting=20, processing=10, completed=2000, failed=300, cancelled=0)
    batch = BatchStatus("shop.jobs:welcome" + evil, "h", 3310, counts, True, None, None, 5, 12.5, 81.0, {}, [])
    worker = WorkerStatus("w" * 16, "host" + evil, 4711, True, "", 0.4, 10, 7, 9, 12345, 67, 0, 0.0)
    failure = FailedAttempt("shop", "id" + evil, 3, "2026-11-23 12:14:15.123", "E" * 40, "m" * 400 + evil, "", "f")
    return FileStatus("/some/where/jobs.db", "2026-11-23 12:14:15.123", [batch] * batches, [worker], [failure])


@pytest.mark.parametrize(("terminal", "is_picture"), [("dumb", False), ("xterm", True)])
def test_a_dumb_terminal_gets_blocks_of_lines(terminal: str, is_picture: bool, jobs: Jobs) -> None:
    make_file(jobs.db)
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "asyncrunner", "status", "--watch", "--interval", "0.1"]
    process = subprocess.Popen(command, cwd=jobs.folder, stdout=follower, env={**os.environ, "TERM": terminal}, text=True)
    jobs.processes.append(process)
    os.close(follower)
    shown = b""
    while shown.count(b"newest failures:") < 2:
        shown += os.read(leader, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    os.close(leader)
    assert (b"\x1b" in shown) is is_picture


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_picture_fits_the_terminal(width: int) -> None:
    lines = display_lines(a_status(evil="\x1b[2J"), 1.0, width, 24)
    assert max(map(len, lines)) <= width
    assert "\x1b" not in "".join(lines)
    shown = "\n".join(lines)
    assert "69.4 % of" in shown
    if width >= 80:
        for said in (
            "1,000 pending (20 of them not due yet)",
            "12/s in the last minute, 1 min 21 s left",
            "paused",
            "concurrency is set to 5",
            "7/10",
            "12:14:15",
        ):
            assert said in shown, said


def test_a_picture_that_is_too_tall_says_how_much_is_missing() -> None:
    lines = display_lines(a_status(batches=20), 1.0, 80, 24)
    assert len(lines) == 24
    assert lines[-1].startswith("... ")


def test_a_table_leaves_out_what_may_be_missing_before_it_cuts_the_last_column() -> None:
    columns = [Column("id"), Column("much", spare=1), Column("more", spare=2), Column("error")]
    rows = [("a", "m" * 10, "n" * 10, "e" * 50)]
    assert table(columns, rows, None)[1].split() == ["a", "m" * 10, "n" * 10, "e" * 50]
    assert table(columns, rows, 50)[1].split() == ["a", "m" * 10, "e" * 31 + "..."]
    assert table(columns, rows, 40)[1].split() == ["a", "e" * 33 + "..."]
    assert table(columns, [], 40) == []


# --- beside running workers ------------------------------------------------------------------------------------------


def test_a_run_is_watched_slowed_paused_cancelled_and_resumed_from_another_terminal(jobs: Jobs) -> None:
    items = jobs.items(600)  # a quarter of a minute, if nobody interferes
    process = jobs.start("run", "h.py:work", items, "-c", "4", "--batch", "b", "--quiet", seconds=0.1)
    jobs.until(lambda: len(jobs.lines("end")) > 20)
    assert jobs.run("pause")[0] == 0
    jobs.until(lambda: jobs.query("SELECT count(*) FROM items WHERE status = 'processing'") == [(0,)])
    ended = len(jobs.lines("end"))
    assert ended < 590
    code, _ = jobs.run("cancel", "599", "598")
    assert code == 0
    assert jobs.run("set", "concurrency", "1")[0] == 0
    assert jobs.run("backup", "copy.db")[0] == 0
    assert len(jobs.lines("end")) == ended, "nothing started while it was paused"
    assert jobs.run("resume")[0] == 0
    jobs.until(lambda: len(jobs.lines("end")) > ended + 5)
    assert jobs.run("set", "concurrency", "50")[0] == 0
    assert process.wait(60) == 0
    assert dict(jobs.query("SELECT status, count(*) FROM items GROUP BY status")) == {"completed": 598, "cancelled": 2}
    assert set(jobs.runs("end").values()) == {1}
    assert rows_of(jobs.folder / "copy.db", "PRAGMA integrity_check") == [("ok",)]


def test_who_interrupts_a_long_change_hears_how_far_it_came(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def interrupted(control: Control) -> None:
        await control.retry(failed=True)
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        with_control(str(file), interrupted)
    assert capsys.readouterr().err == "interrupted after at least 5 items; run the same command again for the rest\n"


def test_what_is_set_for_run_does_not_make_a_backup_lack_the_other_batches(
    file: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with changing(file) as connection:
        connection.execute("INSERT INTO batches (name, handler, options, created_at) VALUES ('other', 'h', '{}', '')")
    monkeypatch.setenv("ASYNCRUNNER_BATCH", BATCH)
    assert call("backup", "all.db").code == 0
    assert rows_of(Path("all.db"), "SELECT name FROM batches ORDER BY 1") == [("other",), (BATCH,)]
    monkeypatch.setenv("ASYNCRUNNER_BACKUP_BATCH", BATCH)
    assert call("backup", "one.db").out.startswith(f"one.db: only {BATCH}, ")
    assert rows_of(Path("one.db"), "SELECT name FROM batches") == [(BATCH,)]
