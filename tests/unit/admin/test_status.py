"""The state of a store is a pure function of a snapshot: rates, ETA, durations, liveness of workers, stuck items."""

from __future__ import annotations

import pytest

from asyncrunner.admin.read_models import Isolated, Throttled
from asyncrunner.admin.status import file_status, lives, rate_of, stuck_items, worker_statuses
from asyncrunner.cli.render.status import display_lines, status_lines
from asyncrunner.domain.item import Suspicion
from asyncrunner.store.liveness import UNPROVEN_SECONDS
from asyncrunner.store.snapshot import BatchSnapshot, StuckRow, SuspectRow, TurnRow, WorkerRow
from asyncrunner.store.workers import Throttle
from asyncrunner.text.timestamps import to_text
from tests.support.snapshots import NOW, batch, snapshot, suspect, turn, worker

LIVE = worker("live", alive=True)
BUSY = [turn(10, completed=10)]


def test_a_snapshot_without_batches_is_an_empty_status() -> None:
    status = file_status(snapshot(), "jobs.db")
    assert (status.db, status.at, status.batches, status.workers, status.failures) == ("jobs.db", to_text(NOW), [], [], [])


@pytest.mark.parametrize(
    ("turns", "rate"),
    [
        ([], 0.0),
        ([turn(61, completed=5)], 0.0),
        ([turn(10, completed=5, failed=5)], 1.0),
        ([turn(0, completed=5), turn(10, completed=20), turn(20, completed=99)], 25 / 20),
        ([turn(0, completed=30), turn(50, completed=30), turn(61, completed=99)], 1.0),
        ([turn(0, completed=1)], 1000.0),
    ],
    ids=["no turns", "an old turn", "one turn", "the oldest turn ended before", "a whole minute", "a turn just now"],
)
def test_the_rate_counts_the_finished_items_of_the_last_minute(turns: list[TurnRow], rate: float) -> None:
    assert rate_of(turns, NOW) == pytest.approx(rate)


@pytest.mark.parametrize(("started_ago", "rate"), [(5, 8 / 4), (60, 15 / 50), (100, 25 / 60)])
def test_the_pause_before_a_run_is_no_part_of_its_rate(started_ago: float, rate: float) -> None:
    """The run begins with the first live worker that serves the batch."""
    began = to_text(NOW - started_ago)
    workers = [
        worker("first", alive=True)._replace(started_at=began),
        worker("second", alive=True)._replace(started_at=to_text(NOW - 1)),
        worker("dead", alive=False),
        worker("another", alive=True, batches=["other"]),
    ]
    turns = [turn(0, completed=5), turn(2, completed=3), turn(4, completed=7), turn(50, completed=10), turn(90, completed=1)]
    (status,) = file_status(snapshot(batch(pending=6, turns=turns), workers=workers), "").batches
    assert status.rate == pytest.approx(rate)


def test_the_eta_is_the_remaining_items_at_that_rate() -> None:
    turns = [turn(10, completed=10)]
    (running,) = file_status(snapshot(batch(pending=6, processing=4, turns=turns), workers=[LIVE]), "").batches
    assert (running.rate, running.eta, running.total) == (1.0, 10.0, 10)
    for held in (
        batch(pending=6, turns=turns, paused=True),
        batch(pending=6, turns=turns, stopped="too many"),
        batch(turns=turns),
    ):
        assert file_status(snapshot(held, workers=[LIVE]), "").batches[0].eta is None


@pytest.mark.parametrize(
    ("workers", "serving"),
    [
        ([], 0),
        ([worker("dead", alive=False)], 0),
        ([worker("silent", alive=None, heartbeat_age=11)], 0),
        ([worker("another", alive=True, batches=["other"])], 0),
        ([LIVE, worker("fresh", alive=None, heartbeat_age=1), worker("dead", alive=False)], 2),
    ],
    ids=["no worker", "a dead one", "a silent one", "one of another batch", "two that live"],
)
def test_there_is_a_rate_and_a_time_left_only_with_a_live_worker_that_serves_the_batch(
    workers: list[WorkerRow], serving: int
) -> None:
    status = file_status(snapshot(batch(pending=5, turns=BUSY), workers=workers), "")
    (shown,) = status.batches
    assert (shown.workers, shown.rate, shown.eta) == ((serving, 1.0, 5.0) if serving else (0, 0.0, None))
    for lines in (status_lines(status), display_lines(status, 1.0, 120, 50)):
        assert any("/s" in line for line in lines) is bool(serving)
    assert shown.idle_reason == (None if serving else "no live worker")


def test_there_is_no_time_left_while_most_items_wait() -> None:
    for waiting, eta in ((3, 6.0), (4, None)):
        state = batch(pending=5, processing=1, waiting=waiting, turns=BUSY)
        assert file_status(snapshot(state, workers=[LIVE]), "").batches[0].eta == eta


@pytest.mark.parametrize(
    ("due_in", "text"),
    [(7200.0, "next at 10:00 UTC"), (7205.0, "next at 10:00:05 UTC"), (86400.0, "next at 2027-01-16 08:00 UTC")],
)
def test_delayed_items_show_when_the_next_one_is_due(due_in: float, text: str) -> None:
    status = file_status(snapshot(batch(pending=2, waiting=2, next_due_in=due_in), workers=[LIVE]), "")
    assert (status.batches[0].next_due_at, status.batches[0].idle_reason) == (to_text(NOW + due_in), text)
    assert any(f"(2 waiting for a retry or a scheduled time, {text})" in line for line in status_lines(status))
    assert any(f"(2 of them not due yet, {text})" in line for line in display_lines(status, 1.0, 120, 50))


@pytest.mark.parametrize(
    ("state", "workers", "reason"),
    [
        (batch(completed=1), [], None),
        (batch(pending=1), [LIVE], None),
        (batch(pending=1), [], "no live worker"),
        (batch(pending=1, paused=True, stopped="too many"), [], "paused"),
        (batch(pending=1, stopped="too many"), [], "stopped: too many"),
        (batch(pending=1, cooldown_until=to_text(NOW + 60)), [LIVE], "rests until 08:01 UTC"),
        (batch(pending=1, cooldown_until=to_text(NOW - 60)), [LIVE], None),
        (batch(pending=2, waiting=2, next_due_in=60.0), [LIVE], "next at 08:01 UTC"),
        (batch(pending=2, waiting=1, next_due_in=60.0), [LIVE], None),
        (batch(pending=1, processing=1, waiting=1, next_due_in=60.0), [LIVE], None),
    ],
)
def test_a_batch_that_starts_no_items_has_a_reason(state: BatchSnapshot, workers: list[WorkerRow], reason: str | None) -> None:
    assert file_status(snapshot(state, workers=workers), "").batches[0].idle_reason == reason


def test_a_batch_that_an_isolated_item_holds_back_has_this_reason() -> None:
    state = batch(pending=5, processing=1, suspects=[suspect(seconds=1.0)])
    assert file_status(snapshot(state, workers=[LIVE]), "").batches[0].idle_reason == "held back by an isolated item"


def test_the_age_of_the_oldest_due_item_is_in_the_status() -> None:
    assert file_status(snapshot(batch(pending=5, oldest=840.0)), "").batches[0].oldest == 840.0
    assert file_status(snapshot(batch()), "").batches[0].oldest is None


def test_durations_are_of_attempts_and_workers_count_attempts() -> None:
    turns = [turn(1, completed=1, durations={"completed": [2.0]})]
    state = snapshot(batch(completed=1, turns=turns), workers=[LIVE._replace(items_processed=1204, items_failed=7)])
    lines = "\n".join(status_lines(file_status(state, "")))
    assert "completed             1   2.0 s per attempt on average, p95 2.0 s" in lines
    assert "1,204 attempts, 7 of them failed" in lines
    lines = "\n".join(display_lines(file_status(state, ""), 1.0, 120, 50))
    assert "2.0 s (p95 2.0 s) per attempt" in lines
    assert "ATTEMPTS" in lines


@pytest.mark.parametrize(
    ("item", "held_back"),
    [
        (suspect(seconds=29.0), True),
        (suspect(seconds=30.0), False),
        (suspect(), True),
        (suspect(due_in=-1.0), True),
        (suspect(due_in=1.0), False),
        (suspect(seconds=1.0, worker_id="dead"), False),
        (suspect(suspicion=Suspicion.SUSPECT, seconds=1.0), False),
    ],
    ids=["it runs", "for 30 s", "it is due", "it is due now", "it is not due", "of a dead worker", "beside the others"],
)
def test_a_batch_is_held_back_while_an_isolated_item_runs_or_is_about_to(item: SuspectRow, held_back: bool) -> None:
    batches = [batch(pending=5, turns=BUSY, suspects=[item]), batch(name="other", pending=5, turns=BUSY)]
    workers = [
        worker("live", alive=True, batches=["b", "other"]),
        worker("dead", alive=False, batches=["b", "other"]),
    ]
    for status in file_status(snapshot(*batches, workers=workers), "").batches:
        assert (status.held_back, status.eta) == ((True, None) if held_back else (False, 5.0))


def test_only_the_batches_of_the_worker_are_held_back() -> None:
    batches = [batch(pending=5, suspects=[suspect(seconds=1.0)]), batch(name="other", pending=5, turns=BUSY)]
    workers = [worker("live", alive=True), worker("second", alive=True, batches=["other"])]
    assert [each.held_back for each in file_status(snapshot(*batches, workers=workers), "").batches] == [True, False]


def test_a_paused_batch_is_not_held_back() -> None:
    state = snapshot(batch(pending=5, paused=True, suspects=[suspect(seconds=1.0)]), workers=[worker("live", alive=True)])
    assert not file_status(state, "").batches[0].held_back


def test_suspects_and_isolated_items_are_counted_and_explained() -> None:
    suspects = [suspect("x", seconds=12.0), suspect("y"), suspect("z", Suspicion.SUSPECT), suspect("w", Suspicion.SUSPECT)]
    status = file_status(snapshot(batch(pending=3, processing=1, suspects=suspects), workers=[worker("live", alive=True)]), "")
    assert (status.batches[0].suspects, status.batches[0].isolated) == (
        4, [Isolated("x", 3, "live", 12.0), Isolated("y", 3, None, None)],
    )  # fmt: skip
    lines = status_lines(status)
    assert "  2 suspects, which were running when workers died: one starts at a time, beside other items" in lines
    assert "  1 item runs alone, for 12 s: 3 workers died while it ran; see `asyncrunner show x`" in lines
    assert "  1 item waits to run alone: 3 workers died while it ran; see `asyncrunner show y`" in lines
    assert any(line.startswith("  held back: ") for line in lines)


def test_a_cool_down_is_shown_until_it_ends() -> None:
    for seconds, shown in ((1.0, to_text(NOW + 1.0)), (0.0, None)):
        (status,) = file_status(snapshot(batch(cooldown_until=to_text(NOW + seconds))), "").batches
        assert status.resting_until == shown


def test_a_service_slows_a_batch_down_in_all_workers_together() -> None:
    workers = [
        worker("x", alive=True, throttle=Throttle(30, 100, NOW - 40)),
        worker("y", alive=None, throttle=Throttle(4, 100, NOW - 12)),
        worker("without", alive=True),
        worker("dead", alive=False, throttle=Throttle(1, 100, NOW)),
    ]
    (status,) = file_status(snapshot(batch(put_offs=1204), workers=workers), "").batches
    assert (status.put_offs, status.throttled) == (1204, Throttled(34, 200, 12.0))
    assert "  slowed down by a service: 34 of 200 slots, put off 12 s ago" in status_lines(
        file_status(snapshot(batch(), workers=workers), "")
    )
    (status,) = file_status(snapshot(batch(), workers=workers[2:]), "").batches
    assert status.throttled is None


def test_durations_are_of_the_newest_thousand_attempts_and_p95_is_one_of_them() -> None:
    turns = [turn(0, durations={"completed": [1.0] * 949 + [9.0] * 51}), turn(1, durations={"completed": [100.0], "failed": []})]
    (status,) = file_status(snapshot(batch(turns=turns)), "").batches
    assert set(status.durations) == {"completed"}
    assert status.durations["completed"].average == pytest.approx(1.408)
    assert status.durations["completed"].p95 == 9.0


def test_processing_items_count_from_their_claim_and_unreadable_times_are_left_out() -> None:
    starts = [to_text(NOW - 4), to_text(NOW - 2), to_text(NOW + 5), None, "by hand"]
    (status,) = file_status(snapshot(batch(processing=5, processing_starts=starts)), "").batches
    assert (status.durations["processing"].average, status.durations["processing"].p95) == (2.0, 4.0)


@pytest.mark.parametrize(
    ("alive", "heartbeat_age", "expected"),
    [(True, 999.0, True), (False, 0.0, False), (None, 10.0, True), (None, 10.1, False)],
)
def test_a_worker_without_proof_lives_while_its_heartbeat_is_fresh(
    alive: bool | None, heartbeat_age: float, expected: bool
) -> None:
    (status,) = worker_statuses([worker("w", alive=alive, heartbeat_age=heartbeat_age)], NOW)
    assert status.heartbeat_age == pytest.approx(heartbeat_age, abs=0.001)
    assert lives(status) is expected


def test_a_stuck_item_whose_holder_is_not_registered_has_no_live_worker() -> None:
    rows = [
        StuckRow("b", key, holder, to_text(NOW - 60), 2) for key, holder in (("x", "w"), ("y", "u"), ("z", "gone"), ("n", None))
    ]
    items = stuck_items(rows, [worker("w", alive=True), worker("u", alive=None)], NOW)
    assert [(item.id, item.worker_alive, item.seconds, item.attempts) for item in items] == [
        ("x", True, 60.0, 2), ("y", None, 60.0, 2), ("z", False, 60.0, 2), ("n", False, 60.0, 2),
    ]  # fmt: skip


def test_a_worker_that_may_be_dead_is_shown_as_such() -> None:
    workers = [worker(f"worker {alive}", alive=alive) for alive in (True, None, False)]
    lines = status_lines(file_status(snapshot(workers=workers), ""))
    shown = {line.partition(":")[0]: line for line in lines if line.startswith("worker")}
    assert "dead" not in shown["worker worker True"]
    assert ", its lock is missing or you may not open it, 0 of" in shown["worker worker None"]
    assert ", dead, 0 of" in shown["worker worker False"]
    silent = worker("w", alive=None, heartbeat_age=UNPROVEN_SECONDS + 0.1)
    status = file_status(snapshot(workers=[silent]), "")
    assert ", may be dead, because nothing holds its lock, 0 of" in "\n".join(status_lines(status))
