"""Wrong usage is refused in one line, with exit code 2, and changes no row."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from docs.generate_cli import commands
from tests.support.state import snapshot
from tests.unit.cli.conftest import Call


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "--batch", "shpo"], "has no batch 'shpo'; did you mean 'shop'?"),
        (["status", "--interval", "0"], "--interval 0: give seconds"),
        (["list", "--status", "faild"], "did you mean 'failed'?"),
        (["list", "--error", "nothing like it"], "no failed item of 'shop' has 'nothing like it' in its error"),
        (["list", "--error", "*"], "would match everything"),
        (["list", "--older-than", "yesterday"], "--older-than 'yesterday': give an age, as in 90s, 15m, 12h, 30d or 1d12h"),
        (["list", "--after", "refusd-1"], "did you mean 'refused-1'"),
        (["list", "--limit", "9999999999"], "limit=9999999999: give at most 2,000,000,000"),
        (["list", "--limit", "0"], "limit=0: give a whole number of at least 1"),
        (["show", "fin-1"], "there is no item 'fin-1' in 'shop'; did you mean 'fine-1'"),
        (["retry"], "give exactly one of ids, --failed, --error PATTERN, --all"),
        (["retry", "wrong-1", "--failed"], "give exactly one of ids"),
        (["retry", "fine-1", "wrong-1"], "1 of 2 items cannot be retried: 1 is completed"),
        (["retry", "unknown"], "there is no item 'unknown' in 'shop'"),
        (["retry", "--error", "nothing like it"], "no failed item of 'shop'"),
        (["retry", "-", "--failed"], "give exactly one of ids"),
        (["cancel"], "give either ids, or --pending"),
        (["pause", "--batch", "sho"], "did you mean 'shop'?"),
        (["set", "concurrency", "0"], "concurrency '0': give a whole number of at least 1, or default"),
        (["set", "concurrency", "many"], "concurrency 'many'"),
        (["recover", "unknown"], "there is no worker 'unknown'"),
        (["export", "jobs.db"], "jobs.db already exists; give another path"),
        (["export", "items.xml"], "format='xml': give one of 'jsonl', 'csv', 'parquet'"),
        (["export", "no/items.csv"], "cannot be written"),
        (["export", "--status", "done"], "status='done': give one of"),
        (["export", "items.csv", "--batch", "sho"], "did you mean 'shop'?"),
        (["purge"], "--before is missing; for example, --before 30d"),
        (["purge", "--before", "soon"], "--before 'soon': give an age, as in 30d, 12h or 1d12h, or a date"),
        (["purge", "--before", "2999-01-01"], "is in the future"),
        (["purge", "--before", f"{'9' * 400}d"], "is too long ago"),
        (["status", "--stuck-after", "nan"], "stuck_after=nan: give seconds"),
        (["status", "--stuck-after", "-1"], "stuck_after=-1.0: give seconds"),
        (["purge", "--before", "30d", "--status", "pending"], "purge deletes only finished items, not pending ones"),
        (["backup", "jobs.db"], "jobs.db already exists"),
        (["copy", "jobs.db"], "Missing argument 'TO'"),
        (["copy", "jobs.db", "jobs.db"], "is both the source and the target"),
        (["check", "--max-failed", "-1"], "--max-failed '-1': give a number, 0 or more, or any"),
        (["check", "--max-pending-age", "long"], "--max-pending-age 'long'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_reported_with_exit_code_2_and_changes_no_item(
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


def test_nothing_is_cut_in_a_pipe_whatever_columns_is(shop: str, call: Call) -> None:
    whole = call("list", "--db", shop, COLUMNS="300").out
    assert max(len(line) for line in whole.splitlines()) > 80
    assert call("list", "--db", shop, COLUMNS="80").out == whole


VERBS: dict[str, list[str]] = {
    "status": [], "list": [], "show": ["fine-1"], "failures": [], "stuck": [], "workers": [], "retry": ["--failed"],
    "rerun": ["--all"],
    "cancel": ["--pending"], "pause": [], "resume": [], "set concurrency": ["5"], "recover": [], "export": [],
    "purge": ["--before", "1d"], "backup": ["copy.db"], "check": [], "metrics": [], "doctor": [], "stop": [],
}  # fmt: skip


def test_every_verb_is_in_the_lists_of_these_tests() -> None:
    assert set(VERBS) == {name for name, _ in commands()} - {"run", "work", "restore", "schema", "copy", "dashboard"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_file_a_batch_and_json_and_refuses_a_batch_that_is_not_there(verb: str, shop: str, call: Call) -> None:
    before = snapshot(shop)
    answer = call(*verb.split(), *VERBS[verb], "--json", "--db", shop, "--batch", "shpo")
    assert (answer.code, answer.out) == (2, "")
    assert "has no batch 'shpo'; did you mean 'shop'?" in answer.err
    assert snapshot(shop) == before
    assert not Path("copy.db").exists()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.sqlite_file
def test_a_file_that_is_no_store_is_refused_by_every_verb_and_left_as_it_was(verb: str, file: Path, call: Call) -> None:
    Path("text.db").write_text("no database at all, " * 100)
    with closing(sqlite3.connect("foreign.db")) as connection, connection:
        connection.execute("CREATE TABLE mine (x)")
    with closing(sqlite3.connect("newer.db")) as connection, connection:
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
