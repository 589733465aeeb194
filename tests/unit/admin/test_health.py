"""Problems are a pure function of a snapshot: only those that need an operator."""

from __future__ import annotations

from typing import Any

import pytest

from asyncrunner.admin.health import Limits, liveness_problems, problems, readiness_problems, why_in_use
from asyncrunner.admin.status import worker_statuses
from asyncrunner.domain.item import Suspicion
from asyncrunner.store.snapshot import BatchSnapshot, Snapshot, StuckRow, SuspectRow, WorkerRow
from asyncrunner.text.timestamps import to_text
from tests.support.snapshots import NOW, batch, snapshot, suspect, worker

LIVE = worker("live", alive=True)


def found(state: Snapshot, **limits: Any) -> list[tuple[str, str | None]]:
    return [(problem.check, problem.batch) for problem in problems(state, Limits(**limits), "")]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (snapshot(), []),
        (snapshot(batch(completed=5)), []),
        (snapshot(batch(pending=5), workers=[LIVE]), []),
        (snapshot(batch(pending=5)), [("workers", "b")]),
        (snapshot(batch(processing=5), workers=[worker("dead", alive=False, holding=5)]), [("workers", None), ("workers", "b")]),
        (snapshot(batch(processing=5), workers=[LIVE, worker("dead", alive=False, holding=5)]), []),
        (snapshot(workers=[worker("dead", alive=False)]), []),
        (snapshot(workers=[worker("unproven", alive=None, heartbeat_age=60)]), [("workers", None)]),
        (snapshot(batch(pending=1), workers=[worker("unproven", alive=None, heartbeat_age=1)]), []),
        (snapshot(batch(pending=1, stopped="too many"), workers=[LIVE]), [("stopped", "b")]),
        (snapshot(batch(completed=1, stopped="too many")), []),
        (snapshot(batch(failed=1)), [("failed", "b")]),
    ],
    ids=[
        "nothing", "finished", "a live worker", "no worker", "a dead worker", "a dead and a live worker", "a dead worker without items",
        "no proof", "no proof but a fresh heartbeat", "stopped", "stopped and finished", "failed",
    ],
)  # fmt: skip
def test_problems_that_need_an_operator_are_reported(state: Snapshot, expected: list[tuple[str, str | None]]) -> None:
    assert found(state) == expected


def test_failed_items_may_be_tolerated() -> None:
    state = snapshot(batch(failed=3))
    assert (found(state, max_failed=3), found(state, max_failed=None), found(state, max_failed=2)) == ([], [], [("failed", "b")])


def test_an_old_pending_item_is_a_problem_only_above_the_given_age() -> None:
    state = snapshot(batch(pending=1, oldest=60.0), workers=[LIVE])
    assert found(state, max_pending_age=60.0) == []
    assert found(state, max_pending_age=59.0) == [("pending", "b")]
    assert found(snapshot(batch(pending=1), workers=[LIVE]), max_pending_age=59.0) == []
    assert found(state) == []


def messages(state: Snapshot, **limits: Any) -> list[str]:
    return [problem.message for problem in problems(state, Limits(**limits), "")]


def test_work_that_no_live_worker_serves_is_a_problem_beside_workers_of_other_batches() -> None:
    other = worker("other", alive=True, batches=["mail"])
    state = snapshot(batch(pending=12), batch(name="mail", pending=1), workers=[other])
    assert found(state) == [("workers", "b")]
    assert messages(state) == ["12 unfinished items, but no worker for this batch among 1 live worker"]
    assert messages(snapshot(batch(pending=12, paused=True))) == ["12 unfinished items and no live worker; the batch is paused"]
    assert found(snapshot(batch(completed=12), workers=[other])) == []


def test_items_that_are_processing_for_longer_than_allowed_are_a_problem() -> None:
    rows = [StuckRow("b", f"k{number}", "live", to_text(NOW - 7200), 1) for number in range(2)]
    state = snapshot(batch(processing=2)._replace(stuck=rows), workers=[LIVE])
    assert found(state) == []
    assert found(state, max_processing_age=3600.0) == [("processing", "b")]
    assert messages(state, max_processing_age=3600.0) == [
        "2 items have been processing for more than 1 h 00 min; the longest is 'k0', for 2 h 00 min; see `asyncrunner stuck`"
    ]
    many = snapshot(batch(processing=20)._replace(stuck=rows * 5), workers=[LIVE])
    assert messages(many, max_processing_age=3600.0)[0].startswith("more than 9 items have been processing")
    assert messages(snapshot(batch(processing=1)._replace(stuck=rows[:1]), workers=[LIVE]), max_processing_age=60.0)[
        0
    ].startswith("1 item has been processing")


def test_a_rest_of_a_batch_with_work_is_a_problem_until_it_ends() -> None:
    def resting(seconds: float, **counts: Any) -> Snapshot:
        return snapshot(batch(cooldown_until=to_text(NOW + seconds), **counts), workers=[LIVE])

    assert found(resting(60, pending=1)) == [("resting", "b")]
    assert messages(resting(60, pending=1)) == [
        "rests until 08:01 UTC, because a guardrail or a handler requested it; `asyncrunner resume` ends the rest"
    ]
    assert found(resting(0, pending=1)) == found(resting(60, completed=1)) == []


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ([], ["no live worker on this host (here)"]),
        ([worker("w", alive=True, heartbeat_age=60.0)], []),
        (
            [worker("w", alive=True, heartbeat_age=61.0)],
            [
                "worker w (pid 1) wrote its newest heartbeat 1 min 01 s ago: its event loop is blocked, or it cannot write to the store"
            ],
        ),
        ([worker("w", alive=False)], ["no live worker on this host (here)"]),
        ([worker("w", alive=True)._replace(host="elsewhere")], ["no live worker on this host (here)"]),
        ([LIVE, worker("x", alive=True, heartbeat_age=99.0)._replace(host="elsewhere")], []),
    ],
    ids=["none", "alive", "no heartbeat", "dead", "on another host", "hung on another host"],
)
def test_the_liveness_probe_fails_only_for_what_a_restart_on_this_host_solves(
    workers: list[WorkerRow], expected: list[str]
) -> None:
    state = snapshot(batch(pending=1, failed=3, stopped="too many", paused=True), workers=workers)
    assert [problem.message for problem in liveness_problems(state, "here", None)] == expected
    if expected == []:
        assert [problem.batch for problem in liveness_problems(state, "here", "mail")] == ["mail"]
        assert list(liveness_problems(state, "here", "b")) == []


@pytest.mark.parametrize(
    ("state", "workers", "expected"),
    [
        (batch(completed=1), [LIVE], []),
        (batch(completed=2, failed=1, cancelled=1), [], []),
        (batch(completed=2, pending=1), [], ["no live worker serves the batch"]),
        (batch(completed=2, processing=1), [worker("w", alive=False)], ["no live worker serves the batch"]),
        (batch(completed=1, paused=True), [], ["paused"]),
        (batch(failed=9, pending=1), [LIVE], []),
        (batch(), [], ["no live worker serves the batch"]),
        (batch(), [worker("w", alive=True, heartbeat_age=61.0)], ["no live worker serves the batch"]),
        (batch(), [worker("w", alive=True, batches=["mail"])], ["no live worker serves the batch"]),
        (batch(paused=True), [LIVE], ["paused"]),
        (batch(stopped="too many"), [LIVE], ["stopped (too many)"]),
        (
            batch(cooldown_until=to_text(NOW + 60)), [LIVE],
            ["rests until 08:01 UTC, because a guardrail or a handler requested it; `asyncrunner resume` ends the rest"],
        ),
    ],
)  # fmt: skip
def test_the_readiness_probe_fails_if_an_item_that_is_added_now_would_not_start(
    state: BatchSnapshot, workers: list[WorkerRow], expected: list[str]
) -> None:
    assert [(each.check, each.batch, each.message) for each in readiness_problems(snapshot(state, workers=workers), "")] == [
        ("readiness", "b", message) for message in expected
    ]


def test_without_a_batch_a_live_worker_is_ready() -> None:
    assert [problem.message for problem in readiness_problems(snapshot(), "")] == ["no live worker"]
    assert list(readiness_problems(snapshot(workers=[LIVE]), "")) == []


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (suspect(seconds=60.0), [("isolated", "b")]),
        (suspect(seconds=59.0), []),
        (suspect(), []),
        (suspect(suspicion=Suspicion.SUSPECT, seconds=3600.0), []),
    ],
    ids=["a minute", "less", "pending", "a suspect beside others"],
)
def test_an_item_that_has_run_in_isolation_for_a_minute_is_a_problem(
    item: SuspectRow, expected: list[tuple[str, str | None]]
) -> None:
    assert found(snapshot(batch(processing=1, suspects=[item]), workers=[LIVE])) == expected


def test_the_problem_names_the_isolated_item_and_the_commands() -> None:
    state = snapshot(batch(processing=1, suspects=[suspect("mail-7", seconds=65.0)]), workers=[LIVE])
    (problem,) = problems(state, Limits(), "")
    assert problem.message == (
        "item 'mail-7' has run in isolation for 1 min 05 s, because 3 workers died while it ran; see its errors with "
        "`asyncrunner show KEY`, and end it with `asyncrunner cancel KEY` if it hangs"
    )


def test_a_file_is_in_use_by_a_live_worker_and_by_one_that_cannot_be_proven_dead() -> None:
    def why(*alive: bool | None) -> str | None:
        return why_in_use(worker_statuses([worker("w", alive=each) for each in alive], NOW))

    assert why(False) is None
    assert why(False, True, None) == "1 live worker: the file cannot be rewritten while workers run; stop them first"
    assert (
        why(None, None)
        == "2 workers may be dead, because nothing holds their locks: if no worker runs, run `asyncrunner recover`"
    )
