"""Arguments of operators: states, filters and selections. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from asyncrunner.domain.item import Status
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
