"""Arguments of operators: states, filters and selections. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from asyncrunner.domain.item import TERMINAL, Status
from asyncrunner.errors import ConfigurationError
from asyncrunner.text.validation import checked_choice

Statuses = Iterable[Status | str] | Status | str
"""One state or several."""


def status_of(given: Status | str) -> Status:
    """Return *given* as a Status. Raises ConfigurationError if it is not a state of an item."""
    return Status(checked_choice("status", given, [each.value for each in Status]))


def statuses_of(given: Statuses) -> list[Status]:
    """Return the given states without duplicates. Raises ConfigurationError for an unknown state and for an empty list."""
    statuses = [status_of(each) for each in ([given] if isinstance(given, str) else given)]
    if not statuses:
        raise ConfigurationError("no status given; give at least one state")
    return list(dict.fromkeys(statuses))


def finished_statuses_of(given: Statuses) -> list[Status]:
    """Return the given states for a purge. Raises ConfigurationError, also for a state of unfinished items."""
    statuses = statuses_of(given)
    unfinished = [each.value for each in statuses if each not in TERMINAL]
    if unfinished:
        raise ConfigurationError(f"purge deletes only finished items, not {' and '.join(unfinished)} ones; cancel those first")
    return statuses
