"""The order of the causes of failure of a batch."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Cause(NamedTuple):
    """A cause of failure: a fingerprint or, for items that a person set to failed, the text of the error.

    ``items``: the number of failed items with it. ``attempts``: the number of failed attempts with it.
    """

    fingerprint: str | None
    error: str | None
    items: int
    attempts: int


class Causes(NamedTuple):
    """The most frequent causes, and how many causes and failed items there are in total."""

    largest: Sequence[Cause]
    total: int
    items: int


def largest_causes(
    attempts: Mapping[str, int], items: Mapping[str, int], items_by_error: Mapping[str | None, int], limit: int
) -> Causes:
    """Return up to *limit* causes: first those with the most failed items, then those with the most failed attempts.

    *attempts* has the number of failed attempts of each fingerprint, *items* the number of failed items of each fingerprint, and
    *items_by_error* the number of failed items of each error without a fingerprint.
    """
    causes = [Cause(each, None, count, attempts.get(each, 0)) for each, count in items.items()]
    causes += [Cause(None, error, count, 0) for error, count in items_by_error.items()]
    causes += [Cause(each, None, 0, count) for each, count in attempts.items() if each not in items]
    largest = heapq.nsmallest(
        limit, causes, key=lambda cause: (-cause.items, -cause.attempts, cause.fingerprint or "", cause.error or "")
    )
    return Causes(largest, len(causes), sum(cause.items for cause in causes))
