"""Count the items that a call was given, and the leftovers of earlier runs, from the items before and after the run."""

from __future__ import annotations

from typing import NamedTuple

from asyncrunner.domain.item import Counts
from asyncrunner.store.items import Numbers, OpenItems
from asyncrunner.text.escaping import counted


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

    @property
    def counts_before(self) -> Counts:
        """The counts of what the call was given when it began: what it completes was pending, or did not exist."""
        return Counts(self.pending + self.completed, 0, 0, self.skipped, self.failed, self.cancelled)


def count_call(given: Numbers, undone: Numbers, before: OpenItems, now: OpenItems | None = None) -> CallCounts:
    """Count the items *given*, and the leftovers, by the items that were not completed *before* the run and are not *now*.

    Without *now*, count them as they were before the run.

    *undone*: the given items that were completed and run again, because the call gave another payload. An item that was
    deleted since counts as completed, because ``retention`` deletes only completed items.
    """
    now = before if now is None else now
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


def count_batch(before: Counts | None, now: Counts, *, purged: int, completed: int) -> CallCounts:
    """Count the whole batch, for a call without items.

    *before*: the counts at the start; None if the call ended earlier. *purged*: completed items that the call deleted.
    *completed*: the items that this process completed, of which some may be deleted.
    """
    skipped = min(max((now if before is None else before).completed - purged, 0), now.completed)
    return CallCounts(
        completed=max(now.completed - skipped, completed),
        skipped=skipped,
        failed=now.failed,
        cancelled=now.cancelled,
        pending=now.unfinished,
        total=now.total,
        leftovers=Counts(),
        failures=Numbers(),
    )


def resuming_note(unfinished: Numbers, given: Numbers | None, leave_option: str) -> str | None:
    """Return that the run resumes the items that were *unfinished* and are not *given*; None if there are none.

    *given*: None while the input is not read. *leave_option*: the option that prevents it, as the caller writes it.
    """
    leftovers = unfinished if given is None else unfinished - given
    if not leftovers:
        return None
    detail = ", given or not" if given is None else ""
    return f"resuming {counted(len(leftovers), 'item')} of earlier runs{detail}; {leave_option} runs only what is given"


def other_version_note(items: int, version: str | None) -> str:
    """Return that *items* which another version completed are pending; with leftovers="leave", only given ones run."""
    return f"pending again for version {version!r}: {counted(items, 'item')} that another version completed"
