"""The states of an item, its transitions, and counts of items."""

from __future__ import annotations

import re

from asyncrunner.domain.item import MOVES, TERMINAL, Counts, Status
from asyncrunner.sqlite.sql.schema import MIGRATIONS


def test_every_state_has_its_transitions_and_none_leads_to_an_unknown_state() -> None:
    assert set(MOVES) == set(Status)
    assert {status for moves in MOVES.values() for status in moves} <= set(Status)
    assert all(MOVES[status] == {Status.PENDING} for status in TERMINAL)
    assert MOVES[Status.PENDING] & TERMINAL == {Status.CANCELLED}


def test_the_schema_has_the_same_states() -> None:
    (found,) = re.findall(r"status IN \(([^)]*)\)", MIGRATIONS[0])
    assert [each.strip(" '") for each in found.split(",")] == [status.value for status in Status]


def test_counts_add_up() -> None:
    counts = Counts(pending=5, waiting=2, processing=1, completed=7, failed=3, cancelled=4)
    assert (counts.total, counts.unfinished) == (20, 6)
