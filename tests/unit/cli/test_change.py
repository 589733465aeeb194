"""`retry`, `rerun`, `cancel`, `pause`, `resume`, `set` and `recover`: their output, also during a run."""

from __future__ import annotations

import asyncio
import signal

import pytest

from asyncrunner.admin.control import Control
from asyncrunner.cli.session import with_control
from tests.support.files import BATCH
from tests.support.processes import Jobs
from tests.support.state import rows_of
from tests.unit.cli.conftest import Call


def test_retry_and_cancel_count_their_changes_and_report_that_no_worker_is_alive(shop: str, call: Call) -> None:
    said = call("retry", "--error", "cannot reach")
    assert (said.code, said.out) == (0, "shop: 3 items pending again\n")
    assert said.err == "no worker is alive: start `asyncrunner run` or `asyncrunner work` to process the items\n"
    said = call("cancel", "-", given="refused-1\n\nfine-1\n")
    assert (said.code, said.out) == (0, "shop: 1 item cancelled, 1 already finished\n")
    assert call("retry", "--all", "--json").document == {"batch": BATCH, "changed": 4, "unchanged": 0}
    assert call("cancel", "--pending", "--json").document == {"batch": BATCH, "changed": 8, "unchanged": 0}


def test_rerun_counts_what_runs_again_and_refuses_no_or_two_selections(shop: str, call: Call) -> None:
    completed = call("list", "--status", "completed", "--json").document["items"]
    said = call("rerun", "--status", "completed", "--dry-run")
    assert (said.code, said.out, said.err) == (0, "shop: 4 items would run again\n", "")
    assert call("list", "--status", "completed", "--json").document["items"] == completed
    said = call("rerun", "-", given="fine-1\nrefused-1\n")
    assert (said.code, said.out) == (0, "shop: 2 items run again\n")
    assert said.err == "no worker is alive: start `asyncrunner run` or `asyncrunner work` to process the items\n"
    assert call("rerun", "fine-1").out == "shop: 0 items run again, 1 already pending or changed concurrently\n"
    assert call("rerun", "--error", "cannot reach", "--json").document == {
        "batch": BATCH,
        "changed": 2,
        "unchanged": 0,
        "dry_run": False,
    }
    assert call("rerun", "--all", "--dry-run", "--json").document["dry_run"] is True
    assert call("rerun").code == call("rerun", "fine-1", "--all").code == 2
    assert "pending items run anyway" in call("rerun", "--status", "pending").err
    assert "rerun" in call("retry", "--help").out


def test_pause_resume_concurrency_and_recover_report_their_changes(shop: str, call: Call) -> None:
    assert call("pause").out.startswith("paused; continue with `asyncrunner resume --db ")
    assert call("pause").out == "batch was already paused\n"
    assert "  paused; continue with `asyncrunner resume --db " in call("status").out
    assert call("resume").out == "resumed\n"
    assert call("resume", "--json").document == {"paused": False, "changed": False}
    assert call("set", "concurrency", "7").out == "concurrency is set to 7 in each worker\n"
    assert "  concurrency is set to 7 in each worker" in call("status").out
    assert call("set", "concurrency", "default", "--json").document == {"concurrency": None}
    assert call("recover").out == "recovered 1 orphaned item\n"
    assert call("recover").out == "nothing to recover: no worker is dead, and no item is orphaned\n"


@pytest.mark.sqlite_file
def test_a_run_is_watched_slowed_paused_cancelled_and_resumed_from_another_terminal(jobs: Jobs) -> None:
    items = jobs.items(600)  # 15 s without the changes below
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


def test_an_interrupted_change_reports_its_progress(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def interrupted(control: Control) -> None:
        await control.retry(failed=True)
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        with_control(shop, interrupted)
    assert capsys.readouterr().err == "interrupted after at least 5 items; run the same command again for the remaining items\n"
