"""Problems are a pure function of a snapshot: only those that need an operator."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from asyncrunner.admin.health import problems, why_in_use
from asyncrunner.admin.status import worker_statuses
from asyncrunner.domain.item import Suspicion
from asyncrunner.store.snapshot import PendingRow, Snapshot, SuspectRow
from asyncrunner.text.timestamps import to_text
from tests.support.snapshots import NOW, batch, snapshot, suspect, worker

LIVE = worker("live", alive=True)


def found(
    state: Snapshot,
    *,
    max_failed: int | None = 0,
    max_pending_age: float | None = None,
    oldest: Mapping[int, PendingRow] | None = None,
) -> list[tuple[str, str | None]]:
    return [
        (problem.check, problem.batch)
        for problem in problems(state, max_failed=max_failed, max_pending_age=max_pending_age, oldest=oldest or {})
    ]


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
    state, oldest = snapshot(batch(pending=1), workers=[LIVE]), {1: PendingRow("x", to_text(NOW - 60))}
    assert found(state, max_pending_age=60.0, oldest=oldest) == []
    assert found(state, max_pending_age=59.0, oldest=oldest) == [("pending", "b")]
    assert found(state, max_pending_age=59.0) == []
    assert found(state, oldest=oldest) == []


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
    (problem,) = problems(state, max_failed=0, max_pending_age=None, oldest={})
    assert problem.message == (
        "item 'mail-7' has run in isolation for 1 min 05 s, because 3 workers died while it ran; see its errors with "
        "`asyncrunner show KEY`, and end it with `asyncrunner cancel KEY` if it hangs"
    )


def test_a_file_is_in_use_by_a_live_worker_and_by_one_that_cannot_be_proven_dead() -> None:
    def why(*alive: bool | None) -> str | None:
        return why_in_use(worker_statuses([worker("w", alive=each) for each in alive], NOW))

    assert why(False) is None
    assert why(False, True, None) == "1 live worker: the file cannot be rewritten while workers run; stop them first"
    assert why(None, None) == "2 workers have no lock file: if nothing runs on this file, run `asyncrunner recover`"
