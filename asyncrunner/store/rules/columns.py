"""Decode the JSON columns of a store. A person may have written any text, which then counts as absent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from asyncrunner.store.batches import BatchOptions
from asyncrunner.store.workers import Throttle

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def batch_names_in(text: str) -> Sequence[str]:
    """Return the names in a worker's column ``batches``, a JSON list; an empty sequence if the column has no such list."""
    try:
        return msgspec.json.decode(text, type=list[str])
    except (msgspec.DecodeError, UnicodeError):
        return ()


def throttles_in(text: str) -> Mapping[str, Throttle]:
    """Return the batches in a worker's column ``throttles``, a JSON object; none if the column has no such object."""
    try:
        return msgspec.json.decode(text, type=dict[str, Throttle])
    except (msgspec.DecodeError, UnicodeError):
        return {}


def durations_in(text: str) -> dict[str, list[float]]:
    """Return the seconds in a turn's column ``durations``, by status; none if the column has no such JSON."""
    try:
        durations = msgspec.json.decode(text, type=dict[str, list[int]])
    except (msgspec.DecodeError, UnicodeError):
        return {}
    return {status: [microseconds / 1e6 for microseconds in values] for status, values in durations.items()}


def options_in(text: str) -> BatchOptions:
    """Return the options in a batch's column ``options``, or the defaults if the stored ones are invalid."""
    try:
        options = msgspec.json.decode(text, type=BatchOptions)
        options.policy()
    except (msgspec.DecodeError, UnicodeError, ValueError, TypeError):
        return BatchOptions()
    return options
