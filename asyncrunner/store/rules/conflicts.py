"""The errors for items whose key exists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncrunner.errors import KeyConflict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncrunner.domain.item import NewItem


def key_conflict(entry: NewItem) -> KeyConflict:
    """Return the error for *entry*, whose key exists with another payload."""
    payload = entry.payload if len(entry.payload) <= 200 else entry.payload[:197] + "..."
    return KeyConflict(
        f"key {entry.id!r} is already in the batch with another payload, of an earlier run or earlier in this input; the new one "
        f'is {payload}. Give each item a unique key (key=, --key), or keep the stored payload with "keep", or run the item again '
        'with the new one with "rerun": both are values of on_change= of run_batch and of handlers, of --on-change of the '
        "command, and of if_exists= of submit",
        key=entry.id,
    )


def key_exists(entries: Sequence[NewItem], known: frozenset[str]) -> KeyConflict:
    """Return the error for the first of *entries* whose key exists: it is in *known*, or earlier in *entries*."""
    seen = set(known)
    key = next(entry.id for entry in entries if entry.id in seen or seen.add(entry.id))  # type: ignore[func-returns-value]
    return KeyConflict(
        f'key {key!r} is already in the batch, and if_exists is "error". Give the item a unique key (key=), or pass '
        'if_exists="keep" to keep the stored item, or if_exists="rerun" to run it again',
        key=key,
    )
