"""The file is an interface: the public queries work as the documentation shows them."""

from __future__ import annotations

import re

from asyncrunner.store.turn import Want
from asyncrunner.text.timestamps import to_text
from tests.sqlite.conftest import STUCK, Prepared


async def test_the_public_queries_work_as_they_stand(prepared: Prepared) -> None:
    ask = prepared.ask
    assert ask("SELECT id FROM items WHERE status IN ('pending','failed') AND attempts < 3") == [("some-id",), ("waiting",)]
    assert sorted(ask("SELECT status, COUNT(*) FROM items GROUP BY status")) == [
        ("completed", 1), ("failed", 2), ("pending", 1), ("processing", 1),
    ]  # fmt: skip
    assert ask("SELECT id, error FROM items WHERE status = 'failed'") == [
        ("used up", "ValueError: boom"), ("some-id", "ValueError: boom"),
    ]  # fmt: skip
    assert ask("SELECT id, error, attempts FROM items WHERE status = 'failed' AND attempts >= 3") == [
        ("used up", "ValueError: boom", 3)
    ]
    assert ask(f"SELECT id, worker_id, started_at FROM items WHERE {STUCK}") == [("stuck", "w", to_text(prepared.now))]
    averages = ask(
        "SELECT status, COUNT(*), AVG((julianday(completed_at) - julianday(started_at)) * 86400) "
        "FROM items WHERE started_at IS NOT NULL GROUP BY status"
    )
    assert {status: (count, seconds and round(seconds, 2)) for status, count, seconds in averages} == {
        "completed": (1, 2.0), "failed": (2, 2.0), "processing": (1, None),
    }  # fmt: skip


async def test_a_paused_batch_is_left_alone(prepared: Prepared) -> None:
    prepared.ask("UPDATE batches SET paused = true, concurrency = 5")
    turn = await prepared.store.turn("w", [], [Want(prepared.batch_id, 5, 3)])
    state = turn.batches[prepared.batch_id]
    assert (list(turn.claims), state.resting_until, state.concurrency) == ([], float("inf"), 5)


async def test_times_are_utc_text_with_milliseconds(prepared: Prepared) -> None:
    (row,) = prepared.ask("SELECT created_at, started_at, completed_at FROM items WHERE id = 'done'")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", str(text)) for text in row)
    prepared.ask(f"INSERT INTO items (batch_id, id, payload) VALUES ({prepared.batch_id}, 'by hand', '7')")
    ((age,),) = prepared.ask("SELECT abs(julianday('now') - julianday(created_at)) FROM items WHERE id = 'by hand'")
    assert age < 0.01
