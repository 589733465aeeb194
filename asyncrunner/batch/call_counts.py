"""Count the items that a call was given, and the leftovers of earlier runs, from the items before and after the run."""

from __future__ import annotations

from typing import NamedTuple

from asyncrunner.domain.item import Counts
from asyncrunner.store.items import Numbers, OpenItems


class CallCounts(NamedTuple):
    """The counts of one call, as numbers of items.

    ``completed``, ``skipped``, ``failed``, ``cancelled``, ``pending`` and ``total`` are of what the call was given, each item
    once. ``leftovers`` are the items that were unfinished when the call began and that it was not given, by their state at
    its end. ``failures``: the given items that failed.
    """

    completed: int
    skipped: int
    failed: int
    cancelled: int
    pending: int
    total: int
    leftovers: Counts
    failures: Numbers

    @property
    def counts(self) -> Counts:
        """The counts of what the call was given, completed and skipped items together."""
        return Counts(self.pending, 0, 0, self.completed + self.skipped, self.failed, self.cancelled)


def count_call(given: Numbers, undone: Numbers, before: OpenItems, now: OpenItems) -> CallCounts:
    """Count the items *given*, and the leftovers, by the items that were not completed *before* the run and are not *now*.

    *undone*: the given items that were completed and run again, because the call gave another payload. An item that was
    deleted since counts as completed, because ``retention`` deletes only completed items.
    """
    skipped = given.up_to(before.newest) - before.all - undone - now.all
    failures = given & now.failed
    done = given - now.all
    leftovers = before.unfinished - given
    return CallCounts(
        completed=len(done) - len(skipped),
        skipped=len(skipped),
        failed=len(failures),
        cancelled=len(given & now.cancelled),
        pending=len(given & now.unfinished),
        total=len(given),
        leftovers=Counts(
            pending=len(leftovers & now.pending),
            processing=len(leftovers & now.processing),
            completed=len(leftovers - now.all),
            failed=len(leftovers & now.failed),
            cancelled=len(leftovers & now.cancelled),
        ),
        failures=failures,
    )
