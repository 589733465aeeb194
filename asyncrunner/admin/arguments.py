"""Check the arguments of operators: states, ids and names of batches. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from asyncrunner.admin.health import Limits
from asyncrunner.domain.item import TERMINAL, Status
from asyncrunner.errors import BatchNotFound, ConfigurationError
from asyncrunner.store.snapshot import BatchRow
from asyncrunner.text.durations import Duration, checked_age
from asyncrunner.text.suggestions import no_such_batch
from asyncrunner.text.validation import checked_choice, checked_count, checked_ids

Statuses = Iterable[Status | str] | Status | str
"""One state or several."""


def status_of(given: Status | str) -> Status:
    """Return *given* as a Status. Raises ConfigurationError if it is not a state of an item."""
    return Status(checked_choice("status", given, [each.value for each in Status]))


def statuses_of(given: Statuses) -> list[Status]:
    """Return the given states without duplicates.

    Raises ConfigurationError for an unknown state and for an empty list.
    """
    statuses = [status_of(each) for each in ([given] if isinstance(given, str) else given)]
    if not statuses:
        raise ConfigurationError("no status given; give at least one state")
    return list(dict.fromkeys(statuses))


def finished_statuses_of(given: Statuses) -> list[Status]:
    """Return the given states for a purge.

    Raises ConfigurationError as ``statuses_of``, and for an unfinished state.
    """
    statuses = statuses_of(given)
    unfinished = [each.value for each in statuses if each not in TERMINAL]
    if unfinished:
        raise ConfigurationError(f"purge deletes only finished items, not {' and '.join(unfinished)} ones; cancel those first")
    return statuses


def rerun_statuses_of(given: Statuses | None) -> list[Status]:
    """Return the given states for a rerun; None means all of them.

    Raises ConfigurationError as ``statuses_of``, and for pending items, which run anyway.
    """
    if given is None:
        return [each for each in Status if each is not Status.PENDING]
    statuses = statuses_of(given)
    if Status.PENDING in statuses:
        raise ConfigurationError("pending items run anyway; give completed, failed, cancelled or processing")
    return statuses


def keys_of(ids: Iterable[str]) -> list[str]:
    """Return the given ids without duplicates.

    Raises ConfigurationError for an invalid id, for a single str, and for no ids.
    """
    keys = checked_ids("ids", ids)
    if not keys:
        raise ConfigurationError("no ids were given")
    return keys


def batches_named(rows: Sequence[BatchRow], name: str | None, location: str) -> Sequence[BatchRow]:
    """Return all of *rows*, or only the batch with that *name*.

    Raises BatchNotFound; its message suggests a similar name.
    """
    if name is None:
        return rows
    matching = [row for row in rows if row.name == name]
    if not matching:
        raise no_such_batch(location, name, [row.name for row in rows])
    return matching


def only_batch(rows: Sequence[BatchRow], location: str) -> BatchRow:
    """Return the only row. Raises BatchNotFound if *rows* is empty, and ConfigurationError if it has several rows."""
    if not rows:
        raise BatchNotFound(f"{location} has no batches yet; a run or a runner creates them")
    if len(rows) > 1:
        names = ", ".join(repr(row.name) for row in rows)
        raise ConfigurationError(f"{location} has {len(rows)} batches; give one of {names} with --batch (in Python: batch=)")
    return rows[0]


def limits_of(
    max_failed: int | Literal["any"] | None, max_pending_age: Duration | None, max_processing_age: Duration | None
) -> Limits:
    """Return the limits of a check. Raises ConfigurationError for a value of another kind; "any" and None mean any."""
    return Limits(
        None if max_failed is None or max_failed == "any" else checked_count("max_failed", max_failed, at_least=0),
        None if max_pending_age is None else checked_age("max_pending_age", max_pending_age),
        None if max_processing_age is None else checked_age("max_processing_age", max_processing_age),
    )
