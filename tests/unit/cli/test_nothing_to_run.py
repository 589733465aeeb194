"""`run` without items needs a batch to continue with; `work` names its file, and takes another file, batch and timeout."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncrunner import BlockingClient, Runner
from asyncrunner.cli.commands import work as work_command
from tests.support.cli import HANDLERS, run_command
from tests.support.state import execute, rows_of
from tests.unit.cli.conftest import Call

JOBS = """
from asyncrunner import Runner

runner = Runner("own.db", shutdown_timeout=20)

@runner.handler(batch="mails")
async def mail(number: int) -> int:
    return number

@runner.handler(batch="reports")
async def report(number: int) -> str:
    await mail.submit(number, key=str(number))
    return runner.db
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> Path:
    (tmp_path / "h.py").write_text(HANDLERS)
    (tmp_path / "items.txt").write_text("one\ntwo\n")
    (tmp_path / "jobs_of_shop.py").write_text(JOBS)
    monkeypatch.chdir(tmp_path)
    assert call("run", "h.py:upper", "items.txt", "--db", "prices.db", "--quiet").code == 0
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"__pycache__"}


@pytest.mark.sqlite_file
@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--retry-failed"]])
def test_a_mistyped_file_is_refused_with_a_similar_name_and_not_made(more: list[str], place: Path, call: Call) -> None:
    before = names(place)
    answer = call("run", "h.py:upper", "--db", "price.db", *more)
    assert (answer.code, answer.out) == (2, "")
    assert f"there is no store at {place / 'price.db'} to continue with; did you mean --db prices.db?" in answer.err
    assert "Give the items of a new batch" in answer.err
    assert names(place) == before


@pytest.mark.sqlite_file
def test_a_similar_name_of_a_file_in_another_folder_has_its_folder(place: Path, call: Call) -> None:
    (place / "my data").mkdir()
    (place / "prices.db").rename(place / "my data" / "prices.db")
    assert "did you mean --db 'my data/prices.db'?" in call("run", "h.py:upper", "--db", "my data/price.db").err


@pytest.mark.sqlite_file
@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["h.py:upper", "--batch", "h:uper"], "has no batch 'h:uper'; did you mean 'h:upper'?"),
        (["h.py:Group.method"], "has no batch 'h:Group.method'; known: 'h:upper'. "),
    ],
    ids=["mistyped batch", "renamed handler"],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_batch_that_is_not_in_the_file_is_refused_and_not_made(
    arguments: list[str], more: list[str], hint: str, place: Path, call: Call
) -> None:
    answer = call("run", *arguments, "--db", "prices.db", *more)
    assert (answer.code, answer.out) == (2, "")
    assert f"no items are given, and {place / 'prices.db'} {hint}" in answer.err
    assert "or the name of an existing batch with --batch" in answer.err
    assert rows_of(place / "prices.db", "SELECT name FROM batches") == [("h:upper",)]


@pytest.mark.sqlite_file
def test_a_detached_run_reports_a_mistyped_file_to_its_caller(place: Path) -> None:
    done = run_command(place, "run", "h.py:upper", "--db", "price.db", "--detach")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean --db prices.db?" in done.stderr
    assert not (place / "price.db").exists()


@pytest.mark.sqlite_file
def test_a_file_in_a_folder_without_similar_names_is_refused_too(place: Path, call: Call) -> None:
    answer = call("run", "h.py:upper", "--db", "zzzz.db")
    assert answer.code == 2
    assert "to continue with. Give the items" in answer.err
    assert call("run", "h.py:upper", "--db", ":memory:").code == 2


@pytest.mark.sqlite_file
def test_a_batch_that_is_in_the_file_is_continued(place: Path, call: Call) -> None:
    execute(place / "prices.db", "UPDATE items SET status = 'pending', attempts = 0 WHERE id = 'one'")
    answer = call("run", "h.py:upper", "--db", "prices.db", "--json")
    assert (answer.code, answer.document["completed"]) == (0, 1)


@pytest.mark.sqlite_file
def test_work_shows_the_absolute_path_and_a_file_that_it_has_made(place: Path, call: Call) -> None:
    options = ["work", "jobs_of_shop.py:runner", "--db", "new.db", "--until-idle"]
    first = call(*options)
    assert (
        f"There was no store at {place / 'new.db'}, so one was created. If it should have items, check the location (--db).\n"
        in first.err
    )
    assert f"Working on {place / 'new.db'} (pid " in first.err
    second = call(*options)
    assert second.code == 0
    assert "was made now" not in second.err
    assert f"Working on {place / 'new.db'} (pid " in second.err
    assert not (place / "own.db").exists()


@pytest.mark.sqlite_file
def test_work_runs_only_the_given_batches_whose_handlers_may_submit_to_the_others(place: Path, call: Call) -> None:
    runner = Runner("new.db")

    async def job(number: int) -> int:
        return number

    mails, reports = runner.handler(batch="mails")(job), runner.handler(batch="reports")(job)
    with BlockingClient("new.db") as client:
        client.submit(mails, 1, key="1")
        client.submit(reports, 2, key="2")
    answer = call("work", "jobs_of_shop.py:runner", "--db", "new.db", "--batch", "reports", "--until-idle")
    assert answer.code == 0
    assert "): reports. Stop with" in answer.err
    query = "SELECT b.name, i.id, i.status FROM items i JOIN batches b USING (batch_id) ORDER BY 1, 2"
    assert rows_of(place / "new.db", query) == [
        ("mails", "1", "pending"),
        ("mails", "2", "pending"),
        ("reports", "2", "completed"),
    ]
    assert rows_of(place / "new.db", "SELECT result FROM items WHERE result IS NOT NULL") == [('"new.db"',)]
    assert call("work", "jobs_of_shop.py:runner", "--db", "new.db", "--until-idle", ASYNCRUNNER_BATCH="mails").code == 0
    assert {status for _, _, status in rows_of(place / "new.db", query)} == {"completed"}


@pytest.mark.sqlite_file
def test_the_environment_may_name_a_batch_that_has_spaces(place: Path, call: Call) -> None:
    jobs = place / "jobs_with_spaces.py"
    jobs.write_text(JOBS.replace('"mails"', '"daily mails"').replace('"reports"', '"daily"'))
    for variable, names in (("daily mails", "daily mails"), ("daily", "daily"), (None, "daily mails, daily")):
        environment = {} if variable is None else {"ASYNCRUNNER_BATCH": variable}
        answer = call("work", jobs.name + ":runner", "--db", "new.db", "--until-idle", **environment)
        assert (answer.code, f"): {names}. Stop with" in answer.err) == (0, True), answer.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "mail"], "the Runner has no handler of batch 'mail'; did you mean 'mails'?"),
        (["--shutdown-timeout", "-1"], "shutdown_timeout=-1"),
        (["--db", "redis://host/jobs"], "items are stored in a SQLite file or on a PostgreSQL server"),
    ],
)
@pytest.mark.sqlite_file
def test_work_refuses_what_it_cannot_use_before_it_makes_a_file(
    arguments: list[str], message: str, place: Path, call: Call
) -> None:
    before = names(place)
    answer = call("work", "jobs_of_shop.py:runner", *arguments)
    assert answer.code == 2
    assert message in answer.err
    assert names(place) == before


@pytest.mark.sqlite_file
def test_work_takes_the_seconds_that_a_stop_waits_for_handlers(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: list[float] = []

    def run_worker(runner: Runner, start: work_command._Start, **_: object) -> int:
        seconds.append(start.options.shutdown_timeout)
        return 0

    monkeypatch.setattr(work_command, "_run_worker", run_worker)
    call("work", "jobs_of_shop.py:runner", "--shutdown-timeout", "5")
    call("work", "jobs_of_shop.py:runner")
    assert seconds == [5, 20]
