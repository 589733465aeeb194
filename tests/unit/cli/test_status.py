"""`status`: its output, once and with --watch."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

import asyncrunner
from asyncrunner.admin.read_models import BatchStatus, FileStatus, Problem, WorkerStatus
from asyncrunner.cli.render.sparkline import sparkline
from asyncrunner.cli.render.status import display_lines, status_lines
from asyncrunner.domain.item import Counts
from asyncrunner.store.snapshot import FailedAttempt
from asyncrunner.text.cells import cell_width
from tests.support.cli import run_command
from tests.support.files import make_store
from tests.support.processes import Jobs
from tests.support.state import changing
from tests.unit.cli.conftest import Call


def test_watch_is_a_document_a_line_until_ctrl_c(jobs: Jobs) -> None:
    make_store(jobs.db)
    process = jobs.start("status", "--watch", "--interval", "0.1", "--json")
    assert process.stdout is not None
    documents = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert documents[0]["at"] < documents[1]["at"]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "")


def a_status(batches: int = 1, *, evil: str = "") -> FileStatus:
    counts = Counts(pending=1000, waiting=20, processing=10, completed=2000, failed=300, cancelled=0)
    batch = BatchStatus("shop.jobs:welcome" + evil, "h", 3310, counts, True, None, None, 5, 12.5, 81.0, {}, [], workers=1)
    worker = WorkerStatus("w" * 16, "host" + evil, 4711, True, "", 0.4, 10, 7, 9, 12345, 67, 0, 0.0)
    failure = FailedAttempt("shop", "id" + evil, 3, "2026-11-23 12:14:15.123", "E" * 40, "m" * 400 + evil, "", "f")
    return FileStatus("/some/where/jobs.db", "2026-11-23 12:14:15.123", [batch] * batches, [worker], [failure])


@pytest.mark.parametrize(("terminal", "is_picture"), [("dumb", False), ("xterm", True)])
def test_a_dumb_terminal_gets_blocks_of_lines(terminal: str, is_picture: bool, jobs: Jobs) -> None:
    make_store(jobs.db)
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


MANY = [
    BatchStatus(
        name, "h", 10, counts, False, None, None, None, 0.0, None, {}, [], workers=workers, oldest=oldest, idle_reason=reason,
    )
    for name, counts, workers, oldest, reason in (
        ("shop:welcome", Counts(pending=1204, processing=10, completed=98765, failed=3), 2, 840.0, None),
        ("カタログ", Counts(pending=1, waiting=1, completed=1_234_567), 1, None, "next at 04:00 UTC"),
        ("mail", Counts(pending=450_000, failed=120_000_000), 0, 200_000.0, "no live worker"),
        ("invoices-of-the-year[2J", Counts(pending=1, failed=5), 0, 3.0, "stopped: 5 items failed"),
        ("rest", Counts(pending=1), 1, 3.0, "rests until 2026-12-01 04:00:17 UTC"),
    )
]  # fmt: skip


@pytest.mark.parametrize("width", [80, 120, None])
def test_several_batches_are_a_table_with_a_line_for_each(width: int | None) -> None:
    status = FileStatus("jobs.db", "2026-11-23 12:14:15.123", MANY, [], [])
    lines = status_lines(status, width)
    assert [line.split() for line in lines[2:5]] == [
        ["BATCH", "WAITING", "RUNNING", "DONE", "FAILED", "OLDEST", "WORKERS", "WHY", "IDLE"],
        ["shop:welcome", "1,204", "10", "98,765", "3", "14", "min", "2"],
        ["カタログ", "1", "0", "1.2M", "0", "-", "1", "next", "at", "04:00"],
    ]
    assert lines[5].split() == ["mail", "450k", "0", "0", "120M", "2", "d", "0", "no", "worker"]
    assert lines[6].split()[-2:] == ["0", "stopped"]
    assert lines[7].endswith("  rest to 12-01")
    assert lines[8] == "--batch NAME shows the details of one batch"
    assert width is None or max(map(cell_width, lines)) <= width
    assert "" not in "".join(lines)
    assert cell_width(lines[4][: lines[4].index("04:00")]) == cell_width(lines[2][: lines[2].index("WHY")]) + 8
    assert lines[2:8] == display_lines(status, 1.0, width, 24)[2:8] if width else True


def test_the_lines_of_one_batch_are_broken_at_the_width_of_the_terminal() -> None:
    status = a_status()
    assert "      EEEEEEEE" in status_lines(status, 80)[-1]
    for lines in (status_lines(status, 80), status_lines(a_status(evil="カ" * 30), 80)):
        assert max(map(cell_width, lines)) <= 80
    assert " ".join(status_lines(status, 80)[:-2]).split() == " ".join(status_lines(status)[:-1]).split()


HOUR = [0] * 20 + list(range(1, 41))


def with_hour(*minutes: int, version: str | None = None) -> FileStatus:
    status = a_status()
    return replace(status, batches=[replace(status.batches[0], last_hour=list(minutes), version=version)])


@pytest.mark.parametrize(
    ("width", "minutes", "is_one_line"), [(None, 60, True), (120, 60, True), (80, 60, False), (50, 48, False)]
)
def test_status_shows_the_items_completed_in_each_minute_of_the_last_hour(
    width: int | None, minutes: int, is_one_line: bool
) -> None:
    bars, caption = f"  {sparkline(HOUR[-minutes:])}", f"  completed a minute, last {minutes} minutes, most 40"
    shown = [bars + caption] if is_one_line else [bars, caption]
    for lines in (status_lines(with_hour(*HOUR), width), display_lines(with_hour(*HOUR), 1.0, width or 200, 24)):
        at = next(number for number, line in enumerate(lines) if "█" in line)
        assert lines[at : at + len(shown)] == shown
        assert width is None or max(map(cell_width, lines)) <= width


def test_status_shows_no_bars_for_an_hour_without_completed_items() -> None:
    for minutes in ([], [0] * 60):
        assert not [line for line in status_lines(with_hour(*minutes)) if "a minute" in line]


def test_status_is_in_ascii_where_the_terminal_cannot_show_blocks() -> None:
    for lines in (status_lines(with_hour(*HOUR), 80, plain=True), display_lines(with_hour(*HOUR), 1.0, 80, 24, plain=True)):
        assert "".join(lines).isascii()
        assert any("_#" in line or "##" in line for line in lines)


def test_status_shows_the_version_of_a_batch_that_has_one(folder: Path) -> None:
    for lines in (status_lines(with_hour(version="v\x1b[2J2")), display_lines(with_hour(version="v\x1b[2J2"), 1.0, 80, 24)):
        assert r"  version v\x1b[2J2 of the handler" in lines
    assert not [line for line in status_lines(a_status()) if "version" in line]
    asyncio.run(asyncrunner.run_batch([1], int, db=folder / "asyncrunner.db", version="prompt-3"))
    out = run_command(folder, "status").stdout
    assert "  version prompt-3 of the handler" in out
    assert "completed a minute, last 60 minutes, most 1" in out
    (batch,) = json.loads(run_command(folder, "status", "--json").stdout)["batches"]
    assert (batch["version"], sum(batch["last_hour"]), len(batch["last_hour"])) == ("prompt-3", 1, 60)
    assert len(json.dumps(batch["last_hour"])) < 400


def test_a_picture_that_is_too_tall_ends_with_a_note_about_missing_lines() -> None:
    lines = display_lines(a_status(batches=20), 1.0, 80, 24)
    assert len(lines) == 24
    assert lines[-1].startswith("... ")


def test_status_shows_counts_durations_and_that_no_worker_is_alive(folder: Path) -> None:
    run_command(folder, "run", "h.py:upper", "items.txt")
    run_command(folder, "run", "h.py:fails", "items.txt", "--max-attempts", "1")
    done = run_command(folder, "status")
    assert done.returncode == 0
    assert re.search(r"^h:upper +0 +0 +3 +0 +- +0$", done.stdout, re.MULTILINE)
    assert re.search(r"^h:fails +0 +0 +0 +3 +- +0$", done.stdout, re.MULTILINE)
    assert "no workers" in done.stdout
    done = run_command(folder, "status", "--batch", "h:upper")
    assert "h:upper: 3 items" in done.stdout
    assert "completed             3" in done.stdout
    assert "per attempt on average, p95" in done.stdout
    document = json.loads(run_command(folder, "status", "--json", "--batch", "h:fails").stdout)
    (batch,) = document["batches"]
    assert (batch["total"], batch["counts"]["failed"], batch["counts"]["completed"]) == (3, 3, 0)
    assert set(batch["durations"]) == {"failed"}


def test_status_names_the_intended_batch(folder: Path) -> None:
    run_command(folder, "run", "h.py:upper", "items.txt")
    done = run_command(folder, "status", "--batch", "h:uper")
    assert (done.returncode, "did you mean 'h:upper'?" in done.stderr) == (2, True)


def test_status_of_a_file_that_may_only_be_read(folder: Path) -> None:
    run_command(folder, "run", "h.py:upper", "items.txt")
    for path in folder.glob("asyncrunner.db*"):
        path.chmod(0o400 if path.is_file() else 0o500)
    folder.chmod(0o500)
    try:
        assert "completed             3" in run_command(folder, "status").stdout
    finally:
        folder.chmod(0o700)


def test_status_shows_workers_stuck_items_pauses_and_never_an_escape(folder: Path) -> None:
    run_command(folder, "run", "h.py:upper", "items.txt", "--batch", "b\x1b[31m")
    with changing(folder / "asyncrunner.db") as connection:
        connection.execute("UPDATE batches SET paused = 1, cooldown_until = '2999-01-01 00:00:00.000'")
        connection.execute(
            "UPDATE items SET status = 'processing', id = 'x\x1b[2J', started_at = '2026-01-01 00:00:00.000' WHERE seq = 1"
        )
        connection.execute("UPDATE items SET status = 'pending', due_at = '2999-01-01 00:00:00.000' WHERE seq = 2")
        connection.execute("UPDATE workers SET ended_at = NULL, host = 'h\x1b[2J'")
    done = run_command(folder, "status")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    for said in ("stuck: x\\x1b[2J", "paused", "cooling down until 2999-01-01", "(1 waiting for a retry", "worker ", "heartbeat"):
        assert said in done.stdout
    (batch,) = json.loads(run_command(folder, "status", "--json").stdout)["batches"]
    assert (batch["counts"]["waiting"], batch["counts"]["processing"], batch["stuck"][0]["id"]) == (1, 1, "x\x1b[2J")


def test_an_empty_store_has_no_batches_yet(folder: Path) -> None:

    async def make() -> None:
        async with asyncrunner.Runner(folder / "empty.db"):
            pass

    asyncio.run(make())
    assert "no batches yet" in run_command(folder, "status", "--db", "empty.db").stdout


def test_check_and_doctor_find_what_needs_an_operator(shop: str, call: Call) -> None:
    assert call("check", "--max-failed", "any").out == "workers: shop: 3 unfinished items and no live worker\n"
    assert call("check").out.splitlines()[1] == "failed: shop: 5 failed items, more than 0"
    with changing(shop) as connection:
        connection.execute("UPDATE batches SET cooldown_until = '2999-01-01 00:00:00.000'")
    found = call("check", "--max-failed", "any", "--max-processing-age", "1h", "--json")
    assert found.code == 1
    assert [each["check"] for each in found.document["problems"]] == ["workers", "resting", "processing"]  # type: ignore[attr-defined]
    assert (
        "processing: shop: 1 item has been processing for more than 1 h 00 min; the longest is 'held-1', for"
        in call("check", "--max-processing-age", "1h").out
    )
    assert "processing" not in call("check", "--max-processing-age", "20000d").out
    notes = call("doctor", "--max-processing-age", "1h").out.splitlines()
    assert "  note   batches: 'shop': 3 unfinished items and no live worker" in notes
    assert any(line.startswith("  note   batches: 'shop': rests until 2999-01-01 00:00 UTC, ") for line in notes)
    assert any(
        line.startswith("  note   batches: 'shop': 1 item has been processing for more than 1 h 00 min; ") for line in notes
    )
    assert not any("processing for more" in line for line in call("doctor").out.splitlines())


def test_a_wrong_limit_of_failed_items_is_refused(shop: str, call: Call) -> None:
    for text in ("-1", "some", "1.5"):
        said = call("check", "--max-failed", text)
        assert (said.code, f"--max-failed {text!r}: give a number, 0 or more, or any" in said.err) == (2, True)


def test_the_probes_answer_for_live_workers(shop: str, call: Call) -> None:
    for probe in ("liveness", "readiness"):
        assert call("check", "--probe", probe).code == 1
        document = call("check", "--probe", probe, "--json").document
        assert [each["check"] for each in document["problems"]] == [probe]  # type: ignore[attr-defined]

    async def with_worker() -> list[list[Problem]]:
        runner = asyncrunner.Runner(shop)
        runner.handler(batch="shop")(nothing)
        async with runner, asyncrunner.Control(shop) as control:
            return [await control.check(probe=probe) for probe in ("liveness", "readiness")]

    assert asyncio.run(with_worker()) == [[], []]
    assert call("check", "--probe", "life").code == 2


async def nothing(item: str) -> None:
    pass
